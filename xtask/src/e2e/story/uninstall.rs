//! The end: nothing of Sallyport stays.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::Settings;
use crate::e2e::attempts::{self, token};
use crate::e2e::cluster::{Seen, until};
use crate::e2e::report::{Finding, Report};
use crate::e2e::world::{Node, World};
use crate::node::plan;

const LIMIT: Duration = Duration::from_mins(4);
/// The kernel frees programs a moment after their last user has gone.
const FREED: Duration = Duration::from_secs(30);
/// Kept from pods until the agent is ready, where the operator wants it.
const TAINT: &str = "sallyport.dev/agent-not-ready";

pub(super) async fn cases(world: &World, settings: &Settings, report: &mut Report) {
    report
        .case("uninstall", off_the_nodes(world, settings))
        .await;
    report.case("uninstall-open", open(world)).await;
    report.case("uninstall-release", release(world)).await;
}

async fn off_the_nodes(world: &World, settings: &Settings) -> Result<Finding> {
    let mut programs = Vec::new();
    for node in &world.nodes {
        programs.push(world.left(&node.name).await?.pinned);
    }
    if programs.iter().any(BTreeSet::is_empty) {
        return Ok(Finding::new(false, "a node had no programs to take off"));
    }
    if told(world).await?.len() != world.nodes.len() + 1 {
        let seen = "not every node had a report, or there was no Lease";
        return Ok(Finding::new(false, seen));
    }
    // As its kubelet would register it; the others show that nothing else goes.
    taint(world, &world.nodes[0].name).await?;
    take_off(world, settings).await?;
    let mut left = Vec::new();
    for node in world.cluster.list("Node", "", "").await? {
        let node = Node::read(&node);
        if node.taints.iter().any(|key| key == TAINT) {
            left.push(format!("{} has the taint {TAINT}", node.name));
        }
    }
    left.extend(told(world).await?);
    for (node, programs) in world.nodes.iter().zip(&programs) {
        let clean = until(&node.name, FREED, || async {
            let mut found = world.left(&node.name).await?;
            found.programs.retain(|id, _| programs.contains(id));
            let what: Vec<String> = found
                .programs
                .values()
                .chain(&found.pins)
                .cloned()
                .collect();
            Ok(if what.is_empty() {
                Seen::There(())
            } else {
                Seen::NotYet(format!("it has {}", what.join(", ")))
            })
        });
        if let Err(error) = clean.await {
            left.push(format!("{error:#}"));
        }
    }
    let seen = if left.is_empty() {
        let gone: usize = programs.iter().map(BTreeSet::len).sum();
        format!(
            "{} nodes are clean of {gone} programs, their reports and the Lease are gone",
            world.nodes.len()
        )
    } else {
        left.join("; ")
    };
    Ok(Finding::new(left.is_empty(), seen))
}

async fn taint(world: &World, node: &str) -> Result<()> {
    let mut taints = taints(world, node).await?;
    taints.push(json!({ "key": TAINT, "effect": "NoSchedule" }));
    set_taints(world, node, &taints).await
}

/// Takes it off again where nothing else did.
pub(in crate::e2e) async fn untaint(world: &World, node: &str) -> Result<()> {
    let mut taints = taints(world, node).await?;
    let before = taints.len();
    taints.retain(|taint| taint["key"] != TAINT);
    if taints.len() == before {
        return Ok(());
    }
    set_taints(world, node, &taints).await
}

async fn taints(world: &World, node: &str) -> Result<Vec<Value>> {
    let found = world.cluster.get("Node", "", node).await?;
    let found = found.unwrap_or_default();
    Ok(found["spec"]["taints"]
        .as_array()
        .cloned()
        .unwrap_or_default())
}

async fn set_taints(world: &World, node: &str, taints: &[Value]) -> Result<()> {
    let tainted = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": node },
        "spec": { "taints": taints },
    });
    world.cluster.apply(&tainted).await
}

/// What agents have made for themselves in the API server.
async fn told(world: &World) -> Result<Vec<String>> {
    let mut told = Vec::new();
    for report in world.cluster.list("EgressNode", "", "").await? {
        told.push(format!("EgressNode {}", report["metadata"]["name"]));
    }
    let (namespace, lease) = (world.names.system(), "sallyport-status");
    let found = world.cluster.get("Lease", &namespace, lease).await?;
    told.extend(found.map(|_| format!("Lease {lease}")));
    Ok(told)
}

/// As deploy/README.md has it: what takes Sallyport off the nodes runs in the agents' place.
pub(in crate::e2e) async fn take_off(world: &World, settings: &Settings) -> Result<()> {
    let mut values = settings.values(&settings.image, "rbac");
    values["uninstall"] = json!(true);
    values["startupTaint"] = json!({ "enabled": true });
    world.release.upgrade(&values).await?;
    let system = world.names.system();
    world
        .wait_for_daemon_set(&system, "sallyport-agent", LIMIT)
        .await?;
    Ok(())
}

async fn open(world: &World) -> Result<Finding> {
    let token = token("uninstall-open");
    let to = plan::OUTSIDE.v4.to_string();
    let args = ["probe", "http", &to, "--path", "/open"];
    let place = world.held("reviews");
    let mark = world.mark(world.node()).await?;
    let answer = world.probe(&place, &args).await?;
    let arrivals = world.since(world.node(), mark).await?;
    let arrived = attempts::count(&arrivals.packets, &token, true);
    let ok = answer.status == Some(200) && arrived > 0;
    Ok(Finding::new(
        ok,
        format!("{arrived} arrived, client: {:?}", answer.status),
    ))
}

async fn release(world: &World) -> Result<Finding> {
    world.release.uninstall().await?;
    let system = world.names.system();
    let mut left = Vec::new();
    if world
        .cluster
        .get("DaemonSet", &system, "sallyport-agent")
        .await?
        .is_some()
    {
        left.push("DaemonSet sallyport-agent");
    }
    if world
        .cluster
        .get("ClusterRole", "", "sallyport-agent")
        .await?
        .is_some()
    {
        left.push("ClusterRole sallyport-agent");
    }
    if !world
        .cluster
        .list("Secret", &system, "owner=helm")
        .await?
        .is_empty()
    {
        left.push("the release's own Secret");
    }
    let seen = if left.is_empty() {
        "nothing of it is left".to_owned()
    } else {
        left.join(", ")
    };
    Ok(Finding::new(left.is_empty(), seen))
}
