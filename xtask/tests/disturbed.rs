//! Somebody with root on the node takes hooks off, goes before them, removes pins and entries.

mod support;

mod needs_root {
    use std::fs;
    use std::thread::sleep;
    use std::time::Duration;

    use serde_json::json;

    use super::support::held::nothing_got_out;
    use super::support::stranger::{Metrics, Pins, undone, undone_with};
    use super::support::traffic::Traffic;
    use super::support::{Agent, Cluster, bpf, skipped};

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
            // Of every pod: which one comes first is chance, and not each has connections.
            for key in bpf::keys(&map, size).expect("entries") {
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
    }

    fn fence(cluster: &Cluster, agent: &mut Agent) {
        let nft = |script: &str| cluster.node.host().nft(script);
        for table in ["inet sallyport", "bridge sallyport", "arp sallyport"] {
            let list = format!("list chain {table} passed\n");
            let stands = || nft(&list).is_ok_and(|it| it.contains("@fenced accept"));
            assert!(stands(), "{table}");
            for (what, script) in [
                ("a table deleted", format!("delete table {table}\n")),
                ("rules flushed", format!("flush chain {table} passed\n")),
            ] {
                let change = || nft(&script).map(drop).expect("nft");
                undone(cluster, agent, "fence_changed", what, change, stands);
            }
        }
    }

    /// It is put back by who keeps it, and by no pass.
    fn gate(cluster: &Cluster, agent: &mut Agent) {
        let nft = |script: &str| cluster.node.host().nft(script);
        for table in ["inet", "bridge", "arp"].map(|family| format!("{family} sallyport-gate")) {
            let list = |what: &str| nft(&format!("list {what}\n")).unwrap_or_default();
            // Their names are in quotes.
            let devices = || list(&format!("set {table} met")).matches('"').count() / 2;
            let rule = || list(&format!("chain {table} passed")).contains("@met meta iifkind");
            let all = devices();
            assert!(all > 0 && rule(), "{table}");
            for (what, script) in [
                (
                    "the gate's table deleted",
                    format!("delete table {table}\n"),
                ),
                (
                    "the gate's rule flushed",
                    format!("flush chain {table} passed\n"),
                ),
                ("its devices forgotten", format!("flush set {table} met\n")),
            ] {
                let change = || nft(&script).map(drop).expect("nft");
                let stands = || rule() && devices() == all;
                undone_with(
                    cluster,
                    &mut *agent,
                    &["\"gate_changed\""],
                    what,
                    change,
                    stands,
                );
            }
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
        let metrics = Metrics::asked_for(&mut cluster);
        let mut agent = cluster.agent(true);
        let traffic = Traffic::start(&cluster);
        let pins = Pins::of(&cluster);
        let device = cluster.web.device().to_owned();
        let index = move || Ok(nix::net::if_::if_nametoindex(device.as_str())?);
        let ifindex = cluster.node.host().within(index).expect("an index");

        hooks_and_entries(&cluster, &mut agent, &pins, ifindex);
        fence(&cluster, &mut agent);
        gate(&cluster, &mut agent);
        place(&cluster, &mut agent, &pins, ifindex);

        for kind in [
            "displaced",
            "device-hook",
            "cgroup-hook",
            "entries",
            "fence",
            "gate",
        ] {
            assert!(metrics.disturbances(&cluster, kind) > 0, "{kind}");
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
}
