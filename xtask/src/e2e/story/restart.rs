//! The agent goes away and comes back while pods talk.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{Settings, guide};
use crate::e2e::attempts::{count, token};
use crate::e2e::cluster::Seen;
use crate::e2e::cluster::until;
use crate::e2e::inside::Summary;
use crate::e2e::objects::{CERTS, GATEWAY_APP, SCRATCH, WORKLOAD_PORT};
use crate::e2e::report::{Finding, Report};
use crate::e2e::world::{World, is_ready};
use crate::node::plan;

/// Traffic before something happens, and after it is over.
const AROUND: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_mins(4);

pub(super) async fn cases(world: &World, settings: &Settings, report: &mut Report) {
    let delete = Box::pin(under_traffic(world, "restart-delete", delete(world)));
    report.case("restart-delete", delete).await;
    let kill = Box::pin(under_traffic(world, "restart-kill", kill(world)));
    report.case("restart-kill", kill).await;
    let upgrade = Box::pin(under_traffic(world, "upgrade", upgrade(world, settings)));
    report.case("upgrade", upgrade).await;
    report.case("guide-stolen", stolen(world, settings)).await;
}

/// Lets something happen while an admitted pod keeps a connection to a workload and one to the
/// gateway, and tries to get around it two hundred times a second.
async fn under_traffic(
    world: &World,
    case: &str,
    event: impl Future<Output = Result<String>>,
) -> Result<Finding> {
    let token = token(case);
    let names = &world.names;
    let keep = world.cluster_ip(&names.held(), "ratings").await?;
    let keep = SocketAddr::new(keep, WORKLOAD_PORT).to_string();
    let gateway = world.cluster_ip(&names.gateway(), GATEWAY_APP).await?;
    let gateway = SocketAddr::new(gateway, 443).to_string();
    let forbidden = format!("{}:{}", plan::OUTSIDE.v4, plan::OUTSIDE_UDP);
    let until = format!("{SCRATCH}/stop");
    let limit = LIMIT.as_secs().to_string();
    let place = world.held("productpage");
    let mark = world.mark(world.node()).await?;
    let args = [
        "traffic",
        "--keep",
        &keep,
        "--gateway",
        &gateway,
        "--certs",
        CERTS,
        "--forbidden",
        &forbidden,
        "--payload",
        &token,
        "--until",
        &until,
        "--limit-s",
        &limit,
    ];
    let traffic = world.run(&place, &args, LIMIT + Duration::from_mins(1));
    let happening = async {
        sleep(AROUND).await;
        let told = event.await;
        sleep(AROUND).await;
        let stopped = world
            .run(&place, &["stop", &until], Duration::from_secs(30))
            .await;
        (told, stopped)
    };
    let (summary, (told, stopped)) = tokio::join!(traffic, happening);
    let (told, _) = (told?, stopped?);
    let summary: Summary = summary?.json()?;
    let arrived = world.since(world.node(), mark).await?;
    let arrived = count(&arrived.packets, &token, false);
    Ok(judge(&summary, arrived, &told))
}

fn judge(summary: &Summary, arrived: usize, told: &str) -> Finding {
    let gateway = summary.gateway.clone().unwrap_or_default();
    let ok = arrived == 0 && summary.forbidden_sent > 0 && summary.kept.stood() && gateway.stood();
    let connection = |broke: &Option<String>, requests: u64| match broke {
        None => format!("stood for {requests} requests"),
        Some(why) => format!("broke after {requests} requests: {why}"),
    };
    let seen = format!(
        "{arrived} arrived of {}; workload {}; gateway {}; {} s",
        summary.forbidden_sent,
        connection(&summary.kept.broke, summary.kept.requests),
        connection(&gateway.broke, gateway.requests),
        summary.seconds
    );
    Finding::because(ok, seen, told)
}

fn uid(pod: &Value) -> Result<&str> {
    pod["metadata"]["uid"].as_str().context("a pod without UID")
}

/// Another pod takes the agent's place, and is Ready.
pub(super) async fn delete(world: &World) -> Result<String> {
    let agent = world.agent(world.node()).await?;
    let name = agent["metadata"]["name"].as_str().unwrap_or_default();
    let namespace = world.names.system();
    world.cluster.delete("Pod", &namespace, name, None).await?;
    let new = world
        .wait_for_agent(world.node(), Some(uid(&agent)?))
        .await?;
    Ok(format!(
        "{name} deleted, {} is Ready",
        new["metadata"]["name"]
    ))
}

async fn kill(world: &World) -> Result<String> {
    let agent = world.agent(world.node()).await?;
    let restarts = |pod: &Value| {
        let count = pod.pointer("/status/containerStatuses/0/restartCount");
        count.and_then(Value::as_u64).unwrap_or_default()
    };
    let before = restarts(&agent);
    let helper = world.helper(world.node()).await?;
    let args = [
        "kill",
        "--pod-uid",
        uid(&agent)?,
        "--program",
        "egress-agent",
    ];
    let ended = world.run(&helper, &args, Duration::from_secs(30)).await?;
    if ended.code != 0 {
        bail!("the agent could not be killed: {}", ended.stderr.trim());
    }
    until("the agent's next start", Duration::from_mins(3), || async {
        let pod = world.agent(world.node()).await?;
        let count = restarts(&pod);
        Ok(if count > before && is_ready(&pod) {
            Seen::There(())
        } else {
            Seen::NotYet(format!("{count} restarts, {before} before"))
        })
    })
    .await?;
    Ok("killed, restarted by the kubelet".to_owned())
}

/// To another image if one is given, else to the same with a changed pod template.
async fn upgrade(world: &World, settings: &Settings) -> Result<String> {
    let old = world.agent(world.node()).await?;
    let image = settings.upgrade_image.as_ref().unwrap_or(&settings.image);
    let mut values = settings.values(image, "rbac");
    values["podAnnotations"] = json!({ "sallyport.dev/e2e": "upgraded" });
    world.release.upgrade(&values).await?;
    let system = world.names.system();
    let pods = world
        .wait_for_daemon_set(&system, "sallyport-agent", LIMIT)
        .await?;
    let new = world.wait_for_agent(world.node(), Some(uid(&old)?)).await?;
    let running = new.pointer("/spec/containers/0/image");
    let running = running.and_then(Value::as_str).unwrap_or("?");
    Ok(format!("{pods} agents upgraded to {running}"))
}

/// A gateway that asks the agent about each request knows whose address a certificate comes from.
async fn stolen(world: &World, settings: &Settings) -> Result<Finding> {
    let image = settings.upgrade_image.as_ref().unwrap_or(&settings.image);
    let values = settings.values(image, "ext-authz");
    world.release.upgrade(&values).await?;
    let system = world.names.system();
    world
        .wait_for_daemon_set(&system, "sallyport-agent", LIMIT)
        .await?;
    let thief = guide::ask_until(world, "thief", guide::is_denied).await?;
    // The owner of the certificate still must get through, or a refusal shows nothing.
    let owner = guide::ask_until(world, "productpage", guide::is_from_outside).await?;
    match (&thief, &owner) {
        (_, Finding::Seen { ok: true, .. }) => Ok(thief),
        (_, Finding::Seen { seen, .. }) => Ok(Finding::new(
            false,
            format!("productpage itself does not get through: {seen}"),
        )),
        (_, Finding::Skip(why)) => Ok(Finding::skip(why.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::e2e::inside::Connection;

    #[test]
    fn a_restart_is_judged_by_what_got_out_and_what_broke() {
        let stood = Connection {
            requests: 9,
            ..Connection::default()
        };
        let fine = Summary {
            kept: stood.clone(),
            gateway: Some(stood),
            forbidden_sent: 100,
            seconds: 5,
        };
        let ok = |summary: &Summary, arrived| {
            matches!(judge(summary, arrived, ""), Finding::Seen { ok: true, .. })
        };
        assert!(ok(&fine, 0));
        assert!(!ok(&fine, 1));
        for change in [
            |summary: &mut Summary| summary.forbidden_sent = 0,
            |summary: &mut Summary| summary.gateway = None,
            |summary: &mut Summary| summary.kept.broke = Some("reset".into()),
            |summary: &mut Summary| summary.kept.requests = 0,
        ] {
            let mut summary = fine.clone();
            change(&mut summary);
            assert!(!ok(&summary, 0), "{summary:?}");
        }
    }
}
