//! What gateways' Envoys made of their configuration.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::gateway::ObjectName;

/// An Envoy that gets its configuration from here, while its stream stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeState {
    /// `namespace/name` of the `VirtualGateway`.
    pub gateway: String,
    /// As Envoy names itself (`--service-node`).
    pub node: String,
    pub address: SocketAddr,
    /// The last state of policy that it has whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// What it refused, by type; what it had before stands.
    pub rejected: BTreeMap<String, Rejection>,
}

/// A refusal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rejection {
    /// State of policy that was refused.
    pub revision: String,
    /// Envoy's words.
    pub message: String,
}

/// Shared by all streams; whoever follows it sees each change.
#[derive(Clone, Debug)]
pub struct XdsStatus {
    nodes: Arc<watch::Sender<BTreeMap<u64, NodeState>>>,
    next: Arc<std::sync::atomic::AtomicU64>,
}

impl Default for XdsStatus {
    fn default() -> Self {
        Self {
            nodes: Arc::new(watch::Sender::new(BTreeMap::new())),
            next: Arc::default(),
        }
    }
}

impl XdsStatus {
    /// The states of all streams, in the order in which they began.
    pub fn follow(&self) -> watch::Receiver<BTreeMap<u64, NodeState>> {
        self.nodes.subscribe()
    }

    /// A stream begins.
    pub(super) fn begin(&self, gateway: &ObjectName, node: &str, address: SocketAddr) -> Entry {
        let id = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let state = NodeState {
            gateway: gateway.to_string(),
            node: node.to_owned(),
            address,
            revision: None,
            rejected: BTreeMap::new(),
        };
        self.nodes.send_modify(|nodes| _ = nodes.insert(id, state));
        Entry {
            status: self.clone(),
            id,
        }
    }
}

/// A stream's own state; gone with it.
#[derive(Debug)]
pub(super) struct Entry {
    status: XdsStatus,
    id: u64,
}

impl Entry {
    /// Nothing of that kind stands refused.
    pub(super) fn settled(&self, kind: &str) {
        self.change(|state| _ = state.rejected.remove(kind));
    }

    /// It has all of that state.
    pub(super) fn current(&self, revision: &str) {
        self.change(|state| {
            if state.revision.as_deref() != Some(revision) {
                state.revision = Some(revision.to_owned());
            }
        });
    }

    pub(super) fn nacked(&self, kind: &str, rejection: Rejection) {
        self.change(|state| _ = state.rejected.insert(kind.to_owned(), rejection));
    }

    fn change(&self, change: impl FnOnce(&mut NodeState)) {
        self.status.nodes.send_if_modified(|nodes| {
            let Some(state) = nodes.get_mut(&self.id) else {
                return false;
            };
            let before = state.clone();
            change(state);
            *state != before
        });
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.status
            .nodes
            .send_modify(|nodes| _ = nodes.remove(&self.id));
    }
}
