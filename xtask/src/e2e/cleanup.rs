//! Everything that the suite made goes, whatever came before: each step is bounded in time, and what
//! can't be removed is named.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::timeout;

use super::cluster::{Seen, until};
use super::story::{Settings, uninstall};
use super::world::World;
use crate::cmd::say;

/// For what takes Sallyport off the nodes; there may be nodes without a running agent.
const TAKE_OFF: Duration = Duration::from_secs(100);
const STEP: Duration = Duration::from_secs(90);
const LABEL: &str = "app.kubernetes.io/name=sallyport";

/// Removes all of it, and returns what is left.
pub async fn all(world: &World, settings: &Settings, definitions: bool) -> Vec<String> {
    say("e2e", "cleaning up");
    let mut left = Vec::new();
    let mut step = |what: &str, result: Result<Result<()>, tokio::time::error::Elapsed>| {
        let error = match result {
            Ok(Ok(())) => return,
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "it took too long".to_owned(),
        };
        left.push(format!("{what}: {error}"));
    };
    step("the lockdown", timeout(STEP, lockdown(world)).await);
    step(
        "Sallyport on the nodes (deploy/README.md, Uninstalling)",
        timeout(TAKE_OFF, off_the_nodes(world, settings)).await,
    );
    step(
        "the release",
        timeout(STEP, world.release.uninstall()).await,
    );
    if definitions {
        step(
            "definitions of Sallyport's kinds",
            timeout(STEP, crds(world)).await,
        );
    }
    step("taints", timeout(STEP, taints(world)).await);
    step("programs on the nodes", timeout(STEP, pins(world)).await);
    step("BPF file systems", timeout(STEP, bpffs(world)).await);
    step("namespaces", timeout(STEP * 2, namespaces(world)).await);
    left
}

async fn lockdown(world: &World) -> Result<()> {
    let name = world.names.lockdown();
    world.cluster.delete("EgressLockdown", "", name, None).await
}

async fn off_the_nodes(world: &World, settings: &Settings) -> Result<()> {
    let system = world.names.system();
    let agents = world
        .cluster
        .get("DaemonSet", &system, "sallyport-agent")
        .await?;
    if agents.is_some() {
        uninstall::take_off(world, settings).await?;
    }
    Ok(())
}

/// Where what takes Sallyport off the nodes did not come to the taint that it was given to take.
async fn taints(world: &World) -> Result<()> {
    for node in &world.nodes {
        uninstall::untaint(world, &node.name).await?;
    }
    Ok(())
}

/// The release may be gone, and what is pinned not with it.
async fn pins(world: &World) -> Result<()> {
    for node in &world.nodes {
        if world.helper(&node.name).await.is_err() {
            continue;
        }
        let pins = world.left(&node.name).await?.pins;
        ensure!(
            pins.is_empty(),
            "{} still has {} pins, and is held by them: egressctl uninstall there, or install \
             Sallyport again and take the steps of deploy/README.md",
            node.name,
            pins.len()
        );
    }
    Ok(())
}

/// Where a node had none, a helper has mounted one.
async fn bpffs(world: &World) -> Result<()> {
    for node in &world.nodes {
        // Without a helper there is nothing that it could have mounted.
        let Ok(helper) = world.helper(&node.name).await else {
            continue;
        };
        let ended = world.run(&helper, &["bpffs", "--remove"], STEP).await?;
        ensure!(ended.code == 0, "on {}: {}", node.name, ended.stderr.trim());
    }
    Ok(())
}

async fn crds(world: &World) -> Result<()> {
    let all = world
        .cluster
        .list("CustomResourceDefinition", "", LABEL)
        .await?;
    for definition in all {
        let name = definition["metadata"]["name"].as_str().unwrap_or_default();
        world
            .cluster
            .delete("CustomResourceDefinition", "", name, None)
            .await?;
    }
    Ok(())
}

async fn namespaces(world: &World) -> Result<()> {
    let names = world.names.namespaces();
    for name in &names {
        world.cluster.delete("Namespace", "", name, None).await?;
    }
    for name in &names {
        until(&format!("namespace {name}'s end"), STEP, || async {
            Ok(match world.cluster.get("Namespace", "", name).await? {
                None => Seen::There(()),
                Some(namespace) => Seen::NotYet(format!("{}", namespace["status"]["phase"])),
            })
        })
        .await?;
    }
    Ok(())
}
