//! What a pod's entry holds of its policy, so that the kernel looks up less.

use egress_common::Reason;
use egress_common::maps::{NEAR4, NEAR6, Near4, Near6, network4, network6};
use egress_common::packet::TCP;

use crate::compile::Policy;

/// `Endpoint::exact_networks`, `near4` and `near6` of a policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Near {
    pub exact_networks: u64,
    pub near4: [Near4; NEAR4],
    pub near6: [Near6; NEAR6],
}

impl Near {
    /// The gateways are taken in the order of their addresses; those that find no place are found
    /// in the exact table as everything else.
    pub fn of(policy: &Policy) -> Self {
        let mut near = Self::default();
        let mut free4 = near.near4.iter_mut();
        for ((addr, port, proto), rule) in &policy.exact4 {
            near.exact_networks |= 1 << network4(addr.octets());
            if *proto == TCP
                && rule.reason == Reason::Gateway as u8
                && let Some(place) = free4.next()
            {
                let (addr_be, port_be) = (addr.octets(), port.to_be_bytes());
                *place = Near4 {
                    addr_be,
                    port_be,
                    rule: rule.rule,
                };
            }
        }
        let mut free6 = near.near6.iter_mut();
        for ((addr, port, proto), rule) in &policy.exact6 {
            near.exact_networks |= 1 << network6(addr.octets());
            if *proto == TCP
                && rule.reason == Reason::Gateway as u8
                && let Some(place) = free6.next()
            {
                let (addr_be, port_be) = (addr.octets(), port.to_be_bytes());
                *place = Near6 {
                    addr_be,
                    port_be,
                    rule: rule.rule,
                };
            }
        }
        near
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use egress_common::maps::ExactRule;

    use super::*;

    fn rule(rule: u16, reason: Reason) -> ExactRule {
        ExactRule {
            rule,
            reason: reason as u8,
            pad: 0,
        }
    }

    #[test]
    fn names_gateways_only_and_marks_every_network() {
        let mut policy = Policy::default();
        let dns = Ipv4Addr::new(10, 96, 0, 10);
        policy.exact4.insert((dns, 53, 17), rule(1, Reason::Dns));
        let gateways = (1..=5).map(|last| Ipv4Addr::new(10, 244, 1, last));
        for gateway in gateways.clone() {
            policy
                .exact4
                .insert((gateway, 8443, TCP), rule(2, Reason::Gateway));
        }
        let gateway6: Ipv6Addr = "fd00::9".parse().unwrap();
        policy
            .exact6
            .insert((gateway6, 8443, TCP), rule(2, Reason::Gateway));

        let near = Near::of(&policy);
        let port_be = 8443_u16.to_be_bytes();
        for (place, gateway) in near.near4.iter().zip(gateways) {
            assert_eq!(
                *place,
                Near4 {
                    addr_be: gateway.octets(),
                    port_be,
                    rule: 2
                }
            );
        }
        assert_eq!(
            near.near6[0],
            Near6 {
                addr_be: gateway6.octets(),
                port_be,
                rule: 2
            }
        );
        for network in [network4([10, 96, 0, 0]), network4([10, 244, 0, 0])] {
            assert_ne!(near.exact_networks & 1 << network, 0);
        }
        assert_ne!(near.exact_networks & 1 << network6(gateway6.octets()), 0);
    }

    #[test]
    fn nothing_of_nothing() {
        assert_eq!(Near::of(&Policy::default()), Near::default());
    }
}
