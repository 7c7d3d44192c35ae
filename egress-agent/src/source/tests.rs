//! Files in, objects or a place in a file out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::files::Reading;
use super::{Files, Snapshot, SourceError, YamlDir, decode};
use crate::index::{Index, Object};

/// The two manifests of the guide, as its heredocs hold them.
const GUIDE: &str = r#"apiVersion: networking.gloo.solo.io/v2
kind: ExternalService
metadata:
  name: httpbin.org
  namespace: global
spec:
  hosts:
  - "httpbin.org"
  ports:
  - clientsideTls: {}
    egressGatewayRoutes:
      portMatch: 80
      virtualGatewayRefs:
      - cluster: ${CLUSTER_NAME}
        name: egress-vg
        namespace: istio-egress
    name: https
    number: 443
    protocol: HTTPS
---
apiVersion: security.policy.gloo.solo.io/v2
kind: AccessPolicy
metadata:
  name: egress-access-policy
  namespace: istio-egress
spec:
  applyToDestinations:
  - kind: EXTERNAL_SERVICE
    port:
      number: 443
    selector:
      cluster: ${CLUSTER_NAME}
      name: httpbin.org
      namespace: global
  config:
    authz:
      allowedClients:
      - serviceAccountSelector:
          cluster: ${CLUSTER_NAME}
          labels:
            account: productpage
          namespace: bookinfo
---
apiVersion: networking.gloo.solo.io/v2
kind: VirtualGateway
metadata:
  name: egress-vg
  namespace: istio-egress
spec:
  workloads:
  - selector:
      labels:
        istio: egressgateway
      cluster: ${CLUSTER_NAME}
  listeners:
  - exposedExternalServices:
    - host: httpbin.org
    port:
      number: 443
    tls:
      mode: ISTIO_MUTUAL
"#;

const LOCKDOWN: &str = "apiVersion: sallyport.dev/v1alpha1
kind: EgressLockdown
metadata:
  name: web
spec:
  mode: Enforce
";

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n")
}

fn refusal(text: &str) -> SourceError {
    decode(text).expect_err("the text is wrong")
}

#[test]
fn the_guides_manifests_are_taken_as_they_are() {
    let text = GUIDE.replace("${CLUSTER_NAME}", "cluster1");
    let located = decode(&text).expect("valid");
    assert_eq!(
        located.iter().map(|l| l.line).collect::<Vec<_>>(),
        [1, 21, 44]
    );
    let mut index = Index::default();
    for object in located {
        assert!(index.apply(object.object));
    }
    assert_eq!(
        index.problems().collect::<Vec<_>>(),
        Vec::<&crate::index::Problem>::new()
    );
    let service = index.external_services().values().next().expect("there");
    let port = &service.spec.ports[0];
    assert!(port.clientside_tls.is_some());
    assert_eq!(
        port.egress_gateway_routes
            .as_ref()
            .and_then(|r| r.port_match),
        Some(80)
    );
    assert_eq!(index.virtual_gateways().len(), 1);
    assert_eq!(index.access_policies().len(), 1);
}

#[test]
fn an_error_names_line_column_and_field() {
    let text = format!(
        "# first\n{}---\n{LOCKDOWN}  allow:\n    cidrs:\n    - cidr: 10.0.0.0/8\n    - cidr: nonsense\n",
        namespace("a")
    );
    let error = refusal(&text);
    assert_eq!(error.field, "spec.allow.cidrs[1].cidr");
    assert_eq!(
        (error.line, error.column.is_some()),
        (Some(16), true),
        "{error}"
    );
    assert_eq!(error.object, "EgressLockdown/web");
    assert!(
        !error.reason.contains("line"),
        "the place is not repeated: {error}"
    );

    let error = refusal(&LOCKDOWN.replace("Enforce", "Enforced"));
    assert_eq!((error.line, error.field.as_str()), (Some(6), "spec.mode"));
    assert!(error.reason.contains("`Audit`"), "{error}");

    let error = refusal(&LOCKDOWN.replace("mode: Enforce", "allow: {}"));
    assert_eq!(error.field, "spec");
    assert!(error.reason.contains("missing field `mode`"), "{error}");

    let error = refusal(&format!("{LOCKDOWN}  modus: x\n"));
    assert!(error.reason.contains("unknown field `modus`"), "{error}");
    assert_eq!(error.line, Some(7));
}

#[test]
fn broken_syntax_has_a_place() {
    let error = refusal(&format!("{}---\nkind: [\n", namespace("a")));
    assert!(error.line.is_some_and(|line| line >= 6), "{error:?}");
}

#[test]
fn kinds_are_told_apart_by_version() {
    let error = refusal("apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: a\n");
    assert_eq!(error.field, "kind");
    for known in [
        "EgressLockdown (sallyport.dev/v1alpha1)",
        "Pod (v1)",
        "List (v1)",
    ] {
        assert!(error.reason.contains(known), "{error}");
    }
    assert_eq!(refusal("kind: Pod\nmetadata: {}\n").field, "apiVersion");
    assert_eq!(refusal("apiVersion: v1\n").field, "kind");
    let gloo = GUIDE.replace("networking.gloo.solo.io/v2", "sallyport.dev/v1alpha1");
    assert!(decode(&gloo).is_ok());
    assert_eq!(
        refusal(&GUIDE.replace("networking.gloo.solo.io/v2", "networking.gloo.solo.io/v1")).field,
        "kind"
    );
}

#[test]
fn what_identifies_an_object_must_be_there() {
    assert_eq!(
        refusal("apiVersion: v1\nkind: Namespace\nmetadata: {}\n").field,
        "metadata.name"
    );
    let pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\nspec:\n  containers: []\n";
    let error = refusal(pod);
    assert_eq!(
        (error.field.as_str(), error.line),
        ("metadata.uid", Some(1))
    );
    assert!(decode(&pod.replace("  name: a\n", "  name: a\n  uid: u\n")).is_ok());
    let error = refusal(&namespace("a").replace("  name", "  namespace: b\n  name"));
    assert_eq!(error.field, "metadata.namespace");
}

#[test]
fn lists_json_and_empty_documents_are_read() {
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: a}\n- apiVersion: v1\n  kind: ServiceAccount\n  metadata: {name: b, namespace: a}\n";
    assert_eq!(decode(list).expect("valid").len(), 2);
    let error = refusal(&list.replace("{name: b, namespace: a}", "{name: [], namespace: a}"));
    assert!(error.field.starts_with("items[1].metadata.name"), "{error}");
    let json = "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Namespace\",\n\t\"metadata\": {\"name\": \"a\"}\n}\n";
    assert_eq!(decode(json).expect("valid").len(), 1);
    let text = format!(
        "---\n# nothing\n---\n{}---\n...\n--- # end\n",
        namespace("a")
    );
    assert_eq!(decode(&text).expect("valid").len(), 1);
    assert!(decode("").expect("valid").is_empty());
    assert!(refusal("- 1\n").reason.contains("invalid type"));
}

fn readings(files: &[(&str, &str)]) -> BTreeMap<PathBuf, Reading> {
    files
        .iter()
        .map(|(path, text)| (PathBuf::from(path), Ok((*text).to_owned())))
        .collect()
}

fn names(snapshot: &Snapshot) -> Vec<String> {
    snapshot
        .objects
        .iter()
        .map(|object| object.id().name)
        .collect()
}

#[test]
fn a_broken_file_keeps_its_last_good_content() {
    let (a, b, c) = (namespace("a"), namespace("b"), namespace("c"));
    let mut files = Files::default();
    assert!(files.update(readings(&[("1.yaml", &a), ("2.yaml", &b)])));
    assert!(
        !files.update(readings(&[("1.yaml", &a), ("2.yaml", &b)])),
        "nothing is new"
    );
    assert!(files.update(readings(&[("1.yaml", "kind: ["), ("2.yaml", &c)])));
    let snapshot = files.snapshot();
    assert_eq!(names(&snapshot), ["a", "c"]);
    assert_eq!(snapshot.problems.len(), 1);
    assert_eq!(snapshot.problems[0].file, Path::new("1.yaml"));
    // Empty is a slip, gone is meant.
    assert!(files.update(readings(&[("1.yaml", " \n"), ("2.yaml", &c)])));
    assert_eq!(names(&files.snapshot()), ["a", "c"]);
    assert!(files.update(readings(&[("2.yaml", &c)])));
    assert_eq!(names(&files.snapshot()), ["c"]);
    assert!(files.snapshot().problems.is_empty());
    // Broken from the start: reported, and nothing of it is there.
    files.update(readings(&[
        ("2.yaml", &c),
        ("3.yaml", &format!("{a}---\nkind: X\n")),
    ]));
    assert_eq!(names(&files.snapshot()), ["c"]);
    assert_eq!(files.snapshot().problems.len(), 1);
    // The directory can't be read: all stands.
    assert!(files.lost(Path::new("dir"), "gone".into()));
    assert_eq!(
        (names(&files.snapshot()), files.snapshot().problems.len()),
        (vec!["c".into()], 2)
    );
}

#[test]
fn an_object_in_two_files_stays_with_the_first() {
    let a = namespace("a");
    let mut files = Files::default();
    files.update(readings(&[("2.yaml", &a)]));
    files.snapshot();
    files.update(readings(&[("1.yaml", &a), ("2.yaml", &a)]));
    let snapshot = files.snapshot();
    assert_eq!(
        (names(&snapshot), snapshot.problems.len()),
        (vec!["a".into()], 1)
    );
    assert_eq!(
        snapshot.problems[0].file,
        Path::new("1.yaml"),
        "2.yaml had it before"
    );
    assert!(
        snapshot.problems[0].reason.contains("2.yaml"),
        "{}",
        snapshot.problems[0]
    );
    let error = refusal_in_one_file(&format!("{a}---\n{a}"));
    assert_eq!(error.line, Some(6));
}

fn refusal_in_one_file(text: &str) -> SourceError {
    let mut files = Files::default();
    files.update(readings(&[("x.yaml", text)]));
    let snapshot = files.snapshot();
    assert!(snapshot.objects.is_empty());
    snapshot.problems.into_iter().next().expect("a problem")
}

/// Waits for a snapshot that satisfies the condition; the test fails if none comes.
async fn until(
    receiver: &mut tokio::sync::watch::Receiver<std::sync::Arc<Snapshot>>,
    what: &str,
    condition: impl Fn(&Snapshot) -> bool,
) {
    let found = receiver.wait_for(|snapshot| condition(snapshot));
    let found = tokio::time::timeout(Duration::from_secs(10), found).await;
    assert!(found.is_ok(), "no snapshot within 10 s: {what}");
}

#[tokio::test]
async fn a_directory_is_followed() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    let write = |name: &str, text: &str| std::fs::write(path(name), text).expect("written");
    write("a.yaml", &namespace("a"));
    write("notes.txt", "kind: [");
    write(".a.yaml.swp", "kind: [");
    write("b.yaml~", "kind: [");
    let (source, mut receiver) = YamlDir::open(directory.path()).expect("readable");
    assert_eq!(names(&receiver.borrow()), ["a"]);
    assert!(receiver.borrow().problems.is_empty());
    let task = tokio::spawn(source.run());

    write("b.yml", &namespace("b"));
    until(&mut receiver, "a new file", |s| names(s) == ["a", "b"]).await;
    write("tmp", &namespace("c"));
    std::fs::rename(path("tmp"), path("b.yml")).expect("renamed");
    until(&mut receiver, "renamed over", |s| names(s) == ["a", "c"]).await;
    write("a.yaml", "kind: [");
    until(&mut receiver, "broken", |s| {
        s.problems.len() == 1 && names(s) == ["a", "c"]
    })
    .await;
    write("a.yaml", &namespace("d"));
    until(&mut receiver, "mended", |s| {
        s.problems.is_empty() && names(s) == ["c", "d"]
    })
    .await;
    std::fs::remove_file(path("b.yml")).expect("removed");
    until(&mut receiver, "removed", |s| names(s) == ["d"]).await;

    std::fs::write(path("bytes.yaml"), [0xff, 0xfe]).expect("written");
    until(&mut receiver, "not text", |s| {
        s.problems.len() == 1 && names(s) == ["d"]
    })
    .await;

    drop(receiver);
    let ended = tokio::time::timeout(Duration::from_secs(5), task).await;
    assert!(ended.is_ok(), "the source ends with its last receiver");
}

#[test]
fn a_directory_that_is_not_there_is_an_error() {
    let error = YamlDir::open(Path::new("/nonexistent/objects")).expect_err("an error");
    assert!(
        error
            .to_string()
            .starts_with("/nonexistent/objects: can't read"),
        "{error}"
    );
}

#[test]
fn objects_know_their_scope() {
    let objects = decode(&format!("{LOCKDOWN}---\n{}", namespace("a"))).expect("valid");
    assert!(objects.iter().all(|l| !Object::namespaced(&l.object)));
}
