//! Pods as they start: init containers, containers that are added later, the first instruction.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Settings;
use crate::e2e::attempts::{count, token};
use crate::e2e::cluster::{Place, Seen, until};
use crate::e2e::objects::{Container, PodOf};
use crate::e2e::report::{Finding, Report};
use crate::e2e::world::World;
use crate::node::plan;

const LIMIT: Duration = Duration::from_mins(2);
/// How long a pod sends that does so from its first instruction on, in milliseconds.
const SENDS_MS: u64 = 3000;

pub(super) async fn cases(world: &World, settings: &Settings, report: &mut Report) {
    report.case("bypass-init-container", init(world)).await;
    report
        .case("bypass-ephemeral-container", ephemeral(world))
        .await;
    let first = first_packet(world, settings.starts);
    report.case("bypass-first-packet", first).await;
}

/// Sends from the first instruction on, then ends or does nothing.
fn sender<'a>(world: &'a World, name: &'a str, token: &str, exit: bool) -> Container<'a> {
    let to = format!("{}:{}", plan::OUTSIDE.v4, plan::OUTSIDE_UDP);
    let ms = SENDS_MS.to_string();
    let mut args = vec!["first", "--to", &to, "--payload", token, "--for-ms", &ms];
    args.extend(exit.then_some("--exit"));
    Container {
        name,
        ..Container::attacker(&world.probe, &args)
    }
}

/// What a sender says at its end: datagrams that its own stack took and refused.
async fn said(world: &World, place: &Place) -> Result<(u64, u64)> {
    until(&format!("the end of {}", place.id()), LIMIT, || async {
        let log = world.cluster.logs(place).await?;
        Ok(match log.lines().find_map(parse) {
            Some(said) => Seen::There(said),
            None => Seen::NotYet("it has said nothing yet".to_owned()),
        })
    })
    .await
}

fn parse(line: &str) -> Option<(u64, u64)> {
    let value: Value = serde_json::from_str(line).ok()?;
    Some((value["sent"].as_u64()?, value["refused"].as_u64()?))
}

async fn init(world: &World) -> Result<Finding> {
    let token = token("bypass-init-container");
    let (held, node) = (world.names.held(), world.node());
    let idle = Container::attacker(&world.probe, &["pause"]).value();
    let pod = PodOf {
        init: vec![sender(world, "before", &token, true).value()],
        ..PodOf::plain(&world.names, &held, "with-init", node, vec![idle])
    };
    let mark = world.mark(node).await?;
    world.start(&pod.value(), false).await?;
    let (sent, refused) = said(world, &Place::new(&held, "with-init", "before")).await?;
    finish(
        world,
        mark,
        &token,
        &held,
        &["with-init".into()],
        sent,
        refused,
    )
    .await
}

async fn ephemeral(world: &World) -> Result<Finding> {
    let token = token("bypass-ephemeral-container");
    let (held, node) = (world.names.held(), world.node());
    // Others have forged the address of `ratings`, and the outside has answered to it: whatever goes
    // back there by the same ports is a reply.
    let pod = super::pods::client(0);
    let place = world.held(&pod);
    let mark = world.mark(node).await?;
    let container = sender(world, "debugger", &token, true).value();
    world.cluster.add_ephemeral(&place, &container).await?;
    let (sent, refused) = said(world, &Place::new(&held, &pod, "debugger")).await?;
    finish(world, mark, &token, &held, &[pod], sent, refused).await
}

/// As many pods as are asked for, all at once.
async fn first_packet(world: &World, pods: usize) -> Result<Finding> {
    let token = token("bypass-first-packet");
    let (held, node) = (world.names.held(), world.node());
    let mark = world.mark(node).await?;
    let names: Vec<String> = (0..pods).map(|i| format!("first-{i}")).collect();
    for name in &names {
        let container = sender(world, "app", &token, false).value();
        let pod = PodOf::plain(&world.names, &held, name, node, vec![container]);
        world.cluster.apply(&pod.value()).await?;
    }
    let (mut sent, mut refused) = (0, 0);
    for name in &names {
        let said = said(world, &world.held(name))
            .await
            .with_context(|| format!("pod {name}"))?;
        sent += said.0;
        refused += said.1;
    }
    let finding = finish(world, mark, &token, &held, &names, sent, refused).await;
    for name in &names {
        world.cluster.delete("Pod", &held, name, Some(0)).await?;
    }
    finding
}

/// Nothing arrived, though something was sent, and the kernel counted it or refused it to the
/// sender at once.
async fn finish(
    world: &World,
    mark: usize,
    token: &str,
    namespace: &str,
    pods: &[String],
    sent: u64,
    refused: u64,
) -> Result<Finding> {
    let arrived = world.since(world.node(), mark).await?;
    let arrived = count(&arrived.packets, token, false);
    let mut denied = 0;
    for pod in pods {
        let id = format!("{namespace}/{pod}");
        let counters = world.counters(world.node(), &id).await?;
        denied += counters
            .values()
            .filter(|one| !one.1)
            .map(|one| one.0)
            .sum::<u64>();
    }
    let ok = arrived == 0 && sent + refused > 0 && denied + refused > 0;
    Ok(Finding::because(
        ok,
        format!("{arrived} arrived of {sent} sent by {} pods", pods.len()),
        format!("{denied} denied, {refused} refused to the sender"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_word_of_a_sender_counts() {
        assert_eq!(parse(r#"{"sent":7,"refused":1}"#), Some((7, 1)));
        assert_eq!(parse("error: no route"), None);
    }
}
