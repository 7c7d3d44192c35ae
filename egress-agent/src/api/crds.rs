//! The definitions of the kinds, for the API server.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
use serde_json::{Map, Value};

use super::{AccessPolicy, EgressLockdown, EgressNode, ExternalService, VirtualGateway};

/// Which API servers a definition is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiServer {
    /// 1.31 and newer: rules may parse addresses and networks.
    Current,
    /// Before 1.31. What those rules would refuse is still refused by the agents.
    Before1_31,
}

/// All definitions, by the name of their file, without an end.
pub fn all(server: ApiServer) -> Vec<(&'static str, Value)> {
    [
        ("accesspolicies", AccessPolicy::crd()),
        ("egresslockdowns", EgressLockdown::crd()),
        ("egressnodes", EgressNode::crd()),
        ("externalservices", ExternalService::crd()),
        ("virtualgateways", VirtualGateway::crd()),
    ]
    .into_iter()
    .map(|(name, crd)| (name, finish(&crd, server)))
    .collect()
}

/// All definitions as the text of files, by their path below `deploy/crds`.
pub fn files() -> Vec<(String, String)> {
    let folders = [
        (ApiServer::Current, ""),
        (ApiServer::Before1_31, "before-1.31/"),
    ];
    let mut files = Vec::new();
    for (server, folder) in folders {
        for (name, crd) in all(server) {
            let yaml = serde_yaml_ng::to_string(&crd).expect("JSON is YAML");
            let text = format!(
                "# Made by `cargo xtask crds` from egress-agent/src/api.\n{}",
                quote_booleans(&yaml)
            );
            files.push((format!("{folder}{name}.yaml"), text));
        }
    }
    files
}

fn finish(crd: &CustomResourceDefinition, server: ApiServer) -> Value {
    let mut crd = serde_json::to_value(crd).expect("a definition is plain data");
    let labels = serde_json::json!({ "app.kubernetes.io/name": "sallyport" });
    crd["metadata"]["labels"] = labels;
    if let Some(versions) = crd["spec"]["versions"].as_array_mut() {
        for version in versions {
            node(&mut version["schema"]["openAPIV3Schema"], server);
        }
    }
    crd
}

/// Brings what Rust types say into the form that API servers expect.
fn node(schema: &mut Value, server: ApiServer) {
    let Some(fields) = schema.as_object_mut() else {
        return;
    };
    numbers(fields);
    // A Rust default that is empty or zero means "not given"; written into objects it would only
    // be noise, and 0 is no port.
    let empty = |value: &Value| match value {
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        // What is inside an object has its own defaults.
        Value::Null | Value::Bool(false) | Value::Object(_) => true,
        Value::Bool(true) => false,
    };
    if fields.get("default").is_some_and(empty) {
        fields.remove("default");
    }
    // An absent field is how a user writes "none"; null would only be a second way.
    fields.remove("nullable");
    if server == ApiServer::Before1_31 {
        without_parsers(fields);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = fields.get_mut(key) {
            node(inner, server);
        }
    }
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        for (_, inner) in properties.iter_mut() {
            node(inner, server);
        }
    }
}

/// Rust's integers by the two widths that API servers know; limits without a decimal point.
fn numbers(fields: &mut Map<String, Value>) {
    let width = match fields.get("format").and_then(Value::as_str) {
        Some("uint8" | "uint16" | "int8" | "int16") => Some("int32"),
        Some("uint32" | "uint64") => Some("int64"),
        _ => None,
    };
    if let Some(width) = width {
        fields.insert("format".to_owned(), width.into());
    }
    for limit in ["minimum", "maximum"] {
        let whole = fields.get(limit).and_then(Value::as_f64);
        if let Some(whole) = whole.filter(|limit| limit.fract() == 0.0) {
            #[allow(clippy::cast_possible_truncation, reason = "limits are small")]
            fields.insert(limit.to_owned(), (whole as i64).into());
        }
    }
}

/// YAML 1.1, which `kubectl` reads, takes a bare `Off` for a boolean; the emitter knows 1.2 only.
fn quote_booleans(yaml: &str) -> String {
    const BOOLEANS: [&str; 6] = ["y", "yes", "n", "no", "on", "off"];
    let quoted = |line: &str| {
        let (at, value) = line.rfind(' ').map(|at| line.split_at(at + 1))?;
        let bare = BOOLEANS.contains(&value.to_ascii_lowercase().as_str());
        let whole = at.ends_with("- ") || at.ends_with(": ");
        (bare && whole).then(|| format!("{at}'{value}'\n"))
    };
    yaml.lines()
        .map(|line| quoted(line).unwrap_or_else(|| format!("{line}\n")))
        .collect()
}

/// Leaves out the rules that need functions of newer API servers.
fn without_parsers(fields: &mut Map<String, Value>) {
    const NEW: [&str; 4] = ["isCIDR(", "cidr(", "isIP(", "ip("];
    const RULES: &str = "x-kubernetes-validations";
    let Some(Value::Array(rules)) = fields.get_mut(RULES) else {
        return;
    };
    rules.retain(|rule| {
        let text = rule["rule"].as_str().unwrap_or_default();
        !NEW.iter().any(|name| text.contains(name))
    });
    if rules.is_empty() {
        fields.remove(RULES);
    }
}
