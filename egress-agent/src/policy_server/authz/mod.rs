//! Envoy's external authorization: may this client have this request, or this connection?
//!
//! [`decide`](decide::decide) is pure: one state of policy, the caller, the question. Everything
//! that identifies the client comes from what the gateway itself verified and saw
//! (`source.principal`, `source.address`), never from a header.

mod answer;
mod attributes;
mod decide;
#[cfg(any(test, fuzzing))]
#[path = "tests/fixture.rs"]
#[cfg_attr(
    not(test),
    allow(dead_code, reason = "the fuzzer makes its questions out of bytes")
)]
mod fixture;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod journal;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use envoy_types::pb::envoy::service::auth::v3::authorization_server::Authorization;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

pub use decide::{Binding, Cause, Verdict, decide};

use super::metrics::PolicyMetrics;
use super::{Caller, Served};
use crate::gateway::envoy::UPSTREAM;
use journal::Journal;

/// The service.
#[derive(Debug)]
pub struct Authz {
    served: watch::Receiver<Arc<Served>>,
    binding: Binding,
    metrics: PolicyMetrics,
    journal: Journal,
}

impl Authz {
    pub fn new(
        served: watch::Receiver<Arc<Served>>,
        binding: Binding,
        metrics: PolicyMetrics,
    ) -> Self {
        Self {
            served,
            binding,
            metrics,
            journal: Journal::default(),
        }
    }
}

#[tonic::async_trait]
impl Authorization for Authz {
    async fn check(
        &self,
        request: Request<CheckRequest>,
    ) -> Result<Response<CheckResponse>, Status> {
        let begin = Instant::now();
        let caller = request.extensions().get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| Status::unauthenticated("no client certificate"))?;
        // One state for the whole question.
        let served = self.served.borrow().clone();
        if !served.is_gateway(&caller.identity) {
            self.metrics.caller_refused("no-gateway");
            self.journal.stranger(&caller);
            return Err(Status::permission_denied(format!(
                "{} is not the service account of a pod that a VirtualGateway selects",
                caller.identity
            )));
        }
        let mut asked = attributes::read(request.get_ref())
            .inspect_err(|_| self.metrics.caller_refused("bad-request"))
            .map_err(Status::invalid_argument)?;
        // What is told with the call comes from the network filter's configuration; what is no
        // text is no cluster.
        let told = request.metadata().get(UPSTREAM);
        let told = told.map(|value| value.to_str().unwrap_or_default());
        asked.upstream = asked.upstream.or(told);
        let verdict = decide(&served, &caller, &asked, self.binding);
        self.metrics.decided(&verdict, begin.elapsed());
        self.journal.write(&verdict, &asked);
        Ok(Response::new(answer::answer(&verdict, &served.revision)))
    }
}
