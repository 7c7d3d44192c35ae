//! An object that the API server takes and the agents can't: its last good version stands.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::e2e::attempts::{self, cut, token};
use crate::e2e::cluster::{Seen, until};
use crate::e2e::objects::{self, Container, PodOf};
use crate::e2e::report::{Finding, Report};
use crate::e2e::world::World;
use crate::node::plan;

/// Until the agents have seen a change that they do not take.
const SEEN: Duration = Duration::from_secs(5);
/// Statuses are gathered from all nodes, and written every half a minute.
const STATUS: Duration = Duration::from_mins(2);
/// A field of a version to come, which would open the namespace.
const FIELD: &str = "everything";

pub(super) async fn cases(world: &World, report: &mut Report) {
    report.case("bad-object", refused(world)).await;
    report.case("bad-object-status", status(world)).await;
    report.case("bad-object-restart", restarted(world)).await;
    report.case("bad-object-mended", mended(world)).await;
}

/// Says `Off`, in a way that can't be taken.
async fn refused(world: &World) -> Result<Finding> {
    let bad = objects::lockdown(&world.names, "Off", &json!({ FIELD: true }));
    if let Err(error) = world.cluster.apply(&bad).await {
        return Ok(Finding::because(
            false,
            "the API server refused it, so the agents never saw it",
            format!("{error:#}"),
        ));
    }
    sleep(SEEN).await;
    let seen = datagram(world, "bad-object", "reviews").await?;
    Ok(cut(&seen, "not-allowed"))
}

async fn datagram(world: &World, case: &str, pod: &str) -> Result<attempts::Observation> {
    let token = token(case);
    let to = format!("{}:{}", plan::OUTSIDE.v4, plan::OUTSIDE_UDP);
    let args = [
        "probe",
        "udp",
        "--to",
        &to,
        "--payload",
        &token,
        "--timeout-ms",
        "1500",
    ]
    .map(str::to_owned);
    attempts::observe(world, world.node(), &world.held(pod), &args, &token).await
}

async fn status(world: &World) -> Result<Finding> {
    let name = world.names.lockdown();
    let said = until("a status that refuses it", STATUS, || async {
        let object = world.cluster.get("EgressLockdown", "", name).await?;
        let object = object.unwrap_or_default();
        Ok(match refusal(&object) {
            Some(message) => Seen::There(message),
            None => Seen::NotYet(format!("its status is {}", object["status"])),
        })
    })
    .await;
    Ok(match said {
        Ok(message) => Finding::because(message.contains(FIELD), "Accepted is False", message),
        Err(error) => Finding::new(false, format!("{error:#}")),
    })
}

/// Message of the condition `Accepted` where it is `False` for the object as it is now.
fn refusal(object: &Value) -> Option<String> {
    let generation = object.pointer("/metadata/generation")?;
    let conditions = object.pointer("/status/conditions")?.as_array()?;
    let accepted = conditions.iter().find(|one| one["type"] == "Accepted")?;
    let current = accepted["observedGeneration"] == *generation
        || object.pointer("/status/observedGeneration") == Some(generation);
    (accepted["status"] == "False" && current)
        .then(|| accepted["message"].as_str().unwrap_or_default().to_owned())
}

/// An agent that starts with it becomes Ready, and holds what the one before it held; a pod that is
/// new to it too.
async fn restarted(world: &World) -> Result<Finding> {
    let told = super::restart::delete(world).await?;
    let old = datagram(world, "bad-object-restart", "reviews").await?;
    let idle = Container::attacker(&world.probe, &["pause"]).value();
    let held = world.names.held();
    let pod = PodOf::plain(&world.names, &held, "late", world.node(), vec![idle]).value();
    world.start(&pod, false).await?;
    let new = datagram(world, "bad-object-restart", "late").await?;
    let ok = [&old, &new]
        .into_iter()
        .all(|seen| matches!(cut(seen, "not-allowed"), Finding::Seen { ok: true, .. }));
    let seen = format!("before it {}, after it {}", old.seen(), new.seen());
    Ok(Finding::because(ok, seen, told))
}

/// A new version with an exception is taken, and taken back.
async fn mended(world: &World) -> Result<Finding> {
    let cidr = format!("{}/32", plan::OUTSIDE.v4);
    let port = json!({ "protocol": "UDP", "port": plan::OUTSIDE_UDP });
    let allow = json!({ "cidrs": [{ "cidr": cidr, "ports": [port] }] });
    let mended = objects::lockdown(&world.names, "Enforce", &allow);
    world.cluster.apply(&mended).await?;
    world.wait_for_mode("Enforce").await?;
    let open = datagram(world, "bad-object-mended", "reviews").await?;
    super::set_mode(world, "Enforce").await?;
    sleep(SEEN).await;
    let closed = datagram(world, "bad-object-mended", "reviews").await?;
    let ok = open.arrived > 0
        && open.answer.answered()
        && matches!(cut(&closed, "not-allowed"), Finding::Seen { ok: true, .. });
    Ok(Finding::because(
        ok,
        format!(
            "with an exception {}, without {}",
            open.seen(),
            closed.seen()
        ),
        format!("{}; {}", open.reasons(), closed.reasons()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_of_the_object_as_it_is() {
        let object = |status: &str, observed: u64| {
            json!({
                "metadata": { "generation": 3 },
                "status": {
                    "observedGeneration": observed,
                    "conditions": [{
                        "type": "Accepted", "status": status, "message": "allow.everything: unknown",
                    }],
                },
            })
        };
        let message = refusal(&object("False", 3)).unwrap();
        assert!(message.contains(FIELD));
        assert_eq!(refusal(&object("True", 3)), None);
        assert_eq!(refusal(&object("False", 2)), None);
        assert_eq!(refusal(&json!({ "metadata": { "generation": 1 } })), None);
    }
}
