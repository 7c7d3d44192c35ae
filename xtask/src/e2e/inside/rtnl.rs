//! As much of rtnetlink as a pair of devices needs: there is no `ip` in the image.

use std::ffi::CString;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail};

/// `linux/rtnetlink.h` and its kin.
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
/// No duplicate address detection: there are two on this wire.
const IFA_F_NODAD: u32 = 2;
const RTA_GATEWAY: u16 = 5;
const IFF_UP: u32 = 1;

/// A socket that asks one thing at a time, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Rtnl(OwnedFd);

impl Rtnl {
    pub(super) fn open() -> Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: no pointer is involved.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
        if fd == -1 {
            return Err(io::Error::last_os_error()).context("cannot open a netlink socket");
        }
        // SAFETY: it was opened just now and nobody else has it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// A pair of devices, `there` in another network namespace.
    pub(super) fn veth(&self, here: &str, there: &str, namespace: BorrowedFd<'_>) -> Result<()> {
        let fd = u32::try_from(namespace.as_raw_fd()).context("a file descriptor")?;
        let mut peer = link(0, 0, 0);
        attribute(&mut peer, IFLA_IFNAME, &text(there)?);
        attribute(&mut peer, IFLA_NET_NS_FD, &fd.to_ne_bytes());
        let mut data = Vec::new();
        attribute(&mut data, VETH_INFO_PEER, &peer);
        let mut info = Vec::new();
        attribute(&mut info, IFLA_INFO_KIND, b"veth");
        attribute(&mut info, IFLA_INFO_DATA, &data);
        let mut body = link(0, 0, 0);
        attribute(&mut body, IFLA_IFNAME, &text(here)?);
        attribute(&mut body, IFLA_LINKINFO, &info);
        self.ask(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &body)
            .with_context(|| format!("cannot make the devices {here} and {there}"))
    }

    /// Removes a device, if it is there.
    pub(super) fn remove(&self, device: &str) -> Result<()> {
        let Ok(index) = index(device) else {
            return Ok(());
        };
        self.ask(RTM_DELLINK, 0, &link(index, 0, 0))
            .with_context(|| format!("cannot remove the device {device}"))
    }

    pub(super) fn up(&self, device: &str) -> Result<()> {
        self.ask(RTM_NEWLINK, 0, &link(index(device)?, IFF_UP, IFF_UP))
            .with_context(|| format!("cannot set up the device {device}"))
    }

    pub(super) fn address(&self, device: &str, address: IpAddr, prefix: u8) -> Result<()> {
        let mut body = vec![family(address), prefix, 0, 0];
        body.extend(index(device)?.to_ne_bytes());
        let bytes = octets(address);
        attribute(&mut body, IFA_LOCAL, &bytes);
        attribute(&mut body, IFA_ADDRESS, &bytes);
        attribute(&mut body, IFA_FLAGS, &IFA_F_NODAD.to_ne_bytes());
        self.ask(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &body)
            .with_context(|| format!("cannot give {address} to {device}"))
    }

    /// The default route of its family.
    pub(super) fn default_route(&self, via: IpAddr) -> Result<()> {
        // Table main, protocol boot, scope universe, type unicast.
        let mut body = vec![family(via), 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
        attribute(&mut body, RTA_GATEWAY, &octets(via));
        self.ask(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &body)
            .with_context(|| format!("cannot route by {via}"))
    }

    fn ask(&self, kind: u16, flags: u16, body: &[u8]) -> Result<()> {
        let message = message(kind, flags | NLM_F_REQUEST | NLM_F_ACK, body);
        let fd = self.0.as_raw_fd();
        // SAFETY: the buffer is as long as is said.
        let sent = unsafe { libc::send(fd, message.as_ptr().cast(), message.len(), 0) };
        if sent == -1 {
            return Err(io::Error::last_os_error().into());
        }
        let mut answer = [0; 4096];
        // SAFETY: the buffer is as long as is said.
        let length = unsafe { libc::recv(fd, answer.as_mut_ptr().cast(), answer.len(), 0) };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        acknowledged(&answer[..length])
    }
}

/// Whether the kernel's answer is "done"; an error carries its number.
fn acknowledged(answer: &[u8]) -> Result<()> {
    let kind: [u8; 2] = answer.get(4..6).context("a short answer")?.try_into()?;
    if u16::from_ne_bytes(kind) != NLMSG_ERROR {
        bail!("the kernel answered something else");
    }
    let code: [u8; 4] = answer.get(16..20).context("a short answer")?.try_into()?;
    match i32::from_ne_bytes(code) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(-errno).into()),
    }
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).expect("a short message");
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// `struct ifinfomsg`.
fn link(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    for field in [index, flags, change] {
        body.extend(field.to_ne_bytes());
    }
    body
}

/// Appends an attribute, padded to four bytes.
fn attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("a short attribute");
    to.extend(length.to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

fn text(name: &str) -> Result<Vec<u8>> {
    Ok(CString::new(name)
        .context("a device name")?
        .into_bytes_with_nul())
}

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    u8::try_from(family).expect("a small number")
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Index of a device in this thread's network namespace.
fn index(device: &str) -> Result<u32> {
    let name = CString::new(device).context("a device name")?;
    // SAFETY: the string ends with zero.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()).with_context(|| format!("no device {device}")),
        index => Ok(index),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_say_their_own_length() {
        let mut bytes = Vec::new();
        attribute(&mut bytes, 3, b"eth0\0");
        assert_eq!(bytes.len(), 12);
        assert_eq!(u16::from_ne_bytes([bytes[0], bytes[1]]), 9);
    }

    #[test]
    fn an_answer_is_done_or_an_errno() {
        let answer = |code: i32| message(NLMSG_ERROR, 0, &code.to_ne_bytes());
        assert!(acknowledged(&answer(0)).is_ok());
        let error = acknowledged(&answer(-libc::EEXIST)).unwrap_err();
        let error = error.downcast_ref::<io::Error>().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(acknowledged(&[0; 3]).is_err());
    }
}
