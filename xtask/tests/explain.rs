//! What `egressctl explain` says of both layers is what happens: the guide's node in miniature with
//! a running agent, its policy server, and real Envoys.

mod needs_root {
    use std::net::SocketAddr;
    use std::path::PathBuf;
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    use serde_json::{Value, json};
    use xtask::demo::Gateway;
    use xtask::demo::agent::{Agent, Ready, run_dir};
    use xtask::demo::attempts::{self, Bypass, Ordinary};
    use xtask::demo::manifests;
    use xtask::demo::programs::{Programs, Sallyport};
    use xtask::demo::world::{RATINGS_SERVICE, WORKLOAD_PORT, World};
    use xtask::node::{Pod, plan};

    const ENTRY: &str = "AccessPolicy/istio-egress/egress-access-policy#0";
    const OUTSIDE: &str = "https://httpbin.org/get";

    fn skipped(name: &str) -> bool {
        let off = std::env::var_os("SALLYPORT_SKIP_ROOT_TESTS").is_some_and(|value| value == "1");
        if off {
            println!("skipped: {name}: needs root");
        }
        off
    }

    fn program(variable: &str) -> PathBuf {
        let path = std::env::var_os(variable);
        path.unwrap_or_else(|| panic!("{variable} names the program; `cargo xtask test` sets it"))
            .into()
    }

    /// The guide's cluster, whose pods of `bookinfo` are held.
    struct Guide {
        // First: it ends before the node does.
        agent: Option<Agent>,
        ready: Ready,
        programs: Sallyport,
        world: World,
    }

    impl Guide {
        fn start() -> Self {
            let programs = Sallyport {
                agent: program("SALLYPORT_AGENT"),
                egressctl: program("SALLYPORT_EGRESSCTL"),
            };
            let all = Programs {
                helper: env!("CARGO_BIN_EXE_xtask").into(),
                envoy: program("SALLYPORT_ENVOY"),
                sallyport: Some(programs.clone()),
            };
            let world = World::build(&all, Gateway::ExtAuthz, &|_| ()).expect("a world");
            let lockdown = |text| world.state.write(manifests::LOCKDOWN, text);
            lockdown(manifests::ENFORCE).expect("a lockdown");
            let (agent, ready) = Agent::start(&programs, &world).expect("an agent");
            attempts::wait_for_policy_server(&world).expect("it serves policy");
            attempts::wait_for_gateway(&world).expect("the gateway listens");
            Self {
                agent: Some(agent),
                ready,
                programs,
                world,
            }
        }

        /// Changes what is declared, and waits until it is in force.
        fn declare(&mut self, change: impl FnOnce(&World)) {
            change(&self.world);
            let agent = self.agent.as_mut().expect("it runs");
            self.ready = agent.wait_for(Some(&self.ready)).expect("in step");
        }

        /// `egressctl explain` with these arguments: exit status, and what it printed.
        fn egressctl(&self, args: &[&str]) -> (Option<i32>, String, String) {
            let node = &self.world.node;
            let command = node.host_command(&self.programs.egressctl);
            let output = command
                .expect("a command")
                .arg("--bpffs")
                .arg(node.bpffs())
                .arg("--run-dir")
                .arg(run_dir(node))
                .arg("explain")
                .args(args)
                .stdin(Stdio::null())
                .output()
                .expect("it runs");
            let text = |bytes| String::from_utf8(bytes).expect("text");
            (
                output.status.code(),
                text(output.stdout),
                text(output.stderr),
            )
        }

        /// Exit status and answer.
        fn explain(&self, pod: &str, to: &str, more: &[&str]) -> (Option<i32>, Value) {
            let outside = format!("{}={}", plan::OUTSIDE_NAME, plan::OUTSIDE.v4);
            let args = [
                "-o",
                "json",
                "--pod",
                pod,
                "--to",
                to,
                "--resolve",
                &outside,
            ];
            let (code, out, err) = self.egressctl(&[&args, more].concat());
            let value: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
            (code, value["items"][0].clone())
        }

        /// What becomes of the pod's request, through its sidecar and the gateway.
        fn request(&self, pod: &Pod) -> Option<u16> {
            let seen = attempts::by_gateway(&self.world, pod).expect("a probe");
            seen.answer.status
        }
    }

    fn has(answer: &Value, remedy: &str) {
        let change = answer["change"].to_string();
        assert!(change.contains(remedy), "{remedy}: {answer:#}");
    }

    fn says(answer: &(Option<i32>, Value), code: i32, result: &str, by: &str) {
        let (status, answer) = answer;
        assert_eq!(answer["result"], result, "{answer:#}");
        assert_eq!(answer["decidedBy"], by, "{answer:#}");
        assert_eq!(*status, Some(code), "{answer:#}");
    }

    #[test]
    fn explain_says_what_happens() {
        if skipped("explain_says_what_happens") {
            return;
        }
        let mut guide = Guide::start();
        by_gateway(&guide);
        in_the_kernel(&guide);
        in_words(&guide);
        bad_input(&guide);
        following_its_advice(&mut guide);
        only_audited(&mut guide);
        without_the_agent(&mut guide);
    }

    fn by_gateway(guide: &Guide) {
        let pods = &guide.world.pods;
        let admitted = guide.explain(&pods.productpage.id(), OUTSIDE, &[]);
        says(&admitted, 0, "allowed", "gateway");
        let way = &admitted.1["gateway"]["ways"][0];
        assert_eq!(way["object"], ENTRY, "{way:#}");
        assert_eq!(way["gateway"], manifests::GATEWAY_NAME);
        assert_eq!(guide.request(&pods.productpage), Some(200));

        let refused = guide.explain(&pods.reviews.id(), OUTSIDE, &[]);
        says(&refused, 3, "denied", "gateway");
        let way = &refused.1["gateway"]["ways"][0];
        assert_eq!(way["reason"], "not-admitted", "{way:#}");
        let tried = json!([{ "entry": ENTRY, "dryRun": false, "failed": ["allowedClients"] }]);
        assert_eq!(way["trials"], tried);
        has(&refused.1, "name: reviews, namespace: bookinfo");
        // Straight out is dropped, to the gateway passes; and the gateway then refuses.
        assert_eq!(refused.1["kernel"]["direct"][0]["verdict"], "drop");
        let steps = refused.1["kernel"]["toGateways"].as_array().expect("steps");
        assert!(!steps.is_empty() && steps.iter().all(|step| step["verdict"] == "pass"));
        assert_eq!(guide.request(&pods.reviews), Some(403));

        let unknown = guide.explain(&pods.productpage.id(), "https://other.example/", &[]);
        says(&unknown, 3, "denied", "gateway");
        has(&unknown.1, "name other.example in an ExternalService");
    }

    fn in_the_kernel(guide: &Guide) {
        let (world, pods) = (&guide.world, &guide.world.pods);
        let (http, udp) = (plan::OUTSIDE_HTTP, plan::OUTSIDE_UDP);
        for (bypass, to) in [
            (
                Bypass::SidecarUser,
                format!("tcp://{}:{http}", plan::OUTSIDE.v4),
            ),
            (Bypass::Udp, format!("udp://{}:{udp}", plan::OUTSIDE.v4)),
            (Bypass::Ipv6, format!("tcp://[{}]:{http}", plan::OUTSIDE.v6)),
        ] {
            let answer = guide.explain(&pods.reviews.id(), &to, &[]);
            says(&answer, 3, "denied", "kernel");
            let step = &answer.1["kernel"]["direct"][0];
            assert_eq!(step["reason"], bypass.reason(), "{step:#}");
            has(&answer.1, "except it in the lockdown: allow.cidrs");
            let seen = bypass.attempt(world, "explained").expect("a probe");
            assert_eq!((seen.arrived, seen.answer.answered()), (0, false), "{to}");
        }
        let service = SocketAddr::new(RATINGS_SERVICE.v4.into(), WORKLOAD_PORT);
        let answer = guide.explain(&pods.reviews.id(), &format!("tcp://{service}"), &[]);
        says(&answer, 0, "allowed", "kernel");
        assert_eq!(answer.1["kernel"]["direct"][0]["reason"], "cluster");
        let trouble = Ordinary::PodToService.attempt(world).expect("a probe");
        assert_eq!(trouble, "");

        let free = format!("http://{}/", plan::OUTSIDE_NAME);
        let answer = guide.explain(&pods.dns.id(), &free, &[]);
        says(&answer, 0, "allowed", "kernel");
        has(&answer.1, "select it by an EgressLockdown");
        assert_eq!(Ordinary::NotHeld.attempt(world).expect("a probe"), "");
    }

    fn in_words(guide: &Guide) {
        let outside = format!("{}={}", plan::OUTSIDE_NAME, plan::OUTSIDE.v4);
        let reviews = guide.world.pods.reviews.id();
        let args = ["--pod", &reviews, "--to", OUTSIDE, "--resolve", &outside];
        let (code, text, _) = guide.egressctl(&args);
        assert_eq!(code, Some(3));
        assert!(
            text.starts_with("DENIED by gateway istio-egress/egress-vg (not-admitted)"),
            "{text}"
        );
        for part in [
            "kernel, straight",
            "kernel, to the gateway",
            "ExternalService/global/httpbin.org",
            "What to change:",
            "allowedClients does not hold",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    fn bad_input(guide: &Guide) {
        let reviews = guide.world.pods.reviews.id();
        for (args, told) in [
            (["reviews-v1", OUTSIDE], "NAMESPACE/NAME"),
            ([&reviews, "ftp://httpbin.org"], "https://host/path"),
            ([&reviews, "https://"], "has no host"),
            ([&reviews, "tcp://httpbin.org"], "needs a port"),
            ([&reviews, "https://httpbin.org:0/"], "needs a port"),
        ] {
            let [pod, to] = args;
            let (code, out, err) = guide.egressctl(&["--pod", pod, "--to", to]);
            assert!(code.is_some_and(|code| ![0, 3, 4].contains(&code)), "{to}");
            assert!(out.is_empty() && err.contains(told), "{told}: {out}{err}");
        }
        let header = ["--header", "x-team"];
        let base = ["--pod", &reviews, "--to", OUTSIDE];
        let (_, _, err) = guide.egressctl(&[&base[..], &header].concat());
        assert!(err.contains("NAME=VALUE"), "{err}");
        let nobody = guide.explain("bookinfo/nobody", OUTSIDE, &[]);
        says(&nobody, 4, "unknown", "nobody");
    }

    /// What it says is to change, changes it.
    fn following_its_advice(guide: &mut Guide) {
        let reviews = guide.world.pods.reviews.id();
        guide.declare(|world| {
            let mut policy: Value = manifest("accesspolicy.yaml");
            let clients = &mut policy["spec"]["config"]["authz"]["allowedClients"];
            let reviews = json!({ "name": "reviews", "namespace": "bookinfo" });
            let more = json!({ "serviceAccountSelector": reviews });
            clients.as_array_mut().expect("a list").push(more);
            let text = policy.to_string();
            world
                .state
                .write("accesspolicy.yaml", &text)
                .expect("a file");
        });
        says(
            &guide.explain(&reviews, OUTSIDE, &[]),
            0,
            "allowed",
            "gateway",
        );
        until("the gateway lets reviews through", || {
            guide.request(&guide.world.pods.reviews) == Some(200)
        });
        guide.declare(|world| {
            let mut lockdown: Value = serde_yaml_ng::from_str(manifests::ENFORCE).expect("YAML");
            let port = json!({ "protocol": "TCP", "port": plan::OUTSIDE_HTTP });
            let cidr = format!("{}/32", plan::OUTSIDE.v4);
            lockdown["spec"]["allow"] = json!({ "cidrs": [{ "cidr": cidr, "ports": [port] }] });
            let text = lockdown.to_string();
            world
                .state
                .write(manifests::LOCKDOWN, &text)
                .expect("a file");
        });
        let to = format!("tcp://{}:{}", plan::OUTSIDE.v4, plan::OUTSIDE_HTTP);
        let answer = guide.explain(&reviews, &to, &[]);
        says(&answer, 0, "allowed", "kernel");
        assert_eq!(answer.1["kernel"]["direct"][0]["reason"], "exception");
        let seen = Bypass::SidecarUser.attempt(&guide.world, "excepted");
        assert!(seen.expect("a probe").arrived > 0);
    }

    fn only_audited(guide: &mut Guide) {
        guide.declare(|world| {
            let lockdown = |text| world.state.write(manifests::LOCKDOWN, text);
            lockdown(manifests::AUDIT).expect("a file");
        });
        let to = format!("tcp://{}:{}", plan::OUTSIDE.v4, plan::OUTSIDE_HTTP);
        let answer = guide.explain(&guide.world.pods.reviews.id(), &to, &[]);
        says(&answer, 0, "allowed", "kernel");
        assert_eq!(answer.1["kernel"]["direct"][0]["verdict"], "audit");
        has(&answer.1, "mode: Enforce");
        let seen = Bypass::SidecarUser.attempt(&guide.world, "audited");
        assert!(seen.expect("a probe").arrived > 0);
    }

    /// The kernel's layer stands and is told; nobody knows what a gateway would say.
    fn without_the_agent(guide: &mut Guide) {
        guide.declare(|world| {
            let lockdown = |text| world.state.write(manifests::LOCKDOWN, text);
            lockdown(manifests::ENFORCE).expect("a file");
        });
        let agent = guide.agent.take().expect("it runs");
        agent.kill().expect("it ends");
        let reviews = guide.world.pods.reviews.id();
        let answer = guide.explain(&reviews, OUTSIDE, &[]);
        says(&answer, 4, "unknown", "nobody");
        assert_eq!(answer.1["gateway"]["asked"], false);
        has(&answer.1, "start the agent");
        let to = format!("udp://{}:{}", plan::OUTSIDE.v4, plan::OUTSIDE_UDP);
        says(&guide.explain(&reviews, &to, &[]), 3, "denied", "kernel");
    }

    fn manifest(file: &str) -> Value {
        let (_, text) = manifests::GATEWAY
            .iter()
            .find(|(name, _)| *name == file)
            .expect("one of the guide's");
        serde_yaml_ng::from_str(text).expect("YAML")
    }

    fn until(what: &str, mut so: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !so() {
            assert!(Instant::now() < deadline, "not so: {what}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
