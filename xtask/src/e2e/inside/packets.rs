//! Packets whose headers the sender writes, from raw and packet sockets.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;

use crate::node::probe::{Answer, Forged};
use crate::node::raw;

const ICMP: u8 = 1;
/// How long the next hop may take to tell its address.
const PATIENCE: Duration = Duration::from_secs(2);

/// What to send. Each is sent a few times: a single packet may be lost on the best of nodes.
#[derive(Clone, Debug, Subcommand)]
pub enum Craft {
    /// ICMP echo request, from a raw socket
    Icmp {
        #[arg(long)]
        to: Ipv4Addr,
        #[arg(long)]
        payload: String,
    },
    /// A UDP packet from a raw socket, with an IP header of its own
    Raw(Forged),
    /// A UDP packet from a packet socket, past the IP stack
    Packet {
        #[command(flatten)]
        forged: Forged,
        /// Tag the frame with this VLAN
        #[arg(long)]
        vlan: Option<u16>,
    },
    /// A UDP packet in two fragments, the payload in both
    Fragments(Forged),
}

/// Times that a packet is sent.
const TIMES: u32 = 3;

impl Craft {
    /// Tries it. What goes wrong on the way is part of the answer.
    pub fn run(&self) -> Answer {
        let start = Instant::now();
        let went = (0..TIMES).try_for_each(|_| self.send());
        let (outcome, error) = match went {
            Ok(()) => ("sent", None),
            Err(error) => ("error", Some(format!("{error:#}"))),
        };
        Answer {
            outcome: outcome.into(),
            error,
            milliseconds: start.elapsed().as_millis(),
            pid: std::process::id(),
            ..Answer::default()
        }
    }

    fn send(&self) -> Result<()> {
        match self {
            Self::Icmp { to, payload } => {
                let source = own_address(SocketAddr::new((*to).into(), 9))?;
                let IpAddr::V4(source) = source else {
                    bail!("no IPv4 address");
                };
                let packet = icmp_echo(source, *to, payload.as_bytes())?;
                raw::send_raw(&packet, (*to).into())
            }
            Self::Raw(forged) => raw::send_raw(&forged.packet()?, forged.to.ip()),
            Self::Packet { forged, vlan } => {
                let hop = next_hop()?;
                let frame =
                    raw::ethernet_frame(hop.mac, own_mac(&hop.device)?, *vlan, &forged.packet()?);
                raw::send_frame(&hop.device, &frame)
            }
            Self::Fragments(forged) => fragments(&forged.long_packet()?)?
                .iter()
                .try_for_each(|fragment| raw::send_raw(fragment, forged.to.ip())),
        }
    }
}

impl Forged {
    /// The payload once at its beginning and once beyond the first fragment.
    fn long_packet(&self) -> Result<Vec<u8>> {
        let mut payload = self.payload.clone().into_bytes();
        payload.resize(FIRST_FRAGMENT, b'.');
        payload.extend(self.payload.as_bytes());
        self.packet_of(&payload)
    }
}

/// The address that packets to `peer` leave with; nothing is sent.
fn own_address(peer: SocketAddr) -> Result<IpAddr> {
    let socket = UdpSocket::bind(crate::node::probe::any(peer))?;
    socket
        .connect(peer)
        .with_context(|| format!("no route to {peer}"))?;
    Ok(socket.local_addr()?.ip())
}

fn icmp_echo(source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(28 + payload.len()).context("a payload that fits in a packet")?;
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, ICMP, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum = raw::checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    // Echo request; identifier and sequence don't matter.
    let mut echo = vec![8, 0, 0, 0, 0x5a, 0x11, 0, 1];
    echo.extend(payload);
    let sum = raw::checksum(&echo);
    echo[2..4].copy_from_slice(&sum.to_be_bytes());
    packet.extend(echo);
    Ok(packet)
}

/// Bytes of the IP payload in the first fragment; a multiple of eight.
const FIRST_FRAGMENT: usize = 64;
/// Identification of the fragments' packet.
const FRAGMENT_ID: u16 = 0x5a11;

/// Cuts an IPv4 packet in two.
fn fragments(packet: &[u8]) -> Result<[Vec<u8>; 2]> {
    let (Some(header), Some(body)) = (packet.get(..20), packet.get(20..)) else {
        bail!("a packet without its header");
    };
    if header[0] != 0x45 || body.len() <= FIRST_FRAGMENT {
        bail!("only long IPv4 packets are cut");
    }
    let (first, second) = body.split_at(FIRST_FRAGMENT);
    let more = 0x2000;
    let offset = u16::try_from(FIRST_FRAGMENT / 8).expect("a small offset");
    Ok(
        [(first, more), (second, offset)].map(|(part, flags): (&[u8], u16)| {
            let mut fragment = header.to_vec();
            let length = u16::try_from(20 + part.len()).expect("shorter than the whole");
            fragment[2..4].copy_from_slice(&length.to_be_bytes());
            fragment[4..6].copy_from_slice(&FRAGMENT_ID.to_be_bytes());
            fragment[6..8].copy_from_slice(&flags.to_be_bytes());
            fragment[10..12].fill(0);
            let sum = raw::checksum(&fragment);
            fragment[10..12].copy_from_slice(&sum.to_be_bytes());
            fragment.extend(part);
            fragment
        }),
    )
}

/// Device and link address that packets for elsewhere go to.
#[derive(Debug)]
struct NextHop {
    device: String,
    mac: [u8; 6],
}

fn next_hop() -> Result<NextHop> {
    let routes = fs::read_to_string("/proc/net/route").context("cannot read routes")?;
    let (device, gateway) = default_route(&routes).context("there is no default route")?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let neighbours = fs::read_to_string("/proc/net/arp").context("cannot read neighbours")?;
        if let Some(mac) = neighbour(&neighbours, gateway) {
            return Ok(NextHop { device, mac });
        }
        if Instant::now() > deadline {
            bail!("{gateway} does not tell its link address");
        }
        // Any packet makes the kernel ask; what becomes of it does not matter.
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let _ = socket.send_to(b"?", (gateway, 9));
        sleep(Duration::from_millis(50));
    }
}

/// Device and gateway in `/proc/net/route`, whose addresses are numbers in the machine's order.
fn default_route(routes: &str) -> Option<(String, Ipv4Addr)> {
    routes.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let (device, to, via) = (fields.next()?, fields.next()?, fields.next()?);
        let via = u32::from_str_radix(via, 16).ok()?;
        (to == "00000000" && via != 0)
            .then(|| (device.to_owned(), Ipv4Addr::from(via.to_ne_bytes())))
    })
}

/// Link address in `/proc/net/arp`.
fn neighbour(neighbours: &str, address: Ipv4Addr) -> Option<[u8; 6]> {
    let address = address.to_string();
    let line = neighbours
        .lines()
        .find(|line| line.split_whitespace().next() == Some(&address))?;
    let text = line.split_whitespace().nth(3)?;
    let mut mac = [0; 6];
    let mut bytes = text.split(':');
    for place in &mut mac {
        *place = u8::from_str_radix(bytes.next()?, 16).ok()?;
    }
    // All zeroes: it has been asked and not answered yet.
    (mac != [0; 6]).then_some(mac)
}

fn own_mac(device: &str) -> Result<[u8; 6]> {
    let addresses = nix::ifaddrs::getifaddrs().context("cannot list devices")?;
    addresses
        .filter(|interface| interface.interface_name == device)
        .find_map(|interface| interface.address?.as_link_addr()?.addr())
        .with_context(|| format!("{device} has no link address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_hop_is_read_from_proc() {
        let routes = "Iface\tDestination\tGateway \tFlags\n\
                      eth0\t0001F40A\t00000000\t0001\n\
                      eth0\t00000000\t0101FEA9\t0003\n";
        if cfg!(target_endian = "little") {
            let found = default_route(routes);
            assert_eq!(
                found,
                Some(("eth0".to_owned(), Ipv4Addr::new(169, 254, 1, 1)))
            );
        }
        let arp = "IP address       HW type     Flags       HW address            Mask     Device\n\
                   169.254.1.1      0x1         0x2         ee:ee:ee:ee:ee:01     *        eth0\n\
                   10.244.1.1       0x1         0x0         00:00:00:00:00:00     *        eth0\n";
        let mac = neighbour(arp, Ipv4Addr::new(169, 254, 1, 1));
        assert_eq!(mac, Some([0xee, 0xee, 0xee, 0xee, 0xee, 1]));
        assert_eq!(neighbour(arp, Ipv4Addr::new(10, 244, 1, 1)), None);
        assert_eq!(neighbour(arp, Ipv4Addr::new(10, 244, 1, 2)), None);
    }

    #[test]
    fn fragments_are_whole_together_and_both_have_the_payload() {
        let forged = Forged {
            from: "10.244.1.11".parse().unwrap(),
            to: "203.0.113.10:9999".parse().unwrap(),
            payload: "token-7".into(),
        };
        let packet = forged.long_packet().unwrap();
        let [first, second] = fragments(&packet).unwrap();
        let joined = [&first[20..], &second[20..]].concat();
        assert_eq!(joined, packet[20..]);
        for fragment in [&first, &second] {
            assert!(fragment.windows(7).any(|window| window == b"token-7"));
            assert_eq!(raw::checksum(&fragment[..20]), 0);
        }
        assert_eq!((first[6], second[6], second[7]), (0x20, 0, 8));
        assert!(fragments(&forged.packet().unwrap()).is_err());
    }

    #[test]
    fn an_echo_request_sums_to_zero() {
        let packet = icmp_echo(
            Ipv4Addr::new(10, 244, 1, 11),
            Ipv4Addr::new(203, 0, 113, 10),
            b"odd",
        )
        .unwrap();
        assert_eq!(raw::checksum(&packet[..20]), 0);
        assert_eq!(raw::checksum(&packet[20..]), 0);
    }
}
