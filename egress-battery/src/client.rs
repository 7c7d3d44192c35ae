//! Clients on the node, towards the pod: what a kubelet's probes and the node's own programs do.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, SockaddrStorage, recv, sendto, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::case::Client;
use crate::craft;

const PATIENCE: Duration = Duration::from_secs(2);

/// Asks the pod, and waits for what must come back.
///
/// # Errors
/// If it does not.
pub fn ask(client: Client, to: SocketAddr, token: &[u8]) -> io::Result<()> {
    match client {
        Client::Tcp => TcpStream::connect_timeout(&to, PATIENCE).map(drop),
        Client::Udp => udp(to, token),
        Client::Nobody => match udp(to, token) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(error) => Err(error),
            Ok(()) => Err(io::Error::other("somebody answered")),
        },
        Client::Echo => echo(to.ip(), token),
    }
}

fn udp(to: SocketAddr, token: &[u8]) -> io::Result<()> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(to)?;
    socket.send(token)?;
    socket.recv(&mut [0; 64]).map(drop)
}

/// Of the reply only the token is looked at: everybody's replies come to a raw socket.
fn echo(to: IpAddr, token: &[u8]) -> io::Result<()> {
    let (family, protocol, kind) = if to.is_ipv4() {
        (libc::AF_INET, libc::IPPROTO_ICMP, 8)
    } else {
        (libc::AF_INET6, libc::IPPROTO_ICMPV6, 128)
    };
    let socket = craft::socket(family, libc::SOCK_RAW, protocol)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 100_000))?;
    let mut message = [&[kind, 0, 0, 0, 0x5a, 0x11, 0, 1], token].concat();
    if to.is_ipv4() {
        craft::sum_in(&mut message, 2);
    }
    let address: SockaddrStorage = SocketAddr::new(to, 0).into();
    sendto(socket.as_raw_fd(), &message, &address, MsgFlags::empty())?;
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 512];
    while Instant::now() < deadline {
        let Ok(length) = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) else {
            continue;
        };
        if buffer[..length]
            .windows(token.len())
            .any(|window| window == token)
        {
            return Ok(());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}
