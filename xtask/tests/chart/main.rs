//! The chart, as Helm renders it: for every sensible choice of values what comes of it is what an
//! API server takes, and what the agent understands; values that make no sense are refused.

mod explained;
mod programs;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, ResourceQuota, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use xtask::deploy::chart::Chart;
use xtask::deploy::documents;
use xtask::workspace::Workspace;

static WORKSPACE: LazyLock<Workspace> =
    LazyLock::new(|| Workspace::find().expect("the workspace of this test"));
static CHART: LazyLock<Chart> = LazyLock::new(|| Chart::open(&WORKSPACE).expect("Helm"));

/// Choices that switch templates on and off, each by a name.
fn choices() -> Vec<(&'static str, Value)> {
    let on = json!({ "enabled": true });
    vec![
        ("defaults", json!({})),
        (
            "everything",
            json!({
                "image": { "repository": "registry.example:5000/agent", "tag": "1",
                           "pullPolicy": "Never", "pullSecrets": [{ "name": "pull" }] },
                "clusterName": "one", "podCIDRs": ["10.0.0.0/8", "fd00::/8"],
                "unknownPods": "Allow", "outboundPolicy": "ALLOW_ANY", "logFormat": "text",
                "apiServer": { "host": "api.example", "port": 6443 },
                "policyServer": { "enabled": true, "tlsMin": "1.2", "clientBinding": "prefer",
                                  "gateways": { "certDir": "/certs", "authz": "ext-authz" } },
                "metrics": { "tls": on, "podMonitor": on, "alerts": on, "dashboard": on },
                "resourceQuota": on,
                "podLabels": { "a": "b" }, "podAnnotations": { "a": "b" },
                "extraArgs": ["--node-name=another"], "extraEnv": [{ "name": "A", "value": "b" }],
                "affinity": { "nodeAffinity": {} },
                "node": { "cgroupRoot": "/sys/fs/cgroup/unified", "kubepods": "kubepods.slice" },
                "nri": { "timeoutMs": 60_000, "onTimeout": "Allow", "netnsDir": "" },
                "startupTaint": on,
            }),
        ),
        ("without NRI", json!({ "nri": { "enabled": false } })),
        (
            "workload API",
            json!({ "policyServer": { "enabled": true, "spiffe": on } }),
        ),
        (
            "uninstall",
            json!({ "uninstall": true, "startupTaint": on }),
        ),
        (
            "by digest",
            json!({ "image": { "digest": format!("sha256:{}", "0".repeat(64)) } }),
        ),
        (
            "own rights",
            json!({ "rbac": { "create": false }, "serviceAccount": { "create": false },
                    "crds": { "install": false } }),
        ),
        ("without Gloo", json!({ "rbac": { "gloo": false } })),
        (
            "stricter nodes",
            json!({ "security": {
                "seccompProfile": { "type": "Localhost", "localhostProfile": "sallyport.json" },
                "seLinuxOptions": { "type": "spc_t" },
                "openshift": true,
            } }),
        ),
        (
            "OpenShift with all volumes",
            json!({ "security": { "openshift": true }, "policyServer": { "enabled": true } }),
        ),
    ]
}

fn rendered(values: &Value) -> Vec<Value> {
    let files = CHART.render(values).expect("it renders");
    let texts = files
        .iter()
        .filter(|(name, _)| name.as_str() != "NOTES.txt");
    texts
        .flat_map(|(name, text)| documents(text).unwrap_or_else(|error| panic!("{name}: {error}")))
        .collect()
}

#[test]
fn helm_finds_nothing_wrong() {
    for (name, values) in choices() {
        for version in ["v1.28.0", "v1.36.0"] {
            let found = CHART.lint(&values, version).expect("Helm runs");
            assert!(found.is_empty(), "{name} on {version}: {found:#?}");
        }
    }
}

/// Fields of `there` that its type does not have: what is read into the type and written again
/// lacks them.
fn unknown<T: DeserializeOwned + Serialize>(there: &Value) -> Vec<String> {
    let typed: T = match serde_json::from_value(there.clone()) {
        Ok(typed) => typed,
        Err(error) => return vec![error.to_string()],
    };
    let known = serde_json::to_value(typed).expect("an object");
    let mut missing = Vec::new();
    compare(there, &known, "", &mut missing);
    missing
}

fn compare(there: &Value, known: &Value, path: &str, missing: &mut Vec<String>) {
    match (there, known) {
        (Value::Object(there), Value::Object(known)) => {
            for (key, value) in there {
                let path = format!("{path}.{key}");
                match known.get(key) {
                    Some(known) => compare(value, known, &path, missing),
                    // An empty value says as much as none.
                    None if value.is_null() || *value == json!([]) || *value == json!({}) => {}
                    None => missing.push(path),
                }
            }
        }
        (Value::Array(there), Value::Array(known)) => {
            for (at, (there, known)) in there.iter().zip(known).enumerate() {
                compare(there, known, &format!("{path}[{at}]"), missing);
            }
        }
        _ => {}
    }
}

#[test]
fn what_is_rendered_has_only_fields_that_an_api_server_knows() {
    let mut kinds = BTreeSet::new();
    for (name, values) in choices() {
        for object in rendered(&values) {
            let kind = object["kind"].as_str().expect("a kind").to_owned();
            let wrong = match kind.as_str() {
                "DaemonSet" => unknown::<DaemonSet>(&object),
                "ConfigMap" => unknown::<ConfigMap>(&object),
                "Service" => unknown::<Service>(&object),
                "ServiceAccount" => unknown::<ServiceAccount>(&object),
                "ResourceQuota" => unknown::<ResourceQuota>(&object),
                "ClusterRole" => unknown::<ClusterRole>(&object),
                "ClusterRoleBinding" => unknown::<ClusterRoleBinding>(&object),
                "Role" => unknown::<Role>(&object),
                "RoleBinding" => unknown::<RoleBinding>(&object),
                "CustomResourceDefinition" => unknown::<CustomResourceDefinition>(&object),
                // Of the Prometheus operator.
                "PodMonitor" => {
                    let end = &object["spec"]["podMetricsEndpoints"][0];
                    let good = end["port"] == "metrics-tls"
                        && end["scheme"] == "https"
                        && object["spec"]["selector"]["matchLabels"].is_object();
                    (!good).then(|| end.to_string()).into_iter().collect()
                }
                "PrometheusRule" => {
                    let rules = object["spec"]["groups"][0]["rules"].as_array();
                    let bad = |rule: &&Value| {
                        !(rule["alert"].is_string()
                            && rule["expr"].is_string()
                            && rule["annotations"]["summary"].is_string()
                            && rule["labels"]["severity"].is_string())
                    };
                    let rules = rules.expect("rules");
                    rules.iter().filter(bad).map(Value::to_string).collect()
                }
                // Of OpenShift; what is in it, the test below compares with the pods.
                "SecurityContextConstraints" => Vec::new(),
                other => panic!("{name}: an unexpected {other}"),
            };
            assert_eq!(
                wrong, [""; 0],
                "{name}: {kind} {}",
                object["metadata"]["name"]
            );
            kinds.insert(kind);
        }
    }
    for kind in ["DaemonSet", "PodMonitor", "PrometheusRule", "ResourceQuota"] {
        assert!(kinds.contains(kind), "no choice renders a {kind}");
    }
}

#[test]
fn the_constraints_of_openshift_admit_the_pods_and_no_more() {
    let scc = |object: &Value| object["kind"] == "SecurityContextConstraints";
    let mut seen = 0;
    for (name, values) in choices() {
        let objects = rendered(&values);
        let Some(scc) = objects.iter().find(|object| scc(object)) else {
            continue;
        };
        seen += 1;
        let set = objects.iter().find(|object| object["kind"] == "DaemonSet");
        let pod = &set.expect("a DaemonSet")["spec"]["template"]["spec"];
        let container = &pod["containers"][0]["securityContext"];
        for (admits, asks) in [
            (&scc["allowHostNetwork"], &pod["hostNetwork"]),
            (&scc["allowHostPID"], &pod["hostPID"]),
            (
                &scc["allowedCapabilities"],
                &container["capabilities"]["add"],
            ),
            (&scc["allowPrivilegedContainer"], &container["privileged"]),
            (
                &scc["allowPrivilegeEscalation"],
                &container["allowPrivilegeEscalation"],
            ),
            (
                &scc["readOnlyRootFilesystem"],
                &container["readOnlyRootFilesystem"],
            ),
        ] {
            assert!(!asks.is_null() && admits == asks, "{name}: {admits} {asks}");
        }
        let profile = match pod["securityContext"]["seccompProfile"]["type"].as_str() {
            Some("Localhost") => "localhost/sallyport.json",
            Some("RuntimeDefault") => "runtime/default",
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(scc["seccompProfiles"], json!([profile]), "{name}");
        let kinds = scc["volumes"].as_array().expect("kinds of volumes");
        for volume in pod["volumes"].as_array().expect("volumes") {
            let mut kind = volume.as_object().expect("a volume").keys();
            let kind = kind.find(|key| *key != "name").expect("a kind");
            assert!(kinds.contains(&json!(kind)), "{name}: {kind}");
        }
        // The token of the service account comes as one.
        assert!(kinds.contains(&json!("projected")), "{name}");
    }
    assert!(seen > 1, "hardly any choice renders them");
}

#[test]
fn a_field_that_does_not_exist_is_found() {
    let mut set = rendered(&json!({}))
        .into_iter()
        .find(|object| object["kind"] == "DaemonSet")
        .expect("a DaemonSet");
    assert_eq!(unknown::<DaemonSet>(&set), [""; 0]);
    set["spec"]["template"]["spec"]["containers"][0]["securityContex"] = json!({ "a": 1 });
    assert_eq!(
        unknown::<DaemonSet>(&set),
        [".spec.template.spec.containers[0].securityContex"]
    );
}

#[test]
fn values_that_make_no_sense_are_refused() {
    for values in [
        json!({ "unknownPods": "Perhaps" }),
        json!({ "outboundPolicy": "allow" }),
        json!({ "logFormat": "xml" }),
        json!({ "metrics": { "port": 0 } }),
        json!({ "metrics": { "bindAddress": "0.0.0.0" } }),
        json!({ "metrics": { "podMonitor": { "enabled": true } } }),
        json!({ "metrics": { "port": 65_536 } }),
        json!({ "policyServer": { "tlsMin": "1.1" } }),
        json!({ "policyServer": { "clientBinding": "on" } }),
        json!({ "policyServer": { "gateways": { "authz": "none" } } }),
        json!({ "image": { "digest": "sha256:12" } }),
        json!({ "security": { "seccompProfile": { "type": "Localhost" } } }),
        json!({ "security": { "seLinuxOptions": { "typ": "spc_t" } } }),
        json!({ "image": { "pullPolicy": "Sometimes" } }),
        json!({ "podCIDRs": "10.0.0.0/8" }),
        json!({ "unknownpods": "Deny" }),
        json!({ "policyServer": { "enable": true } }),
        json!({ "uninstall": "yes" }),
        json!({ "nri": { "timeoutMs": 0 } }),
        json!({ "nri": { "timeoutMs": 60_001 } }),
        json!({ "nri": { "onTimeout": "Wait" } }),
        json!({ "startupTaint": { "enabled": true, "key": "a b" } }),
    ] {
        let refused = CHART.render(&values);
        assert!(refused.is_err(), "{values} is taken");
    }
}

#[test]
fn the_agent_knows_every_setting_that_it_is_given() {
    let options = WORKSPACE.root.join("egress-agent/src");
    let sources = sources(&options);
    for (name, values) in choices() {
        for object in rendered(&values) {
            let pod = &object["spec"]["template"]["spec"];
            let containers = [&pod["containers"], &pod["initContainers"]];
            let containers = containers.into_iter().filter_map(Value::as_array).flatten();
            let settings = containers.filter_map(|it| it["env"].as_array()).flatten();
            for setting in settings.filter_map(|it| it["name"].as_str()) {
                if setting.starts_with("SALLYPORT_") || setting.starts_with("SPIFFE_") {
                    let literal = format!("\"{setting}\"");
                    assert!(
                        sources.contains(&literal),
                        "{name}: nothing reads {setting}"
                    );
                }
            }
        }
    }
}

/// Suffixes that come from the kind of a metric or its unit.
const SUFFIXES: [&str; 7] = [
    "_total", "_bucket", "_count", "_sum", "_seconds", "_bytes", "_info",
];

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_there_are() {
    let sources = sources(&WORKSPACE.root.join("egress-agent/src"));
    let files = WORKSPACE.root.join("deploy/helm/sallyport/files");
    let mut asked = BTreeSet::new();
    for file in ["alerts.yaml", "dashboard.json"] {
        let text = fs::read_to_string(files.join(file)).expect("a file");
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let words = text.split(|c: char| !word(c));
        asked.extend(
            words
                .filter_map(|word| word.strip_prefix("sallyport_"))
                .map(str::to_owned),
        );
    }
    assert!(asked.len() > 10, "{asked:?}");
    for metric in asked {
        let mut name = metric.as_str();
        let mut known = sources.contains(&format!("\"{name}\""));
        // A unit stands before the suffix of the kind.
        while let Some(base) = SUFFIXES.iter().find_map(|it| name.strip_suffix(it)) {
            name = base;
            known |= sources.contains(&format!("\"{name}\""));
        }
        assert!(known, "no metric sallyport_{metric}");
    }
}

/// All sources of a crate as one text.
fn sources(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            text.push_str(&sources(&path));
        } else if path.extension().is_some_and(|it| it == "rs") {
            text.push_str(&fs::read_to_string(&path).expect("a source"));
        }
    }
    text
}

#[test]
fn plain_manifests_are_the_charts() {
    let written = xtask::deploy::files(&CHART).expect("they render");
    let folder = WORKSPACE.root.join("deploy/kustomize");
    for (name, text) in &written {
        let there = fs::read_to_string(folder.join(name)).unwrap_or_default();
        assert!(
            there == *text,
            "{name} differs: run `cargo xtask manifests`"
        );
    }
    // What a kustomization names is there, and every object has one name in it.
    for (name, text) in written
        .iter()
        .filter(|(name, _)| name.ends_with("kustomization.yaml"))
    {
        let mut names: BTreeMap<String, usize> = BTreeMap::new();
        for object in built(
            &folder.join(Path::new(name).parent().expect("a folder")),
            text,
        ) {
            let meta = &object["metadata"];
            let id = format!("{} {} {}", object["kind"], meta["namespace"], meta["name"]);
            *names.entry(id).or_default() += 1;
        }
        let twice: Vec<_> = names.iter().filter(|(_, count)| **count > 1).collect();
        assert!(!names.is_empty() && twice.is_empty(), "{name}: {twice:?}");
    }
}

/// The objects of a kustomization, as kustomize gathers them.
fn built(folder: &Path, text: &str) -> Vec<Value> {
    let kustomization = documents(text).expect("YAML");
    let resources = kustomization[0]["resources"].as_array().expect("resources");
    let mut objects = Vec::new();
    for resource in resources {
        let path = folder.join(resource.as_str().expect("a path"));
        if path.is_dir() {
            let inner = fs::read_to_string(path.join("kustomization.yaml"));
            objects.extend(built(&path, &inner.expect("a kustomization")));
        } else {
            let text =
                fs::read_to_string(&path).unwrap_or_else(|_| panic!("no {}", path.display()));
            objects.extend(documents(&text).expect("YAML"));
        }
    }
    objects
}
