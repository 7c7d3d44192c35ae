//! What Envoys made of their configuration, in the status of their gateway.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use egress_agent::agent::gateway_status::follow;
use egress_agent::policy_server::xds::{NodeState, Rejection};
use egress_agent::source::kubernetes::client;
use serde_json::{Value, json};
use tokio::sync::watch;
use xtask::apiserver::ApiServer;

use crate::world::{PATIENCE, cluster};

const GATEWAY: &str = "istio-egress/egress-vg";

fn gateway() -> Value {
    json!({
        "apiVersion": "sallyport.dev/v1alpha1",
        "kind": "VirtualGateway",
        "metadata": { "name": "egress-vg", "namespace": "istio-egress" },
        "spec": { "workloads": [{ "selector": { "labels": { "app": "gateway" } } }] },
    })
}

fn envoy(name: &str, rejected: Option<&str>) -> NodeState {
    let rejected = rejected.map(|message| {
        let rejection = Rejection {
            revision: "r2".to_owned(),
            message: message.to_owned(),
        };
        ("Listener".to_owned(), rejection)
    });
    NodeState {
        gateway: GATEWAY.to_owned(),
        node: name.to_owned(),
        address: ([10, 0, 0, 1], 40000).into(),
        revision: Some("r1".to_owned()),
        rejected: rejected.into_iter().collect(),
    }
}

async fn connect(api: &ApiServer) -> kube::Client {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("config");
    std::fs::write(&file, api.kubeconfig()).expect("write it");
    client(Some(&file)).await.expect("a client")
}

/// The entries as the API server has them, by name.
fn envoys(api: &ApiServer) -> Vec<Value> {
    let gateway = api.get(&gateway()).expect("it was declared");
    let mut envoys = gateway["status"]["envoys"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    envoys.sort_by_key(|envoy| envoy["name"].to_string());
    envoys
}

async fn until(api: &ApiServer, what: &str, expected: impl Fn(&[Value]) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let envoys = envoys(api);
        if expected(&envoys) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {envoys:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

type Nodes = watch::Sender<BTreeMap<u64, NodeState>>;

/// An agent of this node.
async fn agent(api: &ApiServer, node: &str) -> (Nodes, tokio::task::JoinHandle<()>) {
    let client = connect(api).await;
    let nodes = Nodes::new(BTreeMap::new());
    let task = tokio::spawn(follow(client, node.to_owned(), nodes.subscribe()));
    (nodes, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_tell_of_their_own_envoys_and_leave_others_alone() {
    let api = cluster();
    api.apply(&gateway()).expect("an object");
    let (one, _one) = agent(&api, "node-1").await;
    let (two, two_task) = agent(&api, "node-2").await;
    one.send_replace(BTreeMap::from([(0, envoy("gw-a", None))]));
    two.send_replace(BTreeMap::from([(0, envoy("gw-b", Some("no such filter")))]));
    until(&api, "both", |envoys| {
        envoys.len() == 2
            && envoys[0]["programmed"] == true
            && envoys[0]["agent"] == "node-1"
            && envoys[1]["programmed"] == false
            && envoys[1]["rejected"][0]["message"] == "no such filter"
            && envoys[1]["rejected"][0]["kind"] == "Listener"
    })
    .await;
    // Taken at last.
    two.send_replace(BTreeMap::from([(0, envoy("gw-b", None))]));
    until(&api, "it was taken", |envoys| {
        envoys.len() == 2 && envoys[1]["programmed"] == true && envoys[1]["rejected"].is_null()
            || envoys[1]["rejected"] == json!([]) && envoys[1]["programmed"] == true
    })
    .await;
    one.send_replace(BTreeMap::new());
    until(&api, "one is gone", |envoys| {
        envoys.len() == 1 && envoys[0]["name"] == "gw-b"
    })
    .await;
    // An agent that was killed takes its entries back when it comes again.
    two_task.abort();
    drop(two);
    let (_two, _task) = agent(&api, "node-2").await;
    until(&api, "nobody is left", <[Value]>::is_empty).await;
}
