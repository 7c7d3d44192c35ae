//! Ways that need more than a packet: a gateway's other doors, and every node.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use crate::e2e::attempts::{self, cut, token};
use crate::e2e::cluster::Place;
use crate::e2e::objects::GATEWAY_PORT;
use crate::e2e::report::{Finding, Report};
use crate::e2e::world::World;
use crate::node::plan;

/// What the kernel says of a gateway's address where it is closed.
const CLOSED: &str = "gateway-port";

pub(super) async fn cases(world: &World, report: &mut Report) {
    report.case("bypass-gateway-port", other_port(world)).await;
    report.case("bypass-dead-gateway", dead(world)).await;
    report.case("bypass-every-node", every_node(world)).await;
}

/// Envoy's admin interface, or whatever else may be at the gateway.
async fn other_port(world: &World) -> Result<Finding> {
    let gateway = world.v4(&world.names.gateway(), "egress-gateway").await?;
    http(world, &gateway.to_string(), "15000").await
}

async fn dead(world: &World) -> Result<Finding> {
    let gateway = world.v4(&world.names.gateway(), "dead-gateway").await?;
    let (to, port) = (gateway.to_string(), GATEWAY_PORT.to_string());
    // Somebody who is not held must get through, or nothing is shown.
    let free = Place::new(&world.names.free(), "free", "app");
    let args = ["probe", "http", &to, "--port", &port, "--path", "/"];
    let control = world.probe(&free, &args).await?;
    if !control.answered() {
        return Ok(Finding::new(
            false,
            format!(
                "a pod that is not held does not reach it either: {}",
                control.outcome
            ),
        ));
    }
    http(world, &to, &port).await
}

async fn http(world: &World, to: &str, port: &str) -> Result<Finding> {
    let args = [
        "probe",
        "http",
        to,
        "--port",
        port,
        "--path",
        "/",
        "--timeout-ms",
        "1500",
    ];
    let (args, place) = (args.map(str::to_owned), world.held("reviews"));
    let token = token("bypass-gateway");
    let seen = attempts::observe(world, world.node(), &place, &args, &token).await?;
    Ok(cut(&seen, CLOSED))
}

async fn every_node(world: &World) -> Result<Finding> {
    let token = token("bypass-every-node");
    let to = format!("{}:{}", plan::OUTSIDE.v4, plan::OUTSIDE_UDP);
    let mut text = Vec::new();
    let mut ok = true;
    for (i, node) in world.nodes.iter().enumerate() {
        let args = [
            "probe",
            "udp",
            "--to",
            &to,
            "--payload",
            &token,
            "--timeout-ms",
            "1000",
        ]
        .map(str::to_owned);
        let place = world.held(&super::pods::client(i));
        let seen = attempts::observe(world, &node.name, &place, &args, &token).await?;
        if let Finding::Seen {
            ok: false, seen, ..
        } = cut(&seen, "not-allowed")
        {
            ok = false;
            text.push(format!("{}: {seen}", node.name));
        }
        sleep(Duration::from_millis(100)).await;
    }
    if ok {
        text.push(format!(
            "nothing arrived at {} nodes' outside",
            world.nodes.len()
        ));
    }
    Ok(Finding::new(ok, text.join("; ")))
}
