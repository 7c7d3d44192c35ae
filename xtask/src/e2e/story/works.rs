//! What no lockdown may touch.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tokio::time::sleep;

use super::pods::client;
use crate::e2e::cluster::Place;
use crate::e2e::objects::WORKLOAD_PORT;
use crate::e2e::report::{Finding, Report};
use crate::e2e::world::{World, is_ready};
use crate::node::{Answer, plan};

/// Several periods of the probes.
const PROBED: Duration = Duration::from_secs(10);

pub(super) async fn cases(world: &World, report: &mut Report) {
    report.case("works-dns-udp", dns(world, false)).await;
    report.case("works-dns-tcp", dns(world, true)).await;
    report.case("works-api-server", api_server(world)).await;
    report.case("works-pod", pod(world)).await;
    report.case("works-service", service(world)).await;
    report.case("works-node-to-pod", node_to_pod(world)).await;
    report
        .case("works-kubelet-probes", kubelet_probes(world))
        .await;
    report.case("works-not-held", not_held(world)).await;
}

fn finding(answer: &Answer, ok: bool) -> Finding {
    let seen = match (answer.status, &answer.error) {
        (Some(status), _) => status.to_string(),
        (None, Some(error)) => error.clone(),
        (None, None) if answer.body.is_empty() => answer.outcome.clone(),
        (None, None) => answer.body.clone(),
    };
    Finding::new(ok, seen)
}

/// The name of the API server's Service, asked at the Service of the cluster's DNS.
async fn dns(world: &World, tcp: bool) -> Result<Finding> {
    let services = world
        .cluster
        .list("Service", "kube-system", "k8s-app=kube-dns");
    let services = services.await?;
    let server = services.first().and_then(|service| {
        service["spec"]["clusterIP"]
            .as_str()?
            .parse::<IpAddr>()
            .ok()
    });
    let Some(server) = server else {
        return Ok(Finding::skip(
            "no Service of the cluster's DNS (label k8s-app=kube-dns)",
        ));
    };
    let expected = world.cluster_ip("default", "kubernetes").await?.to_string();
    let server = SocketAddr::new(server, 53).to_string();
    let name = "kubernetes.default.svc.cluster.local";
    let mut args = vec!["probe", "dns", name, "--server", &server];
    args.extend(tcp.then_some("--tcp"));
    let answer = world.probe(&world.held("reviews"), &args).await?;
    let ok = answer.body.split(' ').any(|address| address == expected);
    Ok(finding(&answer, ok))
}

async fn api_server(world: &World) -> Result<Finding> {
    let to = world.cluster_ip("default", "kubernetes").await?;
    let service = world
        .cluster
        .get("Service", "default", "kubernetes")
        .await?;
    let port = service.and_then(|s| s.pointer("/spec/ports/0/port").and_then(Value::as_u64));
    let port = u16::try_from(port.context("the kubernetes Service has no port")?)?;
    let to = SocketAddr::new(to, port).to_string();
    let answer = world
        .probe(&world.held("reviews"), &["probe", "tcp", "--to", &to])
        .await?;
    Ok(finding(&answer, answer.outcome == "connected"))
}

async fn get(world: &World, from: &Place, to: IpAddr, port: u16) -> Result<Answer> {
    let (to, port) = (to.to_string(), port.to_string());
    let args = ["probe", "http", &to, "--port", &port, "--path", "/"];
    world.probe(from, &args).await
}

/// On another node, if there is one.
async fn pod(world: &World) -> Result<Finding> {
    let last = client(world.nodes.len() - 1);
    let to = world.v4(&world.names.held(), &last).await?;
    let answer = get(world, &world.held("reviews"), to, WORKLOAD_PORT).await?;
    Ok(finding(&answer, answer.status == Some(200)))
}

async fn service(world: &World) -> Result<Finding> {
    let to = world.cluster_ip(&world.names.held(), "ratings").await?;
    let answer = get(world, &world.held("reviews"), to, WORKLOAD_PORT).await?;
    Ok(finding(&answer, answer.status == Some(200)))
}

/// Connections that the pod did not open: replies must pass.
async fn node_to_pod(world: &World) -> Result<Finding> {
    let held = world.names.held();
    let helper = world.helper(world.node()).await?;
    let to = world.v4(&held, "ratings").await?;
    let direct = get(world, &helper, to, WORKLOAD_PORT).await?;
    let Some(node) = world.nodes[0].address else {
        return Ok(finding(&direct, direct.status == Some(200)));
    };
    let port = world.node_port(&held, "ratings").await?;
    let by_port = get(world, &helper, node, port).await?;
    let ok = direct.status == Some(200) && by_port.status == Some(200);
    let text = |answer: &Answer| match answer.status {
        Some(status) => status.to_string(),
        None => answer.outcome.clone(),
    };
    let seen = format!("pod {}, NodePort {}", text(&direct), text(&by_port));
    Ok(Finding::new(ok, seen))
}

async fn kubelet_probes(world: &World) -> Result<Finding> {
    let held = world.names.held();
    let restarts = |pod: &Value| {
        let count = pod.pointer("/status/containerStatuses/0/restartCount");
        count.and_then(Value::as_u64).unwrap_or_default()
    };
    let before = restarts(&world.pod(&held, "ratings").await?);
    sleep(PROBED).await;
    let pod = world.pod(&held, "ratings").await?;
    let more = restarts(&pod).saturating_sub(before);
    let ok = is_ready(&pod) && more == 0;
    let ready = if is_ready(&pod) { "Ready" } else { "not Ready" };
    Ok(Finding::new(ok, format!("{ready}, {more} restarts")))
}

async fn not_held(world: &World) -> Result<Finding> {
    let free = Place::new(&world.names.free(), "free", "app");
    let answer = get(world, &free, plan::OUTSIDE.v4.into(), plan::OUTSIDE_HTTP).await?;
    Ok(finding(&answer, answer.status == Some(200)))
}
