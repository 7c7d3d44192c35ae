//! What fence and gate consist of: the same tables in each family.
//!
//! ```text
//! table inet sallyport {
//!     set fenced { type iface_index; size 16384 }
//!     counter dropped { }
//!     chain passed {
//!         type filter hook prerouting priority -1000
//!         iif != @fenced accept
//!         meta mark & 0x02000000 == 0 counter name dropped drop
//!         meta mark set meta mark & 0xfdffffff
//!     }
//! }
//! table inet sallyport-gate {
//!     set met { type iface_index; size 16384 }
//!     counter dropped { }
//!     chain passed {
//!         type filter hook prerouting priority -1000
//!         iif != @met meta iifkind "veth" counter name dropped drop
//!     }
//! }
//! ```

use egress_common::maps::MARK_PASSED;
use serde::Serialize;

use super::value::Value::{self, Bytes, List, Nest, Raw, Text, Word};

pub const COUNTER: &str = "dropped";
pub const CHAIN: &str = "passed";

/// Which table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// From devices in its set comes only what their hook has marked.
    Fence,
    /// From a veth that is not in its set comes nothing.
    Gate,
}

impl Part {
    pub const ALL: [Self; 2] = [Self::Fence, Self::Gate];

    pub const fn table(self) -> &'static str {
        match self {
            Self::Fence => "sallyport",
            Self::Gate => "sallyport-gate",
        }
    }

    pub(super) const fn set(self) -> &'static str {
        match self {
            Self::Fence => "fenced",
            Self::Gate => "met",
        }
    }
}

/// Whose packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4 and IPv6, of devices that the node routes for.
    Inet,
    /// Frames of all kinds, of devices that are ports of a bridge.
    Bridge,
    /// ARP that the node itself would answer or learn from.
    Arp,
}

impl Family {
    pub const ALL: [Self; 3] = [Self::Inet, Self::Bridge, Self::Arp];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Bridge => "bridge",
            Self::Arp => "arp",
        }
    }

    /// `NFPROTO_*` of `linux/netfilter.h`.
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Arp => 3,
            Self::Bridge => 7,
        }
    }
}

/// `NF_INET_PRE_ROUTING`, `NF_BR_PRE_ROUTING`, `NF_ARP_IN`.
const HOOK: u32 = 0;
/// Before the first of the kernel's own, which is -400 (defragmentation).
const PRIORITY: u32 = (-1000_i32).cast_unsigned();
/// Of `NF_DROP` and `NF_ACCEPT`.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
/// Not given to anybody outside of one batch.
const SET_ID: u32 = 1;
/// The first register; that of verdicts is another.
const REGISTER: u32 = 1;
const VERDICT: u32 = 0;
/// What `nft` calls `iface_index`.
const TYPE_IFINDEX: u32 = 20;

/// `NFT_META_*`.
const MARK: u32 = 3;
const IIF: u32 = 4;
const IIFKIND: u32 = 26;

/// Devices that a set takes. The kernel looks faster in one whose size it knows.
const ROOM: u32 = 1 << 14;

/// As the kernel has the name of a kind, in a register of `IFNAMSIZ` bytes.
const VETH: &[u8; 16] = b"veth\0\0\0\0\0\0\0\0\0\0\0\0";

/// Attributes of a table: it is in force.
pub fn table(part: Part) -> Vec<(u16, Value)> {
    vec![(1, Text(part.table())), (2, Word(0))]
}

pub fn chain(part: Part) -> Vec<(u16, Value)> {
    let hook = vec![(1, Word(HOOK)), (2, Word(PRIORITY))];
    vec![
        (1, Text(part.table())),
        (3, Text(CHAIN)),
        (4, Nest(hook)),
        (5, Word(ACCEPT)),
        (7, Text("filter")),
    ]
}

/// As the kernel lists it.
pub fn set(part: Part) -> Vec<(u16, Value)> {
    vec![
        (1, Text(part.table())),
        (2, Text(part.set())),
        (4, Word(TYPE_IFINDEX)),
        (5, Word(4)),
    ]
}

/// As the kernel is told. With the note that `nft` leaves itself about a set: keys are in the order of the
/// machine (`NFTNL_UDATA_SET_KEYBYTEORDER`, of four bytes: `BYTEORDER_HOST_ENDIAN`). Without it `nft list`
/// turns them round.
pub fn new_set(part: Part, devices: usize) -> Vec<(u16, Value)> {
    let note = [&[0, 4][..], &1_u32.to_ne_bytes()].concat();
    let mut set = set(part);
    set.extend([(3, Word(0)), (10, Word(SET_ID)), (13, Bytes(note))]);
    if devices <= ROOM as usize / 2 {
        set.push((9, Nest(vec![(1, Word(ROOM))])));
    }
    set
}

pub fn counter(part: Part) -> Vec<(u16, Value)> {
    vec![
        (1, Text(part.table())),
        (2, Text(COUNTER)),
        (3, Word(NFT_OBJECT_COUNTER)),
        (4, Nest(Vec::new())),
    ]
}

pub const NFT_OBJECT_COUNTER: u32 = 1;

/// These devices in the set.
pub fn elements(part: Part, devices: &[u32]) -> Vec<(u16, Value)> {
    let element = |ifindex: &u32| Nest(vec![(1, raw(*ifindex))]);
    vec![
        (1, Text(part.table())),
        (2, Text(part.set())),
        (3, List(devices.iter().map(element).collect())),
    ]
}

/// All rules, in the order in which they run. At the fence who is no device of ours is done after one lookup, at
/// the gate who has been met; to look at the kind costs more than half as much.
pub fn rules(part: Part) -> Vec<Vec<(u16, Value)>> {
    let unknown = || not_in_set(part.set());
    let rules = match part {
        Part::Fence => vec![
            vec![load(IIF), unknown(), verdict(ACCEPT)],
            vec![
                load(MARK),
                mask(MARK_PASSED),
                equals(raw(0)),
                count(),
                verdict(DROP),
            ],
            vec![load(MARK), mask(!MARK_PASSED), set_mark()],
        ],
        // A device without a kind (hardware) ends the rule where that is loaded.
        Part::Gate => vec![vec![
            load(IIF),
            unknown(),
            load(IIFKIND),
            equals(Nest(vec![(1, Bytes(VETH.to_vec()))])),
            count(),
            verdict(DROP),
        ]],
    };
    let of_chain = |expressions| {
        vec![
            (1, Text(part.table())),
            (2, Text(CHAIN)),
            (4, List(expressions)),
        ]
    };
    rules.into_iter().map(of_chain).collect()
}

fn expression(name: &'static str, data: Vec<(u16, Value)>) -> Value {
    Nest(vec![(1, Text(name)), (2, Nest(data))])
}

/// What is compared is as the machine has it.
fn raw(word: u32) -> Value {
    Nest(vec![(1, Raw(word.to_ne_bytes()))])
}

fn load(what: u32) -> Value {
    expression("meta", vec![(1, Word(REGISTER)), (2, Word(what))])
}

fn set_mark() -> Value {
    expression("meta", vec![(2, Word(MARK)), (3, Word(REGISTER))])
}

fn not_in_set(set: &'static str) -> Value {
    const NFT_LOOKUP_F_INV: u32 = 1;
    let data = vec![
        (1, Text(set)),
        (2, Word(REGISTER)),
        (5, Word(NFT_LOOKUP_F_INV)),
    ];
    expression("lookup", data)
}

fn mask(mask: u32) -> Value {
    let data = vec![
        (1, Word(REGISTER)),
        (2, Word(REGISTER)),
        (3, Word(4)),
        (4, raw(mask)),
        (5, raw(0)),
    ];
    expression("bitwise", data)
}

fn equals(value: Value) -> Value {
    expression("cmp", vec![(1, Word(REGISTER)), (2, Word(0)), (3, value)])
}

fn count() -> Value {
    expression(
        "objref",
        vec![(1, Word(NFT_OBJECT_COUNTER)), (2, Text(COUNTER))],
    )
}

fn verdict(code: u32) -> Value {
    let verdict = Nest(vec![(2, Nest(vec![(1, Word(code))]))]);
    expression("immediate", vec![(1, Word(VERDICT)), (2, verdict)])
}
