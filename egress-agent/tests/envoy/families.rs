//! Both families of addresses.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use egress_agent::gateway::envoy::Authorization;
use egress_agent::policy_server::PodAccount;
use egress_agent::policy_server::authz::Binding;
use serde_json::{Value, json};

use crate::client::Answer;
use crate::gateway::{Gateway, Objects, free_port};
use crate::mesh::{Authority, client_config};
use crate::upstream;
use crate::world::{BOTH, guide};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// `open.localhost:8080` for whoever comes from these addresses.
fn objects(listener: u16, outside: u16, blocks: &[&str]) -> Objects {
    let mut objects = guide(listener, 443, 444, outside);
    objects.policies[0].spec = serde_json::from_value(json!({
        "applyToDestinations":
            [{ "kind": "EXTERNAL_SERVICE", "selector": { "name": "open", "namespace": "global" } }],
        "config": { "authz": { "allowedIpBlocks": blocks } },
    }))
    .expect("a policy");
    objects
}

fn get(gateway: &Gateway, account: &str, ip: IpAddr) -> Answer {
    let config = client_config(&gateway.mesh, Some(&gateway.identity(account)));
    let mut connection = gateway.connect_to(ip, config);
    let answer = connection.ask("GET", "open.localhost:8080", "/", "");
    answer.expect("an answer")
}

#[test]
fn blocks_hold_for_their_family() {
    for authorization in BOTH {
        let (port, plain) = (free_port(), upstream::serve_plain());
        let outside = Authority::new("outside");
        let first = objects(port, plain, &["::1/128", "10.0.0.0/8"]);
        let mut gateway = Gateway::start(port, &first, &outside, authorization);
        gateway.until("v6 is let through", || {
            get(&gateway, "reviews", V6).status == 200
        });
        assert!(get(&gateway, "reviews", V4).is_denied());
        gateway.apply(&objects(port, plain, &["fd00::/8", "127.0.0.0/8"]));
        gateway.until("the other policy", || {
            get(&gateway, "reviews", V4).status == 200
        });
        assert!(get(&gateway, "reviews", V6).is_denied());
        // Not even a block of every address of one family is for the other.
        gateway.apply(&objects(port, plain, &["0.0.0.0/0"]));
        assert!(get(&gateway, "reviews", V6).is_denied());
        assert_eq!(get(&gateway, "reviews", V4).status, 200);
    }
}

#[test]
fn a_certificate_counts_where_its_pod_is_whichever_the_family() {
    let (port, plain) = (free_port(), upstream::serve_plain());
    let outside = Authority::new("outside");
    let authorization = Authorization::ExtAuthz;
    let mut gateway = Gateway::prepare_bound(port, &outside, authorization, Binding::Require);
    gateway.clients = BTreeMap::from([(
        V6,
        PodAccount {
            namespace: "bookinfo".to_owned(),
            pod: "productpage-1".to_owned(),
            service_account: "productpage".to_owned(),
        },
    )]);
    gateway.apply(&objects(port, plain, &["::/0", "0.0.0.0/0"]));
    gateway.validate().expect("it is sound");
    assert_eq!(get(&gateway, "productpage", V6).status, 200);
    assert!(get(&gateway, "reviews", V6).is_denied());
    assert!(get(&gateway, "productpage", V4).is_denied());
    gateway.until("the access log says why", || {
        let log = gateway.access_log();
        let reasons: Vec<&Value> = log.iter().map(|line| &line["reason"]).collect();
        reasons == ["admitted", "stolen-identity", "unknown-address"]
    });
}
