//! How to look around in a node that was left standing.

use std::fmt::Write as _;

use super::agent::run_dir;
use super::programs::Programs;
use super::world::World;
use crate::node::envoy::ADMIN_PORT;

/// Lines to copy.
pub fn around(world: &World, programs: &Programs) -> String {
    let node = &world.node;
    let mut text = format!(
        "\nThe node stands: {}\n\n\
         Into the node and the outside host:\n  nsenter --net={}\n  nsenter --net={}\n\
         Into pods (processes there are in no pod's cgroup unless they join it):\n",
        node.directory().display(),
        node.host().path().display(),
        node.outside().path().display(),
    );
    for pod in [
        &world.pods.productpage,
        &world.pods.reviews,
        &world.pods.ratings,
        &world.pods.gateway,
        &world.pods.dns,
    ] {
        let _ = writeln!(
            text,
            "  nsenter --net={:<48} # {}",
            pod.netns().path().display(),
            pod.id()
        );
    }
    let _ = write!(
        text,
        "What Envoy thinks (in a pod): http://127.0.0.1:{ADMIN_PORT}/config_dump\n\
         State, logs: {0}/state {0}/log {0}/pods\n",
        node.directory().display()
    );
    if let Some(sallyport) = &programs.sallyport {
        let egressctl = format!(
            "nsenter --net={} {} --bpffs {} --run-dir {}",
            node.host().path().display(),
            sallyport.egressctl.display(),
            node.bpffs().display(),
            run_dir(node).display()
        );
        text += "What Sallyport does:\n";
        for verb in ["status", "pods list", "maps list", "events -f"] {
            let _ = writeln!(text, "  {egressctl} {verb}");
        }
    }
    text + "Take it down:\n  cargo xtask demo --cleanup"
}
