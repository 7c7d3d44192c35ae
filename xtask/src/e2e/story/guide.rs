//! What the guide promises: the admitted service account gets through, others are told 403, and
//! nobody gets around.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;
use tokio::time::sleep;

use crate::e2e::attempts::{self, token};
use crate::e2e::objects::{CERTS, GATEWAY_APP};
use crate::e2e::report::Finding;
use crate::e2e::world::World;
use crate::node::{Answer, plan};

/// Until a gateway has taken what was declared a moment ago.
const SETTLED: Duration = Duration::from_secs(30);
/// The refusal's body, as the guide shows it.
const DENIED: &str = "RBAC: access denied";

/// Before there is a lockdown: what Sallyport is for.
pub(super) async fn hole(world: &World) -> Result<Finding> {
    let token = token("hole");
    let to = plan::OUTSIDE.v4.to_string();
    let args = ["probe", "http", &to, "--path", "/hole"].map(str::to_owned);
    let place = world.held("reviews");
    let seen = attempts::observe(world, world.node(), &place, &args, &token).await?;
    let ok = seen.answer.status == Some(200) && seen.arrived > 0;
    Ok(Finding::because(ok, seen.seen(), seen.reasons()))
}

pub(super) async fn covered(world: &World) -> Result<Finding> {
    let mut wrong = Vec::new();
    for node in &world.nodes {
        let ended = world.egressctl(&node.name, &["status"]).await?;
        if ended.code != 0 {
            wrong.push(format!("exit {} on {}", ended.code, node.name));
        }
    }
    let seen = if wrong.is_empty() {
        format!("exit 0 on {} nodes", world.nodes.len())
    } else {
        wrong.join(", ")
    };
    Ok(Finding::new(wrong.is_empty(), seen))
}

/// Asks the gateway for httpbin.org with the pod's certificate, as its sidecar does.
pub(super) async fn ask(world: &World, pod: &str) -> Result<Answer> {
    let gateway = world
        .cluster_ip(&world.names.gateway(), GATEWAY_APP)
        .await?;
    let to = SocketAddr::new(gateway, 443).to_string();
    let args = [
        "probe",
        "mesh",
        "--to",
        &to,
        "--certs",
        CERTS,
        "--authority",
        plan::OUTSIDE_NAME,
        "--path",
        "/get",
        "--timeout-ms",
        "4000",
    ];
    world.probe(&world.held(pod), &args).await
}

/// Asks until the answer is as wanted, since a gateway may just have been told.
pub(super) async fn ask_until(
    world: &World,
    pod: &str,
    fine: impl Fn(&Answer) -> bool,
) -> Result<Finding> {
    let deadline = Instant::now() + SETTLED;
    loop {
        let answer = ask(world, pod).await?;
        let ok = fine(&answer);
        if ok || Instant::now() > deadline {
            return Ok(Finding::because(ok, outcome(&answer), body(&answer)));
        }
        sleep(Duration::from_millis(500)).await;
    }
}

fn outcome(answer: &Answer) -> String {
    match (answer.status, &answer.error) {
        (Some(status), _) => status.to_string(),
        (None, Some(error)) => error.clone(),
        (None, None) => answer.outcome.clone(),
    }
}

/// The beginning of the body, on one line.
fn body(answer: &Answer) -> String {
    let line: String = answer.body.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(90).collect()
}

pub(super) async fn allowed(world: &World) -> Result<Finding> {
    ask_until(world, "productpage", is_from_outside).await
}

/// From the outside host itself, which was asked by TLS though the client spoke plain HTTP.
pub(super) fn is_from_outside(answer: &Answer) -> bool {
    let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    answer.status == Some(200)
        && body["served_by"] == plan::OUTSIDE_NAME
        && body["url"]
            .as_str()
            .is_some_and(|url| url.starts_with("https://"))
}

pub(super) fn is_denied(answer: &Answer) -> bool {
    answer.status == Some(403)
        && answer.body == DENIED
        && answer.header("content-type") == Some("text/plain")
}

pub(super) async fn denied(world: &World) -> Result<Finding> {
    ask_until(world, "reviews", is_denied).await
}

/// The admitted account has no other door either.
pub(super) async fn direct(world: &World) -> Result<Finding> {
    let token = token("guide-direct");
    let to = plan::OUTSIDE.v4.to_string();
    let args = [
        "probe",
        "http",
        &to,
        "--path",
        "/direct",
        "--timeout-ms",
        "1500",
    ];
    let args = args.map(str::to_owned);
    let place = world.held("productpage");
    let seen = attempts::observe(world, world.node(), &place, &args, &token).await?;
    Ok(attempts::cut(&seen, "not-allowed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guides_answers_are_known() {
        let answer = |status, body: &str| Answer {
            status: Some(status),
            body: body.into(),
            headers: vec![("content-type".into(), "text/plain".into())],
            ..Answer::default()
        };
        assert!(is_denied(&answer(403, DENIED)));
        assert!(!is_denied(&answer(403, "RBAC: access denied\n")));
        assert!(!is_denied(&answer(200, DENIED)));
        let outside = r#"{"served_by":"httpbin.org","url":"https://httpbin.org/get"}"#;
        assert!(is_from_outside(&answer(200, outside)));
        // In the clear it did not come by the gateway.
        let clear = outside.replace("https:", "http:");
        assert!(!is_from_outside(&answer(200, &clear)));
    }
}
