//! Answers for each outcome, without kernel and without agent.

use std::collections::BTreeMap;
use std::net::IpAddr;

use egress_common::Reason;
use egress_common::maps::{Endpoint, ExactKey4, ExactRule, MODE_AUDIT, MODE_ENFORCE, MODE_OFF};
use egress_common::memory::MemoryTables;

use super::kernel::PodView;
use super::{Answer, Evidence, Result, Target, TargetError, explain};
use crate::policy_server::query::{PolicyAnswer, Tried, Way};

const POLICY: u32 = 7;
const OUTSIDE: &str = "203.0.113.10";

fn view(mode: u8, gateway: bool) -> PodView {
    let endpoint = Endpoint {
        slot: 3,
        policy: POLICY,
        v4_be: [10, 244, 1, 13],
        exact_networks: u64::MAX,
        ..Endpoint::nobodys(mode)
    };
    let mut tables = MemoryTables::default();
    if gateway {
        let key = ExactKey4 {
            policy: POLICY,
            addr_be: [10, 96, 0, 20],
            port_be: 443u16.to_be_bytes(),
            proto: 6,
            pad: 0,
        };
        let rule = ExactRule {
            rule: 1,
            reason: Reason::Gateway as u8,
            pad: 0,
        };
        tables.exact4.insert(key, rule);
    }
    PodView::new(endpoint, false, tables)
}

fn way(allowed: bool, reason: &str) -> Way {
    Way {
        gateway: "istio-egress/vg".to_owned(),
        listener: 8443,
        ask: "http://httpbin.org:80/get".to_owned(),
        allowed,
        reason: reason.to_owned(),
        service: Some("ExternalService/global/httpbin.org".to_owned()),
        object: allowed.then(|| "AccessPolicy/istio-egress/web#0".to_owned()),
        dry_run: None,
        trials: vec![Tried {
            entry: "AccessPolicy/istio-egress/web#0".to_owned(),
            dry_run: false,
            failed: if allowed {
                Vec::new()
            } else {
                vec!["allowedClients".to_owned()]
            },
        }],
    }
}

fn policy(way: Way) -> PolicyAnswer {
    PolicyAnswer {
        revision: "r".to_owned(),
        client: Some("spiffe://cluster.local/ns/bookinfo/sa/reviews".to_owned()),
        ways: vec![way],
        rejected: Vec::new(),
    }
}

fn ask(to: &str, view: Option<&PodView>, policy: Option<&PolicyAnswer>) -> Answer {
    let address: IpAddr = OUTSIDE.parse().unwrap();
    explain(&Evidence {
        pod: "bookinfo/reviews-v1",
        target: &to.parse().unwrap(),
        addresses: &[address],
        view,
        uncovered: None,
        rules: &BTreeMap::from([(1, "VirtualGateway/istio-egress/vg".to_owned())]),
        policy,
    })
}

#[test]
fn the_gateway_admits() {
    let held = view(MODE_ENFORCE, true);
    let answer = ask(
        "https://httpbin.org/get",
        Some(&held),
        Some(&policy(way(true, "admitted"))),
    );
    assert_eq!(
        (answer.result, answer.decided_by),
        (Result::Allowed, "gateway")
    );
    assert_eq!(
        answer.summary,
        "ALLOWED by gateway istio-egress/vg: asked as http://httpbin.org:80/get, by \
         AccessPolicy/istio-egress/web#0; straight to 203.0.113.10:443 it is dropped (not-allowed)"
    );
    assert_eq!(answer.kernel.to_gateways.len(), 1);
    assert_eq!(answer.kernel.to_gateways[0].verdict, "pass");
    assert_eq!(
        answer.kernel.to_gateways[0].rule.as_deref(),
        Some("VirtualGateway/istio-egress/vg")
    );
}

#[test]
fn the_gateway_refuses_and_what_to_change_is_said() {
    let held = view(MODE_ENFORCE, true);
    let answer = ask(
        "https://httpbin.org/get",
        Some(&held),
        Some(&policy(way(false, "not-admitted"))),
    );
    assert_eq!(
        (answer.result, answer.decided_by),
        (Result::Denied, "gateway")
    );
    assert_eq!(
        answer.change,
        [
            "AccessPolicy/istio-egress/web#0: allowedClients does not hold",
            "to admit it, add to one of these entries' allowedClients: serviceAccountSelector \
             { name: reviews, namespace: bookinfo }"
        ]
    );
}

#[test]
fn the_kernel_decides_what_no_gateway_passes_on() {
    let held = view(MODE_ENFORCE, true);
    let answer = ask("udp://httpbin.org:9999", Some(&held), None);
    assert_eq!(
        (answer.result, answer.decided_by),
        (Result::Denied, "kernel")
    );
    assert_eq!(answer.kernel.direct[0].reason, "not-allowed");
    assert!(
        answer.change[0].contains("cidr: 203.0.113.10/32, ports: [{ protocol: UDP, port: 9999 }]"),
        "{:?}",
        answer.change
    );
    let answer = ask(
        "https://httpbin.org",
        Some(&view(MODE_ENFORCE, false)),
        None,
    );
    assert_eq!(
        (answer.result, answer.decided_by),
        (Result::Denied, "kernel")
    );
    assert!(
        answer.summary.contains("no gateway may be reached"),
        "{}",
        answer.summary
    );
}

#[test]
fn who_is_not_held_goes_straight() {
    let answer = ask("tcp://httpbin.org:80", Some(&view(MODE_OFF, false)), None);
    assert_eq!(answer.result, Result::Allowed);
    assert!(
        answer.summary.contains("no lockdown holds"),
        "{}",
        answer.summary
    );
    let answer = ask("tcp://httpbin.org:80", Some(&view(MODE_AUDIT, false)), None);
    assert_eq!(answer.result, Result::Allowed);
    assert_eq!(answer.kernel.direct[0].verdict, "audit");
    assert!(
        answer.summary.starts_with("ALLOWED for now"),
        "{}",
        answer.summary
    );
}

#[test]
fn what_nothing_holds_is_not_judged() {
    let held = view(MODE_ENFORCE, true);
    let address: IpAddr = OUTSIDE.parse().unwrap();
    let answer = explain(&Evidence {
        pod: "bookinfo/reviews-v1",
        target: &"udp://httpbin.org:9999".parse().unwrap(),
        addresses: &[address],
        view: Some(&held),
        uncovered: Some("no hook on eth1"),
        rules: &BTreeMap::new(),
        policy: None,
    });
    assert_eq!(
        (answer.result, answer.decided_by),
        (Result::Unknown, "nobody")
    );
    assert!(
        answer.summary.contains("UNCOVERED (no hook on eth1)"),
        "{}",
        answer.summary
    );
}

#[test]
fn what_cannot_be_asked_is_said() {
    let answer = ask("https://httpbin.org", None, None);
    assert_eq!(answer.result, Result::Unknown);
    let answer = ask("https://httpbin.org", Some(&view(MODE_ENFORCE, true)), None);
    assert_eq!(answer.result, Result::Unknown);
    assert!(
        answer.summary.contains("no agent answers"),
        "{}",
        answer.summary
    );
}

#[test]
fn targets() {
    let read = |text: &str| text.parse::<Target>().map(|target| target.to_string());
    assert_eq!(
        read("https://a.b/c?d"),
        Ok("https://a.b:443/c?d".to_owned())
    );
    assert_eq!(read("http://[::1]:81"), Ok("http://[::1]:81/".to_owned()));
    assert_eq!(read("icmp://10.0.0.1"), Ok("icmp://10.0.0.1".to_owned()));
    assert_eq!(
        read("udp://::1"),
        Err(TargetError::Port("udp://::1".to_owned()))
    );
    assert_eq!(
        read("tcp://a:0"),
        Err(TargetError::Port("tcp://a:0".to_owned()))
    );
    assert_eq!(
        read("ftp://a"),
        Err(TargetError::Scheme("ftp://a".to_owned()))
    );
    assert_eq!(
        read("https://"),
        Err(TargetError::Host("https://".to_owned()))
    );
}
