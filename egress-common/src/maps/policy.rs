//! What a policy allows, and what it says in words.

use crate::limits::MAX_RANGES;

/// Key of `sp_exact4`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExactKey4 {
    pub policy: u32,
    pub addr_be: [u8; 4],
    pub port_be: [u8; 2],
    /// IP protocol number.
    pub proto: u8,
    pub pad: u8,
}

/// Key of `sp_exact6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExactKey6 {
    pub policy: u32,
    pub addr_be: [u8; 16],
    pub port_be: [u8; 2],
    /// IP protocol number.
    pub proto: u8,
    pub pad: u8,
}

/// Value of `sp_exact4` and `sp_exact6`: this address, protocol and port is allowed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExactRule {
    /// Index into the policy's rules (`sp_rule_info`).
    pub rule: u16,
    /// A passing `Reason`.
    pub reason: u8,
    pub pad: u8,
}

/// Data of the keys of `sp_prefix4`, behind the trie's own prefix length (bits, counted from the
/// start of `policy`; so 32 more than the address prefix).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrefixKey4 {
    /// Network byte order, because the trie compares from the first bit on.
    pub policy_be: [u8; 4],
    pub addr_be: [u8; 4],
}

/// Data of the keys of `sp_prefix6`; as `PrefixKey4`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrefixKey6 {
    pub policy_be: [u8; 4],
    pub addr_be: [u8; 16],
}

/// One range of ports that a prefix allows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange {
    /// First and last port, host byte order, both included. 0 to 65535 also admits protocols
    /// without ports.
    pub first: u16,
    pub last: u16,
    /// Index into the policy's rules (`sp_rule_info`).
    pub rule: u16,
    /// IP protocol number; 0 is TCP, UDP, SCTP and ICMP.
    pub proto: u8,
    /// A passing `Reason`.
    pub reason: u8,
}

/// Value of `sp_prefix4` and `sp_prefix6`. The longest matching prefix alone decides: whoever
/// writes the table puts all that a shorter prefix allows into the longer ones within it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrefixRule {
    /// Used entries of `ranges`, from the first on.
    pub count: u8,
    /// Dropping `Reason` when no range matches.
    pub deny: u8,
    /// Index of the rule to name when no range matches; `NO_RULE` for none.
    pub deny_rule: u16,
    pub ranges: [PortRange; MAX_RANGES],
}

/// "No rule" in `Outcome::rule`, `Event::rule` and `PrefixRule::deny_rule`.
pub const NO_RULE: u16 = u16::MAX;

/// Value of `sp_policy_info`, key is the policy's number.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PolicyInfo {
    /// SHA-256 of the policy's content: the same content keeps its number.
    pub digest: [u8; 32],
    /// Entries in `sp_exact4`, `sp_exact6`, `sp_prefix4`, `sp_prefix6`.
    pub entries: [u32; 4],
    /// Rules in `sp_rule_info`.
    pub rules: u32,
    /// 1 once every entry is written; 0 while it is being written or collected.
    pub complete: u32,
}

/// Key of `sp_rule_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleKey {
    pub policy: u32,
    pub rule: u16,
    pub pad: [u8; 2],
}

/// Value of `sp_rule_info`: the rule in words, such as `EgressLockdown/web allow.cidrs[2]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleInfo {
    /// UTF-8, padded with zeros; longer text is cut.
    pub text: [u8; 192],
}
