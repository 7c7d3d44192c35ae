//! From what the API server sends of one object to the object. Each is read by itself, so that one
//! that is wrong spoils no list. What nobody here uses is dropped before it is read. Pure.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::LazyLock;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::watches::{Policy, Watch};
use crate::api::access_policy::{AccessConfig, Authz};
use crate::api::lockdown::{ClusterPart, GatewayAccess, Mode, OnDeny};
use crate::api::status::GatewayStatus;
use crate::index::{Key, NODE_ADDRESSES, Object};
use crate::source::{Declared, SourceError};

/// One object of a watch.
#[derive(Clone, Debug)]
pub struct Item {
    pub key: Key,
    /// `metadata.resourceVersion` as a number; 0 if it is none.
    pub version: u64,
    /// Of policy alone.
    pub declared: Option<Box<Declared>>,
    pub content: Content,
    /// Of what is read of it, where only one watch tells of its kind: kubelets write their Nodes all
    /// the time, and nothing that matters here is different.
    pub digest: Option<u64>,
}

/// What it says.
#[derive(Clone, Debug)]
pub enum Content {
    Object(Box<Object>),
    /// It only matters that it is there.
    Present,
    /// It can't be read.
    Wrong {
        error: SourceError,
        /// Stands for it while there is no good version: without it, more would be open.
        closed: Option<Box<Object>>,
    },
}

/// Reads an object; none for what has no name.
pub fn read(watch: &Watch, mut value: Value) -> Option<Item> {
    let meta = value.get_mut("metadata")?.take();
    let name = meta.get("name")?.as_str()?.to_owned();
    let namespace = meta.get("namespace").and_then(Value::as_str);
    let key = Key {
        namespace: namespace.unwrap_or_default().to_owned(),
        name,
    };
    let version = meta.get("resourceVersion").and_then(Value::as_str);
    let version = version.and_then(|v| v.parse().ok()).unwrap_or(0);
    let declared = declared(watch, &meta, &mut value);
    let mut digest = None;
    let content = if let Watch::Definition(_) = watch {
        Content::Present
    } else {
        let value = thin(watch, meta, value);
        if watch.is_alone() {
            digest = Some(SEED.hash_one(value.to_string()));
        }
        content(watch, &key, value)
    };
    Some(Item {
        key,
        version,
        declared,
        content,
        digest,
    })
}

/// Nobody outside can have two objects of the same digest.
static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// What is told of the object beside its contents.
fn declared(watch: &Watch, meta: &Value, value: &mut Value) -> Option<Box<Declared>> {
    if !matches!(watch, Watch::Own(_) | Watch::Gloo(_)) {
        return None;
    }
    let resource = watch.resource("");
    let uid = meta.get("uid").and_then(Value::as_str).unwrap_or_default();
    let envoys = match watch {
        Watch::Own(Policy::VirtualGateway) => {
            let status = value.get_mut("status").map(Value::take);
            let status = status.map(serde_json::from_value::<GatewayStatus>);
            status.and_then(Result::ok).unwrap_or_default().envoys
        }
        _ => Vec::new(),
    };
    Some(Box::new(Declared {
        api_version: format!("{}/{}", resource.group, resource.version),
        uid: uid.to_owned(),
        generation: meta.get("generation").and_then(Value::as_i64).unwrap_or(0),
        envoys,
        ..Declared::default()
    }))
}

fn content(watch: &Watch, key: &Key, value: Value) -> Content {
    // Kept to fall back on: policy is small.
    let closed = match watch.kind() {
        "AccessPolicy" => Some(admits_nobody as fn(&Watch, Value) -> Option<Box<Object>>),
        "EgressLockdown" => Some(without_exceptions as _),
        _ => None,
    };
    let closed = closed.map(|closed| (closed, value.clone()));
    match object(watch, value) {
        Ok(object) => Content::Object(Box::new(object)),
        Err((field, reason)) => {
            let kind = watch.kind();
            let object = match key.namespace.as_str() {
                "" => format!("{kind}/{}", key.name),
                namespace => format!("{kind}/{namespace}/{}", key.name),
            };
            Content::Wrong {
                error: SourceError {
                    object,
                    field,
                    reason,
                    ..SourceError::default()
                },
                closed: closed.and_then(|(closed, value)| closed(watch, without_uid(value))),
            }
        }
    }
}

/// What stands for an object is not that object: no later agent must take it for one.
fn without_uid(mut value: Value) -> Value {
    if let Some(meta) = value.get_mut("metadata") {
        remove(meta, "uid");
    }
    value
}

/// A lockdown that can't be read still holds the pods that it selects, and excepts nothing. What
/// can't be read in it is taken as strictly as it could be meant.
fn without_exceptions(watch: &Watch, mut value: Value) -> Option<Box<Object>> {
    fn read<T: DeserializeOwned>(value: Option<&Value>) -> Option<T> {
        T::deserialize(value?).ok()
    }
    let spec = value.get_mut("spec")?.as_object_mut()?;
    let allow = spec.remove("allow");
    spec.retain(|field, _| {
        [
            "namespaceSelector",
            "podSelector",
            "mode",
            "auditUntil",
            "onDeny",
            "gatewayAccess",
        ]
        .contains(&field.as_str())
    });
    let mode = read(spec.get("mode"));
    let until = spec.get("auditUntil");
    let ends = read::<Time>(until).is_some();
    if mode.is_none() || mode == Some(Mode::Audit) && until.is_some() && !ends {
        spec.insert("mode".to_owned(), json!(Mode::Enforce));
    }
    if mode != Some(Mode::Audit) || !ends {
        spec.remove("auditUntil");
    }
    if read::<OnDeny>(spec.get("onDeny")).is_none() {
        spec.remove("onDeny");
    }
    if spec.contains_key("gatewayAccess")
        && read::<GatewayAccess>(spec.get("gatewayAccess")).is_none()
    {
        spec.insert("gatewayAccess".to_owned(), json!(GatewayAccess::Policy));
    }
    // What is not there has its default; what is there and can't be read allows nothing.
    if let Some(allow) = allow {
        let cluster = match allow.get("cluster") {
            None if allow.is_object() => None,
            given => Some(read::<Vec<ClusterPart>>(given).unwrap_or_default()),
        };
        let dns = match allow.get("dns") {
            None if allow.is_object() => None,
            Some(Value::Object(dns)) if !dns.contains_key("cluster") => None,
            given => Some(read::<bool>(given.and_then(|dns| dns.get("cluster"))).unwrap_or(false)),
        };
        let mut closed = json!({});
        if let Some(cluster) = cluster {
            closed["cluster"] = json!(cluster);
        }
        if let Some(dns) = dns {
            closed["dns"] = json!({ "cluster": dns });
        }
        spec.insert("allow".to_owned(), closed);
    }
    object(watch, value).ok().map(Box::new)
}

/// A policy that can't be read still closes the destinations that it names.
fn admits_nobody(watch: &Watch, mut value: Value) -> Option<Box<Object>> {
    let spec = value.get_mut("spec")?.as_object_mut()?;
    spec.retain(|field, _| field == "applyToDestinations");
    let Ok(Object::AccessPolicy(mut policy)) = object(watch, value) else {
        return None;
    };
    policy.spec.config = AccessConfig {
        authz: Some(Authz::default()),
        ..AccessConfig::default()
    };
    Some(Box::new(Object::AccessPolicy(policy)))
}

/// The field and the reason if it can't be read.
fn object(watch: &Watch, value: Value) -> Result<Object, (String, String)> {
    let object = match watch {
        Watch::Definition(_) => {
            return Err((String::new(), "is not read as an object".to_owned()));
        }
        Watch::Namespaces => Object::Namespace(typed(value)?),
        Watch::Nodes => Object::Node(typed(value)?),
        Watch::ServiceAccounts => Object::ServiceAccount(typed(value)?),
        Watch::Services => Object::Service(Box::new(typed(value)?)),
        Watch::EndpointSlices => Object::EndpointSlice(Box::new(typed(value)?)),
        Watch::OwnPods
        | Watch::GatewayPods { .. }
        | Watch::NamespacePods { .. }
        | Watch::OtherPods => Object::Pod(Box::new(typed(value)?)),
        Watch::Own(policy) | Watch::Gloo(policy) => match policy {
            Policy::EgressLockdown => Object::EgressLockdown(Box::new(typed(value)?)),
            Policy::VirtualGateway => Object::VirtualGateway(typed(value)?),
            Policy::ExternalService => Object::ExternalService(typed(value)?),
            Policy::AccessPolicy => Object::AccessPolicy(typed(value)?),
        },
    };
    Ok(object)
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T, (String, String)> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let path = if path == "." { String::new() } else { path };
        (path, error.into_inner().to_string())
    })
}

/// Puts back those annotations that somebody reads.
fn keep_annotations(meta: &mut Value, annotations: Option<Value>, names: &[&str]) {
    if let Some(mut annotations) = annotations {
        keep(&mut annotations, names);
        meta["annotations"] = annotations;
    }
}

/// The object without what nobody here reads.
fn thin(watch: &Watch, meta: Value, mut value: Value) -> Value {
    let mut meta = meta;
    keep(
        &mut meta,
        &[
            "name",
            "namespace",
            "uid",
            "labels",
            "annotations",
            "generation",
            "deletionTimestamp",
        ],
    );
    let annotations = meta.get_mut("annotations").map(Value::take);
    remove(&mut meta, "annotations");
    match watch {
        Watch::Definition(_) | Watch::Namespaces | Watch::ServiceAccounts => {
            return json!({ "metadata": meta });
        }
        Watch::Nodes => {
            // What it runs; whatever else its labels say selects nothing.
            keep_in(&mut meta, "labels", &["kubernetes.io/os"]);
            keep_annotations(&mut meta, annotations, &NODE_ADDRESSES);
            keep(&mut value, &["spec", "status"]);
            keep_in(&mut value, "spec", &["podCIDR", "podCIDRs"]);
            keep_in(&mut value, "status", &["addresses"]);
        }
        Watch::Services => {
            keep(&mut value, &["spec", "status"]);
            let fields = [
                "type",
                "clusterIP",
                "clusterIPs",
                "externalIPs",
                "ports",
                "selector",
            ];
            keep_in(&mut value, "spec", &fields);
            keep_in(&mut value, "status", &["loadBalancer"]);
        }
        Watch::EndpointSlices => {
            keep_in(&mut meta, "labels", &["kubernetes.io/service-name"]);
            keep(&mut value, &["addressType", "endpoints", "ports"]);
            for endpoint in items(&mut value, "endpoints") {
                keep(endpoint, &["addresses", "conditions", "targetRef"]);
                keep_in(endpoint, "targetRef", &["kind", "name", "uid"]);
            }
        }
        Watch::OwnPods
        | Watch::GatewayPods { .. }
        | Watch::NamespacePods { .. }
        | Watch::OtherPods => {
            // What marks the mirror of a static pod.
            let marks = ["kubernetes.io/config.mirror", "kubernetes.io/config.hash"];
            keep_annotations(&mut meta, annotations, &marks);
            keep(&mut value, &["spec", "status"]);
            let fields = [
                "nodeName",
                "serviceAccountName",
                "serviceAccount",
                "hostNetwork",
            ];
            let mut own = fields.to_vec();
            if matches!(watch, Watch::OwnPods) {
                own.extend(NODE_ACCESS);
            }
            keep_in(&mut value, "spec", &own);
            if let Some(spec) = value.get_mut("spec") {
                for kind in CONTAINERS {
                    for container in items(spec, kind) {
                        keep(container, &["name", "securityContext"]);
                    }
                }
                for volume in items(spec, "volumes") {
                    keep(volume, &["name", "hostPath"]);
                }
            }
            keep_in(
                &mut value,
                "status",
                &["phase", "podIP", "podIPs", "conditions"],
            );
            if let Some(status) = value.get_mut("status") {
                keep_readiness(status);
            }
        }
        // What can't be honoured is reported, so nothing of the spec may be dropped.
        Watch::Own(_) | Watch::Gloo(_) => {
            for field in ["status", "apiVersion", "kind"] {
                remove(&mut value, field);
            }
        }
    }
    if !value.is_object() {
        value = Value::Object(Map::new());
    }
    value["metadata"] = meta;
    value
}

const CONTAINERS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];
/// What a pod's access to its node shows by; asked of this node's pods only.
const NODE_ACCESS: [&str; 6] = [
    CONTAINERS[0],
    CONTAINERS[1],
    CONTAINERS[2],
    "hostPID",
    "hostUsers",
    "volumes",
];

fn keep(value: &mut Value, fields: &[&str]) {
    if let Value::Object(map) = value {
        map.retain(|field, _| fields.contains(&field.as_str()));
    }
}

/// Of a pod's conditions.
fn keep_readiness(status: &mut Value) {
    if let Some(Value::Array(conditions)) = status.get_mut("conditions") {
        conditions.retain(|c| c.get("type").is_some_and(|t| t == "Ready"));
    }
    for condition in items(status, "conditions") {
        keep(condition, &["type", "status"]);
    }
}

fn keep_in(value: &mut Value, field: &str, fields: &[&str]) {
    if let Some(value) = value.get_mut(field) {
        keep(value, fields);
    }
}

fn remove(value: &mut Value, field: &str) {
    if let Value::Object(map) = value {
        map.remove(field);
    }
}

fn items<'a>(value: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    let items = value.get_mut(field).and_then(Value::as_array_mut);
    items.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(spec: &Value) -> Content {
        let value = json!({
            "apiVersion": "security.policy.gloo.solo.io/v2",
            "kind": "AccessPolicy",
            "metadata": { "name": "p", "namespace": "n", "resourceVersion": "12" },
            "spec": spec,
        });
        let item = read(&Watch::Gloo(Policy::AccessPolicy), value).expect("a name");
        assert_eq!((item.key, item.version), (Key::new("n", "p"), 12));
        item.content
    }

    #[test]
    fn a_wrong_object_is_told_with_its_field() {
        let value = json!({
            "metadata": { "name": "all" },
            "spec": { "mode": "Enforce", "allow": { "cidrs": [{ "cidr": "10.0.0.0/99" }] } },
        });
        let item = read(&Watch::Own(Policy::EgressLockdown), value).expect("a name");
        let Content::Wrong { error, closed } = item.content else {
            panic!("{item:?}");
        };
        assert_eq!(error.object, "EgressLockdown/all");
        assert_eq!(error.field, "spec.allow.cidrs[0].cidr");
        assert!(closed.is_some());
    }

    /// What stands for a lockdown that can't be read.
    fn closed(spec: &Value) -> Option<Value> {
        let value = json!({ "metadata": { "name": "all", "uid": "u" }, "spec": spec });
        let item = read(&Watch::Own(Policy::EgressLockdown), value).expect("a name");
        let Content::Wrong { closed, .. } = item.content else {
            panic!("{spec} can be read");
        };
        let Object::EgressLockdown(closed) = *closed? else {
            panic!("it is a lockdown");
        };
        assert_eq!(closed.metadata.uid, None, "it is not the object");
        Some(serde_json::to_value(closed.spec).expect("plain data"))
    }

    #[test]
    fn a_lockdown_that_cannot_be_read_holds_its_pods_without_exceptions() {
        let stands = closed(&json!({
            "mode": "Audit", "podSelector": { "matchLabels": { "app": "web" } },
            "allow": { "cluster": ["Pods"], "everything": true, "cidrs": [{ "cidr": "0.0.0.0/0" }] },
        }));
        let stands = stands.expect("its selectors can be read");
        assert_eq!(stands["mode"], "Audit");
        assert_eq!(stands["podSelector"]["matchLabels"]["app"], "web");
        assert_eq!(stands["allow"]["cluster"], json!(["Pods"]));
        assert_eq!(stands["allow"]["cidrs"], json!([]));
        let strict = closed(&json!({
            "mode": "Sometimes", "onDeny": 3, "gatewayAccess": "Some",
            "allow": { "cluster": ["Everything"], "dns": { "cluster": 1 } },
        }));
        let strict = strict.expect("it selects all");
        assert_eq!(strict["mode"], "Enforce");
        assert_eq!(strict["gatewayAccess"], "Policy");
        assert_eq!(strict["allow"]["cluster"], json!([]));
        assert_eq!(strict["allow"]["dns"]["cluster"], false);
        for (spec, mode) in [
            (json!({ "mode": "Audit", "auditUntil": "soon" }), "Enforce"),
            (json!({ "mode": "Off", "auditUntil": "soon" }), "Off"),
            (
                json!({ "mode": "Audit", "auditUntil": "2027-01-01T00:00:00Z", "x": 1 }),
                "Audit",
            ),
        ] {
            let stands = closed(&spec).expect("it selects all");
            assert_eq!(stands["mode"], mode, "{spec}");
        }
        let unknown = json!({ "mode": "Enforce", "podSelector": { "matchNames": ["a"] } });
        assert_eq!(closed(&unknown), None, "which pods can't be said");
    }

    #[test]
    fn a_policy_that_cannot_be_read_closes_what_it_names() {
        let destinations = json!([{ "kind": "EXTERNAL_SERVICE", "selector": { "name": "bin" } }]);
        let wrong = json!({ "applyToDestinations": destinations, "config": { "authzList": 3 } });
        let Content::Wrong { error, closed } = policy(&wrong) else {
            panic!("it is wrong");
        };
        assert_eq!(error.field, "spec.config.authzList");
        let Some(Object::AccessPolicy(closed)) = closed.map(|object| *object) else {
            panic!("it closes nothing");
        };
        let spec = closed.spec;
        assert_eq!(
            spec.apply_to_destinations[0].selector.name.as_deref(),
            Some("bin")
        );
        assert_eq!(spec.config.authz, Some(Authz::default()));
    }

    #[test]
    fn a_node_keeps_the_addresses_of_its_tunnels() {
        let item = read(
            &Watch::Nodes,
            json!({
                "metadata": { "name": "n", "annotations": {
                    "projectcalico.org/IPv4VXLANTunnelAddr": "10.244.9.64", "note": "long",
                } },
                "spec": { "podCIDRs": ["10.244.9.0/24"] },
            }),
        );
        let Content::Object(object) = item.expect("a name").content else {
            panic!("an object");
        };
        let Object::Node(node) = *object else {
            panic!("a node");
        };
        let annotations = node.metadata.annotations.expect("annotations");
        let names: Vec<_> = annotations.keys().collect();
        assert_eq!(names, ["projectcalico.org/IPv4VXLANTunnelAddr"]);
    }

    #[test]
    fn a_pod_is_as_thin_as_its_readers_allow() {
        let value = json!({
            "metadata": {
                "name": "web", "namespace": "n", "uid": "u", "resourceVersion": "7",
                "labels": { "app": "web" },
                "annotations": { "kubernetes.io/config.hash": "h", "note": "long" },
                "managedFields": [{ "manager": "kubelet" }],
            },
            "spec": { "nodeName": "a", "hostNetwork": true, "containers": [{
                "name": "c", "image": 7, "securityContext": { "privileged": true },
            }] },
            "status": {
                "phase": "Running", "podIPs": [{ "ip": "10.0.0.1" }],
                "conditions": [{ "type": "Ready", "status": "True" }, { "type": "Other" }],
                "containerStatuses": "not even read",
            },
        });
        let item = read(&Watch::OwnPods, value.clone()).expect("a name");
        let Content::Object(object) = item.content else {
            panic!("{item:?}");
        };
        let Object::Pod(pod) = *object else {
            panic!("a pod");
        };
        let annotations = pod.metadata.annotations.expect("annotations");
        assert_eq!(
            annotations.keys().collect::<Vec<_>>(),
            ["kubernetes.io/config.hash"]
        );
        assert!(pod.metadata.managed_fields.is_none());
        let (spec, status) = (pod.spec.expect("spec"), pod.status.expect("status"));
        assert_eq!(spec.host_network, Some(true));
        // What it can do to its node is asked of this node's pods only.
        assert_eq!(spec.containers.len(), 1);
        let container = &spec.containers[0];
        assert!(container.security_context.is_some() && container.image.is_none());
        let item = read(&Watch::OtherPods, value).expect("a name");
        let Content::Object(object) = item.content else {
            panic!("{item:?}");
        };
        let Object::Pod(other) = *object else {
            panic!("a pod");
        };
        assert!(other.spec.expect("spec").containers.is_empty());
        assert_eq!(status.conditions.expect("conditions").len(), 1);
    }
}
