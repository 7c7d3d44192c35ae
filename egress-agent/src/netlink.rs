//! A blocking netlink socket that asks one question at a time.
//!
//! Only the attributes that are needed are read. A parser of whole messages would refuse the
//! dump when a newer kernel adds or lengthens an attribute that is none of our business.
#![forbid(unsafe_code)]

mod batch;

use std::io;

use netlink_packet_core::{NetlinkBuffer, NlaBuffer, NlasIterator};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;

pub(crate) use batch::Message;

/// The kernel fills at most 32 KiB of a dump at once; a single answer may be longer.
const BUFFER: usize = 1 << 18;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// A dump during which the listed things changed is taken again, at most this often.
const ATTEMPTS: usize = 10;

/// Length of `struct nfgenmsg`, with which messages of netfilter begin (`linux/netfilter/nfnetlink.h`).
pub(crate) const NFGENMSG: usize = 4;

/// `linux/netlink.h`.
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_MIN_TYPE: u16 = 0x10;

/// Why the kernel could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("can't open a netlink socket (protocol {protocol}): {source}")]
    Open { protocol: isize, source: io::Error },
    #[error("can't {doing} over netlink: {source}")]
    Io {
        doing: &'static str,
        source: io::Error,
    },
    #[error("the kernel refused to {doing}: {errno}{}", hint(*errno))]
    Refused { doing: &'static str, errno: Errno },
    #[error("the kernel's answer when asked to {doing} is cut off or malformed")]
    Malformed { doing: &'static str },
    #[error("could not {doing}: it changed each of {ATTEMPTS} times it was read")]
    Unsteady { doing: &'static str },
}

impl NetlinkError {
    /// The error number with which the kernel refused; none for other errors.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM | Errno::EACCES => ". The agent needs CAP_NET_ADMIN",
        _ => "",
    }
}

/// A netlink socket of one protocol.
pub(crate) struct Channel {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Channel {
    /// `protocol` is `NETLINK_*` of `linux/netlink.h`.
    pub(crate) fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(|source| NetlinkError::Open { protocol, source })?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: vec![0; BUFFER],
        })
    }

    /// Everything of a kind: `parse` sees the payload of each message and leaves out what it
    /// has no use for.
    pub(crate) fn dump<T>(
        &mut self,
        doing: &'static str,
        kind: u16,
        payload: &[u8],
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..ATTEMPTS {
            self.send(doing, kind, NLM_F_REQUEST | NLM_F_DUMP, payload)?;
            let mut found = Vec::new();
            let mut interrupted = false;
            while !self.receive(doing, |flags, payload| {
                interrupted |= flags & NLM_F_DUMP_INTR != 0;
                found.extend(parse(payload));
            })? {}
            if !interrupted {
                return Ok(found);
            }
        }
        Err(NetlinkError::Unsteady { doing })
    }

    /// One question with one answer, or an order with none.
    pub(crate) fn ask(
        &mut self,
        doing: &'static str,
        kind: u16,
        payload: &[u8],
    ) -> Result<Option<Vec<u8>>, NetlinkError> {
        self.ask_with(doing, kind, 0, payload)
    }

    /// The same with flags, `NLM_F_*` of `linux/netlink.h`.
    pub(crate) fn ask_with(
        &mut self,
        doing: &'static str,
        kind: u16,
        flags: u16,
        payload: &[u8],
    ) -> Result<Option<Vec<u8>>, NetlinkError> {
        self.send(doing, kind, NLM_F_REQUEST | NLM_F_ACK | flags, payload)?;
        let mut answer = None;
        while !self.receive(doing, |_, payload| answer = Some(payload.to_vec()))? {}
        Ok(answer)
    }

    fn send(
        &mut self,
        doing: &'static str,
        kind: u16,
        flags: u16,
        payload: &[u8],
    ) -> Result<(), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = HEADER + payload.len();
        let mut bytes = vec![0; length];
        bytes[HEADER..].copy_from_slice(payload);
        let mut message = NetlinkBuffer::new(&mut bytes);
        message.set_length(u32::try_from(length).expect("requests are short"));
        message.set_message_type(kind);
        message.set_flags(flags);
        message.set_sequence_number(self.sequence);
        let sent = retry(|| self.socket.send(&bytes, 0));
        sent.map(drop)
            .map_err(|source| NetlinkError::Io { doing, source })
    }

    /// Reads one datagram; true when the answer is complete.
    fn receive(
        &mut self,
        doing: &'static str,
        each: impl FnMut(u16, &[u8]),
    ) -> Result<bool, NetlinkError> {
        let length = retry(|| self.socket.recv(&mut self.buffer.as_mut_slice(), 0))
            .map_err(|source| NetlinkError::Io { doing, source })?;
        read_datagram(doing, &self.buffer[..length], self.sequence, each)
    }
}

/// The messages of a datagram that nobody asked for: type and payload. Ends at the first malformed one.
pub(crate) fn messages(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(rest).ok()?;
        let length = usize::try_from(message.length()).ok()?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((message.message_type(), message.payload()))
    })
}

/// Hands out the messages that answer request `sequence`; true at its end.
pub(crate) fn read_datagram(
    doing: &'static str,
    mut rest: &[u8],
    sequence: u32,
    mut each: impl FnMut(u16, &[u8]),
) -> Result<bool, NetlinkError> {
    let malformed = || NetlinkError::Malformed { doing };
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest).map_err(|_| malformed())?;
        let length = usize::try_from(message.length()).map_err(|_| malformed())?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        // The rest of an earlier answer that was given up.
        if message.sequence_number() != sequence {
            continue;
        }
        let payload = message.payload();
        match message.message_type() {
            // Both begin with an error number, negative or 0; an old kernel's "done" may lack it.
            kind @ (NLMSG_ERROR | NLMSG_DONE) => {
                let code = payload
                    .first_chunk()
                    .map(|bytes| i32::from_ne_bytes(*bytes));
                return match code {
                    Some(0) => Ok(true),
                    None if kind == NLMSG_DONE => Ok(true),
                    None => Err(malformed()),
                    Some(code) => {
                        let errno = Errno::from_raw(code.saturating_neg());
                        Err(NetlinkError::Refused { doing, errno })
                    }
                };
            }
            kind if kind >= NLMSG_MIN_TYPE => each(message.flags(), payload),
            _ => {}
        }
    }
    Ok(false)
}

/// The attributes in a message's payload behind its fixed header of `header` bytes. Ends at the
/// first malformed one.
pub(crate) fn attributes(payload: &[u8], header: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let bytes = payload.get(header..).unwrap_or_default();
    NlasIterator::new(bytes).map_while(Result::ok).map(split)
}

/// `NlaBuffer::value` ties the value to the buffer it is called on; this keeps the longer life of
/// the bytes themselves.
fn split(attribute: NlaBuffer<&[u8]>) -> (u16, &[u8]) {
    let (kind, length) = (attribute.kind(), attribute.value_length());
    (kind, &attribute.into_inner()[4..4 + length])
}

/// The first attribute of a kind.
pub(crate) fn attribute(payload: &[u8], header: usize, kind: u16) -> Option<&[u8]> {
    attributes(payload, header)
        .find(|(found, _)| *found == kind)
        .map(|(_, value)| value)
}

/// Appends an attribute, padded to the next four bytes.
pub(crate) fn push_attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("attributes we send are short");
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// A signed number in the node's byte order.
pub(crate) fn i32_of(value: &[u8]) -> Option<i32> {
    value.try_into().ok().map(i32::from_ne_bytes)
}

/// A number in the node's byte order.
pub(crate) fn u32_of(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

/// Text that may end with zeros.
pub(crate) fn text_of(value: &[u8]) -> String {
    let end = value
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// A signal is no failure.
fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + payload.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn only_the_answer_is_handed_out() {
        let mut datagram = message(16, 0, 6, b"old!");
        datagram.extend(message(16, NLM_F_DUMP_INTR, 7, b"odd"));
        datagram.extend(message(1, 0, 7, b"noop"));
        datagram.extend(message(NLMSG_DONE, 0, 7, &0_i32.to_ne_bytes()));
        let mut seen = Vec::new();
        let done = read_datagram("test", &datagram, 7, |flags, payload| {
            seen.push((flags, payload.to_vec()));
        });
        assert!(done.unwrap());
        assert_eq!(seen, [(NLM_F_DUMP_INTR, b"odd".to_vec())]);
    }

    #[test]
    fn a_refusal_is_an_error_with_its_number() {
        let datagram = message(NLMSG_ERROR, 0, 7, &(-libc::EPERM).to_ne_bytes());
        let error = read_datagram("test", &datagram, 7, |_, _| {}).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EPERM));
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        let datagram = message(16, 0, 7, &[0; 32]);
        for length in [1, 15, 16, 40] {
            let read = read_datagram("test", &datagram[..length], 7, |_, _| {});
            assert!(
                matches!(read, Err(NetlinkError::Malformed { .. })),
                "{length}"
            );
        }
    }

    #[test]
    fn attributes_end_where_they_are_malformed() {
        let mut payload = vec![0xaa; 8];
        push_attribute(&mut payload, 3, b"veth0\0");
        push_attribute(&mut payload, 37, &7_i32.to_ne_bytes());
        let whole = payload.len();
        payload.extend([99, 0, 1, 0, 1]);
        assert_eq!(
            attribute(&payload, 8, 3).map(text_of).as_deref(),
            Some("veth0")
        );
        assert_eq!(attribute(&payload, 8, 37).and_then(i32_of), Some(7));
        assert_eq!(attributes(&payload, 8).count(), 2);
        assert_eq!(attributes(&payload[..whole], 8).count(), 2);
        assert_eq!(attributes(&payload, 1000).count(), 0);
    }
}
