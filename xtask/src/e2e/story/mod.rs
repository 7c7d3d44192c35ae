//! The story, phase by phase.

mod around;
mod bad;
mod guide;
mod install;
mod pods;
mod ranges;
mod restart;
mod starts;
pub(super) mod uninstall;
mod works;

use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::attempts::{self, Addresses, Way};
use super::objects;
use super::report::Report;
use super::world::World;
use crate::cmd::say;

/// What of the command line the story needs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The agent's image, and the one that it is upgraded to.
    pub image: String,
    pub upgrade_image: Option<String>,
    pub pull_policy: String,
    /// Values of the chart beside the suite's own.
    pub values: Value,
    /// Pods that send from their first instruction on.
    pub starts: usize,
}

impl Settings {
    /// Values of the chart; `authz` is how the gateway decides.
    pub fn values(&self, image: &str, authz: &str) -> Value {
        objects::chart_values(image, &self.pull_policy, authz, &self.values)
    }
}

/// Tells it all. An error is one that leaves no sense in going on.
pub async fn tell(world: &World, settings: &Settings, report: &mut Report) -> Result<()> {
    say(
        "e2e",
        "namespaces, certificates, an outside host on each node",
    );
    install::prepare(world).await?;
    let settings = &ranges::complete(world, settings).await?;
    say("e2e", "the chart");
    install::install(world, settings, report).await?;
    if !report.wants(AFTER_INSTALL) {
        return Ok(());
    }
    say("e2e", "pods and a gateway");
    pods::start(world).await?;
    report.case("hole", guide::hole(world)).await;
    let begun = Instant::now();
    let gateway = pods::gateway(world).await;
    report.found("gateway-ready", gateway, begun.elapsed());
    let at = Addresses::look_up(world).await?;

    say("e2e", "the lockdown: Audit");
    set_mode(world, "Audit").await?;
    for way in Way::ALL {
        report
            .case(way.cases().0, attempts::audited(way, world, &at))
            .await;
    }

    say("e2e", "the lockdown: Enforce");
    set_mode(world, "Enforce").await?;
    report.case("covered", guide::covered(world)).await;
    report.case("guide-allowed", guide::allowed(world)).await;
    report.case("guide-denied", guide::denied(world)).await;
    report.case("guide-direct", guide::direct(world)).await;
    for way in Way::ALL {
        report
            .case(way.cases().1, attempts::enforced(way, world, &at))
            .await;
    }
    starts::cases(world, settings, report).await;
    around::cases(world, report).await;
    works::cases(world, report).await;

    say("e2e", "the agent restarted and upgraded under traffic");
    restart::cases(world, settings, report).await;
    say("e2e", "an object that is refused");
    bad::cases(world, report).await;
    say("e2e", "the end");
    uninstall::cases(world, settings, report).await;
    Ok(())
}

/// Everything that needs more than the agents.
const AFTER_INSTALL: &[&str] = &[
    "hole",
    "gateway-ready",
    "audit",
    "covered",
    "guide",
    "bypass",
    "works",
    "restart",
    "upgrade",
    "bad-object",
    "uninstall",
];

async fn set_mode(world: &World, mode: &str) -> Result<()> {
    let lockdown = objects::lockdown(&world.names, mode, &Value::Null);
    world.cluster.apply(&lockdown).await?;
    let held = world.wait_for_mode(mode).await;
    held.with_context(|| format!("the agents did not take the lockdown with mode {mode}"))
}
