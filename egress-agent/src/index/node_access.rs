//! By which a pod gets at its node, where nothing that runs on the node can hold it. Pure.
//!
//! What is asked is whether a process in the pod could leave the pod's network namespace, take the
//! programs off, or write frames to a device of the node. Users in a namespace of their own
//! (`hostUsers: false`) have capabilities over that only.

use std::fmt;

use k8s_openapi::api::core::v1::{Capabilities, Container, Pod, PodSpec, SecurityContext};

/// One way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAccess {
    /// Where it stands, such as `container app: securityContext.privileged`.
    pub field: String,
    pub why: &'static str,
}

/// Capabilities over the node, not only over the pod's own namespaces.
const CAPABILITIES: [(&str, &str); 4] = [
    (
        "SYS_ADMIN",
        "it can enter the node's namespaces and change BPF maps",
    ),
    ("SYS_MODULE", "it can load kernel modules"),
    ("SYS_RAWIO", "it can write to the node's memory and disks"),
    (
        "DAC_READ_SEARCH",
        "it can open any file of the node by its handle",
    ),
];

/// Directories of the node from which it can be taken over. What contains one of them, and what
/// lies within one, does as well.
const PLACES: [&str; 15] = [
    "/proc",
    "/run/containerd",
    "/run/crio",
    "/run/docker.sock",
    "/run/netns",
    "/run/systemd",
    "/sys/fs/bpf",
    "/sys/fs/cgroup",
    "/var/lib/kubelet",
    "/var/lib/containerd",
    "/etc/kubernetes",
    "/etc/cron.d",
    "/usr/bin",
    "/dev/mem",
    "/root",
];

impl fmt::Display for NodeAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.field, self.why)
    }
}

struct Named<'a> {
    name: &'a str,
    security: Option<&'a SecurityContext>,
}

/// All ways there are; none for most pods.
pub fn node_access(pod: &Pod) -> Vec<NodeAccess> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let own_users = spec.host_users == Some(false);
    let host_network = spec.host_network == Some(true);
    let mut ways = Vec::new();
    for container in containers(spec) {
        let mut add = |field: &str, why| {
            let field = format!("container {}: securityContext.{field}", container.name);
            ways.push(NodeAccess { field, why });
        };
        if container.security.and_then(|it| it.privileged) == Some(true) {
            add("privileged", "it can enter the node's namespaces");
            continue;
        }
        if own_users {
            continue;
        }
        let capabilities = container.security.and_then(|it| it.capabilities.as_ref());
        for (name, why) in CAPABILITIES {
            if adds(capabilities, name) {
                add("capabilities.add", why);
            }
        }
        if spec.host_pid == Some(true) && adds(capabilities, "SYS_PTRACE") {
            add("capabilities.add", "it can control the node's processes");
        }
        if host_network && adds(capabilities, "NET_ADMIN") {
            add(
                "capabilities.add",
                "it can change the node's network, hooks included",
            );
        }
        // Container runtimes give it unless it is dropped.
        if host_network && (adds(capabilities, "NET_RAW") || !drops(capabilities, "NET_RAW")) {
            add(
                "capabilities",
                "packet sockets in the node's network pass by the cgroup hook: drop NET_RAW",
            );
        }
    }
    let volumes = spec.volumes.iter().flatten();
    for (volume, host) in volumes.filter_map(|v| Some((v, v.host_path.as_ref()?))) {
        if is_place(&host.path) {
            ways.push(NodeAccess {
                field: format!("volume {}: hostPath {}", volume.name, host.path),
                why: "the node can be taken over from there",
            });
        }
    }
    ways
}

fn containers(spec: &PodSpec) -> Vec<Named<'_>> {
    fn named(container: &Container) -> Named<'_> {
        Named {
            name: &container.name,
            security: container.security_context.as_ref(),
        }
    }
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    let ephemeral = ephemeral.map(|container| Named {
        name: &container.name,
        security: container.security_context.as_ref(),
    });
    let init = spec.init_containers.iter().flatten();
    init.chain(&spec.containers)
        .map(named)
        .chain(ephemeral)
        .collect()
}

/// As runtimes read it: in any case, with `CAP_` or without, and `ALL`.
fn names(list: Option<&Vec<String>>, wanted: &str) -> bool {
    list.into_iter().flatten().any(|name| {
        let name = name.to_ascii_uppercase();
        let name = name.strip_prefix("CAP_").unwrap_or(&name);
        name == wanted || name == "ALL"
    })
}

fn adds(capabilities: Option<&Capabilities>, wanted: &str) -> bool {
    names(capabilities.and_then(|it| it.add.as_ref()), wanted)
}

fn drops(capabilities: Option<&Capabilities>, wanted: &str) -> bool {
    names(capabilities.and_then(|it| it.drop.as_ref()), wanted)
}

fn is_place(path: &str) -> bool {
    let mut parts: Vec<&str> = path
        .split('/')
        .filter(|it| !matches!(*it, "" | "."))
        .collect();
    if parts.first() == Some(&"var") && parts.get(1) == Some(&"run") {
        parts.remove(0);
    }
    PLACES.iter().any(|place| {
        let mut place = place.split('/').filter(|it| !it.is_empty());
        // One is the beginning of the other.
        parts
            .iter()
            .all(|part| place.next().is_none_or(|it| it == *part))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn ways(spec: &Value) -> Vec<String> {
        let pod = json!({ "metadata": { "name": "p" }, "spec": spec });
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        let ways = node_access(&pod).into_iter();
        ways.map(|way| way.field).collect()
    }

    fn container(security: &Value) -> Value {
        json!({ "containers": [{ "name": "c", "securityContext": security }] })
    }

    fn with(mut spec: Value, field: &str, value: Value) -> Value {
        spec[field] = value;
        spec
    }

    #[test]
    fn an_ordinary_pod_has_none() {
        assert!(ways(&json!({ "containers": [{ "name": "c" }] })).is_empty());
        let root = json!({ "runAsUser": 0, "capabilities": { "add": ["NET_ADMIN", "NET_RAW"] } });
        assert!(ways(&container(&root)).is_empty(), "over its own network");
        assert!(ways(&json!({ "containers": [], "hostPID": true })).is_empty());
    }

    #[test]
    fn privileges_count_in_each_kind_of_container() {
        let privileged = json!({ "privileged": true });
        let field = |name: &str| format!("container {name}: securityContext.privileged");
        assert_eq!(ways(&container(&privileged)), [field("c")]);
        for kind in ["initContainers", "ephemeralContainers"] {
            let other = json!([{ "name": "other", "securityContext": privileged }]);
            let spec = with(json!({ "containers": [{ "name": "c" }] }), kind, other);
            assert_eq!(ways(&spec), [field("other")]);
        }
    }

    #[test]
    fn capabilities_over_the_node_count_however_they_are_written() {
        let field = "container c: securityContext.capabilities.add";
        for name in ["SYS_ADMIN", "CAP_SYS_ADMIN", "sys_admin", "SYS_MODULE"] {
            let spec = container(&json!({ "capabilities": { "add": [name] } }));
            assert_eq!(ways(&spec), [field], "{name}");
            let own = with(spec, "hostUsers", json!(false));
            assert!(ways(&own).is_empty(), "{name} over its own users only");
        }
        let all = container(&json!({ "capabilities": { "add": ["ALL"] } }));
        assert_eq!(ways(&all).len(), CAPABILITIES.len());
        let ptrace = container(&json!({ "capabilities": { "add": ["SYS_PTRACE"] } }));
        assert!(ways(&ptrace).is_empty(), "it sees its own processes only");
        assert_eq!(ways(&with(ptrace, "hostPID", json!(true))), [field]);
    }

    #[test]
    fn in_the_nodes_network_packet_sockets_count_unless_they_are_taken_away() {
        let raw = "container c: securityContext.capabilities";
        let host = |security: &Value| with(container(security), "hostNetwork", json!(true));
        assert_eq!(ways(&host(&json!({}))), [raw], "runtimes give it");
        for dropped in ["ALL", "NET_RAW", "CAP_NET_RAW"] {
            let dropped = json!({ "capabilities": { "drop": [dropped] } });
            assert!(ways(&host(&dropped)).is_empty(), "{dropped}");
        }
        let back = json!({ "capabilities": { "drop": ["ALL"], "add": ["NET_RAW"] } });
        assert_eq!(ways(&host(&back)), [raw]);
        let admin = json!({ "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] } });
        assert_eq!(ways(&host(&admin)), [format!("{raw}.add")]);
    }

    #[test]
    fn directories_of_the_node_count_with_what_is_above_and_below() {
        let volume = |path: &str| {
            ways(&json!({
                "containers": [],
                "volumes": [{ "name": "v", "hostPath": { "path": path } }, { "name": "e", "emptyDir": {} }],
            }))
        };
        for path in [
            "/",
            "/run",
            "/var/run",
            "/var/run/containerd/containerd.sock",
            "//run/./containerd/",
            "/proc/1",
            "/sys/fs",
            "/var",
            "/dev",
        ] {
            assert_eq!(volume(path), [format!("volume v: hostPath {path}")]);
        }
        for path in [
            "/var/log/app",
            "/run/app",
            "/data",
            "/dev/net/tun",
            "/etc/localtime",
        ] {
            assert!(volume(path).is_empty(), "{path}");
        }
    }
}
