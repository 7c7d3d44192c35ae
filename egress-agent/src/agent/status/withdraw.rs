//! What agents have made for themselves in the API server goes when Sallyport is taken off a node.

use kube::Client;
use kube::api::{Api, DeleteParams};

use super::Terms;
use super::lease::{Candidate, is_gone};
use crate::api::EgressNode;
use crate::api::status::LEASE_NAME;

/// Deletes this node's report, and the Lease where no agent of another node holds it, so that the last
/// node's end is that of the Lease. Returns what was there. To be called when the agent has ended.
///
/// # Errors
/// If the API server can't be asked, or refuses.
pub async fn withdraw(client: Client, node: &str) -> Result<Vec<String>, kube::Error> {
    let mut gone = Vec::new();
    let reports: Api<EgressNode> = Api::all(client.clone());
    match reports.delete(node, &DeleteParams::default()).await {
        Ok(_) => gone.push(format!("egressnode/{node}")),
        Err(error) if is_gone(&error) => {}
        Err(error) => return Err(error),
    }
    let candidate = Candidate::new(client, node, Terms::default());
    if candidate.withdraw().await? {
        gone.push(format!("lease/{LEASE_NAME}"));
    }
    Ok(gone)
}
