//! The node's standing connections, for pods that are held for the first time.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Once;

use crate::compile::{DesiredState, Digest};
use crate::datapath::{Adopt, FlowKeys};
use crate::node::conntrack::{Entry, StandingFlow};
use crate::node::{StandingFlows, diverted};

/// Flows from conntrack, read at most once after each hook.
#[derive(Debug, Default)]
pub struct Conntrack {
    flows: Option<StandingFlows>,
}

impl Adopt for Conntrack {
    fn refresh(&mut self) {
        self.flows = None;
    }

    fn flows(&mut self, slot: u32, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> FlowKeys {
        let adopted = self
            .flows
            .get_or_insert_with(StandingFlows::read)
            .adopt(v4, v6);
        let keys = |flows: Vec<StandingFlow>| flows.iter().map(|flow| flow.key(slot)).collect();
        (keys(adopted.inbound), keys(adopted.outbound))
    }

    fn cut(&mut self, pods: &BTreeMap<IpAddr, Digest>, desired: &DesiredState) -> u64 {
        static WARNED: Once = Once::new();
        if pods.is_empty() {
            return 0;
        }
        let ends = |entry: &Entry| {
            let policy = pods.get(&entry.orig.src);
            let policy = policy.and_then(|digest| desired.policies.get(digest));
            let (to, port, proto) = (entry.reply.src, entry.reply.src_port, entry.reply.proto);
            policy.is_some_and(|policy| !desired.inside.may_lead(policy, to, proto, port))
        };
        match diverted::cut(ends) {
            Ok(0) => 0,
            Ok(count) => {
                tracing::info!(event = "diverted_cut", count);
                self.flows = None;
                count
            }
            Err(error) => {
                WARNED.call_once(|| {
                    tracing::warn!(
                        event = "conntrack-unavailable", %error,
                        "connections that a Service has led outside before can't be ended: they go on \
                         where the Service is open"
                    );
                });
                0
            }
        }
    }
}
