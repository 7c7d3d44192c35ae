//! Writes this node's `EgressNode`.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::lease::Terms;
use super::news::News;
use super::pace::{Pace, draw};
use super::report::Pacer;
use super::{MANAGER, Told};
use crate::api::{EgressNode, EgressNodeSpec};

/// First and longest wait before what failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(5));

/// Keeps the report as `news` say, until nobody tells any.
pub async fn follow(
    client: Client,
    node: String,
    terms: Terms,
    mut news: watch::Receiver<Arc<News>>,
) {
    let api: Api<EgressNode> = Api::all(client);
    // Nothing is told before the first pass.
    if news.changed().await.is_err() {
        return;
    }
    let mut pacer = Pacer::new(Instant::now(), terms.refresh, draw());
    let mut told = Told::default();
    let mut failures = 0_u32;
    loop {
        let latest = news.borrow_and_update().clone();
        let pace = Pace::of(latest.nodes.len());
        // Without its Node there is nobody to clean up after it.
        let owner = latest.nodes.get(&node);
        let (Some(report), Some(owner)) = (latest.report.as_ref(), owner) else {
            if news.changed().await.is_err() {
                return;
            }
            continue;
        };
        let due = pacer.due(Instant::now(), report, owner, &pace);
        if due > Instant::now() {
            tokio::select! {
                changed = news.changed() => if changed.is_err() { return },
                () = sleep_until(due) => {}
            }
            continue;
        }
        match write(&api, &node, owner, report).await {
            Ok(()) => {
                told.good("node_report");
                failures = 0;
                pacer.told(Instant::now(), report.clone(), owner, draw());
            }
            Err(error) => {
                told.bad("node_report", &error);
                let wait = RETRY.0.saturating_mul(1 << failures.min(8)).min(RETRY.1);
                failures += 1;
                sleep(wait.mul_f64(0.5 + draw() / 2.0)).await;
            }
        }
    }
}

async fn write(
    api: &Api<EgressNode>,
    node: &str,
    owner: &str,
    report: &EgressNodeSpec,
) -> Result<(), kube::Error> {
    let mut object = json!(report);
    object["apiVersion"] = json!("sallyport.dev/v1alpha1");
    object["kind"] = json!("EgressNode");
    object["metadata"] = json!({
        "name": node,
        // The Node's end is this object's end.
        "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": node, "uid": owner }],
    });
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
    object["reported"] = json!(now.to_string());
    let parameters = PatchParams::apply(MANAGER).force();
    api.patch(node, &parameters, &Patch::Apply(&object))
        .await
        .map(drop)
}
