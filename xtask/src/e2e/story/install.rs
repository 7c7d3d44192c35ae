//! What must be there before anything, and the chart.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::Settings;
use crate::e2e::certs;
use crate::e2e::cluster::{Place, Seen, until};
use crate::e2e::objects::{self, ADMITTED, GATEWAY_ACCOUNT, OTHER};
use crate::e2e::report::{Finding, Report};
use crate::e2e::world::World;

/// Until every node's pod of a `DaemonSet` is Ready.
const ROLL_OUT: Duration = Duration::from_mins(4);

pub(super) async fn prepare(world: &World) -> Result<()> {
    let names = &world.names;
    for name in names.namespaces() {
        world
            .cluster
            .apply(&objects::namespace(names, &name))
            .await?;
    }
    for secret in certs::secrets(names)? {
        world.cluster.apply(&secret).await?;
    }
    let held = names.held();
    for account in [
        objects::service_account(&held, ADMITTED, &[("account", "productpage")]),
        objects::service_account(&held, OTHER, &[("account", "reviews")]),
        objects::service_account(&names.gateway(), GATEWAY_ACCOUNT, &[]),
    ] {
        world.cluster.apply(&account).await?;
    }
    wait_for_default_accounts(world).await?;
    let helpers = objects::outside_daemon_set(names, &world.probe);
    world.cluster.apply(&helpers).await?;
    world
        .wait_for_daemon_set(&names.outside(), objects::HELPER, ROLL_OUT)
        .await?;
    Ok(())
}

/// A pod can't be made before its namespace has got its default service account.
async fn wait_for_default_accounts(world: &World) -> Result<()> {
    for namespace in world.names.namespaces() {
        let what = format!("service account default of {namespace}");
        until(&what, Duration::from_secs(30), || async {
            let account = world.cluster.get("ServiceAccount", &namespace, "default");
            Ok(match account.await? {
                Some(_) => Seen::There(()),
                None => Seen::NotYet("the controller manager has not made it".to_owned()),
            })
        })
        .await?;
    }
    Ok(())
}

pub(super) async fn install(world: &World, settings: &Settings, report: &mut Report) -> Result<()> {
    let start = Instant::now();
    let values = settings.values(&settings.image, "rbac");
    let state = world.release.install(&values).await;
    let installed = state.is_ok();
    let found = state.map(|state| Finding::new(state == "deployed", format!("release {state}")));
    report.found("install", found, start.elapsed());
    anyhow::ensure!(installed, "nothing can be tried without the chart");

    let start = Instant::now();
    let ready = world
        .wait_for_daemon_set(&world.names.system(), "sallyport-agent", ROLL_OUT)
        .await;
    let all = ready.is_ok();
    let found = match ready {
        Ok(pods) => {
            let nodes = world.nodes.len();
            let seen = format!("{pods} agents on {nodes} nodes");
            Ok(Finding::new(usize::try_from(pods) == Ok(nodes), seen))
        }
        Err(error) => {
            let seen = format!("{error:#}");
            Ok(Finding::because(false, seen, complaint(world).await))
        }
    };
    report.found("agents-ready", found, start.elapsed());
    anyhow::ensure!(all, "nothing can be tried without agents");
    Ok(())
}

/// The last thing that an agent complains of.
async fn complaint(world: &World) -> String {
    let Ok(agent) = world.agent(world.node()).await else {
        return String::new();
    };
    let name = agent["metadata"]["name"].as_str().unwrap_or_default();
    let place = Place::new(&world.names.system(), name, "agent");
    let log = world.cluster.logs(&place).await.unwrap_or_default();
    let lines = log.lines().rev();
    lines
        .filter(|line| line.contains("ERROR") || line.contains("error"))
        .map(str::to_owned)
        .next()
        .unwrap_or_default()
}
