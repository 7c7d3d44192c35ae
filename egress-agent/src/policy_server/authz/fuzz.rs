//! Any question in a small world, held against what that world may ever admit.

use envoy_types::pb::envoy::service::auth::v3::CheckRequest;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;

use super::answer::answer;
use super::attributes::{Asked, read};
use super::fixture::{GATEWAY, PRODUCTPAGE, REVIEWS, caller, id, mk_served};
use super::{Binding, decide};
use crate::policy_server::Served;

thread_local! {
    static SERVED: Served = mk_served();
}

pub(crate) fn ask(choice: u8, request: &CheckRequest) {
    let Ok(asked) = read(request) else { return };
    let caller = caller(if choice & 1 == 0 { "egress" } else { "other" });
    let binding = match choice >> 1 & 3 {
        0 | 1 => Binding::Require,
        2 => Binding::Prefer,
        _ => Binding::Off,
    };
    SERVED.with(|served| {
        let verdict = decide(served, &caller, &asked, binding);
        if verdict.allowed() {
            assert_eq!(choice & 1, 0, "asked by no gateway: {asked:?}");
            assert!(may_pass(&asked, binding), "{verdict:?} for {asked:?}");
        }
        let answer = answer(&verdict, &served.revision);
        let code = answer.status.map(|status| status.code);
        match answer.http_response {
            Some(HttpResponse::OkResponse(_)) => {
                assert!(verdict.allowed());
                assert_eq!(code, Some(0));
            }
            Some(HttpResponse::DeniedResponse(denied)) => {
                assert!(!verdict.allowed());
                assert_eq!(code, Some(7), "permission denied");
                assert_eq!(denied.status.map(|status| status.code), Some(403));
                assert_eq!(denied.body, "RBAC: access denied");
            }
            other => panic!("{other:?} is no answer"),
        }
    });
}

/// The objects of the fixture in words. Headers are left out, so this is more than is admitted.
fn may_pass(asked: &Asked<'_>, binding: Binding) -> bool {
    let (address, port) = asked.gateway;
    let known = [("productpage", PRODUCTPAGE), ("reviews", REVIEWS)];
    let account = known
        .iter()
        .find(|(account, _)| asked.principal == id(account).to_string());
    let at = known
        .iter()
        .find(|(_, pod)| asked.client.to_string() == *pod);
    let bound = match binding {
        Binding::Require => account.is_some() && account == at,
        Binding::Prefer => at.is_none() || account == at,
        Binding::Off => true,
    };
    let productpage = account.is_some_and(|(account, _)| *account == "productpage");
    let admitted = match &asked.http {
        // Passed on by the server name of TLS.
        None => productpage && port == 15443 && same(asked.sni, "tls.example"),
        Some(http) => {
            let host = http
                .authority
                .rsplit_once(':')
                .map_or(http.authority, |it| it.0);
            let api = same(host, "api.example") || same(host, "api.test");
            same(host, "open.example") || (api && productpage)
        }
    };
    address.to_string() == GATEWAY && matches!(port, 15443 | 15444) && bound && admitted
}

/// Names are compared without case and without the root's dot.
fn same(host: &str, name: &str) -> bool {
    host.strip_suffix('.')
        .unwrap_or(host)
        .eq_ignore_ascii_case(name)
}
