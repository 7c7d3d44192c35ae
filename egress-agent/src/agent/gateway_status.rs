//! What gateways' Envoys made of their configuration, in the status of their `VirtualGateway`.
//!
//! Each agent applies the entries of the Envoys that are connected to it, under a field manager of
//! its own; entries are told apart by the Envoy's name, so agents don't touch each other's. An
//! agent without gateways writes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::{Client, Error};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::api::VirtualGateway;
use crate::policy_server::xds::NodeState;

/// Changes gather for so long: an Envoy answers several types one after the other.
const GATHER: Duration = Duration::from_secs(1);
/// Before what failed is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// Envoys by gateway (`namespace/name`), as they are to be told.
type Told = BTreeMap<String, Vec<Value>>;

/// Keeps the statuses as `nodes` say, until the sender is gone. `agent` is the name of this node.
pub async fn follow(
    client: Client,
    agent: String,
    mut nodes: watch::Receiver<BTreeMap<u64, NodeState>>,
) {
    let writer = Writer {
        client,
        manager: format!("sallyport-agent-{agent}"),
        agent,
    };
    // An agent that was killed could not take its entries back.
    let mut written = writer.left_behind().await;
    loop {
        sleep(GATHER).await;
        let wanted = told(&nodes.borrow_and_update(), &writer.agent);
        let failed = writer.write(&mut written, &wanted).await;
        tokio::select! {
            changed = nodes.changed() => if changed.is_err() { return },
            () = sleep(RETRY), if failed => {}
        }
    }
}

fn told(nodes: &BTreeMap<u64, NodeState>, agent: &str) -> Told {
    let mut told = Told::new();
    // The latest stream of an Envoy speaks for it.
    let mut latest: BTreeMap<(&str, &str), &NodeState> = BTreeMap::new();
    for node in nodes.values() {
        latest.insert((&node.gateway, &node.node), node);
    }
    for ((gateway, name), node) in latest {
        let rejected: Vec<Value> = node
            .rejected
            .iter()
            .map(|(kind, it)| {
                json!({ "kind": kind, "revision": it.revision, "message": short(&it.message) })
            })
            .collect();
        let mut envoy = json!({
            "name": name,
            "agent": agent,
            "programmed": rejected.is_empty() && node.revision.is_some(),
            "rejected": rejected,
        });
        if let Some(revision) = &node.revision {
            envoy["revision"] = json!(revision);
        }
        told.entry(gateway.to_owned()).or_default().push(envoy);
    }
    told
}

/// Envoy's words may be long.
fn short(message: &str) -> String {
    message.chars().take(1024).collect()
}

struct Writer {
    client: Client,
    agent: String,
    /// Of the fields that this agent applies.
    manager: String,
}

impl Writer {
    /// Gateways whose status has entries of this agent.
    async fn left_behind(&self) -> Told {
        let all: Api<VirtualGateway> = Api::all(self.client.clone());
        let Ok(all) = all.list(&ListParams::default()).await else {
            // Without the kind, or the right to list it, there are none.
            return Told::new();
        };
        let ours = all.items.into_iter().filter_map(|gateway| {
            let envoys = gateway.status.unwrap_or_default().envoys;
            let ours = envoys.iter().any(|envoy| envoy.agent == self.agent);
            let name = gateway.metadata.name?;
            let namespace = gateway.metadata.namespace?;
            ours.then(|| (format!("{namespace}/{name}"), vec![Value::Null]))
        });
        ours.collect()
    }

    /// Writes what differs from what was written; whether something has to be tried again.
    async fn write(&self, written: &mut Told, wanted: &Told) -> bool {
        let gateways: BTreeSet<String> = written.keys().chain(wanted.keys()).cloned().collect();
        let mut failed = false;
        for gateway in gateways {
            let envoys = wanted.get(&gateway);
            if written.get(&gateway) == envoys {
                continue;
            }
            match self
                .apply(&gateway, envoys.map_or(&[], Vec::as_slice))
                .await
            {
                // Gone, or of another group: nobody reads its status.
                Ok(()) | Err(Error::Api(_)) if envoys.is_none() => _ = written.remove(&gateway),
                Ok(()) => _ = written.insert(gateway, envoys.cloned().unwrap_or_default()),
                Err(Error::Api(status)) if status.code == 404 => {
                    written.insert(gateway, envoys.cloned().unwrap_or_default());
                }
                Err(error) => {
                    tracing::warn!(event = "gateway_status_unwritten", gateway, %error);
                    failed = true;
                }
            }
        }
        failed
    }

    async fn apply(&self, gateway: &str, envoys: &[Value]) -> Result<(), Error> {
        let (namespace, name) = gateway.split_once('/').unwrap_or(("", gateway));
        let api: Api<VirtualGateway> = Api::namespaced(self.client.clone(), namespace);
        let patch = json!({
            "apiVersion": "sallyport.dev/v1alpha1",
            "kind": "VirtualGateway",
            "metadata": { "name": name },
            "status": { "envoys": envoys },
        });
        let parameters = PatchParams::apply(&self.manager).force();
        api.patch_status(name, &parameters, &Patch::Apply(&patch))
            .await
            .map(drop)
    }
}
