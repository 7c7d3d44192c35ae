//! What the API server demands of a schema before it takes it ("structural schema").

use serde_json::Value;

use super::schemas;
use egress_agent::api::crds::ApiServer;

#[test]
fn schemas_are_structural_and_described() {
    for server in [ApiServer::Current, ApiServer::Before1_31] {
        for (kind, schema) in schemas(server) {
            let mut faults = Vec::new();
            check(&schema, &kind, &mut faults);
            assert!(faults.is_empty(), "{}", faults.join("\n"));
        }
    }
}

/// A field that is not known must not vanish before the agents have seen it: dropping a condition
/// could allow more. So every object of a spec that isn't a map keeps unknown fields.
#[test]
fn nothing_of_a_spec_is_pruned() {
    fn pruned(schema: &Value, at: &str, found: &mut Vec<String>) {
        if schema["properties"].is_object()
            && schema["x-kubernetes-preserve-unknown-fields"] != Value::Bool(true)
        {
            found.push(at.to_owned());
        }
        for (at, inner) in children(schema, at) {
            pruned(inner, &at, found);
        }
    }
    for (kind, schema) in schemas(ApiServer::Current) {
        let mut found = Vec::new();
        pruned(&schema["properties"]["spec"], &kind, &mut found);
        // Leaves that Rust reads without a place for unknown fields, and that narrow nothing.
        let leaf = |at: &String| at.rsplit('.').next().map(str::to_owned).unwrap_or_default();
        found.retain(|at| !["virtualGatewayRefs[]", "port", "headers[]"].contains(&&*leaf(at)));
        assert!(found.is_empty(), "{found:?}");
    }
}

fn children<'a>(schema: &'a Value, at: &str) -> Vec<(String, &'a Value)> {
    let mut found = Vec::new();
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        found.push((format!("{at}.{name}"), inner));
    }
    for key in ["items", "additionalProperties"] {
        if schema[key].is_object() {
            found.push((format!("{at}[]"), &schema[key]));
        }
    }
    found
}

/// Words of JSON Schema that a definition must not use.
const FORBIDDEN: [&str; 14] = [
    "$ref",
    "$defs",
    "$schema",
    "definitions",
    "dependencies",
    "deprecated",
    "discriminator",
    "id",
    "patternProperties",
    "readOnly",
    "writeOnly",
    "xml",
    "nullable",
    "const",
];

fn check(schema: &Value, at: &str, faults: &mut Vec<String>) {
    let mut fault = |text: &str| faults.push(format!("{at}: {text}"));
    let Some(fields) = schema.as_object() else {
        return fault("is no schema");
    };
    if !fields.get("type").is_some_and(Value::is_string) {
        fault("has no type");
    }
    for word in FORBIDDEN {
        if fields.contains_key(word) {
            fault(&format!("`{word}` is not allowed"));
        }
    }
    if fields.contains_key("properties") && fields.contains_key("additionalProperties") {
        fault("has both properties and additionalProperties");
    }
    if schema["uniqueItems"] == Value::Bool(true) {
        fault("uniqueItems is not allowed; use x-kubernetes-list-type");
    }
    // Inside a choice only values are looked at: types and names stand outside of it.
    for choice in ["anyOf", "oneOf", "allOf"] {
        for alternative in schema[choice].as_array().into_iter().flatten() {
            for word in ["type", "properties", "items", "description", "default"] {
                if alternative.get(word).is_some() {
                    fault(&format!("`{word}` inside {choice}"));
                }
            }
        }
    }
    for required in schema["required"].as_array().into_iter().flatten() {
        let name = required.as_str().unwrap_or_default();
        if schema["properties"].get(name).is_none() {
            fault(&format!("requires `{name}`, which it does not have"));
        }
    }
    // Without a limit the API server can't tell that rules inside are cheap.
    let spec = at.contains(".spec");
    match schema["type"].as_str() {
        Some("array") if !fields.contains_key("maxItems") => fault("has no maxItems"),
        Some("array") if !schema["items"].is_object() => fault("has no items"),
        Some("string")
            if spec
                && schema["format"] != "date-time"
                && !["enum", "maxLength"]
                    .iter()
                    .any(|k| fields.contains_key(*k)) =>
        {
            fault("has no maxLength");
        }
        _ => {}
    }
    for rule in schema["x-kubernetes-validations"]
        .as_array()
        .into_iter()
        .flatten()
    {
        if rule["message"].as_str().is_none_or(str::is_empty) {
            fault("has a rule without a message");
        }
        if let Some(field) = rule["fieldPath"].as_str() {
            let name = field.trim_start_matches('.');
            if schema["properties"].get(name).is_none() {
                fault(&format!(
                    "a rule is about `{field}`, which it does not have"
                ));
            }
        }
    }
    for (below, inner) in children(schema, at) {
        let own = below.ends_with("[]") || inner["description"].is_string();
        // The root of a definition has two fields whose meaning is not ours to tell.
        if !own && !below.ends_with(".status") {
            faults.push(format!("{below}: has no description"));
        }
        check(inner, &below, faults);
    }
}
