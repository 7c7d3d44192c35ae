//! The agent under the very roles that the chart gives it.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

use egress_agent::agent::startup_taint;
use egress_agent::agent::status::withdraw;
use egress_agent::source::kubernetes::client;
use serde_json::{Value, json};
use tokio::sync::watch;
use xtask::apiserver::{ApiServer, Asked, gloo_definitions};
use xtask::deploy::chart::{Chart, NAMESPACE};
use xtask::deploy::documents;
use xtask::workspace::Workspace;

use crate::agents::{Agent, events, get, holder_in, object, until, until_holds};
use crate::objects::{self, NODE};
use crate::world::{Follower, PACE, cluster};

const TAINT: &str = "sallyport.dev/agent-not-ready";

static CHART: LazyLock<Chart> = LazyLock::new(|| {
    let workspace = Workspace::find().expect("the workspace of this test");
    Chart::open(&workspace).expect("Helm")
});

/// A cluster that lets agents do what the chart says with these values.
fn cluster_of(values: &Value) -> ApiServer {
    let files = CHART.render(values).expect("it renders");
    let texts = files
        .iter()
        .filter(|(name, _)| name.as_str() != "NOTES.txt");
    let objects = texts.flat_map(|(_, text)| documents(text).expect("YAML"));
    let api = cluster();
    let mut node = objects::node(NODE, 1);
    node["spec"]["taints"] = json!([{ "key": TAINT, "effect": "NoSchedule" }]);
    api.apply(&node).expect("a node");
    api.authorize(&objects.collect::<Vec<_>>());
    api
}

fn denied(api: &ApiServer) -> BTreeSet<Asked> {
    api.take_denied().into_iter().collect()
}

/// Everything that an agent does with its API server, but for its policy server's part.
async fn all_of_it(api: &ApiServer, gloo: bool, taint: bool) {
    let bad = json!({ "apiVersion": "sallyport.dev/v1alpha1", "kind": "ExternalService",
        "metadata": { "name": "bad", "namespace": "bookinfo" }, "spec": { "hosts": 7 } });
    api.apply(&bad).expect("it");
    api.apply(&objects::lockdown("all", "bookinfo", &[]))
        .expect("it");
    api.apply(&objects::gateway("istio-egress", "out", "gateway"))
        .expect("it");
    let kubeconfig = api.kubeconfig_in(NAMESPACE);
    let agent = Agent::with(&kubeconfig, NODE, gloo).await;
    until_holds(api, "EgressLockdown", "all", "Accepted", "True").await;
    until_holds(api, "ExternalService", "bad", "Accepted", "False").await;
    until("an Event", || {
        let events = events(api, "bookinfo");
        (!events.is_empty())
            .then_some(())
            .ok_or_else(|| format!("{events:?}"))
    })
    .await;
    until("a report", || {
        get(api, "EgressNode", NODE)
            .map(drop)
            .ok_or_else(String::new)
    })
    .await;
    assert_eq!(holder_in(api, NAMESPACE), NODE);
    agent.end().await;
    assert_eq!(holder_in(api, NAMESPACE), "", "it was given back");
    if taint {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(&file, kubeconfig).expect("write it");
        let client = client(Some(file.path())).await.expect("a client");
        let synced = watch::Sender::new(true);
        let follow = startup_taint::follow(client, NODE.into(), TAINT.into(), synced.subscribe());
        let follow = tokio::spawn(follow);
        until("the taint's end", || {
            let node = api.get(&object("v1", "Node", "", NODE)).expect("it");
            let left = node["spec"]["taints"]
                .as_array()
                .is_some_and(|all| !all.is_empty());
            (!left).then_some(()).ok_or_else(|| node.to_string())
        })
        .await;
        follow.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_charts_roles_are_all_that_an_agent_needs() {
    let on = json!({ "enabled": true });
    for (values, gloo, taint) in [
        (json!({}), true, false),
        (
            json!({ "startupTaint": on, "policyServer": on }),
            true,
            true,
        ),
        (json!({ "rbac": { "gloo": false } }), false, false),
    ] {
        let api = cluster_of(&values);
        for definition in gloo_definitions() {
            api.apply(&definition).expect("it");
        }
        all_of_it(&api, gloo, taint).await;
        assert_eq!(denied(&api), BTreeSet::new(), "{values}");
    }
}

/// Who makes the roles by hand may leave Gloo Mesh's kinds out, and tell the agent nothing.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_gloos_kinds_all_else_goes_on() {
    let without = json!({ "rbac": { "gloo": false } });
    let api = cluster_of(&without);
    for definition in gloo_definitions() {
        api.apply(&definition).expect("it");
    }
    all_of_it(&api, true, false).await;
    let only = (
        "list",
        "customresourcedefinitions.apiextensions.k8s.io".to_owned(),
    );
    assert_eq!(denied(&api), [only].into());

    // Nothing is told of it as stale, it is asked for seldom, and taken up when the right comes.
    api.apply(&objects::gloo(objects::gateway(
        "istio-egress",
        "gloos",
        "gw",
    )))
    .expect("it");
    let mut follower = Follower::new(&api).await;
    follower.until("the first state", |f| f.changes > 0).await;
    assert!(follower.health.connected, "{:?}", follower.health);
    assert_eq!(follower.index.virtual_gateways().len(), 1);
    api.take_asked();
    tokio::time::sleep(PACE.forbidden * 4).await;
    let asked = api.take_asked().len();
    assert!(asked < 40, "{asked} requests in {:?}", PACE.forbidden * 4);
    let files = CHART.render(&json!({})).expect("it renders");
    api.authorize(&documents(&files["rbac.yaml"]).expect("YAML"));
    follower
        .until("Gloo's gateway", |f| f.index.virtual_gateways().len() == 2)
        .await;
    follower.until("it is well", |f| f.health.connected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_gloos_kinds_that_may_not_be_read_beside_others_is_missed() {
    let api = cluster();
    for definition in gloo_definitions() {
        api.apply(&definition).expect("it");
    }
    let policies = "accesspolicies.security.policy.gloo.solo.io";
    api.forbid(&[policies]);
    let mut follower = Follower::new(&api).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    follower.take();
    assert_eq!(
        follower.changes, 0,
        "what policies would take back is not known"
    );
    api.forbid(&[
        policies,
        "virtualgateways.networking.gloo.solo.io",
        "externalservices.networking.gloo.solo.io",
    ]);
    let mut none = Follower::new(&api).await;
    none.until("the first state", |f| f.changes > 0).await;
    api.forbid(&[]);
    follower.until("the first state", |f| f.changes > 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uninstalling_has_the_rights_that_it_needs() {
    let api = cluster_of(&json!({ "uninstall": true, "startupTaint": { "enabled": true } }));
    let other = json!({ "key": "example.com/maintenance", "effect": "NoExecute" });
    let mut node = objects::node(NODE, 1);
    node["spec"]["taints"] = json!([{ "key": TAINT, "effect": "NoSchedule" }, other]);
    api.apply(&node).expect("a node");
    let report = json!({ "apiVersion": "sallyport.dev/v1alpha1", "kind": "EgressNode",
        "metadata": { "name": NODE } });
    api.apply(&report).expect("it");
    let lease = json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": "sallyport-status", "namespace": NAMESPACE },
        "spec": { "holderIdentity": "" } });
    api.apply(&lease).expect("it");
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(&file, api.kubeconfig_in(NAMESPACE)).expect("write it");
    let client = client(Some(file.path())).await.expect("a client");
    for there in [true, false] {
        let removed = startup_taint::remove(&client, NODE, TAINT).await;
        assert_eq!(removed.expect("it may"), there);
    }
    let left = api.get(&node).expect("it")["spec"]["taints"].clone();
    assert_eq!(left, json!([other]), "others' taints stay");
    let gone = withdraw(client, NODE).await.expect("it may");
    assert_eq!(gone.len(), 2, "{gone:?}");
    assert!(api.get(&report).is_none() && api.get(&lease).is_none());
}
