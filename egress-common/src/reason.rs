//! Verdicts, and the reason for each end of the decision.

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Verdict {
    /// It goes on; other programs on the device still see it.
    Pass = 0,
    /// It would have been dropped, but its pod is only audited: it goes on and is reported.
    Audit = 1,
    /// It is dropped.
    Drop = 2,
    /// It is dropped, and its sender is told with an ICMP "administratively prohibited".
    Reject = 3,
}

impl Verdict {
    /// The verdict with this number in an event; `None` for a number of another version.
    pub const fn from_u8(raw: u8) -> Option<Self> {
        Some(match raw {
            0 => Self::Pass,
            1 => Self::Audit,
            2 => Self::Drop,
            3 => Self::Reject,
            _ => return None,
        })
    }

    /// Stable lower-case name for logs, metrics and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Audit => "audit",
            Self::Drop => "drop",
            Self::Reject => "reject",
        }
    }
}

/// Reasons below this number let through, the others don't.
const FIRST_DROP: u8 = 16;

macro_rules! reasons {
    ($( $(#[doc = $doc:literal])+ $name:ident = $value:literal, $text:literal, $passes:literal; )+) => {
        /// Why the decision ended as it did. The numbers are part of the pinned layout.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason { $( $(#[doc = $doc])+ $name = $value, )+ }

        impl Reason {
            /// Every reason, in the order of its number.
            pub const ALL: &'static [Reason] = &[ $( Reason::$name, )+ ];

            /// The reason with this number; `None` for a number of another version.
            pub const fn from_u8(raw: u8) -> Option<Self> {
                Some(match raw { $( $value => Self::$name, )+ _ => return None })
            }

            /// Stable lower-case name for logs, metrics and JSON.
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$name => $text, )+ }
            }

            /// Whether a packet that ends here is let through in every mode.
            #[inline(always)]
            pub const fn passes(self) -> bool {
                (self as u8) < FIRST_DROP
            }
        }

        // The table below says it in words, `passes` by number.
        const _: () = { $( assert!(Reason::$name.passes() == $passes); )+ };
    };
}

reasons! {
    /// The pod is known and not held.
    NotHeld = 0, "not-held", true;
    /// ARP for the pod's own address.
    Arp = 1, "arp", true;
    /// IPv6 neighbour discovery or multicast listener report on link scope.
    Neighbour = 2, "neighbour", true;
    /// Reply in a flow that was opened from outside the pod.
    Reply = 3, "reply", true;
    /// ICMP error about a flow the pod may have.
    IcmpError = 4, "icmp-error", true;
    /// A gateway's listener that the pod may use.
    Gateway = 5, "gateway", true;
    /// Destination inside the cluster (`allow.cluster`).
    Cluster = 6, "cluster", true;
    /// The cluster's DNS, or a resolver of `allow.dns`.
    Dns = 7, "dns", true;
    /// An exception of `allow.cidrs`.
    Exception = 8, "exception", true;
    /// Later fragment of a packet whose first fragment passed.
    Fragment = 9, "fragment", true;
    /// Loopback, at the cgroup hook.
    Loopback = 10, "loopback", true;
    /// The pod's device hook stands and decides; at the cgroup hook.
    Covered = 11, "covered", true;

    /// No rule allows this destination.
    NotAllowed = 16, "not-allowed", false;
    /// A gateway's address, but not a listener that the pod may use.
    GatewayPort = 17, "gateway-port", false;
    /// Carved out of an exception with `except`, or an address of the node inside a pod CIDR.
    Excepted = 18, "excepted", false;
    /// The source address is not the pod's own.
    Spoofed = 19, "spoofed", false;
    /// ARP in another's name, or not for IPv4 over Ethernet.
    ArpSpoofed = 20, "arp-spoofed", false;
    /// Neither IP nor ARP (MPLS, PPPoE, LLC, unknown).
    NotIp = 21, "not-ip", false;
    /// VLAN tagged, in the frame or beside it.
    Vlan = 22, "vlan", false;
    /// Truncated or contradictory headers.
    Malformed = 23, "malformed", false;
    /// Later fragment whose first one is not known, or came too long ago.
    FragmentUnknown = 24, "fragment-unknown", false;
    /// First fragment without its whole transport header, or one that overlaps it.
    FragmentTiny = 25, "fragment-tiny", false;
    /// Source route: IPv4 loose or strict, or an IPv6 routing header.
    SourceRoute = 26, "source-route", false;
    /// More IPv6 extension headers than are parsed, or one that is not known.
    ExtensionHeader = 27, "extension-header", false;
    /// Not TCP, UDP, SCTP or ICMP.
    Protocol = 28, "protocol", false;
    /// Router advertisement, redirect, or neighbour discovery beyond the link or in another's name.
    NeighbourForged = 29, "neighbour-forged", false;
    /// ICMP error that is about no flow the pod may have.
    IcmpErrorUnrelated = 30, "icmp-error-unrelated", false;
    /// A pod that the agent has not told the kernel about yet; the node's closed gate.
    UnknownPod = 31, "unknown-pod", false;
    /// A table that must remember this packet is full.
    TableFull = 32, "table-full", false;
}

/// Length of a pod's counters: one more than the highest reason.
pub const REASONS: usize = 33;

const _: () = {
    let mut highest = 0;
    let mut i = 0;
    while i < Reason::ALL.len() {
        if Reason::ALL[i] as usize > highest {
            highest = Reason::ALL[i] as usize;
        }
        i += 1;
    }
    assert!(REASONS == highest + 1);
};
