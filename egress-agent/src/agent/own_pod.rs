//! The agent's own pod, where it is one.

use anyhow::{Context, Result};
use egress_common::maps::{Endpoint, MODE_OFF};

use crate::compile::DesiredState;
use crate::datapath::Kernel;
use crate::node::{Kubepods, cgroups};
use crate::reconcile::{Executor as _, Op};

/// Lets the agent's own pod through the gate. A new version of the agent is a new pod, which the
/// kernel has not heard of: behind the closed gate it would never reach the API server that tells
/// of it. The entry stands until the first pass, which knows the pod.
///
/// # Errors
/// If cgroups or the kernel's state can't be read or written.
pub fn let_through(kernel: &mut Kernel, kubepods: &Kubepods) -> Result<()> {
    let pods = kubepods
        .pods()
        .context("can't look for the agent's own pod")?;
    let mut pods = pods.into_iter();
    let own = pods.find(|(_, pod)| cgroups::processes(&pod.path).contains(&std::process::id()));
    // On the node itself there is no gate.
    let Some((uid, own)) = own else { return Ok(()) };
    let endpoint = Endpoint::nobodys(MODE_OFF);
    // Until hooks of another version are swapped, its maps count.
    kernel
        .datapath
        .let_through_others(own.id, &endpoint)
        .context("can't let the agent's own pod through the gate of another version")?;
    let observed = kernel.datapath.observe();
    let observed = observed.context("can't read the kernel's state")?;
    if observed.cgroups.contains_key(&own.id) {
        return Ok(());
    }
    let op = Op::SetCgroup {
        cgroup: own.id,
        endpoint,
    };
    kernel
        .execute(&op, &DesiredState::default())
        .context("can't let the agent's own pod through the gate")?;
    tracing::info!(event = "own_pod_let_through", uid, cgroup = own.id);
    Ok(())
}

/// Depth of kubepods. A node that is itself a container (kind) shows only its own part of the
/// hierarchy; the kernel knows the whole, but only for an agent that runs in a pod.
///
/// # Errors
/// If neither can be told.
pub fn kubepods_level(kernel: &Kernel, kubepods: &Kubepods) -> Result<u32> {
    let hidden = match kubepods.level() {
        Ok(level) => return Ok(level),
        Err(error) => error,
    };
    let depth = kernel.datapath.kubepods_depth()?;
    if let Some(depth) = depth {
        tracing::info!(event = "kubepods_depth", depth);
    }
    depth.ok_or_else(|| hidden.into())
}
