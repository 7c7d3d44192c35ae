//! The agent does all its work with the rights of its container in the chart and no others, cannot do
//! it with fewer, and opens no socket that a stranger could use.

mod support;

mod needs_root {
    use std::fs;
    use std::net::SocketAddr;
    use std::path::{Path, PathBuf};
    use std::sync::LazyLock;
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use k8s_openapi::api::apps::v1::DaemonSet;
    use serde_json::json;
    use xtask::deploy::chart::{Chart, NAMESPACE};
    use xtask::node::confine::Capability;
    use xtask::node::pki::Authority;
    use xtask::node::{PodSpec, objects, plan};
    use xtask::nri::{Answer, Runtime, Sandbox, Settings};
    use xtask::workspace::Workspace;

    use super::support::sockets::{self, Listens};
    use super::support::traffic::{SECRET, Traffic};
    use super::support::{Agent, Cluster, skipped};

    const PATIENCE: Duration = Duration::from_secs(20);
    /// An agent that lacks a right has this long to do the work all the same.
    const LACKING: Duration = Duration::from_secs(4);
    const ACCOUNT: &str = "sallyport-agent";
    const POLICY_PORT: u16 = 9443;
    const METRICS_PORT: u16 = 9968;

    /// What the chart lets the agent's container do.
    struct Rights {
        capabilities: Vec<String>,
        /// Paths in the container that it may write to.
        writable: Vec<String>,
    }

    static RIGHTS: LazyLock<Rights> = LazyLock::new(|| {
        let workspace = Workspace::find().expect("the workspace of this test");
        let chart = Chart::open(&workspace).expect("Helm");
        let policy = json!({ "policyServer": { "enabled": true } });
        let rendered = chart.render(&policy).expect("it renders");
        let set: DaemonSet = serde_yaml_ng::from_str(&rendered["daemonset.yaml"]).expect("one");
        let pod = set.spec.and_then(|spec| spec.template.spec).expect("a pod");
        let seccomp = pod.security_context.and_then(|it| it.seccomp_profile);
        assert_eq!(seccomp.expect("a profile").type_, "RuntimeDefault");
        assert!(pod.init_containers.is_none(), "there is one container");
        let [container] = &pod.containers[..] else {
            panic!("there is one container")
        };
        let security = container.security_context.as_ref().expect("rights");
        assert_eq!(security.seccomp_profile, None, "the pod's holds");
        assert_eq!(security.privileged, Some(false));
        assert_eq!(security.allow_privilege_escalation, Some(false));
        assert_eq!(security.read_only_root_filesystem, Some(true));
        assert_eq!(security.run_as_user, Some(0));
        let capabilities = security.capabilities.as_ref().expect("capabilities");
        assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]));
        let mounts = container.volume_mounts.iter().flatten();
        let writable = mounts.filter(|mount| mount.read_only != Some(true));
        Rights {
            capabilities: capabilities.add.clone().expect("some"),
            writable: writable.map(|mount| mount.mount_path.clone()).collect(),
        }
    });

    /// Flags of `xtask node confine` for these capabilities, with what the chart mounts writable where
    /// this node has it.
    fn confined(cluster: &Cluster, capabilities: &[String]) -> Vec<String> {
        let mut flags = Vec::new();
        for capability in capabilities {
            flags.extend(["--capability".to_owned(), capability.clone()]);
        }
        for path in &RIGHTS.writable {
            let here = match path.as_str() {
                "/host/bpf" => cluster.node.bpffs(),
                "/run/sallyport" => cluster.run_dir(),
                other => panic!("{other} is writable in the chart, and not known here"),
            };
            fs::create_dir_all(&here).expect("a directory");
            flags.extend(["--writable".to_owned(), here.display().to_string()]);
        }
        flags
    }

    /// With everything on that has a socket. Prometheus' certificate is in `prometheus-tls`.
    fn everything_on(cluster: &mut Cluster) -> Runtime {
        let socket = cluster.node.directory().join("nri.sock");
        let runtime = Runtime::start(&socket, Settings::default()).expect("a socket");
        let mesh = Authority::new("mesh").expect("an authority");
        let certificates = cluster.node.directory().join("policy-tls");
        mesh.issue_workload(NAMESPACE, ACCOUNT, &certificates, 0)
            .expect("a certificate");
        let prometheus = cluster.node.directory().join("prometheus-tls");
        mesh.issue_workload("monitoring", "prometheus", &prometheus, 0)
            .expect("a certificate");
        cluster.flags = [
            "--nri-socket",
            &socket.display().to_string(),
            "--policy-address",
            &format!("[::]:{POLICY_PORT}"),
            "--policy-cert-dir",
            &certificates.display().to_string(),
            "--metrics-address",
            "127.0.0.1:9967",
            "--metrics-tls-address",
            &format!("[::]:{METRICS_PORT}"),
        ]
        .map(str::to_owned)
        .to_vec();
        runtime
    }

    /// The kernel's word for what the process may do.
    fn status(agent: &Agent, field: &str) -> String {
        let path = format!("/proc/{}/status", agent.pid());
        let text = fs::read_to_string(path).expect("its status");
        let value = text.lines().find_map(|line| line.strip_prefix(field));
        value.expect("the field").trim().to_owned()
    }

    fn assert_confined(agent: &Agent) {
        let names = RIGHTS.capabilities.iter();
        let bits = names.map(|name| name.parse::<Capability>().expect("a capability").bit());
        let expected = format!("{:016x}", bits.fold(0, |all, bit| all | bit));
        for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
            assert_eq!(status(agent, set), expected, "{set}");
        }
        assert_eq!(status(agent, "NoNewPrivs:"), "1");
        assert_eq!(status(agent, "Seccomp:"), "2");
    }

    #[test]
    fn the_confinement_is_one() {
        if skipped("the_confinement_is_one") {
            return;
        }
        let cluster = Cluster::new();
        let flags = confined(&cluster, &RIGHTS.capabilities);
        let run = |script: &str| {
            let mut command = cluster.confined(&flags, Path::new("/bin/sh"));
            let output = command.args(["-c", script]).output().expect("a shell");
            (
                output.status.success(),
                String::from_utf8_lossy(&output.stderr).into_owned(),
            )
        };
        let run_dir = cluster.run_dir();
        let (ok, said) = run(&format!("echo a >{}/mine", run_dir.display()));
        assert!(ok, "its own directory is writable: {said}");
        let (ok, said) = run("echo a >/etc/sallyport-was-here");
        assert!(!ok && said.contains("Read-only"), "{said}");
        let (ok, said) = run("echo a >/tmp/sallyport-was-here");
        assert!(!ok && said.contains("Read-only"), "{said}");
        // A bind mount over it does not help: no right to, and the call is forbidden.
        for script in [
            "unshare --mount true",
            "mount -o remount,rw /",
            "unshare --net true",
        ] {
            let (ok, said) = run(script);
            assert!(!ok, "{script}: {said}");
        }
    }

    #[test]
    fn the_agent_does_all_of_it_with_the_charts_rights() {
        if skipped("the_agent_does_all_of_it_with_the_charts_rights") {
            return;
        }
        let mut cluster = Cluster::new();
        cluster.lockdown("Enforce", &json!({}));
        let runtime = everything_on(&mut cluster);
        let flags = confined(&cluster, &RIGHTS.capabilities);
        let wire = cluster.node.wire().expect("a recorder");
        let mark = wire.mark();

        let mut agent = cluster.agent_confined(&flags);
        agent.wait(&cluster, "its first ready", Cluster::ready);
        assert_confined(&agent);
        // Standing connections, in both directions and families, and packets that must not get out.
        let traffic = Traffic::start(&cluster);
        sleep(Duration::from_millis(300));

        // The runtime is answered when the hooks of a new pod stand.
        runtime.plugin(PATIENCE).expect("the agent registers");
        let spec = PodSpec::new("bookinfo", "late", 61);
        cluster.state.apply(&objects::pod(&spec)).expect("write it");
        let late = cluster.node.pod(&spec).expect("a pod");
        let answer = runtime.run_pod_sandbox(&Sandbox::of(&late));
        assert!(
            matches!(answer, Answer::Done(_)),
            "{answer:?}\n{}",
            cluster.log()
        );
        let from = late.ips().v4.to_string();
        let to = SocketAddr::new(plan::OUTSIDE.v4.into(), 9999).to_string();
        let raw = ["packet", "--from", &from, "--to", &to, "--payload", SECRET];
        assert_eq!(late.probe(&raw).expect("a probe").outcome, "sent");

        // A policy that changes, and one that is killed and comes back without a write.
        agent.declare(&cluster, || {
            cluster.lockdown("Enforce", &json!({ "onDeny": "Reject" }));
        });
        agent.kill();
        let mut agent = cluster.agent_confined(&flags);
        agent.wait(&cluster, "being ready again", Cluster::ready);
        // It collects what the killed one left.
        sleep(Duration::from_secs(1));
        agent.stop();
        let mut agent = cluster.agent_confined(&flags);
        agent.wait(&cluster, "being ready once more", Cluster::ready);
        let (_, writes) = cluster.ready().expect("ready");
        assert_eq!(writes, 0, "{}", cluster.log());
        let (code, told) = cluster.egressctl(&["status"]);
        assert_eq!(code, Some(0), "{told}");
        sleep(Duration::from_millis(300));
        let (answered, sent) = traffic.stop();
        assert!(answered.iter().all(|n| *n > 50), "{answered:?}");
        assert!(sent > 50, "{sent} were tried");
        let out = wire.since(mark);
        let out = out.iter().filter(|packet| packet.contains(SECRET)).count();
        assert_eq!(out, 0, "packets that got out");
        late.delete().expect("a clean end");
        agent.stop();
    }

    /// As the chart's `uninstall` does, in the agent's place: with hooks on devices, which it looks for.
    #[test]
    fn uninstalling_takes_no_more_than_the_charts_rights() {
        if skipped("uninstalling_takes_no_more_than_the_charts_rights") {
            return;
        }
        let cluster = Cluster::new();
        cluster.lockdown("Enforce", &json!({}));
        let flags = confined(&cluster, &RIGHTS.capabilities);
        let mut agent = cluster.agent_confined(&flags);
        agent.wait(&cluster, "its first ready", Cluster::ready);
        let tables = |cluster: &Cluster| {
            let tables = cluster.node.host().nft("list tables\n").expect("nft");
            tables.matches("sallyport").count()
        };
        agent.wait(&cluster, "fence and gate", |cluster| {
            (tables(cluster) == 6).then_some(())
        });
        agent.stop();
        let (code, told) = cluster.egressctl_confined(&flags, &["status"]);
        assert_eq!(code, Some(0), "{told}");
        let (code, told) = cluster.egressctl_confined(&flags, &["uninstall", "--yes"]);
        assert_eq!(code, Some(0), "{told}");
        assert!(!cluster.node.bpffs().join("sallyport").exists());
        assert_eq!(tables(&cluster), 0);
    }

    #[test]
    fn no_capability_of_the_chart_is_too_much() {
        if skipped("no_capability_of_the_chart_is_too_much") {
            return;
        }
        for lacking in &RIGHTS.capabilities {
            let cluster = Cluster::new();
            cluster.lockdown("Enforce", &json!({}));
            let others = RIGHTS.capabilities.iter().filter(|name| *name != lacking);
            let others: Vec<String> = others.cloned().collect();
            let agent = cluster.agent_confined(&confined(&cluster, &others));
            let deadline = Instant::now() + LACKING;
            while Instant::now() < deadline {
                assert!(
                    cluster.ready().is_none(),
                    "the agent does its work without {lacking}"
                );
                sleep(Duration::from_millis(50));
            }
            assert!(
                cluster.log().contains(lacking.as_str()),
                "it says what it lacks ({lacking}):\n{}",
                cluster.log()
            );
            drop(agent);
        }
    }

    #[test]
    fn every_socket_is_loopback_or_mutual_tls() {
        if skipped("every_socket_is_loopback_or_mutual_tls") {
            return;
        }
        let mut cluster = Cluster::new();
        cluster.lockdown("Enforce", &json!({}));
        let _runtime = everything_on(&mut cluster);
        let agent = cluster.agent(true);
        let mut ports = Vec::new();
        for socket in sockets::of(agent.pid()) {
            println!("{socket:?}");
            match socket {
                Listens::Nobody | Listens::Loopback(_) => {}
                Listens::Everybody(port) => ports.push(port),
                Listens::Otherwise(what) => panic!("the agent has a socket of {what}"),
            }
        }
        ports.sort_unstable();
        assert_eq!(
            ports,
            [POLICY_PORT, METRICS_PORT],
            "what may be reached from elsewhere"
        );
        let prometheus = cluster.node.directory().join("prometheus-tls");
        let ask = |port, certificate: Option<PathBuf>| {
            let asked = move || sockets::ask_over_tls(port, certificate.as_deref());
            cluster.node.host().within(asked).expect("a connection")
        };
        let scraped = ask(METRICS_PORT, Some(prometheus));
        assert!(scraped.contains("\nsallyport_"), "{scraped}");
        for port in ports {
            let refused = ask(port, None);
            assert!(refused.contains("CertificateRequired"), "{port}: {refused}");
            assert!(!refused.contains("HTTP"), "{port}: {refused}");
            let plain = cluster
                .node
                .host()
                .within(move || sockets::ask_in_the_clear(port));
            let plain = plain.expect("a connection");
            assert!(!plain.contains("HTTP"), "{port}: {plain}");
        }
    }
}
