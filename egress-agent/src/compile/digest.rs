//! The name of a policy is what is in it.

use egress_common::maps::{ExactRule, PrefixRule};
use sha2::{Digest as _, Sha256};

use super::desired::{Digest, Policy};

/// SHA-256 over an encoding in which every part has its length in front, so that two policies with
/// the same digest have the same rules and tables.
pub(super) fn digest(policy: &Policy) -> Digest {
    let mut hash = Sha256::new();
    hash.update(b"sallyport policy 1\0");
    count(&mut hash, policy.rules.len());
    for rule in &policy.rules {
        count(&mut hash, rule.len());
        hash.update(rule.as_bytes());
    }
    count(&mut hash, policy.exact4.len());
    for ((ip, port, proto), value) in &policy.exact4 {
        exact(&mut hash, &ip.octets(), *port, *proto, *value);
    }
    count(&mut hash, policy.exact6.len());
    for ((ip, port, proto), value) in &policy.exact6 {
        exact(&mut hash, &ip.octets(), *port, *proto, *value);
    }
    count(&mut hash, policy.prefix4.len());
    for (net, value) in &policy.prefix4 {
        prefix(&mut hash, &net.addr().octets(), net.prefix_len(), value);
    }
    count(&mut hash, policy.prefix6.len());
    for (net, value) in &policy.prefix6 {
        prefix(&mut hash, &net.addr().octets(), net.prefix_len(), value);
    }
    hash.finalize().into()
}

fn count(hash: &mut Sha256, n: usize) {
    hash.update(
        u64::try_from(n)
            .expect("a length fits 64 bits")
            .to_be_bytes(),
    );
}

fn exact(hash: &mut Sha256, address: &[u8], port: u16, proto: u8, value: ExactRule) {
    hash.update(address);
    hash.update(port.to_be_bytes());
    hash.update([proto, value.reason]);
    hash.update(value.rule.to_be_bytes());
}

fn prefix(hash: &mut Sha256, address: &[u8], len: u8, value: &PrefixRule) {
    hash.update(address);
    hash.update([len, value.count, value.deny]);
    hash.update(value.deny_rule.to_be_bytes());
    for range in &value.ranges[..usize::from(value.count)] {
        hash.update(range.first.to_be_bytes());
        hash.update(range.last.to_be_bytes());
        hash.update(range.rule.to_be_bytes());
        hash.update([range.proto, range.reason]);
    }
}
