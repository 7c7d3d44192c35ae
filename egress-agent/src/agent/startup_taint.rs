//! Takes the startup taint off this node.
//!
//! The operator has nodes come up tainted (the kubelet's `--register-with-taints`), so that no pod is
//! put on a node whose kernel is not as declared yet. The agent takes the taint off its own node when
//! it is, and again whenever the node comes up with it anew. It never sets it: an agent that is gone
//! could not, and while one is, pins hold what runs and the closed gate what is new. After a restart
//! of the node nothing is pinned, but its pods are bound to it already, and no such taint holds them.

use std::pin::pin;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Error};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::sleep;

/// Between a removal that failed and the next try.
const AGAIN: Duration = Duration::from_secs(2);

/// Keeps taints with this key off the node `name`, from the time that `synced` is true and for as
/// long as its sender lives.
pub async fn follow(client: Client, name: String, key: String, mut synced: watch::Receiver<bool>) {
    // Each trouble is told once for as long as it lasts.
    let mut told = String::new();
    loop {
        match remove_each(&client, &name, &key, &mut synced).await {
            Ok(true) => told.clear(),
            Ok(false) => return,
            // Somebody else has changed the taints meanwhile: looked at again.
            Err(Error::Api(status)) if matches!(status.code, 409 | 422) => {}
            Err(error) => {
                let error = error.to_string();
                if error != told {
                    tracing::warn!(
                        event = "startup_taint_stays",
                        node = name,
                        key,
                        error,
                        "no pods are put on this node until it can be removed"
                    );
                }
                told = error;
            }
        }
        sleep(AGAIN).await;
    }
}

/// Follows the node until the taint is there and can be removed. Ends after that, so that the node is
/// looked at anew; false when there is nobody left who could say that the agent is ready.
async fn remove_each(
    client: &Client,
    name: &str,
    key: &str,
    synced: &mut watch::Receiver<bool>,
) -> Result<bool, Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut nodes = pin!(watcher(nodes, only).default_backoff().applied_objects());
    while let Some(node) = nodes.next().await {
        // A watch that breaks is taken up again by itself, and says so at each try.
        let Ok(node) = node else { continue };
        if removal(&node, key).is_none() {
            continue;
        }
        if synced.wait_for(|synced| *synced).await.is_err() {
            return Ok(false);
        }
        take_off(client, &node, name, key).await?;
        tracing::info!(event = "startup_taint_removed", node = name, key);
        break;
    }
    Ok(true)
}

/// Takes the taint off the node where no agent will any more; whether it was there.
///
/// # Errors
/// If the API server can't be asked, or refuses.
pub async fn remove(client: &Client, name: &str, key: &str) -> Result<bool, Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    // By a list of one, for which the agents have the right.
    let only = ListParams::default().fields(&format!("metadata.name={name}"));
    loop {
        let found = nodes.list(&only).await?;
        let Some(node) = found.items.first() else {
            return Ok(false);
        };
        match take_off(client, node, name, key).await {
            // Somebody else has changed the taints meanwhile.
            Err(Error::Api(status)) if matches!(status.code, 409 | 422) => sleep(AGAIN).await,
            removed => return removed,
        }
    }
}

/// Whether there was something to take off.
async fn take_off(client: &Client, node: &Node, name: &str, key: &str) -> Result<bool, Error> {
    let Some(patch) = removal(node, key) else {
        return Ok(false);
    };
    let request = http::Request::patch(format!("/api/v1/nodes/{name}"))
        .header("Content-Type", "application/json-patch+json")
        .header("Accept", "application/json")
        .body(patch.to_string().into_bytes())
        .map_err(Error::HttpError)?;
    client.request::<Value>(request).await?;
    Ok(true)
}

/// The patch that removes taints with this key, and nothing else: each is tested to be where it was
/// seen, so that taints that others set or remove meanwhile are not lost. None if there is none.
fn removal(node: &Node, key: &str) -> Option<Value> {
    let taints = node.spec.as_ref()?.taints.as_deref()?;
    let ours = taints
        .iter()
        .enumerate()
        .filter(|(_, taint)| taint.key == key);
    // From the last to the first: those before keep their places.
    let steps: Vec<Value> = ours
        .rev()
        .flat_map(|(i, taint)| {
            let path = format!("/spec/taints/{i}");
            [
                json!({ "op": "test", "path": path, "value": taint }),
                json!({ "op": "remove", "path": path }),
            ]
        })
        .collect();
    (!steps.is_empty()).then_some(Value::Array(steps))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeSpec, Taint};

    use super::*;

    fn node(taints: &[(&str, &str)]) -> Node {
        let taint = |(key, effect): &(&str, &str)| Taint {
            key: (*key).to_owned(),
            effect: (*effect).to_owned(),
            ..Taint::default()
        };
        let spec = NodeSpec {
            taints: Some(taints.iter().map(taint).collect()),
            ..NodeSpec::default()
        };
        Node {
            spec: Some(spec),
            ..Node::default()
        }
    }

    #[test]
    fn only_our_taints_are_removed_from_the_last_on() {
        let key = "sallyport.dev/agent-not-ready";
        assert_eq!(removal(&Node::default(), key), None);
        assert_eq!(removal(&node(&[("other", "NoSchedule")]), key), None);
        let taints = [
            (key, "NoSchedule"),
            ("other", "NoSchedule"),
            (key, "NoExecute"),
        ];
        let expected = json!([
            { "op": "test", "path": "/spec/taints/2",
                "value": { "key": key, "effect": "NoExecute" } },
            { "op": "remove", "path": "/spec/taints/2" },
            { "op": "test", "path": "/spec/taints/0",
                "value": { "key": key, "effect": "NoSchedule" } },
            { "op": "remove", "path": "/spec/taints/0" },
        ]);
        assert_eq!(removal(&node(&taints), key), Some(expected));
    }
}
