//! The decision in parts, for verifiers that can't follow all of it at once: Linux 6.1's does not track
//! through calls which values matter, and takes too many states for different. Whoever makes nothing of
//! the parts has them inlined.
//!
//! A program that calls a global function of its own is verified apart from it: the function for
//! anything it may be given, the program for anything that may come back. What it decides is the same.

use super::{End, Side, ip};
use crate::maps::Endpoint;
use crate::packet::{self, Found, Headers, Packet};
use crate::reason::Reason;
use crate::tables::Tables;

/// What an implementor may make global functions of.
pub trait Parts: Packet + Sized {
    /// Parses into `headers`, which must be [`Headers::default`]. `zero` is 0, see
    /// [`packet::frame`].
    #[inline(always)]
    fn parse(&self, side: Side, headers: &mut Headers, zero: u8) -> Found {
        parse(side, self, headers, zero)
    }

    /// What the rules say of an IP packet that was parsed.
    #[inline(always)]
    fn judge<T: Tables>(
        &self,
        side: Side,
        headers: &Headers,
        endpoint: &Endpoint,
        tables: &T,
    ) -> End {
        judge(side, self, headers, endpoint, tables)
    }
}

#[cfg(not(target_arch = "bpf"))]
impl Parts for crate::memory::Bytes<'_> {}
#[cfg(not(target_arch = "bpf"))]
impl Parts for crate::memory::Unsummed<'_> {}

/// The part itself; see [`Parts::parse`].
#[inline(always)]
pub fn parse<P: Packet>(side: Side, packet: &P, headers: &mut Headers, zero: u8) -> Found {
    match side {
        Side::Device => packet::frame(packet, headers, zero),
        Side::Cgroup => packet::network(packet, headers, zero),
    }
}

/// The part itself; see [`Parts::judge`].
#[inline(always)]
pub fn judge<P: Packet, T: Tables>(
    side: Side,
    packet: &P,
    headers: &Headers,
    endpoint: &Endpoint,
    tables: &T,
) -> End {
    ip(side, packet, headers, endpoint, tables)
}

impl End {
    /// As a word: a function returns one register.
    #[inline(always)]
    pub const fn to_bits(self) -> u32 {
        self.0
    }

    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }
}

impl Found {
    const ARP: u32 = 256;
    const IP: u32 = 257;

    /// As a word: a function returns one register.
    #[inline(always)]
    pub const fn to_bits(self) -> u32 {
        match self {
            Self::Arp => Self::ARP,
            Self::Ip => Self::IP,
            Self::Bad(reason) => reason as u32,
        }
    }

    /// The other way round. A word that is none of these is a packet that can't pass.
    #[inline(always)]
    pub const fn from_bits(bits: u32) -> Self {
        match bits {
            Self::ARP => Self::Arp,
            Self::IP => Self::Ip,
            _ => Self::Bad(match Reason::from_u8(bits as u8) {
                Some(reason) => reason,
                None => Reason::Malformed,
            }),
        }
    }
}
