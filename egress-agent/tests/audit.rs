//! `egressctl audit` on files, as an operator runs it.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn audit(args: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_egressctl"))
        .arg("audit")
        .args(args)
        .env_remove("SALLYPORT_STATE_DIR")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("egressctl starts");
    let mut input = child.stdin.take().expect("piped");
    input.write_all(stdin.as_bytes()).expect("it reads");
    drop(input);
    child.wait_with_output().expect("it ends")
}

fn items(output: &Output) -> Vec<Value> {
    let list: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(list["kind"], "RiskList");
    list["items"].as_array().expect("items").clone()
}

const HELD: &str = "
apiVersion: sallyport.dev/v1alpha1
kind: EgressLockdown
metadata: { name: all }
spec: { mode: Enforce }
---
apiVersion: v1
kind: Pod
metadata:
  namespace: shop
  name: web
  uid: u
  annotations: { traffic.sidecar.istio.io/excludeOutboundPorts: '443' }
spec: { nodeName: n, containers: [{ name: app }] }
status: { phase: Running }
";

#[test]
fn what_the_kernel_makes_up_for_is_no_alarm() {
    let output = audit(&["-", "-o", "json"], HELD);
    assert_eq!(output.status.code(), Some(0));
    let items = items(&output);
    assert_eq!(items.len(), 1);
    assert_eq!(items[0]["kind"], "sidecar-exclusion");
    assert_eq!(items[0]["standing"], "neutralized");
    assert_eq!(items[0]["object"], "Pod/shop/web");
    let output = audit(&["-", "--open"], HELD);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text, "nothing weakens the promise\n");
}

#[test]
fn what_is_open_is_told_by_the_exit_status() {
    let audited = HELD.replace("Enforce", "Audit");
    let output = audit(&["-", "-o", "json"], &audited);
    assert_eq!(output.status.code(), Some(5));
    let standings: Vec<_> = items(&output)
        .iter()
        .map(|item| format!("{} {}", item["standing"], item["kind"]))
        .collect();
    let expected = [
        "\"open\" \"lockdown-mode\"",
        "\"open\" \"sidecar-exclusion\"",
    ];
    assert_eq!(standings, expected);
    let table = audit(&["-", "-o", "wide"], &audited);
    let text = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(text.starts_with("STANDING"), "{text}");
    assert!(text.contains("EgressLockdown/all"), "{text}");
}

#[test]
fn of_the_guides_objects_only_the_audit_is_open() {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/guide");
    for (lockdown, status) in [("lockdown-enforce.yaml", 0), ("lockdown-audit.yaml", 5)] {
        let files = [
            lockdown,
            "virtualgateway.yaml",
            "externalservice.yaml",
            "accesspolicy.yaml",
        ]
        .map(|name| guide.join(name).display().to_string());
        let args: Vec<&str> = files
            .iter()
            .map(String::as_str)
            .chain(["-o", "json"])
            .collect();
        let output = audit(&args, "");
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{words}");
        let kinds: Vec<_> = items(&output).iter().map(|it| it["kind"].clone()).collect();
        assert_eq!(kinds.len(), usize::from(status > 0), "{kinds:?}");
        assert!(kinds.iter().all(|kind| kind == "lockdown-mode"));
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let output = audit(&["-"], "apiVersion: v1\nkind: Pod\n");
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        words.contains("Pod") || words.contains("metadata"),
        "{words}"
    );
    let output = audit(&["/nowhere/objects.yaml"], "");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.contains("/nowhere/objects.yaml"), "{words}");
    // No objects named at all.
    assert_eq!(audit(&[], "").status.code(), Some(1));
}
