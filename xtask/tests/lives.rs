//! Pods through their lives, with real packets: a second device, another sandbox, addresses that go
//! from one pod to the next.

mod support;

mod needs_root {
    use std::net::SocketAddr;

    use serde_json::{Value, json};
    use xtask::node::wire::Wire;
    use xtask::node::{Pod, PodSpec, objects, plan};

    use super::support::{Agent, Cluster, GATEWAY_SERVICE, skipped};

    /// A datagram to the outside by the pod's own IP stack, and a frame past it: whether one of them
    /// got there.
    fn gets_out(pod: &Pod, wire: &Wire, tag: &str) -> bool {
        let to = SocketAddr::new(plan::OUTSIDE.v4.into(), plan::OUTSIDE_UDP).to_string();
        let mark = wire.mark();
        let datagram = ["udp", "--to", &to, "--payload", tag, "--timeout-ms", "50"];
        pod.probe(&datagram).expect("a probe");
        let from = pod.ips().v4.to_string();
        let frame = ["packet", "--from", &from, "--to", &to, "--payload", tag];
        pod.probe(&frame).expect("a probe");
        wire.since(mark).iter().any(|packet| packet.contains(tag))
    }

    /// Whether the pod can talk to this one: nobody listens there, which it is told at once.
    fn reaches(pod: &Pod, ip: std::net::Ipv4Addr, port: u16) -> bool {
        let to = SocketAddr::new(ip.into(), port).to_string();
        let answer = pod.probe(&["tcp", "--to", &to, "--timeout-ms", "400"]);
        answer.expect("a probe").outcome == "refused"
    }

    /// Waits until the pod is covered on this many devices, the present one of its own among them.
    fn covered(agent: &mut Agent, cluster: &Cluster, pod: &Pod, count: usize) {
        let device = pod.device().to_owned();
        let index = cluster
            .node
            .host()
            .within(move || Ok(nix::net::if_::if_nametoindex(device.as_str())?))
            .expect("its device");
        agent.wait(cluster, "the pod to be covered", |cluster| {
            let (_, got) = cluster.egressctl(&["pods", "get", &pod.id()]);
            let item = got["items"].get(0).unwrap_or(&got);
            let devices = item["devices"].as_array()?;
            let attached =
                |device: &&Value| device["fromPod"] == "attached" && device["toPod"] == "attached";
            let own = devices.iter().any(|device| device["ifindex"] == index);
            let all = devices.iter().filter(attached).count() == count;
            (own && all && item["coverage"] == "covered").then_some(())
        });
    }

    #[test]
    fn a_second_device_is_no_way_out() {
        if skipped("a_second_device_is_no_way_out") {
            return;
        }
        let cluster = Cluster::new();
        cluster.lockdown("Off", &json!({}));
        let mut agent = cluster.agent(true);
        let wire = cluster.node.wire().expect("a recorder");
        let pod = &cluster.web;
        // As Multus adds one: with a network of its own, and the way outside through it.
        let add = || {
            let host = cluster.node.host();
            let inside = pod.netns().name();
            host.ip(&format!(
                "link add second0 type veth peer name net1 netns {inside}\n\
                 addr add 10.99.0.1/24 dev second0\nlink set second0 up\n"
            ))
            .expect("a device");
            let outside = plan::OUTSIDE.v4;
            pod.netns()
                .ip(&format!(
                    "addr add 10.99.0.2/24 dev net1\nlink set net1 up\n\
                     route add {outside}/32 via 10.99.0.1 dev net1 src 10.99.0.2\n"
                ))
                .expect("the way through it");
        };
        add();
        assert!(gets_out(pod, &wire, "by the second"), "nobody holds it");
        agent.declare(&cluster, || cluster.lockdown("Enforce", &json!({})));
        covered(&mut agent, &cluster, pod, 2);
        assert!(!gets_out(pod, &wire, "by the second"));
        // One that comes while the pod is held.
        let host = cluster.node.host();
        host.ip("link del second0\n").expect("it goes");
        covered(&mut agent, &cluster, pod, 1);
        // Whatever the agent does meanwhile: the gate for devices is closed to it, then its sender is judged.
        agent.wait(&cluster, "a closed gate", |cluster| {
            cluster.log().contains("\"gate_closed\"").then_some(())
        });
        agent.stall(true);
        add();
        assert!(!gets_out(pod, &wire, "past an agent that hangs"));
        agent.stall(false);
        assert!(!gets_out(pod, &wire, "past an agent that goes on"));
        covered(&mut agent, &cluster, pod, 2);
        assert!(!gets_out(pod, &wire, "by the next one"));
        agent.stop();
    }

    #[test]
    fn another_sandbox_of_the_same_pod_is_held_as_the_first() {
        if skipped("another_sandbox_of_the_same_pod_is_held_as_the_first") {
            return;
        }
        let cluster = Cluster::new();
        cluster.lockdown("Enforce", &json!({}));
        let mut agent = cluster.agent(true);
        let wire = cluster.node.wire().expect("a recorder");
        let spec = PodSpec::new("bookinfo", "phoenix", 60);
        cluster.state.apply(&objects::pod(&spec)).expect("write it");
        let mut pod = cluster.node.pod(&spec).expect("a pod");
        covered(&mut agent, &cluster, &pod, 1);
        let slot = cluster.slot(&pod);
        for _ in 0..5 {
            pod.replace_sandbox().expect("another sandbox");
            covered(&mut agent, &cluster, &pod, 1);
            assert!(!gets_out(&pod, &wire, "of another sandbox"));
            assert!(reaches(&pod, plan::pod(12).v4, 9), "pods are open to it");
            assert_eq!(cluster.slot(&pod), slot, "it is the same pod");
        }
        agent.stop();
    }

    #[test]
    fn the_address_of_a_pod_that_has_completed_is_the_next_ones() {
        if skipped("the_address_of_a_pod_that_has_completed_is_the_next_ones") {
            return;
        }
        let cluster = Cluster::new();
        cluster.lockdown("Enforce", &json!({ "allow": { "cluster": ["APIServer"] } }));
        let declared = json!({
            "apiVersion": "sallyport.dev/v1alpha1", "kind": "VirtualGateway",
            "metadata": { "name": "second", "namespace": "istio-egress" },
            "spec": { "workloads": [{ "selector": { "labels": { "app": "second" } } }],
                "listeners": [{ "port": { "number": 8443 },
                    "exposedExternalServices": [{ "host": "*.example.com" }] }] },
        });
        cluster.state.apply(&declared).expect("write it");
        let gateway = PodSpec::new("istio-egress", "second", 21).label("app", "second");
        let apply = |spec: &PodSpec| cluster.state.apply(&objects::pod(spec)).expect("write it");
        let complete = |spec: &PodSpec| {
            let mut object = objects::pod(spec);
            object["status"]["phase"] = json!("Succeeded");
            object["status"]["conditions"][0]["status"] = json!("False");
            cluster.state.apply(&object).expect("write it");
        };
        apply(&gateway);
        let first = cluster.node.pod(&gateway).expect("a pod");
        let mut agent = cluster.agent(true);
        let wire = cluster.node.wire().expect("a recorder");
        let target = plan::pod(21).v4;
        assert!(reaches(&cluster.web, target, 8443), "it is a gateway");

        // Its object stays, with the address, and another pod has that now.
        agent.declare(&cluster, || complete(&gateway));
        first.delete().expect("a clean end");
        let next = PodSpec::new("other", "next", 21);
        agent.declare(&cluster, || apply(&next));
        let pod = cluster.node.pod(&next).expect("a pod");
        assert!(!reaches(&cluster.web, target, 8443), "no gateway has it");
        let vip = plan::service(GATEWAY_SERVICE).v4;
        assert!(reaches(&cluster.web, vip, 443), "the other gateway goes on");
        pod.delete().expect("a clean end");

        // And one that is held has it after one that was not.
        agent.declare(&cluster, || complete(&next));
        let held = PodSpec::new("bookinfo", "heir", 21);
        agent.declare(&cluster, || apply(&held));
        let pod = cluster.node.pod(&held).expect("a pod");
        covered(&mut agent, &cluster, &pod, 1);
        assert!(!gets_out(&pod, &wire, "the address of another"));
        assert!(reaches(&pod, vip, 443), "its own address counts");
        agent.stop();
    }
}
