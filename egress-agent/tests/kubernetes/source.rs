//! What is read, and when it is told.

use serde_json::json;
use xtask::apiserver::{definition, gloo_definitions};

use super::objects::{self, NODE, gloo};
use super::world::{Follower, PACE, cluster};
use egress_agent::api::lockdown::Mode;
use egress_agent::index::Key;

#[tokio::test]
async fn only_this_nodes_pods_and_gateways_are_read() {
    let api = cluster();
    let mut follower = Follower::new(&api).await;
    follower.until("the first state", |f| f.changes > 0).await;
    assert_eq!(follower.pods(), ["web"]);
    assert_eq!(follower.index.nodes().len(), 2);
    assert_eq!(follower.index.service_accounts().len(), 1);
    assert!(follower.index.namespace("bookinfo").is_some());

    api.apply(&objects::gateway("istio-egress", "out", "gateway"))
        .unwrap();
    follower
        .until("the gateway's pod", |f| f.pods() == ["web", "gw"])
        .await;
    api.delete(&objects::gateway("istio-egress", "out", "gateway"))
        .unwrap();
    follower.until("it is gone", |f| f.pods() == ["web"]).await;

    let mut web = objects::pod("bookinfo", "web", NODE, "10.244.1.11", "web");
    api.apply(&web).unwrap();
    let moved = |f: &Follower| f.index.pod_by_ip("10.244.1.11".parse().unwrap()).is_some();
    follower.until("its new address", moved).await;
    web["metadata"]["labels"]["app"] = json!("other");
    api.delete(&web).unwrap();
    follower.until("no pod", |f| f.pods().is_empty()).await;
}

#[tokio::test]
async fn what_kubelets_write_of_their_nodes_all_the_time_is_no_news() {
    let api = cluster();
    let mut follower = Follower::new(&api).await;
    follower.until("the first state", |f| f.changes > 0).await;
    let mut node = objects::node("node-2", 2);
    for second in 0..20 {
        let beat = format!("2026-01-01T00:00:{second:02}Z");
        node["status"]["conditions"] = json!([{ "type": "Ready", "lastHeartbeatTime": beat }]);
        api.apply(&node).unwrap();
    }
    follower.quiet().await;
    // Nor is a list of the same.
    api.compact();
    api.break_connections();
    tokio::time::sleep(PACE.first * 10).await;
    assert!(!follower.take(), "a list of the same");
    node["spec"]["podCIDRs"] = json!(["10.244.2.0/24", "fd00:244:2::/64"]);
    api.apply(&node).unwrap();
    let both = |f: &Follower| f.index.nodes()["node-2"].pod_cidrs.len() == 2;
    follower.until("what does matter", both).await;
}

#[tokio::test]
async fn nothing_is_told_before_all_was_read() {
    let api = cluster();
    api.apply(&objects::gateway("istio-egress", "out", "gateway"))
        .unwrap();
    api.forbid(&["accesspolicies.sallyport.dev"]);
    let mut follower = Follower::new(&api).await;
    follower.quiet().await;
    let asked = api.take_asked();
    let list = ("list", "accesspolicies.sallyport.dev".to_owned());
    assert!(asked.contains(&list), "{asked:?}");
    api.forbid(&[]);
    follower.until("the first state", |f| f.changes > 0).await;
    assert_eq!(follower.changes, 1, "all of it at once");
    assert_eq!(
        follower.pods(),
        ["web", "gw"],
        "gateways' pods are part of it"
    );
}

#[tokio::test]
async fn all_pods_are_read_while_a_gateway_runs_here() {
    let api = cluster();
    api.apply(&objects::gateway("istio-egress", "out", "gateway"))
        .unwrap();
    let here = objects::pod("istio-egress", "here", NODE, "10.244.1.20", "gateway");
    api.apply(&here).unwrap();
    let mut follower = Follower::new(&api).await;
    follower.until("the first state", |f| f.changes > 0).await;
    assert_eq!(follower.pods(), ["elsewhere", "web", "gw", "here"]);
    api.delete(&here).unwrap();
    follower
        .until("only gateways' pods", |f| f.pods() == ["web", "gw"])
        .await;
    api.apply(&here).unwrap();
    follower
        .until("all pods again", |f| f.pods().len() == 4)
        .await;
}

#[tokio::test]
async fn gloos_kinds_are_read_while_they_are_defined() {
    let api = cluster();
    let mut follower = Follower::new(&api).await;
    follower.until("the first state", |f| f.changes > 0).await;
    let key = Key::new("istio-egress", "out");
    let is = |app: &'static str| {
        let key = key.clone();
        move |f: &Follower| {
            let gateway = f.index.virtual_gateways().get(&key);
            gateway.is_some_and(|g| g.spec.workloads[0].selector.labels["app"] == app)
        }
    };
    for definition in gloo_definitions() {
        api.apply(&definition).unwrap();
    }
    api.apply(&gloo(objects::gateway("istio-egress", "out", "gloo")))
        .unwrap();
    follower.until("Gloo's object", is("gloo")).await;
    api.apply(&objects::gateway("istio-egress", "out", "own"))
        .unwrap();
    follower.until("the own object", is("own")).await;
    assert_eq!(follower.problems.len(), 1);
    let told = follower.problems[0].to_string();
    assert!(told.contains("networking.gloo.solo.io"), "{told}");
    api.delete(&objects::gateway("istio-egress", "out", "own"))
        .unwrap();
    follower.until("Gloo's object again", is("gloo")).await;
    follower
        .until("no problem", |f| f.problems.is_empty())
        .await;
    for definition in gloo_definitions() {
        api.delete(&definition).unwrap();
    }
    follower
        .until("none", |f| f.index.virtual_gateways().is_empty())
        .await;
    // And what is defined again is read again.
    for definition in gloo_definitions() {
        api.apply(&definition).unwrap();
    }
    api.apply(&gloo(objects::gateway("istio-egress", "out", "gloo")))
        .unwrap();
    follower.until("Gloo's object once more", is("gloo")).await;
}

#[tokio::test]
async fn a_definition_without_our_version_holds_up_nothing() {
    let api = cluster();
    let group = "networking.gloo.solo.io";
    for version in ["v1", "v2"] {
        let other = definition(group, version, "virtualgateways", "VirtualGateway", true);
        api.apply(&other).unwrap();
        if version == "v1" {
            let mut follower = Follower::new(&api).await;
            follower.until("the first state", |f| f.changes > 0).await;
            follower
                .until("all else is well", |f| f.health.connected)
                .await;
        }
    }
    api.apply(&gloo(objects::gateway("istio-egress", "out", "gloo")))
        .unwrap();
    let mut follower = Follower::new(&api).await;
    follower.until("the first state", |f| f.changes > 0).await;
    assert_eq!(follower.index.virtual_gateways().len(), 1);
}

#[tokio::test]
async fn a_wrong_object_holds_up_no_other() {
    let api = cluster();
    api.apply(&objects::lockdown("good", "bookinfo", &[]))
        .unwrap();
    let mut wrong = objects::lockdown("wrong", "bookinfo", &[]);
    wrong["spec"]["mode"] = json!("Sometimes");
    api.apply(&wrong).unwrap();
    let mut follower = Follower::new(&api).await;
    follower.until("the first state", |f| f.changes > 0).await;
    let names = |f: &Follower| f.index.lockdowns().keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        names(&follower),
        ["good", "wrong"],
        "without a good version it holds what it selects"
    );
    assert_eq!(follower.index.lockdowns()["wrong"].mode, Mode::Enforce);
    assert_eq!(follower.problems.len(), 1);
    assert_eq!(follower.problems[0].field, "spec.mode");
    assert_eq!(follower.unread, 1, "there is no good version of it");

    api.apply(&objects::lockdown("wrong", "bookinfo", &[]))
        .unwrap();
    follower
        .until("no problem", |f| f.problems.is_empty())
        .await;
    assert_eq!(names(&follower), ["good", "wrong"]);
    api.apply(&wrong).unwrap();
    follower
        .until("the problem", |f| !f.problems.is_empty())
        .await;
    assert_eq!(
        names(&follower),
        ["good", "wrong"],
        "its last good version stands"
    );
    assert_eq!(follower.unread, 0);
}

#[tokio::test]
async fn more_than_a_page_is_read() {
    let api = cluster();
    for i in 0..1203 {
        api.apply(&objects::service_account("bookinfo", &format!("sa-{i}")))
            .unwrap();
    }
    let mut follower = Follower::new(&api).await;
    follower.until("the first state", |f| f.changes > 0).await;
    assert_eq!(follower.index.service_accounts().len(), 1204);
    let asked = api.take_asked();
    let pages = asked
        .iter()
        .filter(|(verb, of)| *verb == "list" && of == "serviceaccounts");
    assert_eq!(pages.count(), 3);
}
