//! Queueing disciplines and filters over rtnetlink: what clsact hooks are made of. Numbers are those
//! of `linux/rtnetlink.h`, `linux/pkt_sched.h` and `linux/pkt_cls.h`.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_sys::protocols::NETLINK_ROUTE;

use super::Direction;
use crate::netlink::{Channel, NetlinkError, attribute, push_attribute, text_of, u32_of};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const NLM_F_ECHO: u16 = 0x8;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
/// Length of `struct tcmsg`.
const TCMSG: usize = 20;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_TAG: u16 = 10;
const TCA_BPF_ID: u16 = 11;
/// The program's return code decides.
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
/// Parent and handle of the clsact of a device.
const CLSACT: (u32, u32) = (0xffff_fff1, 0xffff_0000);
const CLSACT_KIND: &str = "clsact";
const BPF_KIND: &str = "bpf";
/// Of any protocol.
pub const ETH_P_ALL: u16 = 3;

impl Direction {
    /// Where clsact has its filters.
    fn parent(self) -> u32 {
        match self {
            Self::Ingress => 0xffff_fff2,
            Self::Egress => 0xffff_fff3,
        }
    }
}

/// A filter, as the kernel lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of classifier, such as `bpf` or `flower`.
    pub kind: String,
    /// What is in another than 0 runs only when a filter says so.
    pub chain: u32,
    pub handle: u32,
    /// Lower ones run first.
    pub priority: u16,
    /// `ETH_P_*`.
    pub protocol: u16,
    /// Of a `bpf`, what its maker called it.
    pub name: String,
    /// Id of its program; 0 if it has none.
    pub program: u32,
    /// Tag of its program.
    pub tag: [u8; 8],
    /// The program's return code decides.
    pub direct: bool,
}

/// Which filter, and what it should be.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub ifindex: u32,
    pub direction: Direction,
    pub priority: u16,
    pub handle: u32,
}

/// Questions and orders to the kernel's traffic control, in the network namespace that the thread
/// that opened it was in.
pub struct Tc {
    channel: Channel,
}

impl std::fmt::Debug for Tc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tc").finish_non_exhaustive()
    }
}

impl Tc {
    pub fn open() -> io::Result<Self> {
        let channel = Channel::open(NETLINK_ROUTE).map_err(plain)?;
        Ok(Self { channel })
    }

    /// Gives the device a clsact, unless it has one.
    ///
    /// # Errors
    /// Also if it has an "ingress" in its place: that would take filters of both directions, and run
    /// them on what comes in.
    pub fn add_clsact(&mut self, ifindex: u32) -> io::Result<()> {
        let mut message = tcmsg(ifindex, CLSACT.1, CLSACT.0, 0);
        push_text(&mut message, TCA_KIND, CLSACT_KIND);
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        match self.order("add a clsact", RTM_NEWQDISC, flags, &message) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            other => return other,
        }
        match self.ingress_kind(ifindex)?.as_deref() {
            Some(CLSACT_KIND) => Ok(()),
            kind => Err(io::Error::other(format!(
                "the device has a qdisc {} where clsact should be; remove it (tc qdisc del dev … ingress)",
                kind.unwrap_or("of another kind")
            ))),
        }
    }

    fn ingress_kind(&mut self, ifindex: u32) -> io::Result<Option<String>> {
        let message = tcmsg(ifindex, 0, CLSACT.0, 0);
        let doing = "look at a device's qdisc";
        // The kernel tells those who listen for changes, and who asks only if that is asked for, too.
        let answer = self
            .channel
            .ask_with(doing, RTM_GETQDISC, NLM_F_ECHO, &message)
            .map_err(plain)?;
        Ok(answer.and_then(|payload| attribute(&payload, TCMSG, TCA_KIND).map(text_of)))
    }

    /// Takes the clsact off the device, with all filters on it.
    pub fn remove_clsact(&mut self, ifindex: u32) -> io::Result<()> {
        let mut message = tcmsg(ifindex, CLSACT.1, CLSACT.0, 0);
        push_text(&mut message, TCA_KIND, CLSACT_KIND);
        self.order("remove a clsact", RTM_DELQDISC, 0, &message)
    }

    /// All filters of one direction, in the order in which they run; none if there is no clsact, or no
    /// such device.
    pub fn filters(&mut self, ifindex: u32, direction: Direction) -> io::Result<Vec<Filter>> {
        let message = tcmsg(ifindex, 0, direction.parent(), 0);
        self.channel
            .dump("list filters", RTM_GETTFILTER, &message, parse)
            .map_err(plain)
    }

    /// Adds a filter that must not be there, before others of its priority; with `replace` one that is
    /// there gets this program instead, and no packet goes without one.
    pub fn set_filter(
        &mut self,
        place: Place,
        name: &str,
        program: BorrowedFd<'_>,
        replace: bool,
    ) -> io::Result<()> {
        let fd = u32::try_from(program.as_raw_fd()).expect("open descriptors are not negative");
        let mut options = Vec::new();
        push_attribute(&mut options, TCA_BPF_FD, &fd.to_ne_bytes());
        push_text(&mut options, TCA_BPF_NAME, name);
        let flags = TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes();
        push_attribute(&mut options, TCA_BPF_FLAGS, &flags);
        let mut message = place.message();
        push_attribute(&mut message, TCA_OPTIONS, &options);
        let flags = NLM_F_CREATE | if replace { 0 } else { NLM_F_EXCL };
        self.order("set a filter", RTM_NEWTFILTER, flags, &message)
    }

    /// Removes a filter; one that is not there is no error.
    pub fn remove_filter(&mut self, place: Place) -> io::Result<()> {
        match self.order("remove a filter", RTM_DELTFILTER, 0, &place.message()) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {
                Ok(())
            }
            other => other,
        }
    }

    fn order(
        &mut self,
        doing: &'static str,
        kind: u16,
        flags: u16,
        message: &[u8],
    ) -> io::Result<()> {
        self.channel
            .ask_with(doing, kind, flags, message)
            .map(drop)
            .map_err(plain)
    }
}

impl Place {
    /// Of any protocol, with the kind of classifier.
    fn message(self) -> Vec<u8> {
        let info = u32::from(self.priority) << 16 | u32::from(ETH_P_ALL.to_be());
        let mut message = tcmsg(self.ifindex, self.handle, self.direction.parent(), info);
        push_text(&mut message, TCA_KIND, BPF_KIND);
        message
    }
}

/// The kernel's number of a refusal is kept.
fn plain(error: NetlinkError) -> io::Error {
    match error.errno() {
        Some(errno) => io::Error::from_raw_os_error(errno as i32),
        None => io::Error::other(error),
    }
}

/// `struct tcmsg`.
fn tcmsg(ifindex: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    let mut message = vec![0; 4];
    for word in [ifindex, handle, parent, info] {
        message.extend(word.to_ne_bytes());
    }
    message
}

fn push_text(message: &mut Vec<u8>, kind: u16, text: &str) {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    push_attribute(message, kind, &bytes);
}

fn parse(payload: &[u8]) -> Option<Filter> {
    let word = |at: usize| payload.get(at..at + 4).and_then(u32_of);
    let (handle, info) = (word(8)?, word(16)?);
    // Each priority is listed before its filters, with no handle.
    if handle == 0 {
        return None;
    }
    let options = attribute(payload, TCMSG, TCA_OPTIONS).unwrap_or_default();
    let option = |kind| attribute(options, 0, kind);
    let kind = attribute(payload, TCMSG, TCA_KIND).map(text_of)?;
    let is_bpf = kind == BPF_KIND;
    let (priority, protocol) = (info >> 16, info & 0xffff);
    let chain = attribute(payload, TCMSG, TCA_CHAIN).and_then(u32_of);
    Some(Filter {
        kind,
        chain: chain.unwrap_or(0),
        handle,
        priority: u16::try_from(priority).ok()?,
        protocol: u16::from_be(u16::try_from(protocol).ok()?),
        ..if is_bpf {
            let flags = option(TCA_BPF_FLAGS).and_then(u32_of).unwrap_or(0);
            Filter {
                name: option(TCA_BPF_NAME).map(text_of).unwrap_or_default(),
                program: option(TCA_BPF_ID).and_then(u32_of).unwrap_or(0),
                tag: option(TCA_BPF_TAG)
                    .and_then(|tag| tag.try_into().ok())
                    .unwrap_or_default(),
                direct: flags & TCA_BPF_FLAG_ACT_DIRECT != 0,
                ..Filter::default()
            }
        } else {
            Filter::default()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(place: Place, options: &[(u16, &[u8])]) -> Vec<u8> {
        let mut message = place.message();
        let mut nested = Vec::new();
        for (kind, value) in options {
            push_attribute(&mut nested, *kind, value);
        }
        push_attribute(&mut message, TCA_OPTIONS, &nested);
        message
    }

    #[test]
    fn filters_are_read_as_they_are_written() {
        let place = Place {
            ifindex: 7,
            direction: Direction::Egress,
            priority: 1,
            handle: 0x5a11,
        };
        let message = listed(
            place,
            &[
                (TCA_BPF_NAME, b"sp_to_pod\0"),
                (TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes()),
                (TCA_BPF_TAG, &[1, 2, 3, 4, 5, 6, 7, 8]),
                (TCA_BPF_ID, &41_u32.to_ne_bytes()),
            ],
        );
        let filter = Filter {
            kind: "bpf".to_owned(),
            chain: 0,
            handle: 0x5a11,
            priority: 1,
            protocol: ETH_P_ALL,
            name: "sp_to_pod".to_owned(),
            program: 41,
            tag: [1, 2, 3, 4, 5, 6, 7, 8],
            direct: true,
        };
        assert_eq!(parse(&message), Some(filter));
        // A priority is listed by itself, too.
        let head = listed(Place { handle: 0, ..place }, &[]);
        assert_eq!(parse(&head), None);
        // Without direct action the return code means nothing.
        let other = parse(&listed(place, &[(TCA_BPF_NAME, b"sp_to_pod\0")])).expect("a filter");
        assert!(!other.direct);
        assert_eq!(other.program, 0);
    }

    #[test]
    fn what_is_cut_off_is_no_filter() {
        let place = Place {
            ifindex: 7,
            direction: Direction::Ingress,
            priority: 1,
            handle: 1,
        };
        for length in 0..TCMSG {
            assert_eq!(parse(&place.message()[..length]), None);
        }
    }
}
