//! Static pods, such as the API server itself: nobody tells of them before it answers.

mod support;

mod needs_root {
    use std::fs;
    use std::net::SocketAddr;
    use std::time::{Duration, Instant};

    use serde_json::{Value, json};
    use xtask::node::wire::Wire;
    use xtask::node::{Pod, PodSpec, objects, plan};

    use super::support::{Cluster, skipped};

    /// As the kubelet calls one: the MD5 of its manifest.
    fn hash(number: u8) -> String {
        format!("{number:032x}")
    }

    fn manifest(namespace: &str, number: u8) -> PodSpec {
        PodSpec::new(namespace, &format!("static-{number}"), number).of_manifest(&hash(number))
    }

    /// What the kubelet makes of it in the API.
    fn mirror(spec: &PodSpec) -> Value {
        let mut object = objects::pod(spec);
        object["metadata"]["uid"] = json!("aaaaaaaa-1111-4222-8333-444444444444");
        object["metadata"]["annotations"] = json!({
            "kubernetes.io/config.mirror": spec.uid,
            "kubernetes.io/config.hash": spec.uid,
        });
        object
    }

    fn gets_out(pod: &Pod, wire: &Wire) -> bool {
        let to = SocketAddr::new(plan::OUTSIDE.v4.into(), plan::OUTSIDE_UDP).to_string();
        let tag = format!("of {}", pod.id());
        let mark = wire.mark();
        let datagram = ["udp", "--to", &to, "--payload", &tag, "--timeout-ms", "50"];
        pod.probe(&datagram).expect("a probe");
        wire.since(mark).iter().any(|packet| packet.contains(&tag))
    }

    /// It gets out before long.
    fn passes(pod: &Pod, wire: &Wire) -> bool {
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end {
            if gets_out(pod, wire) {
                return true;
            }
        }
        false
    }

    #[test]
    fn a_static_pod_passes_until_an_object_says_otherwise() {
        if skipped("a_static_pod_passes_until_an_object_says_otherwise") {
            return;
        }
        let cluster = Cluster::new();
        cluster.lockdown("Enforce", &json!({}));
        let mut agent = cluster.agent(true);
        let wire = cluster.node.wire().expect("a recorder");
        let make = |spec: &PodSpec| cluster.node.pod(spec).expect("a pod");
        // In the node's network, as those of the control plane are, and in one of its own.
        let etcd = make(&manifest("kube-system", 31).host_network());
        let own = make(&manifest("kube-system", 32));
        assert!(passes(&etcd, &wire) && passes(&own, &wire));
        // Nobody tells of this one either, and anybody may make it.
        let stranger = make(&PodSpec::new("kube-system", "stranger", 33));
        assert!(!gets_out(&stranger, &wire), "the gate is closed");

        // Its object selects it.
        let spec = manifest("bookinfo", 34);
        let held = make(&spec);
        assert!(passes(&held, &wire));
        agent.declare(&cluster, || {
            cluster.state.apply(&mirror(&spec)).expect("write it");
        });
        assert!(!gets_out(&held, &wire), "it is held as others are");

        // Those that are known go on without the agent.
        agent.kill();
        assert!(gets_out(&etcd, &wire) && gets_out(&own, &wire));
        assert!(!gets_out(&held, &wire) && !gets_out(&stranger, &wire));
        let meanwhile = make(&manifest("kube-system", 35));
        assert!(!gets_out(&meanwhile, &wire), "nobody sees it");

        // The API server is such a pod, and doesn't answer yet.
        let kubeconfig = cluster.node.directory().join("nobody");
        fs::write(&kubeconfig, NOBODY).expect("write it");
        let agent = cluster.agent_of_api_server(&kubeconfig, false);
        assert!(passes(&meanwhile, &wire), "{}", cluster.log());
        let later = make(&manifest("kube-system", 36).host_network());
        assert!(passes(&later, &wire), "{}", cluster.log());
        assert!(gets_out(&etcd, &wire) && gets_out(&own, &wire));
        assert!(
            !gets_out(&held, &wire),
            "what was said of it before stays: {}",
            cluster.log()
        );
        assert!(!gets_out(&stranger, &wire));
        agent.stop();

        // And then it does; nothing of that was a stranger's doing.
        let mut agent = cluster.agent(true);
        assert!(gets_out(&later, &wire) && gets_out(&meanwhile, &wire));
        assert!(!gets_out(&held, &wire) && !gets_out(&stranger, &wire));
        agent.declare(&cluster, || {
            let name = objects::file_name(&mirror(&spec));
            cluster.state.remove(&name).expect("its end");
        });
        assert!(!gets_out(&held, &wire), "it stays held while it runs");
        super::support::held::no_stranger_was_seen(&cluster);
        agent.stop();
    }

    const NOBODY: &str = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
        clusters: [{ name: c, cluster: { server: \"http://127.0.0.1:1\" } }]\n\
        users: [{ name: u, user: {} }]\n\
        contexts: [{ name: c, context: { cluster: c, user: u } }]\n";
}
