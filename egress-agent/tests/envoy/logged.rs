//! Who decided, as the gateway's access log has it: the same as the decision says.

use egress_agent::gateway::access::AccessReason;
use egress_agent::gateway::envoy::Authorization;
use egress_agent::gateway::{Decision, OutboundPolicy};
use serde_json::{Value, json};

use crate::gateway::{Gateway, Objects};
use crate::world::{BOTH, start};

/// Twelve entries on `api.localhost`, so that the order of positions and that of names differ, and
/// a policy on trial on `open.localhost`.
fn objects(mut objects: Objects) -> Objects {
    let clients = |name: &str| json!([{ "serviceAccountSelector": { "name": name } }]);
    let method = |method: &str| json!({ "allowedMethods": [method] });
    let mut list: Vec<Value> = (0..9).map(|_| method("PUT")).collect();
    list[2] = json!({ "allowedClients": clients("productpage"), "allowedMethods": ["GET"] });
    list.push(json!({ "allowedClients": clients("reviews"), "dryRun": true }));
    list.push(json!({ "allowedPaths": ["/both"] }));
    list.push(json!({ "allowedClients": clients("ratings"), "allowedPaths": ["/late"] }));
    objects.policies[0].spec.config =
        serde_json::from_value(json!({ "authzList": list })).expect("entries");
    let mut trial = objects.policies[0].clone();
    trial.metadata.name = Some("trial".to_owned());
    trial.spec = serde_json::from_value(json!({
        "applyToDestinations":
            [{ "kind": "EXTERNAL_SERVICE", "selector": { "name": "open", "namespace": "global" } }],
        "config": { "authz": { "allowedClients": clients("productpage"), "dryRun": true } },
    }))
    .expect("a policy");
    objects.policies.push(trial);
    objects.outbound = OutboundPolicy::AllowAny;
    objects
}

fn word(allowed: bool) -> &'static str {
    if allowed { "allowed" } else { "denied" }
}

/// What the log should say: what it does not is null.
fn expected(decision: &Decision) -> Value {
    let service = decision.service.as_ref();
    let unrouted = [AccessReason::UnknownHost, AccessReason::UnknownPort];
    let reason = if unrouted.contains(&decision.reason) {
        "no-route"
    } else {
        decision.reason.as_str()
    };
    json!({
        "verdict": word(decision.allowed),
        "reason": reason,
        "object": decision.decided_by(),
        "service": service.map(|service| format!("ExternalService/{service}")),
        "dry_run": decision.dry_run.map(word),
        "dry_run_object": decision.would_be_by(),
    })
}

fn logged(gateway: &Gateway, request_id: &str) -> Option<Value> {
    let log = gateway.access_log();
    log.into_iter()
        .find(|line| line["user_agent"] == *request_id)
}

#[test]
fn the_log_names_what_the_decision_names() {
    for authorization in BOTH {
        the_log_names_what_the_decision_names_by(authorization);
    }
}

fn the_log_names_what_the_decision_names_by(authorization: Authorization) {
    let (mut gateway, before, _) = start(authorization);
    gateway.apply(&objects(before));
    gateway.until("the new policy", || {
        gateway.get("ratings", "api.localhost", "/both").status == 200
    });
    let rows = [
        ("productpage", "GET", "api.localhost", "/"),
        ("productpage", "GET", "api.localhost", "/both"),
        ("reviews", "GET", "api.localhost", "/both?x"),
        ("ratings", "GET", "api.localhost", "/late"),
        ("ratings", "POST", "api.localhost", "/late"),
        ("ratings", "PUT", "api.localhost", "/late"),
        ("ratings", "GET", "api.localhost", "/"),
        ("reviews", "GET", "api.localhost", "/"),
        ("reviews", "PUT", "api.localhost", "/"),
        ("productpage", "GET", "open.localhost:8080", "/"),
        ("reviews", "GET", "open.localhost:8080", "/"),
        ("reviews", "GET", "open.localhost:8081", "/"),
        ("reviews", "GET", "elsewhere.wild.localhost", "/"),
        ("reviews", "GET", "nobody.localhost", "/"),
        ("reviews", "GET", "example.com", "/"),
    ];
    let mut objects = std::collections::BTreeSet::new();
    for (number, (account, method, authority, path)) in rows.into_iter().enumerate() {
        let agent = format!("row-{number}");
        let decision = gateway.decide(account, method, authority, path, &[]);
        let header = format!("user-agent: {agent}\r\n");
        let answer = gateway.ask(account, method, authority, path, &header);
        let answer = answer.expect("an answer");
        assert_eq!(answer.is_denied(), !decision.allowed, "{agent}: {answer:?}");
        gateway.until("the access log has it", || {
            logged(&gateway, &agent).is_some()
        });
        let line = logged(&gateway, &agent).expect("it is there");
        let expected = expected(&decision);
        for (field, value) in expected.as_object().expect("fields") {
            assert_eq!(&line[field], value, "{agent} {field}: {line} {decision:?}");
        }
        objects.insert(line["object"].to_string());
    }
    assert!(objects.len() >= 6, "{objects:?}");
}

#[test]
fn a_request_that_nobody_answers_for_has_its_reason() {
    let (mut gateway, _, _) = start(Authorization::ExtAuthz);
    gateway.server.kill();
    let header = "user-agent: orphan\r\n";
    let answer = gateway.ask("productpage", "GET", "api.localhost", "/", header);
    assert_eq!(answer.expect("an answer").status, 403);
    gateway.until("the access log has it", || {
        logged(&gateway, "orphan").is_some()
    });
    let line = logged(&gateway, "orphan").expect("it is there");
    assert_eq!(line["reason"], "no-answer", "{line}");
    assert!(
        line["verdict"].is_null() && line["object"].is_null(),
        "{line}"
    );
}
