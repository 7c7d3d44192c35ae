//! Static pods while nothing of the cluster is known yet.

use anyhow::{Context, Result};
use egress_common::maps::{Endpoint, MODE_OFF};

use crate::compile::DesiredState;
use crate::datapath::Kernel;
use crate::node::Kubepods;
use crate::reconcile::{Executor as _, Op};

/// Lets static pods through the gate that the kernel knows nothing of. The API server itself may be one,
/// and without it no object of it, nor of any pod, ever comes here. What an object said of one before stays.
/// Returns the cgroups that have an entry now, and had none.
///
/// # Errors
/// If cgroups or the kernel's state can't be read or written.
pub fn let_through(kernel: &mut Kernel, kubepods: &Kubepods) -> Result<Vec<(u64, Endpoint)>> {
    let pods = kubepods
        .static_pods()
        .context("can't look for static pods")?;
    let endpoint = Endpoint::nobodys(MODE_OFF);
    let mut made = Vec::new();
    for (hash, cgroup) in pods {
        // Until hooks of another version are swapped, its maps count.
        kernel
            .datapath
            .let_through_others(cgroup, &endpoint)
            .context("can't let a static pod through the gate of another version")?;
        let known = kernel.datapath.maps.cgroups.get(&cgroup);
        if known.context("can't read the kernel's state")?.is_some() {
            continue;
        }
        let op = Op::SetCgroup { cgroup, endpoint };
        kernel
            .execute(&op, &DesiredState::default())
            .context("can't let a static pod through the gate")?;
        tracing::info!(event = "static_pod_let_through", hash, cgroup);
        made.push((cgroup, endpoint));
    }
    Ok(made)
}
