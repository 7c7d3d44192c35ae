//! A policy with every kind of rule, and pods under it.

use egress_common::frames::Pools;
use egress_common::maps::{
    DENY_DROP, DENY_REJECT, Endpoint, ExactKey4, ExactKey6, ExactRule, MODE_AUDIT, MODE_ENFORCE,
    NEAR4, NEAR6, NO_RULE, Near4, Near6, PortRange, PrefixKey4, PrefixKey6, PrefixRule, network4,
    network6,
};
use egress_common::memory::{MemoryTables, POLICY_BITS};
use egress_common::packet::{TCP, UDP};
use egress_common::{Reason, limits::MAX_RANGES};

pub const POLICY: u32 = 7;
pub const OWN4: [u8; 4] = [10, 244, 1, 5];
pub const OWN6: [u8; 16] = v6(5);
/// Gateway, its listener on 8443.
pub const GATEWAY4: [u8; 4] = [10, 244, 1, 9];
pub const GATEWAY6: [u8; 16] = v6(9);
pub const POD4: [u8; 4] = [10, 244, 1, 77];
pub const DNS4: [u8; 4] = [10, 96, 0, 10];
/// In an exception that admits ports 80 to 90 of TCP, and its hole.
pub const EXCEPTION4: [u8; 4] = [192, 0, 2, 7];
pub const HOLE4: [u8; 4] = [192, 0, 2, 200];
pub const OUTSIDE4: [u8; 4] = [203, 0, 113, 10];
pub const OUTSIDE6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 1, 0x13, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];

const fn v6(last: u8) -> [u8; 16] {
    [0xfd, 0, 0, 0x10, 2, 0x44, 0, 1, 0, 0, 0, 0, 0, 0, 0, last]
}

pub fn pools() -> Pools {
    Pools {
        own4: OWN4,
        own6: OWN6,
        peers4: vec![
            GATEWAY4,
            POD4,
            DNS4,
            EXCEPTION4,
            HOLE4,
            OUTSIDE4,
            [224, 0, 0, 1],
        ],
        peers6: vec![GATEWAY6, v6(77), OUTSIDE6, v6(200)],
        ports: vec![8443, 53, 80, 90, 91, 443],
    }
}

pub const fn range(proto: u8, first: u16, last: u16, reason: Reason, rule: u16) -> PortRange {
    PortRange {
        first,
        last,
        rule,
        proto,
        reason: reason as u8,
    }
}

pub fn prefix(ranges: &[PortRange], deny: Reason, deny_rule: u16) -> PrefixRule {
    let mut all = [range(0, 0, 0, Reason::NotHeld, 0); MAX_RANGES];
    all[..ranges.len()].copy_from_slice(ranges);
    let count = u8::try_from(ranges.len()).expect("at most MAX_RANGES");
    PrefixRule {
        count,
        deny: deny as u8,
        deny_rule,
        ranges: all,
    }
}

/// The tables of `POLICY`.
pub fn tables() -> MemoryTables {
    let mut tables = MemoryTables::default();
    let mut exact4 = |addr_be, port: u16, proto, reason: Reason, rule| {
        let key = ExactKey4 {
            policy: POLICY,
            addr_be,
            port_be: port.to_be_bytes(),
            proto,
            pad: 0,
        };
        tables.exact4.insert(
            key,
            ExactRule {
                rule,
                reason: reason as u8,
                pad: 0,
            },
        );
    };
    exact4(GATEWAY4, 8443, TCP, Reason::Gateway, 1);
    exact4(DNS4, 53, UDP, Reason::Dns, 2);
    exact4(DNS4, 53, TCP, Reason::Dns, 2);
    let key = ExactKey6 {
        policy: POLICY,
        addr_be: GATEWAY6,
        port_be: 8443_u16.to_be_bytes(),
        proto: TCP,
        pad: 0,
    };
    tables.exact6.insert(
        key,
        ExactRule {
            rule: 1,
            reason: Reason::Gateway as u8,
            pad: 0,
        },
    );

    let policy_be = POLICY.to_be_bytes();
    let every = range(0, 0, u16::MAX, Reason::Cluster, 3);
    let web = range(TCP, 80, 90, Reason::Exception, 4);
    let mut prefix4 = |addr_be, bits, rule| {
        tables.prefix4.insert(
            (PrefixKey4 { policy_be, addr_be }, POLICY_BITS + bits),
            rule,
        );
    };
    prefix4(
        [10, 244, 0, 0],
        16,
        prefix(&[every], Reason::NotAllowed, NO_RULE),
    );
    prefix4(GATEWAY4, 32, prefix(&[], Reason::GatewayPort, 1));
    prefix4(
        [192, 0, 2, 0],
        24,
        prefix(&[web], Reason::NotAllowed, NO_RULE),
    );
    prefix4([192, 0, 2, 192], 26, prefix(&[], Reason::Excepted, 4));
    let mut prefix6 = |addr_be, bits, rule| {
        tables.prefix6.insert(
            (PrefixKey6 { policy_be, addr_be }, POLICY_BITS + bits),
            rule,
        );
    };
    prefix6(v6(0), 64, prefix(&[every], Reason::NotAllowed, NO_RULE));
    prefix6(GATEWAY6, 128, prefix(&[], Reason::GatewayPort, 1));
    tables
}

/// Pods of every kind: held and audited, silent and rejecting, of one family and of both.
pub fn endpoints() -> Vec<Endpoint> {
    let port_be = 8443_u16.to_be_bytes();
    let mut near4 = [Near4::default(); NEAR4];
    near4[1] = Near4 {
        addr_be: GATEWAY4,
        port_be,
        rule: 1,
    };
    let near6 = [Near6 {
        addr_be: GATEWAY6,
        port_be,
        rule: 1,
    }; NEAR6];
    let mut endpoints = Vec::new();
    for (mode, on_deny, v4, v6) in [
        (MODE_ENFORCE, DENY_DROP, true, true),
        (MODE_ENFORCE, DENY_REJECT, true, true),
        (MODE_AUDIT, DENY_DROP, true, true),
        (MODE_ENFORCE, DENY_DROP, true, false),
        (MODE_ENFORCE, DENY_DROP, false, true),
    ] {
        endpoints.push(Endpoint {
            slot: u32::try_from(endpoints.len()).expect("few") + 1,
            policy: POLICY,
            v4_be: if v4 { OWN4 } else { [0; 4] },
            mode,
            on_deny,
            flags: 0,
            zero: 0,
            v6_be: if v6 { OWN6 } else { [0; 16] },
            since_ns: 0,
            exact_networks: 1 << network4(GATEWAY4) | 1 << network4(DNS4) | 1 << network6(GATEWAY6),
            // Only some pods name the gateway, so that the others find it in the table.
            near4: if v6 { near4 } else { Default::default() },
            near6: if v4 { near6 } else { Default::default() },
            ways: 0,
        });
    }
    endpoints
}
