//! The node's standing connections, for pods that are held for the first time.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::datapath::{Adopt, FlowKeys};
use crate::node::StandingFlows;
use crate::node::conntrack::StandingFlow;

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
}
