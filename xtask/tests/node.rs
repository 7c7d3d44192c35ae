//! The node in miniature itself: packets get where they should, and nothing is left behind.

mod needs_root {
    use std::io::{BufRead as _, BufReader};
    use std::net::SocketAddr;
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::thread::sleep;
    use std::time::{Duration, Instant};
    use std::{fs, panic};

    use xtask::node::{Node, NodeOptions, PodSpec, RUN_ROOT, plan};

    const XTASK: &str = env!("CARGO_BIN_EXE_xtask");

    fn node() -> Node {
        Node::new(&NodeOptions::with_helper(XTASK)).expect("a node")
    }

    /// Names under `/run/netns`, cgroups, mounts and files of the node.
    fn traces(id: &str) -> Vec<String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let directory = Path::new(RUN_ROOT).join(id);
        let mut traces: Vec<String> = mounts
            .lines()
            .filter(|line| line.contains(&format!("{}/", directory.display())))
            .map(str::to_owned)
            .collect();
        traces.extend(directory.exists().then(|| directory.display().to_string()));
        let namespaces = fs::read_dir("/run/netns").into_iter().flatten();
        let namespaces = namespaces.map(|entry| entry.expect("an entry").file_name());
        traces.extend(
            namespaces
                .map(|name| name.to_string_lossy().into_owned())
                .filter(|name| name.starts_with(&format!("sp-{id}-"))),
        );
        let cgroups = mounts.lines().filter(|line| line.contains(" - cgroup2 "));
        traces.extend(
            cgroups
                .filter_map(|line| line.split(' ').nth(4))
                .map(|root| format!("{root}/sallyport-node-{id}"))
                .filter(|path| Path::new(path).exists()),
        );
        traces
    }

    fn wait_until_gone(id: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !traces(id).is_empty() {
            assert!(Instant::now() < deadline, "left behind: {:#?}", traces(id));
            sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn two_nodes_stand_at_once_and_leave_nothing() {
        let (first, second) = (node(), node());
        let ids = [first.id().to_owned(), second.id().to_owned()];
        assert_ne!(ids[0], ids[1]);
        for node in [&first, &second] {
            node.pod(&PodSpec::new("bookinfo", "reviews", 11))
                .expect("a pod");
            // Directory, mount, three namespaces, cgroups.
            assert!(traces(node.id()).len() >= 6, "{:#?}", traces(node.id()));
        }
        first.teardown().expect("a clean end");
        assert_eq!(traces(&ids[0]), Vec::<String>::new());
        assert!(!traces(&ids[1]).is_empty(), "the other one stands on");
        drop(second);
        assert_eq!(traces(&ids[1]), Vec::<String>::new());
    }

    #[test]
    fn a_panic_leaves_nothing() {
        let node = node();
        let id = node.id().to_owned();
        let result = panic::catch_unwind(panic::AssertUnwindSafe(move || {
            let _node = node;
            panic!("as a failed test does");
        }));
        assert!(result.is_err());
        assert_eq!(traces(&id), Vec::<String>::new());
    }

    #[test]
    fn a_maker_killed_outright_leaves_nothing() {
        let mut maker = Command::new(XTASK)
            .args(["node", "stand"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("xtask starts");
        let mut id = String::new();
        let stdout = maker.stdout.take().expect("it was piped");
        BufReader::new(stdout).read_line(&mut id).expect("an id");
        let id = id.trim();
        assert!(!traces(id).is_empty());
        maker.kill().expect("kill -9");
        maker.wait().expect("its end");
        wait_until_gone(id);
    }

    #[test]
    fn a_deleted_pod_takes_its_device_along() {
        let node = node();
        let pod = node
            .pod(&PodSpec::new("bookinfo", "reviews", 11))
            .expect("a pod");
        let device = pod.device().to_owned();
        let cgroup = pod.cgroup().to_owned();
        assert!(cgroup.exists());
        node.host()
            .ip(&format!("link show {device}\n"))
            .expect("the device stands");
        pod.delete().expect("a clean end");
        assert!(!cgroup.exists());
        node.host()
            .ip(&format!("link show {device}\n"))
            .expect_err("the device is gone");
        node.pod(&PodSpec::new("bookinfo", "reviews", 11))
            .expect("the same pod again");
    }

    #[test]
    fn packets_of_a_pod_reach_the_outside_in_both_families_however_they_are_sent() {
        let node = node();
        let pod = node
            .pod(&PodSpec::new("bookinfo", "reviews", 11))
            .expect("a pod");
        let wire = node.wire().expect("a look at the wire");
        for (own, outside) in pod.ips().all().into_iter().zip(plan::OUTSIDE.all()) {
            let (from, to) = (own.to_string(), SocketAddr::new(outside, 9999).to_string());
            for kind in ["udp", "raw", "packet"] {
                let tag = format!("{kind}-to-{outside}");
                let mark = wire.mark();
                let mut args = vec![kind, "--to", &to, "--payload", &tag];
                if kind == "udp" {
                    args.extend(["--timeout-ms", "100"]);
                } else {
                    args.extend(["--from", &from]);
                }
                let answer = pod.probe(&args).expect("an answer");
                let seen = wire.since(mark);
                let arrived = seen.iter().filter(|seen| seen.contains(&tag)).count();
                assert_eq!(arrived, 1, "{kind} to {outside}: {answer:?}, {seen:?}");
            }
        }
    }

    #[test]
    fn a_process_of_a_pod_is_where_a_containers_would_be() {
        let node = node();
        let spec = PodSpec::new("bookinfo", "reviews", 11);
        let pod = node.pod(&spec).expect("a pod");
        let output = pod
            .command("app", Path::new("/bin/sh"))
            .expect("a command")
            .args(&["-c", "cat /proc/self/cgroup; id -u; cat /etc/resolv.conf"])
            .uid(1337)
            .output()
            .expect("output");
        let output = String::from_utf8_lossy(&output);
        let cgroup = format!("kubepods/burstable/pod{}/", spec.uid);
        assert!(output.contains(&cgroup), "{output}");
        assert!(output.contains("\n1337\n"), "{output}");
        assert!(output.contains("nameserver 10.96.0.10\n"), "{output}");
    }
}
