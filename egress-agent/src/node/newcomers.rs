//! Devices as they come, told one by one and at once: a pass may be busy elsewhere.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::coverage::leads_out;
use super::devices::{Link, Route, parse_link};
use super::watch::{NETLINK_BUFFER, RTNLGRP_LINK};
use crate::netlink::{NetlinkError, messages};

/// `linux/rtnetlink.h`.
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
/// A notice is some kilobytes at most.
const NOTICE: usize = 1 << 16;

/// The node's end of a veth pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Veth {
    pub ifindex: u32,
    /// Its other end is in another network namespace.
    pub leads_out: bool,
}

impl Veth {
    /// None before it is joined: a pair is told of before, and then leads nowhere yet.
    fn of(link: &Link) -> Option<Self> {
        let joined = link.link.is_some_and(|other| other != 0) || link.link_nsid.is_some();
        (link.kind.as_deref() == Some("veth") && joined).then(|| Self {
            ifindex: link.ifindex,
            leads_out: leads_out(link),
        })
    }
}

/// All devices there are, by their indices, and the pairs among them.
#[derive(Debug, Default)]
pub struct Present {
    pub devices: Vec<u32>,
    pub veths: Vec<Veth>,
}

/// Listens to the notices of the network namespace that the calling thread was in.
pub struct Newcomers {
    socket: Socket,
    route: Route,
    buffer: Vec<u8>,
    /// Those that have been told, and whether as leading out: there are further notices of each.
    told: BTreeMap<u32, bool>,
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
            route: Route::open().map_err(io::Error::other)?,
            buffer: vec![0; NOTICE],
            told: BTreeMap::new(),
        })
    }

    /// Waits so long at most for pairs that were not told of before; none when the time is over. Of lost
    /// notices [`Newcomers::present`] makes up for.
    pub fn wait(&mut self, at_most: Duration) -> io::Result<Vec<Veth>> {
        let timeout = PollTimeout::try_from(at_most).unwrap_or(PollTimeout::MAX);
        let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, timeout) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => return Ok(Vec::new()),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        match self.socket.recv(&mut self.buffer.as_mut_slice(), 0) {
            Ok(length) => Ok(read(&self.buffer[..length], &mut self.told)),
            Err(error)
                if error.kind() == io::ErrorKind::Interrupted
                    || error.raw_os_error() == Some(libc::ENOBUFS) =>
            {
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    /// What is there now.
    pub fn present(&mut self) -> Result<Present, NetlinkError> {
        let links = self.route.links()?;
        Ok(Present {
            devices: links.iter().map(|link| link.ifindex).collect(),
            veths: links.iter().filter_map(Veth::of).collect(),
        })
    }
}

fn read(datagram: &[u8], told: &mut BTreeMap<u32, bool>) -> Vec<Veth> {
    let mut new = Vec::new();
    for (kind, payload) in messages(datagram) {
        let Some(link) = parse_link(payload) else {
            continue;
        };
        match kind {
            RTM_NEWLINK => {
                let veth = Veth::of(&link);
                let is_news =
                    |veth: &Veth| told.insert(veth.ifindex, veth.leads_out) != Some(veth.leads_out);
                new.extend(veth.filter(is_news));
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

    /// A notice of a veth, whose other end has this index, and is in the namespace with this id.
    fn notice(kind: u16, ifindex: u32, other: u32, nsid: Option<i32>) -> Vec<u8> {
        let mut payload = vec![0; 16];
        payload[2..4].copy_from_slice(&1_u16.to_ne_bytes());
        payload[4..8].copy_from_slice(&ifindex.to_ne_bytes());
        push_attribute(&mut payload, 5, &other.to_ne_bytes());
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
    fn each_pair_is_told_once() {
        let mut told = BTreeMap::new();
        let mut read = |notices: &[Vec<u8>]| -> Vec<(u32, bool)> {
            let new = read(&notices.concat(), &mut told);
            new.iter().map(|it| (it.ifindex, it.leads_out)).collect()
        };
        // A pair is told before it is joined, and then leads nowhere yet.
        let begun = notice(RTM_NEWLINK, 5, 0, None);
        let joined = notice(RTM_NEWLINK, 5, 2, Some(0));
        assert_eq!(read(&[begun]), []);
        assert_eq!(
            read(&[joined.clone(), notice(RTM_NEWLINK, 6, 2, Some(1))]),
            [(5, true), (6, true)]
        );
        assert_eq!(read(std::slice::from_ref(&joined)), []);
        let gone = notice(RTM_DELLINK, 5, 2, Some(0));
        assert_eq!(read(&[gone, joined]), [(5, true)]);
        assert_eq!(read(&[vec![1, 2, 3]]), []);
        // Made on the node, and then moved.
        let here = notice(RTM_NEWLINK, 8, 9, None);
        let moved = notice(RTM_NEWLINK, 8, 9, Some(3));
        assert_eq!(read(&[here.clone(), here]), [(8, false)]);
        assert_eq!(read(&[moved]), [(8, true)]);
    }
}
