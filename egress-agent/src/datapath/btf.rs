//! Where the running kernel has what the programs read of a `struct sk_buff`, and which number its function
//! has that they call, from its own description (BTF): that differs from kernel to kernel. What loads the
//! programs reads BTF as well, and shows nobody the members of a type.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::sync::OnceLock;

use egress_common::offload::{KERNEL_CONTEXT, SKB_REGION, SkbFields};

use super::DatapathError;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Kinds of types in `linux/btf.h` that anything follows, and the two that have members.
const INT: u32 = 1;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const ENUM64: u32 = 19;
const MAGIC: u32 = 0xeb9f;
/// Lengths of the header of a type and of a member.
const TYPE: usize = 12;
const MEMBER: usize = 12;

/// Of the kernel that runs.
#[derive(Debug)]
pub struct Description {
    pub skb: SkbFields,
    /// The number of [`KERNEL_CONTEXT`], if the kernel has it.
    pub kernel_context: Option<u32>,
}

/// The description of the kernel that runs.
///
/// # Errors
/// If it has none, or one in which the fields are not found.
pub fn description() -> Result<&'static Description, DatapathError> {
    static DESCRIPTION: OnceLock<Description> = OnceLock::new();
    if let Some(description) = DESCRIPTION.get() {
        return Ok(description);
    }
    let bytes = fs::read(VMLINUX).map_err(|error| DatapathError::Io {
        what: format!("can't read the kernel's description of itself (BTF), {VMLINUX}"),
        error,
    })?;
    let found = Btf::new(&bytes).and_then(|btf| {
        Some(Description {
            skb: fields(&btf)?,
            kernel_context: btf.number_of(FUNC, KERNEL_CONTEXT.as_bytes()),
        })
    });
    let found = found.ok_or_else(|| DatapathError::Io {
        what: format!("can't find in {VMLINUX} where a struct sk_buff has its checksum"),
        error: io::ErrorKind::InvalidData.into(),
    })?;
    Ok(DESCRIPTION.get_or_init(|| found))
}

fn fields(btf: &Btf<'_>) -> Option<SkbFields> {
    let skb = btf.at(btf.number_of(STRUCT, b"sk_buff")?)?;
    let bit = |name: &str| btf.member(skb, name.as_bytes());
    let byte = |name: &str| bit(name).filter(|bit| bit % 8 == 0).map(|bit| bit / 8);
    let summed = bit("ip_summed")?;
    // Two bits, in one byte.
    let (ip_summed, place) = (summed / 8, summed % 8);
    let ip_summed_shift = if cfg!(target_endian = "little") {
        place
    } else {
        6_u32.checked_sub(place)?
    };
    let shorts = [
        byte("csum_start")?,
        byte("csum_offset")?,
        byte("mac_header")?,
    ];
    let first = shorts.iter().fold(ip_summed, |first, at| first.min(*at));
    let last = shorts.iter().fold(ip_summed, |last, at| last.max(at + 1));
    let region = first & !7;
    let fits = usize::try_from(last - region).is_ok_and(|last| last < SKB_REGION);
    let aligned = shorts.iter().all(|at| at % 2 == 0);
    (fits && aligned && ip_summed_shift <= 6).then_some(SkbFields {
        region,
        ip_summed: ip_summed - region,
        ip_summed_shift,
        csum_start: shorts[0] - region,
        csum_offset: shorts[1] - region,
        mac_header: shorts[2] - region,
    })
}

/// A description, as bytes in the order of the machine.
struct Btf<'a> {
    /// Of each type, from the first on, where it begins.
    types: Vec<usize>,
    bytes: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Btf<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        if word(bytes, 0)? & 0xffff != MAGIC && cfg!(target_endian = "little") {
            return None;
        }
        let header = size(word(bytes, 4)?);
        let [types, types_len, strings, strings_len] =
            [8, 12, 16, 20].map(|at| word(bytes, at).map(size));
        let strings = header.checked_add(strings?)?;
        let strings = bytes.get(strings..strings.checked_add(strings_len?)?)?;
        let begin = header.checked_add(types?)?;
        let bytes = bytes.get(..begin.checked_add(types_len?)?)?;
        let mut btf = Self {
            types: Vec::new(),
            bytes,
            strings,
        };
        let mut at = begin;
        // What follows a kind that is not known can't be found, and is not needed.
        while at < bytes.len()
            && let Some(behind) = btf.behind(at)
        {
            btf.types.push(at);
            at += TYPE + behind;
        }
        Some(btf)
    }

    fn kind(&self, at: usize) -> Option<u32> {
        Some(word(self.bytes, at + 4)? >> 24 & 0x1f)
    }

    fn members(&self, at: usize) -> Option<usize> {
        Some(size(word(self.bytes, at + 4)? & 0xffff))
    }

    /// Bytes that follow the header of a type.
    fn behind(&self, at: usize) -> Option<usize> {
        let members = self.members(at)?;
        Some(match self.kind(at)? {
            INT | VAR | DECL_TAG => 4,
            ARRAY => 12,
            STRUCT | UNION => MEMBER * members,
            DATASEC | ENUM64 => 12 * members,
            ENUM | FUNC_PROTO => 8 * members,
            2 | 7..=11 | FUNC | 16 | 18 => 0,
            _ => return None,
        })
    }

    fn is_named(&self, at: usize, name: &[u8]) -> bool {
        let string = word(self.bytes, at).and_then(|at| self.strings.get(size(at)..));
        string.is_some_and(|string| string.strip_prefix(name).and_then(<[u8]>::first) == Some(&0))
    }

    /// The number of a type; the first has 1.
    fn number_of(&self, kind: u32, name: &[u8]) -> Option<u32> {
        let mut types = self.types.iter();
        let before =
            types.position(|at| self.kind(*at) == Some(kind) && self.is_named(*at, name))?;
        u32::try_from(before + 1).ok()
    }

    fn at(&self, number: u32) -> Option<usize> {
        self.types.get(size(number).checked_sub(1)?).copied()
    }

    /// The bit at which a member of a struct begins, also one of those without a name within it.
    fn member(&self, at: usize, name: &[u8]) -> Option<u32> {
        let bits = word(self.bytes, at + 4)? >> 31 == 1;
        (0..self.members(at)?).find_map(|member| {
            let member = at + TYPE + MEMBER * member;
            let offset = word(self.bytes, member + 8)?;
            // The length of a bit field is beside its place.
            let offset = if bits { offset & 0x00ff_ffff } else { offset };
            if self.is_named(member, name) {
                return Some(offset);
            }
            let inner = self.at(word(self.bytes, member + 4)?)?;
            let nested = matches!(self.kind(inner)?, STRUCT | UNION) && self.is_named(member, b"");
            let within = nested.then(|| self.member(inner, name)).flatten()?;
            Some(offset + within)
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

const fn size(word: u32) -> usize {
    word as usize
}

#[cfg(test)]
#[path = "btf_tests.rs"]
mod tests;
