//! A Service whose endpoints turn from outside to inside while a pod is connected through it: the NAT of a
//! connection stays as it was with its first packet.

mod support;

mod needs_root {
    use std::io::Write as _;
    use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread::{self, JoinHandle, sleep};
    use std::time::Duration;

    use serde_json::json;
    use xtask::node::wire::Wire;
    use xtask::node::{Backend, Pod, Service, ServicePort, objects, plan};

    use super::support::{Cluster, skipped};

    const TURNING: u8 = 51;
    const PORT: u16 = 8088;
    const WORD: &str = "X-Still-Connected";

    fn turning(backend: Backend) -> Service {
        Service {
            namespace: "bookinfo".to_owned(),
            name: "turning".to_owned(),
            selector: Vec::new(),
            cluster_ips: plan::service(TURNING),
            ports: vec![ServicePort::tcp("http", PORT, plan::OUTSIDE_HTTP)],
            backend,
        }
    }

    fn outside() -> Backend {
        Backend {
            ips: plan::OUTSIDE,
            pod: None,
        }
    }

    fn inside(pod: &Pod) -> Backend {
        let spec = pod.spec();
        Backend {
            ips: spec.ips,
            pod: Some((spec.namespace.clone(), spec.name.clone(), spec.uid.clone())),
        }
    }

    /// Says something all the time on a connection to the Service, until it is told to end or can't.
    fn talk(pod: &Pod, to: IpAddr, end: &Arc<AtomicBool>) -> JoinHandle<()> {
        let connect = move || Ok(TcpStream::connect(SocketAddr::new(to, PORT))?);
        let mut stream = pod.netns().within(connect).expect("a connection");
        stream.set_nodelay(true).expect("an option");
        stream.write_all(b"GET / HTTP/1.1\r\n").expect("a request");
        let end = Arc::clone(end);
        thread::spawn(move || {
            while !end.load(Ordering::Relaxed) && write!(stream, "{WORD}: yes\r\n").is_ok() {
                sleep(Duration::from_millis(5));
            }
        })
    }

    /// Somebody outside who takes connections, and says nothing.
    fn listen(cluster: &Cluster) {
        let any = SocketAddr::from(([0_u16; 8], plan::OUTSIDE_HTTP));
        let bind = move || Ok(TcpListener::bind(any)?);
        let listener = cluster.node.outside().within(bind).expect("a listener");
        thread::spawn(move || listener.incoming().collect::<Vec<_>>());
    }

    fn heard(wire: &Wire, mark: usize) -> usize {
        let packets = wire.since(mark);
        packets.iter().filter(|it| it.contains(WORD)).count()
    }

    #[test]
    fn a_connection_that_leads_outside_ends_before_its_service_is_open() {
        if skipped("a_connection_that_leads_outside_ends_before_its_service_is_open") {
            return;
        }
        let cluster = Cluster::new();
        listen(&cluster);
        cluster.lockdown("Audit", &json!({}));
        let declare = |service: &Service| {
            // kube-proxy is there first: where it comes later it is told below.
            cluster.node.service(service).expect("a Service");
            let objects = objects::endpoint_slices(service);
            let objects = objects.into_iter().chain([objects::service(service)]);
            for object in objects {
                cluster.state.apply(&object).expect("write it");
            }
        };
        declare(&turning(outside()));
        let mut agent = cluster.agent(true);
        let wire = cluster.node.wire().expect("a recorder");
        let end = Arc::new(AtomicBool::new(false));
        for to in plan::service(TURNING).all() {
            let mark = wire.mark();
            let talker = talk(&cluster.web, to, &end);
            sleep(Duration::from_millis(300));
            assert!(heard(&wire, mark) > 0, "it leads outside: {to}");
            agent.declare(&cluster, || {
                declare(&turning(inside(&cluster.ratings)));
                cluster.lockdown("Enforce", &json!({}));
            });
            let mark = wire.mark();
            sleep(Duration::from_millis(700));
            assert_eq!(heard(&wire, mark), 0, "{to}: {}", cluster.log());
            let open = SocketAddr::new(to, PORT).to_string();
            let probe = ["tcp", "--to", &open, "--timeout-ms", "400"];
            let answer = cluster.web.probe(&probe).expect("a probe");
            assert_eq!(answer.outcome, "refused", "the Service itself is open");
            end.store(true, Ordering::Relaxed);
            talker.join().expect("it ends");
            end.store(false, Ordering::Relaxed);
            agent.declare(&cluster, || {
                declare(&turning(outside()));
                cluster.lockdown("Audit", &json!({}));
            });
        }
        agent.stop();
    }

    /// kube-proxy takes its time: what is connected meanwhile still goes out by its old rules.
    #[test]
    fn what_was_connected_by_old_rules_ends_once_there_are_new_ones() {
        if skipped("what_was_connected_by_old_rules_ends_once_there_are_new_ones") {
            return;
        }
        let cluster = Cluster::new();
        listen(&cluster);
        cluster.lockdown("Enforce", &json!({}));
        cluster
            .node
            .service(&turning(outside()))
            .expect("a Service");
        let service = turning(inside(&cluster.ratings));
        let slices = objects::endpoint_slices(&service);
        for object in slices.into_iter().chain([objects::service(&service)]) {
            cluster.state.apply(&object).expect("write it");
        }
        let agent = cluster.agent(true);
        let wire = cluster.node.wire().expect("a recorder");
        let end = Arc::new(AtomicBool::new(false));
        let mark = wire.mark();
        let talker = talk(&cluster.web, plan::service(TURNING).v4.into(), &end);
        sleep(Duration::from_millis(200));
        assert!(heard(&wire, mark) > 0, "as SECURITY.md says");
        cluster.node.service(&service).expect("the new rules");
        // A look at all every ten seconds.
        sleep(Duration::from_secs(12));
        let mark = wire.mark();
        sleep(Duration::from_millis(500));
        assert_eq!(heard(&wire, mark), 0, "{}", cluster.log());
        end.store(true, Ordering::Relaxed);
        talker.join().expect("it ends");
        agent.stop();
    }
}
