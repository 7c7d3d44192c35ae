//! The node's network devices, and those inside the pods' network namespaces, over rtnetlink.
//!
//! Namespaces are told apart by their ids in the agent's own namespace ("nsid"), which the
//! kernel gives by process number. So the agent neither enters a namespace nor opens
//! `/proc/<pid>/ns/net`, for which it would need `CAP_SYS_PTRACE`.
#![forbid(unsafe_code)]

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use crate::netlink::{
    Channel, NetlinkError, attribute, attributes, i32_of, push_attribute, text_of, u32_of,
};

/// `linux/rtnetlink.h`.
const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_NEWNSID: u16 = 88;
const RTM_GETNSID: u16 = 90;
/// Lengths of `struct ifinfomsg`, `struct ifaddrmsg` and (padded) `struct rtgenmsg`.
const IFINFOMSG: usize = 16;
const IFADDRMSG: usize = 8;
const RTGENMSG: usize = 4;
/// `linux/if_link.h`.
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_TARGET_NETNSID: u16 = 46;
const IFLA_EXT_MASK: u16 = 29;
/// Leaves out the statistics, the largest part of a link's message.
const RTEXT_FILTER_SKIP_STATS: u32 = 8;
/// `linux/if_addr.h`.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// `linux/net_namespace.h`.
const NETNSA_NSID: u16 = 1;
const NETNSA_PID: u16 = 2;
const NETNSA_FD: u16 = 3;
const NO_NSID: i32 = -1;
/// `linux/if_arp.h`.
pub(super) const ARPHRD_ETHER: u16 = 1;
pub(super) const ARPHRD_LOOPBACK: u16 = 772;

/// A network device, as the kernel describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub ifindex: u32,
    pub name: String,
    /// `ARPHRD_*`.
    pub hardware: u16,
    /// Driver, such as `veth`; none for a hardware device.
    pub kind: Option<String>,
    /// Index of the device it leads to: the peer of a veth, the lower device of a macvlan.
    pub link: Option<u32>,
    /// Namespace of that device as the agent's namespace numbers it, if it is another than the
    /// device's own.
    pub link_nsid: Option<i32>,
}

/// Questions to rtnetlink in the agent's own network namespace.
pub struct Route {
    channel: Channel,
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Route").finish_non_exhaustive()
    }
}

impl Route {
    /// Belongs to the network namespace that the calling thread is in.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self {
            channel: Channel::open(NETLINK_ROUTE)?,
        })
    }

    /// The node's own devices.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        self.channel.dump(
            "list network devices",
            RTM_GETLINK,
            &link_request(None),
            parse_link,
        )
    }

    /// The devices in the namespace with this id.
    ///
    /// # Errors
    /// Needs `CAP_NET_ADMIN` over that namespace, and Linux 4.20.
    pub fn links_in(&mut self, nsid: i32) -> Result<Vec<Link>, NetlinkError> {
        let request = link_request(Some(nsid));
        self.channel.dump(
            "list a pod's network devices",
            RTM_GETLINK,
            &request,
            parse_link,
        )
    }

    /// All addresses of the node's own devices, loopback and link-local ones included; sorted.
    pub fn addresses(&mut self) -> Result<Vec<IpAddr>, NetlinkError> {
        let doing = "list network addresses";
        let mut found = self
            .channel
            .dump(doing, RTM_GETADDR, &[0; IFADDRMSG], parse_address)?;
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Id of a process's network namespace; one is assigned if it has none yet, which stays
    /// until the namespace ends. None if the process has ended.
    ///
    /// # Errors
    /// Assigning needs `CAP_NET_ADMIN`.
    pub fn nsid(&mut self, pid: u32) -> Result<Option<i32>, NetlinkError> {
        self.number(NETNSA_PID, pid)
    }

    /// As `nsid`, of the namespace that this file stands for. None if it stands for none, or is not
    /// there.
    ///
    /// # Errors
    /// Assigning needs `CAP_NET_ADMIN`.
    pub fn nsid_of_file(&mut self, path: &Path) -> Result<Option<i32>, NetlinkError> {
        // Nothing that could be there instead of a namespace must make the agent wait.
        let mut options = File::options();
        let options = options.read(true).custom_flags(libc::O_NONBLOCK);
        let Ok(file) = options.open(path) else {
            return Ok(None);
        };
        let descriptor = file.as_raw_fd().unsigned_abs();
        match self.number(NETNSA_FD, descriptor) {
            Err(error) if error.errno() == Some(Errno::EINVAL) => Ok(None),
            number => number,
        }
    }

    /// `by` says what `value` is: a process's number, or an open file's.
    fn number(&mut self, by: u16, value: u32) -> Result<Option<i32>, NetlinkError> {
        match self.known_nsid(by, value)? {
            Some(NO_NSID) => {}
            known => return Ok(known),
        }
        let mut request = nsid_request(by, value);
        // -1 lets the kernel choose.
        push_attribute(&mut request, NETNSA_NSID, &NO_NSID.to_ne_bytes());
        match self
            .channel
            .ask("number a network namespace", RTM_NEWNSID, &request)
        {
            Err(error) if error.errno() == Some(Errno::ESRCH) => return Ok(None),
            // Somebody else numbered it meanwhile.
            Err(error) if error.errno() != Some(Errno::EEXIST) => return Err(error),
            _ => {}
        }
        // None still: the number is now another process's, whose namespace has no id.
        Ok(self.known_nsid(by, value)?.filter(|nsid| *nsid != NO_NSID))
    }

    fn known_nsid(&mut self, by: u16, value: u32) -> Result<Option<i32>, NetlinkError> {
        let doing = "look up a network namespace";
        let request = nsid_request(by, value);
        let answer = match self.channel.ask(doing, RTM_GETNSID, &request) {
            Err(error) if error.errno() == Some(Errno::ESRCH) => return Ok(None),
            answer => answer?,
        };
        let nsid = answer
            .as_deref()
            .and_then(|answer| attribute(answer, RTGENMSG, NETNSA_NSID));
        nsid.and_then(i32_of)
            .map(Some)
            .ok_or(NetlinkError::Malformed { doing })
    }
}

fn nsid_request(by: u16, value: u32) -> Vec<u8> {
    let mut request = vec![0; RTGENMSG];
    push_attribute(&mut request, by, &value.to_ne_bytes());
    request
}

fn link_request(target: Option<i32>) -> Vec<u8> {
    let mut request = vec![0; IFINFOMSG];
    push_attribute(
        &mut request,
        IFLA_EXT_MASK,
        &RTEXT_FILTER_SKIP_STATS.to_ne_bytes(),
    );
    if let Some(nsid) = target {
        push_attribute(&mut request, IFLA_TARGET_NETNSID, &nsid.to_ne_bytes());
    }
    request
}

pub(super) fn parse_link(payload: &[u8]) -> Option<Link> {
    let hardware = u16::from_ne_bytes(*payload.get(2..)?.first_chunk()?);
    let ifindex = u32::from_ne_bytes(*payload.get(4..)?.first_chunk()?);
    let mut found = Link {
        ifindex,
        hardware,
        ..Link::default()
    };
    for (kind, value) in attributes(payload, IFINFOMSG) {
        match kind {
            IFLA_IFNAME => found.name = text_of(value),
            IFLA_LINK => found.link = u32_of(value).filter(|index| *index != 0),
            IFLA_LINK_NETNSID => found.link_nsid = i32_of(value),
            IFLA_LINKINFO => found.kind = attribute(value, 0, IFLA_INFO_KIND).map(text_of),
            _ => {}
        }
    }
    (ifindex != 0).then_some(found)
}

pub(super) fn parse_address(payload: &[u8]) -> Option<IpAddr> {
    let address = |kind| attribute(payload, IFADDRMSG, kind).and_then(ip_of);
    // On a point-to-point device the first is ours and the second the other end's.
    address(IFA_LOCAL).or_else(|| address(IFA_ADDRESS))
}

/// An address in network byte order.
pub(super) fn ip_of(value: &[u8]) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(value) {
        return Some(Ipv4Addr::from(bytes).into());
    }
    <[u8; 16]>::try_from(value)
        .ok()
        .map(|bytes| Ipv6Addr::from(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_veth_is_read_among_unknown_attributes() {
        let mut payload = vec![0; IFINFOMSG];
        payload[2..4].copy_from_slice(&ARPHRD_ETHER.to_ne_bytes());
        payload[4..8].copy_from_slice(&5_u32.to_ne_bytes());
        push_attribute(&mut payload, IFLA_IFNAME, b"veth1\0");
        push_attribute(&mut payload, 0x3fff, &[1; 300]);
        push_attribute(&mut payload, IFLA_LINK, &2_u32.to_ne_bytes());
        push_attribute(&mut payload, IFLA_LINK_NETNSID, &0_i32.to_ne_bytes());
        let mut info = Vec::new();
        push_attribute(&mut info, IFLA_INFO_KIND, b"veth\0");
        push_attribute(&mut payload, IFLA_LINKINFO | 0x8000, &info);
        let expected = Link {
            ifindex: 5,
            name: "veth1".into(),
            hardware: ARPHRD_ETHER,
            kind: Some("veth".into()),
            link: Some(2),
            link_nsid: Some(0),
        };
        assert_eq!(parse_link(&payload), Some(expected));
        assert_eq!(parse_link(&payload[..7]), None);
    }

    #[test]
    fn the_local_end_of_a_point_to_point_address_counts() {
        let mut payload = vec![0; IFADDRMSG];
        push_attribute(&mut payload, IFA_ADDRESS, &[10, 0, 0, 2]);
        assert_eq!(
            parse_address(&payload),
            Some(Ipv4Addr::new(10, 0, 0, 2).into())
        );
        push_attribute(&mut payload, IFA_LOCAL, &[10, 0, 0, 1]);
        assert_eq!(
            parse_address(&payload),
            Some(Ipv4Addr::new(10, 0, 0, 1).into())
        );

        let mut payload = vec![0; IFADDRMSG];
        push_attribute(&mut payload, IFA_ADDRESS, &Ipv6Addr::LOCALHOST.octets());
        assert_eq!(parse_address(&payload), Some(Ipv6Addr::LOCALHOST.into()));
    }
}
