//! The programs take what the chart's containers tell them, and those of the uninstalling one do it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use xtask::apiserver::{ApiServer, own_definitions};

use super::{choices, rendered};

/// Variables of a container; those that the kubelet fills in are `node`.
fn environment(container: &Value) -> BTreeMap<&str, &str> {
    let settings = container["env"].as_array().into_iter().flatten();
    settings
        .map(|it| {
            let name = it["name"].as_str().expect("a name");
            (name, it["value"].as_str().unwrap_or("node"))
        })
        .collect()
}

/// Runs a program of `cargo xtask test` as a container would be, but where nothing can be touched:
/// its run directory can't be made, and no BPF file system is there.
fn exit_status(
    variable: &str,
    container: &Value,
    nowhere: &Path,
    more: &[(&str, &str)],
) -> (Option<i32>, String) {
    let program = std::env::var_os(variable);
    let program = program
        .unwrap_or_else(|| panic!("{variable} names the program; `cargo xtask test` sets it"));
    let command = container["command"].as_array().into_iter().flatten();
    let args = container["args"].as_array().into_iter().flatten();
    let environment = environment(container);
    // As the kubelet does.
    let expanded = |arg: &str| {
        let mut arg = arg.to_owned();
        for (name, value) in &environment {
            arg = arg.replace(&format!("$({name})"), value);
        }
        arg
    };
    let args = command.skip(1).chain(args).filter_map(Value::as_str);
    let output = Command::new(program)
        .args(args.map(expanded))
        .env_clear()
        .envs(environment.clone())
        .env("SALLYPORT_RUN_DIR", "/dev/null/run")
        .env("SALLYPORT_BPFFS", nowhere)
        .env("SALLYPORT_CGROUP_ROOT", nowhere)
        .envs(more.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("it starts");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), words)
}

#[test]
fn the_programs_take_what_the_chart_tells_them() {
    // Options that make no sense are 2; what can't be done with good ones is 1.
    let (refused, failed) = (Some(2), Some(1));
    let nowhere = tempfile::tempdir().expect("a directory");
    let object = std::env::var("SALLYPORT_EBPF_OBJECT").unwrap_or_default();
    let object = ("SALLYPORT_EBPF_OBJECT", object.as_str());
    for (name, values) in choices() {
        for set in rendered(&values) {
            if set["kind"] != "DaemonSet" {
                continue;
            }
            let pod = &set["spec"]["template"]["spec"];
            if pod["initContainers"].is_array() {
                uninstalls(name, &pod["initContainers"][0], nowhere.path());
                continue;
            }
            let agent = &pod["containers"][0];
            let run =
                |more: &[(&str, &str)]| exit_status("SALLYPORT_AGENT", agent, nowhere.path(), more);
            let (status, words) = run(&[object]);
            assert_eq!(status, failed, "{name}: {words}");
            assert!(words.contains("/dev/null/run"), "{name}: {words}");
            let (status, words) = run(&[object, ("SALLYPORT_UNKNOWN_PODS", "perhaps")]);
            assert_eq!(status, refused, "{name}: {words}");
        }
    }
}

/// What takes Sallyport off a node takes the node's report and startup taint with it, and the Lease
/// unless an agent of another node holds it.
fn uninstalls(name: &str, container: &Value, nowhere: &Path) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let api = ApiServer::serve(listener).expect("an address");
    for definition in own_definitions() {
        api.apply(&definition).expect("a definition");
    }
    let kubeconfig = nowhere.join("kubeconfig");
    fs::write(&kubeconfig, api.kubeconfig()).expect("write it");
    let kubeconfig = kubeconfig.display().to_string();
    let report = |node: &str| {
        json!({ "apiVersion": "sallyport.dev/v1alpha1", "kind": "EgressNode",
            "metadata": { "name": node } })
    };
    let lease = |holder: &str| {
        json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": { "name": "sallyport-status", "namespace": "default" },
            "spec": { "holderIdentity": holder } })
    };
    let taint = |key: &str| json!({ "key": key, "effect": "NoSchedule" });
    let (startup, other) = (
        taint("sallyport.dev/agent-not-ready"),
        taint("example.com/other"),
    );
    let tainted = |node: &str| {
        json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": node },
            "spec": { "taints": [startup, other] } })
    };
    for (holder, goes) in [("other", false), ("node", true), ("", true)] {
        for object in [
            report("node"),
            report("other"),
            lease(holder),
            tainted("node"),
            tainted("other"),
        ] {
            api.apply(&object).expect("it is taken");
        }
        let run = || {
            let more = [("KUBECONFIG", kubeconfig.as_str())];
            exit_status("SALLYPORT_EGRESSCTL", container, nowhere, &more)
        };
        let (status, words) = run();
        assert_eq!(status, Some(0), "{name}: {words}");
        let there = [report("node"), report("other"), lease("")].map(|it| api.get(&it).is_some());
        assert_eq!(there, [false, true, !goes], "{name}, held by {holder:?}");
        for (node, left) in [("node", 1), ("other", 2)] {
            let node = api.get(&tainted(node)).expect("a node");
            let taints = node["spec"]["taints"].as_array().map(Vec::len);
            assert_eq!(taints, Some(left), "{name}: {node}");
        }
        // Where there is nothing it does no harm.
        let (status, words) = run();
        assert_eq!(status, Some(0), "{name}: {words}");
    }
    api.set_away(true);
    let more = [("KUBECONFIG", kubeconfig.as_str())];
    let (status, words) = exit_status("SALLYPORT_EGRESSCTL", container, nowhere, &more);
    assert_eq!(status, Some(1), "{name}: {words}");
    assert!(words.contains("the report of node"), "{name}: {words}");
}
