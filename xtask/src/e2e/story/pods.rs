//! The pods that the story plays with.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::e2e::cluster::Place;
use crate::e2e::objects::{
    self, ADMITTED, Container, GATEWAY, GATEWAY_APP, GATEWAY_PORT, OTHER, PodOf, WORKLOAD_PORT,
};
use crate::e2e::report::Finding;
use crate::e2e::world::World;

/// User of a sidecar, whom every mesh's redirect leaves alone.
const SIDECAR_USER: u32 = 1337;

pub(super) async fn start(world: &World) -> Result<()> {
    let names = &world.names;
    for object in [
        objects::virtual_gateway(names),
        objects::external_service(names),
        objects::access_policy(names),
        objects::gateway_service(names),
        objects::leaking_service(names),
        objects::endpoint_slice(names),
        ratings_service(world),
    ] {
        world.cluster.apply(&object).await?;
    }
    let pods = all(world);
    // All at once, then one after the other waited for.
    for pod in &pods {
        world.cluster.apply(pod).await?;
    }
    for pod in &pods {
        world.start(pod, false).await?;
    }
    Ok(())
}

fn all(world: &World) -> Vec<Value> {
    let (names, node) = (&world.names, world.node());
    let (held, free) = (names.held(), names.free());
    let port = WORKLOAD_PORT.to_string();
    let app = |name: &str| Container::attacker(&world.probe, &["serve", name, &port]).value();
    let idle = || Container::attacker(&world.probe, &["pause"]).value();
    let sidecar = Container {
        name: "sidecar",
        user: SIDECAR_USER,
        capabilities: &[],
        ..Container::attacker(&world.probe, &["pause"])
    };
    let certs = |account: &str| format!("{account}-tls");
    let (admitted, other) = (certs(ADMITTED), certs(OTHER));
    let plain = |name, containers| PodOf::plain(names, &held, name, node, containers);
    let mut pods = vec![
        PodOf {
            account: ADMITTED,
            certs: Some(&admitted),
            ..plain("productpage", vec![app("productpage")])
        }
        .value(),
        PodOf {
            account: OTHER,
            certs: Some(&other),
            ..plain("reviews", vec![app("reviews"), sidecar.value()])
        }
        .value(),
        // With somebody else's certificate.
        PodOf {
            account: OTHER,
            certs: Some(&admitted),
            ..plain("thief", vec![idle()])
        }
        .value(),
        PodOf {
            labels: &[("app", "ratings")],
            ..plain("ratings", vec![with_probes(app("ratings"))])
        }
        .value(),
        PodOf {
            host_network: true,
            ..plain("host-network", vec![without_raw_sockets(idle())])
        }
        .value(),
        // A gateway by its label, but of another namespace than the gateway's.
        PodOf {
            labels: &[("app", GATEWAY_APP)],
            ..plain("impostor", vec![idle()])
        }
        .value(),
        PodOf::plain(names, &free, "free", node, vec![app("free")]).value(),
    ];
    for (i, node) in world.nodes.iter().enumerate() {
        let name = client(i);
        pods.push(PodOf::plain(names, &held, &name, &node.name, vec![app(&name)]).value());
    }
    pods
}

/// Name of the held pod on the node with this number.
pub(super) fn client(node: usize) -> String {
    format!("client-{node}")
}

/// In the node's network nothing holds who can write frames to its devices: such a pod would be
/// told as one that can't be held.
fn without_raw_sockets(mut container: Value) -> Value {
    container["securityContext"]["capabilities"] = json!({ "drop": ["ALL"] });
    container
}

fn with_probes(mut container: Value) -> Value {
    let probe = json!({
        "httpGet": { "path": "/", "port": WORKLOAD_PORT }, "periodSeconds": 2, "timeoutSeconds": 2,
    });
    container["readinessProbe"] = probe.clone();
    container["livenessProbe"] = probe;
    container
}

fn ratings_service(world: &World) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "namespace": world.names.held(), "name": "ratings" },
        "spec": {
            "type": "NodePort",
            "selector": { "app": "ratings" },
            "ports": [{
                "name": "http", "port": WORKLOAD_PORT, "targetPort": WORKLOAD_PORT,
                "protocol": "TCP",
            }],
        },
    })
}

/// Starts the gateway: a stock Envoy, which is Ready once it was told everything by an agent.
pub(super) async fn gateway(world: &World) -> Result<Finding> {
    let names = &world.names;
    let namespace = names.gateway();
    let files = bootstrap(world).await?;
    let map = objects::config_map(&namespace, "bootstrap", &files);
    world.cluster.apply(&map).await?;
    let pod = objects::gateway_pod(names, world.node(), &world.gateway);
    world.cluster.apply(&pod).await?;
    let started = world.wait_for_pod(&namespace, "egress-gateway", true).await;
    if let Err(error) = started {
        let place = Place::new(&namespace, "egress-gateway", "envoy");
        let log = world.cluster.logs(&place).await.unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(3).collect();
        bail!("{error:#}; its log ends: {}", last.join(" | "));
    }
    start_dead(world).await?;
    Ok(Finding::new(true, "Envoy listens as the agent told it to"))
}

/// The three files that Envoy starts with, as `egressctl` writes them.
async fn bootstrap(world: &World) -> Result<Vec<(String, String)>> {
    let names = &world.names;
    let gateway = format!("{}/{GATEWAY}", names.gateway());
    let server = world
        .cluster_ip(&names.system(), "sallyport-policy")
        .await?;
    let server = format!("{server}:9443");
    let id = format!(
        "spiffe://cluster.local/ns/{}/sa/sallyport-agent",
        names.system()
    );
    let agent = world.agent(world.node()).await?;
    let agent = agent["metadata"]["name"].as_str().unwrap_or_default();
    let place = Place::new(&names.system(), agent, "agent");
    let mut files = Vec::new();
    for file in ["bootstrap.json", "certificate.json", "trust.json"] {
        let command = [
            "/egressctl",
            "render",
            "bootstrap",
            "--gateway",
            &gateway,
            "--server",
            &server,
            "--server-id",
            &id,
            "--admin-port",
            "15000",
            "--file",
            file,
        ]
        .map(str::to_owned);
        let ended = world
            .cluster
            .exec(&place, &command, Duration::from_secs(20))
            .await?;
        if ended.code != 0 {
            bail!("egressctl render bootstrap: {}", ended.stderr.trim());
        }
        files.push((file.to_owned(), ended.stdout));
    }
    Ok(files)
}

/// A pod that the `VirtualGateway` selects and that is never Ready.
async fn start_dead(world: &World) -> Result<()> {
    let names = &world.names;
    let namespace = names.gateway();
    let port = GATEWAY_PORT.to_string();
    let mut container = Container::attacker(&world.probe, &["serve", "dead", &port]).value();
    container["readinessProbe"] = json!({ "tcpSocket": { "port": 1 }, "periodSeconds": 5 });
    let pod = PodOf {
        account: objects::GATEWAY_ACCOUNT,
        labels: &[("app", GATEWAY_APP)],
        ..PodOf::plain(
            names,
            &namespace,
            "dead-gateway",
            world.node(),
            vec![container],
        )
    };
    world
        .start(&pod.value(), false)
        .await
        .context("the gateway that is not Ready")
}
