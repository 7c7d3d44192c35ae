//! Somebody with root on the node takes hooks off, goes before them, removes pins and entries.

mod support;

mod needs_root {
    use std::fs;
    use std::path::PathBuf;
    use std::thread::sleep;
    use std::time::Duration;

    use serde_json::json;

    use super::support::held::{nothing_got_out, undone};
    use super::support::traffic::Traffic;
    use super::support::{Agent, Cluster, bpf, skipped};

    struct Pins(PathBuf);

    impl Pins {
        fn of(cluster: &Cluster) -> Self {
            let layouts = fs::read_dir(cluster.node.bpffs().join("sallyport")).expect("pins");
            let paths = layouts.map(|entry| entry.expect("a layout").path());
            let mut layouts = paths.filter(|path| !path.is_symlink());
            Self(layouts.next().expect("a layout"))
        }

        fn link(&self, name: &str) -> PathBuf {
            self.0.join("links").join(name)
        }

        fn map(&self, name: &str) -> PathBuf {
            self.0.join("maps").join(name)
        }
    }

    fn hooks_and_entries(cluster: &Cluster, agent: &mut Agent, pins: &Pins, ifindex: u32) {
        for hook in ["ingress", "egress"] {
            let link = pins.link(&format!("dev-{ifindex}-{hook}"));
            let stands = || bpf::fact(&link, "ifindex") == Some(ifindex.into());
            let agent = &mut *agent;
            undone(
                cluster,
                agent,
                "hook_lost",
                "a link detached",
                || bpf::detach(&link),
                stands,
            );
            let unpin = || fs::remove_file(&link).expect("unpin");
            undone(
                cluster,
                agent,
                "hook_lost",
                "a link unpinned",
                unpin,
                stands,
            );
        }
        for hook in ["egress", "ingress", "connect4"] {
            let link = pins.link(&format!("cg-{hook}"));
            let stands = || bpf::fact(&link, "cgroup_id").is_some_and(|id| id != 0);
            let agent = &mut *agent;
            undone(
                cluster,
                agent,
                "hook_lost",
                "kubepods' detached",
                || bpf::detach(&link),
                stands,
            );
            let unpin = || fs::remove_file(&link).expect("unpin");
            undone(
                cluster,
                agent,
                "hook_lost",
                "kubepods' unpinned",
                unpin,
                stands,
            );
        }
        for (map, size) in [("sp_devices", 4), ("sp_cgroups", 8), ("sp_pod_info", 4)] {
            let map = pins.map(map);
            let key = bpf::first_key(&map, size).expect("an entry");
            let delete = || bpf::delete(&map, &key).expect("delete");
            let agent = &mut *agent;
            undone(
                cluster,
                agent,
                "entries_changed",
                "an entry deleted",
                delete,
                || bpf::has(&map, &key),
            );
        }
    }

    fn place(cluster: &Cluster, agent: &mut Agent, pins: &Pins, ifindex: u32) {
        let link = pins.link(&format!("dev-{ifindex}-ingress"));
        let before = std::cell::RefCell::new((Vec::new(), None));
        let go_before = || {
            let ours = bpf::fact(&link, "link_id");
            let stranger = move || Ok(bpf::go_before(ifindex)?);
            let stranger = cluster.node.host().within(stranger).expect("attach");
            let mut before = before.borrow_mut();
            before.0.push(stranger);
            before.1 = ours;
        };
        // Ours went before it by a new link.
        let is_back =
            || bpf::fact(&link, "link_id").is_some_and(|id| Some(id) != before.borrow().1);
        undone(
            cluster,
            agent,
            "hook_displaced",
            "a stranger first",
            go_before,
            is_back,
        );
    }

    #[test]
    fn what_strangers_do_is_undone_within_a_second_and_told() {
        if skipped("what_strangers_do_is_undone_within_a_second_and_told") {
            return;
        }
        let mut cluster = Cluster::new();
        cluster.lockdown("Enforce", &json!({}));
        let port = {
            let bind = || {
                Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?
                    .local_addr()?
                    .port())
            };
            cluster.node.host().within(bind).expect("a port")
        };
        let metrics = format!("127.0.0.1:{port}");
        let flags = ["--metrics-address".to_owned(), metrics.clone()];
        cluster.flags.extend(flags);
        let mut agent = cluster.agent(true);
        let traffic = Traffic::start(&cluster);
        let pins = Pins::of(&cluster);
        let device = cluster.web.device().to_owned();
        let index = move || Ok(nix::net::if_::if_nametoindex(device.as_str())?);
        let ifindex = cluster.node.host().within(index).expect("an index");

        hooks_and_entries(&cluster, &mut agent, &pins, ifindex);
        place(&cluster, &mut agent, &pins, ifindex);

        let text = cluster
            .node
            .host()
            .within(move || get(&metrics))
            .expect("metrics");
        for kind in ["displaced", "device-hook", "cgroup-hook", "entries"] {
            let counted = format!("sallyport_disturbances_total{{kind=\"{kind}\"}} ");
            let line = text.lines().find(|line| line.starts_with(&counted));
            let line = line.unwrap_or_else(|| panic!("no {counted} in {text}"));
            assert!(!line.ends_with(" 0"), "{line}");
        }
        // It is as before, and the strangers' programs still run.
        let wire = cluster.node.wire().expect("a recorder");
        let mark = wire.mark();
        sleep(Duration::from_millis(500));
        let (answered, sent) = traffic.stop();
        assert!(answered.iter().all(|n| *n > 100) && sent > 100);
        nothing_got_out(&wire, mark);
        let (code, status) = cluster.egressctl(&["status"]);
        assert_eq!(code, Some(0), "{status}");
        agent.stop();
    }

    fn get(address: &str) -> anyhow::Result<String> {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(address)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }
}
