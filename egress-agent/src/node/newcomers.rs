//! Devices as they come, told one by one and at once: a pass may be busy elsewhere.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::coverage::outlying;
use super::devices::parse_link;
use super::watch::{NETLINK_BUFFER, RTNLGRP_LINK};
use crate::netlink::messages;

/// `linux/rtnetlink.h`.
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
/// A notice is some kilobytes at most.
const NOTICE: usize = 1 << 16;

/// Listens to the notices of the network namespace that the calling thread was in.
pub struct Newcomers {
    socket: Socket,
    buffer: Vec<u8>,
    /// Those that have been told: there are further notices of each.
    told: BTreeSet<u32>,
}

impl std::fmt::Debug for Newcomers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Newcomers").finish_non_exhaustive()
    }
}

impl Newcomers {
    /// Listens from now on.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        // As in `watch`.
        let _ = socket.set_rx_buf_sz(NETLINK_BUFFER);
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.add_membership(RTNLGRP_LINK)?;
        Ok(Self {
            socket,
            buffer: vec![0; NOTICE],
            told: BTreeSet::new(),
        })
    }

    /// Waits for devices that lead to another network namespace and were not told before; by their
    /// indices. Passes find those whose notice was lost.
    pub fn next(&mut self) -> io::Result<Vec<u32>> {
        loop {
            let length = match self.socket.recv(&mut self.buffer.as_mut_slice(), 0) {
                Ok(length) => length,
                Err(error)
                    if error.kind() == io::ErrorKind::Interrupted
                        || error.raw_os_error() == Some(libc::ENOBUFS) =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            };
            let new = read(&self.buffer[..length], &mut self.told);
            if !new.is_empty() {
                return Ok(new);
            }
        }
    }
}

fn read(datagram: &[u8], told: &mut BTreeSet<u32>) -> Vec<u32> {
    let mut new = Vec::new();
    for (kind, payload) in messages(datagram) {
        let Some(link) = parse_link(payload) else {
            continue;
        };
        match kind {
            RTM_NEWLINK => {
                let leads_out = outlying(&[link]).into_iter();
                new.extend(leads_out.filter(|ifindex| told.insert(*ifindex)));
            }
            RTM_DELLINK => {
                told.remove(&link.ifindex);
            }
            _ => {}
        }
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::push_attribute;

    /// A notice of a veth, whose other end is in the namespace with this id.
    fn notice(kind: u16, ifindex: u32, nsid: Option<i32>) -> Vec<u8> {
        let mut payload = vec![0; 16];
        payload[2..4].copy_from_slice(&1_u16.to_ne_bytes());
        payload[4..8].copy_from_slice(&ifindex.to_ne_bytes());
        if let Some(nsid) = nsid {
            push_attribute(&mut payload, 37, &nsid.to_ne_bytes());
        }
        let mut info = Vec::new();
        push_attribute(&mut info, 1, b"veth\0");
        push_attribute(&mut payload, 18, &info);
        let length = u32::try_from(16 + payload.len()).unwrap();
        let mut notice = Vec::new();
        notice.extend(length.to_ne_bytes());
        notice.extend(kind.to_ne_bytes());
        notice.extend([0; 10]);
        notice.extend(payload);
        notice
    }

    #[test]
    fn each_device_that_leads_out_is_told_once() {
        let mut told = BTreeSet::new();
        let mut read = |notices: &[Vec<u8>]| read(&notices.concat(), &mut told);
        // A pair is told before it is joined, and then leads nowhere yet.
        let begun = notice(RTM_NEWLINK, 5, None);
        let joined = notice(RTM_NEWLINK, 5, Some(0));
        assert_eq!(read(&[begun]), [0; 0]);
        assert_eq!(
            read(&[joined.clone(), notice(RTM_NEWLINK, 6, Some(1))]),
            [5, 6]
        );
        assert_eq!(read(std::slice::from_ref(&joined)), [0; 0]);
        assert_eq!(read(&[notice(RTM_DELLINK, 5, Some(0)), joined]), [5]);
        assert_eq!(read(&[vec![1, 2, 3]]), [0; 0]);
    }
}
