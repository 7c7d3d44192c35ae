//! Whom the access policies admit to anything at all.

use serde_json::{Value, json};

use super::by_clients::ByClients;
use super::make::{index, mk_access, mk_account, mk_external};
use crate::compile::GatewayAdmission;
use crate::index::{Key, Object};

fn admits(account: &str, objects: impl IntoIterator<Item = Object>) -> bool {
    let accounts = [
        mk_account("bookinfo", "productpage", json!({"account": "productpage"})),
        mk_account("bookinfo", "reviews", json!({"account": "reviews"})),
        mk_account("other", "productpage", json!({"account": "productpage"})),
    ];
    let index = index(accounts.into_iter().chain(objects));
    let (namespace, name) = account.split_once('/').expect("namespace/name");
    ByClients {
        index: &index,
        cluster: Some("cluster1"),
        allow_any: false,
    }
    .admits(&Key::new(namespace, name))
}

fn policy(config: Value) -> [Object; 2] {
    [
        mk_external("httpbin.org", 443),
        mk_access("p", json!({"name": "httpbin.org"}), config),
    ]
}

fn clients(selector: Value) -> Value {
    json!({"authz": {"allowedClients": [{"serviceAccountSelector": selector}]}})
}

#[test]
fn the_guides_policy_admits_productpage_only() {
    let guide = || {
        policy(clients(
            json!({"cluster": "cluster1", "namespace": "bookinfo",
            "labels": {"account": "productpage"}}),
        ))
    };
    assert!(admits("bookinfo/productpage", guide()));
    assert!(!admits("bookinfo/reviews", guide()));
    assert!(!admits("other/productpage", guide()));
    assert!(!admits("bookinfo/unknown", guide()));
}

#[test]
fn a_host_without_a_policy_is_open_and_no_host_is_closed() {
    assert!(!admits("bookinfo/reviews", []), "nothing is registered");
    assert!(admits("bookinfo/reviews", [mk_external("a.example", 443)]));
    let mut objects = policy(clients(json!({"name": "nobody"}))).to_vec();
    assert!(!admits("bookinfo/reviews", objects.clone()));
    objects.push(mk_external("open.example", 443));
    assert!(admits("bookinfo/reviews", objects));
}

#[test]
fn entries_are_alternatives_and_an_empty_one_admits_nobody() {
    let reviews = "bookinfo/reviews";
    assert!(!admits(reviews, policy(json!({"authz": {}}))));
    assert!(!admits(reviews, policy(json!({}))));
    assert!(
        admits(reviews, policy(clients(json!({})))),
        "one empty selector is every client"
    );
    assert!(admits(
        reviews,
        policy(json!({"authz": {"allowedMethods": ["GET"]}}))
    ));
    let list = |second: Value| json!({"authzList": [{}, second]});
    assert!(!admits(reviews, policy(list(json!({})))));
    let by_name = json!({"allowedClients": [{"serviceAccountSelector": {"name": "reviews"}}]});
    assert!(admits(reviews, policy(list(by_name))));
    let dry = json!({"authz": {"dryRun": true,
        "allowedClients": [{"serviceAccountSelector": {"name": "nobody"}}]}});
    assert!(admits(reviews, policy(dry)), "a dry run refuses nobody");
}

#[test]
fn another_cluster_is_not_this_one() {
    assert!(!admits(
        "bookinfo/reviews",
        policy(clients(json!({"cluster": "cluster2"})))
    ));
}
