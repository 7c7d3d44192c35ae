//! What a pass has to tell. The pass puts it here and goes on; who writes takes the latest.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{mpsc, watch};

use super::events::Notice;
use super::findings::{Findings, findings};
use super::history::{History, KINDS};
use super::report::report;
use crate::api::status::{EgressNodeSpec, Realized};
use crate::gateway;
use crate::index::{Index, Problem};
use crate::reconcile::NodeStatus;
use crate::source::AllDeclared;

/// Notices that wait for the API server; more are dropped, the report has them too.
const QUEUE: usize = 256;

/// The latest of everything.
#[derive(Clone, Debug, Default)]
pub struct News {
    pub declared: AllDeclared,
    pub findings: Arc<Findings>,
    /// Nodes by name, with their UIDs.
    pub nodes: Arc<BTreeMap<String, String>>,
    /// Those of them that run another system than Linux: no agent can be there.
    pub others: Arc<BTreeSet<String>>,
    /// Of this node; none before its first pass.
    pub report: Option<EgressNodeSpec>,
}

impl News {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.declared, &other.declared)
            && Arc::ptr_eq(&self.findings, &other.findings)
            && Arc::ptr_eq(&self.nodes, &other.nodes)
            && Arc::ptr_eq(&self.others, &other.others)
            && self.report == other.report
    }
}

/// The past of policy, shared by who adds to it and who aggregates.
#[derive(Clone, Debug, Default)]
pub struct SharedHistory(Arc<Mutex<History>>);

impl SharedHistory {
    pub fn lock(&self) -> MutexGuard<'_, History> {
        // It is changed as a whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a pass puts what it has to tell.
#[derive(Debug, Default)]
pub struct Board {
    news: watch::Sender<Arc<News>>,
    history: SharedHistory,
    notices: Notices,
    next: News,
    /// Digests of what is declared now.
    seen: Realized,
    /// Problems that only this node has, because of its pods.
    own: BTreeSet<String>,
}

/// Where it is taken from.
#[derive(Debug)]
pub struct Following {
    pub news: watch::Receiver<Arc<News>>,
    pub history: SharedHistory,
    pub notices: mpsc::Receiver<Notice>,
    /// How many nodes have no agent, as long as this one leads.
    pub without_agent: Gauge,
}

impl Board {
    /// A board that somebody looks at; a default one is looked at by nobody.
    pub fn new() -> (Self, Following) {
        let (sender, notices) = mpsc::channel(QUEUE);
        let board = Self {
            notices: Notices(Some(sender)),
            ..Self::default()
        };
        let following = Following {
            news: board.news.subscribe(),
            history: board.history.clone(),
            notices,
            without_agent: Gauge::default(),
        };
        (board, following)
    }

    /// Takes what is declared now.
    pub fn declare(&mut self, declared: AllDeclared) {
        self.seen = self.history.lock().learn(&declared);
        self.next.declared = declared;
    }

    /// Takes what came of compiling.
    pub fn compiled<'a>(
        &mut self,
        index: &Index,
        problems: &'a [Problem],
        gateways: impl Iterator<Item = &'a gateway::Problem>,
    ) {
        let nodes = index.nodes().iter();
        let nodes: BTreeMap<_, _> = nodes
            .map(|(name, node)| (name.clone(), node.uid.clone()))
            .collect();
        if *self.next.nodes != nodes {
            self.next.nodes = Arc::new(nodes);
        }
        let others = index.nodes().iter().filter(|(_, node)| node.other_os);
        let others: BTreeSet<_> = others.map(|(name, _)| name.clone()).collect();
        if *self.next.others != others {
            self.next.others = Arc::new(others);
        }
        // What the index does not know of a lockdown comes of this node's pods.
        let known: BTreeSet<&Problem> = index.problems().collect();
        let is_own = |problem: &&Problem| {
            problem.object.kind == "EgressLockdown" && !known.contains(problem)
        };
        let own = problems.iter().filter(is_own);
        self.own = own.map(ToString::to_string).collect();
        let everywhere = problems
            .iter()
            .filter(|problem| KINDS.contains(&problem.object.kind) && !is_own(problem));
        let findings = findings(&self.next.declared, everywhere, gateways);
        if *self.next.findings != findings {
            self.next.findings = Arc::new(findings);
        }
    }

    /// What is wrong with objects.
    pub fn findings(&self) -> &Findings {
        &self.next.findings
    }

    /// Tells all; with `in_sync` the node holds what is declared now.
    pub fn publish(&mut self, in_sync: bool, status: &NodeStatus, failures: &BTreeSet<String>) {
        let before = self.next.report.as_ref().map(|report| &report.realized);
        let nothing = Realized::default();
        let realized = if in_sync {
            &self.seen
        } else {
            before.unwrap_or(&nothing)
        };
        let failures = failures.iter().chain(&self.own);
        self.next.report = Some(report(realized, status, failures));
        self.send();
    }

    /// Tells what is wrong with objects. The node goes on as an earlier agent left it, so the report
    /// of that one stands.
    pub fn publish_held_back(&self) {
        self.send();
    }

    fn send(&self) {
        self.news.send_if_modified(|news| {
            let differs = !news.is(&self.next);
            if differs {
                *news = Arc::new(self.next.clone());
            }
            differs
        });
    }

    /// Tells that something happened to this node or a pod of it.
    pub fn notice(&self, notice: Notice) {
        self.notices.tell(notice);
    }

    /// For who tells on another thread.
    pub fn notices(&self) -> Notices {
        self.notices.clone()
    }
}

/// Takes what becomes an Event; a default one forgets it.
#[derive(Clone, Debug, Default)]
pub struct Notices(Option<mpsc::Sender<Notice>>);

impl Notices {
    /// Tells that something happened to this node or a pod of it.
    pub fn tell(&self, notice: Notice) {
        if let Some(notices) = &self.0
            && notices.try_send(notice).is_err()
        {
            tracing::debug!(
                event = "notice_dropped",
                "the API server is slow to take Events"
            );
        }
    }
}
