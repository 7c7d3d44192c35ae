//! What an attempt stands on: the pod's address and device, and whom it aims at.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::case::{Family, Trouble, failed};
use crate::craft::{self, Ends};

/// Length of a token; as long as the two addresses of an Ethernet header.
pub const TOKEN: usize = 12;

/// What the node's side tells the process in the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub number: u16,
    pub family: Family,
    /// Twelve bytes of text that are in what is sent wherever there is room, and nowhere else.
    pub token: String,
    /// The pod's own address.
    pub own: IpAddr,
    /// An address outside that nothing else sends to meanwhile.
    pub aim: IpAddr,
    /// A listener of a gateway.
    pub gateway: Option<SocketAddr>,
    /// A resolver that the pod may ask.
    pub dns: Option<SocketAddr>,
    /// Another pod's address.
    pub other: Option<IpAddr>,
    /// The node's address.
    pub node: Option<IpAddr>,
    /// Link address of the device's side on the node.
    pub host_mac: Option<[u8; 6]>,
}

/// The order, and what the process in the pod finds out by itself.
#[derive(Debug)]
pub struct Ground {
    pub order: Order,
    pub device: String,
    pub own_mac: [u8; 6],
    /// Link address of the router.
    pub next_hop: [u8; 6],
    note: Mutex<Option<String>>,
}

/// How long the next hop may take to tell its address.
const PATIENCE: Duration = Duration::from_millis(500);

impl Ground {
    /// Looks around in the network namespace of this process.
    ///
    /// # Errors
    /// If no device has the pod's address.
    pub fn find(order: Order) -> Result<Self, Trouble> {
        let device = device_of(order.own)?;
        let own_mac = mac_of(&device)?;
        let next_hop = match next_hop() {
            Some(mac) => mac,
            None => order.host_mac.unwrap_or([0xff; 6]),
        };
        Ok(Self {
            order,
            device,
            own_mac,
            next_hop,
            note: Mutex::default(),
        })
    }

    /// What whoever reads the row has to know of how it was tried.
    pub(crate) fn note(&self, text: String) {
        *self.note.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }

    /// What was noted.
    pub(crate) fn noted(self) -> Option<String> {
        let note = self.note.into_inner();
        note.unwrap_or_else(PoisonError::into_inner)
    }

    pub fn token(&self) -> &[u8] {
        self.order.token.as_bytes()
    }

    pub fn is_v6(&self) -> bool {
        self.order.own.is_ipv6()
    }

    /// From the pod to what it aims at.
    pub fn ends(&self) -> Ends {
        self.ends_to(self.order.aim)
    }

    /// From the pod to somebody else.
    pub fn ends_to(&self, to: IpAddr) -> Ends {
        ends(self.order.own, to)
    }

    /// A port that is this attempt's own, so that no two share a flow.
    pub fn port(&self) -> u16 {
        20_000 + self.order.number
    }

    /// A frame to the router.
    pub fn frame(&self, ethertype: u16, body: &[u8]) -> Vec<u8> {
        craft::frame(self.next_hop, self.own_mac, ethertype, body)
    }

    /// A frame whose addresses are the token: what is in it need not have room for one.
    pub fn marked_frame(&self, ethertype: u16, body: &[u8]) -> Vec<u8> {
        let mut frame = self.token().to_vec();
        frame.extend(ethertype.to_be_bytes());
        frame.extend(body);
        frame
    }

    /// Sends frames past the IP stack.
    pub fn send(&self, frames: &[Vec<u8>]) -> Result<(), Trouble> {
        craft::send_frames(&self.device, frames).map_err(failed("send from a packet socket"))
    }

    /// Sends IP packets past the IP stack, to the router.
    pub fn send_ip(&self, packets: &[Vec<u8>]) -> Result<(), Trouble> {
        let frames: Vec<_> = packets
            .iter()
            .map(|packet| self.frame(craft::ethertype_of(packet), packet))
            .collect();
        self.send(&frames)
    }

    /// A UDP packet with the token.
    pub fn udp(&self, ends: Ends, port: u16) -> Vec<u8> {
        self.udp_with(ends, port, self.token())
    }

    pub fn udp_with(&self, ends: Ends, port: u16, payload: &[u8]) -> Vec<u8> {
        let datagram = craft::udp(ends, (self.port(), port), payload);
        craft::packet(ends, craft::protocol::UDP, &datagram)
    }

    /// A TCP SYN that carries the token.
    pub fn syn(&self, ends: Ends, port: u16) -> Vec<u8> {
        let segment = craft::tcp(ends, (self.port(), port), 2, self.token());
        craft::packet(ends, craft::protocol::TCP, &segment)
    }
}

/// Both of one family; an order is made so.
pub(crate) fn ends(from: IpAddr, to: IpAddr) -> Ends {
    Ends::new(from, to).expect("addresses of one family")
}

fn device_of(own: IpAddr) -> Result<String, Trouble> {
    let devices = nix::ifaddrs::getifaddrs()
        .map_err(io::Error::from)
        .map_err(failed("list devices"))?;
    for device in devices {
        let address = device.address.and_then(|address| {
            let v4 = address.as_sockaddr_in().map(|it| IpAddr::V4(it.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|it| IpAddr::V6(it.ip())))
        });
        if address == Some(own) {
            return Ok(device.interface_name);
        }
    }
    Err(Trouble::Absent(format!("no device of the pod has {own}")))
}

fn mac_of(device: &str) -> Result<[u8; 6], Trouble> {
    // Not from /sys: that shows the devices of the namespace it was mounted in.
    let devices = nix::ifaddrs::getifaddrs()
        .map_err(io::Error::from)
        .map_err(failed("list devices"))?;
    devices
        .filter(|it| it.interface_name == device)
        .find_map(|it| it.address?.as_link_addr()?.addr())
        .ok_or_else(|| Trouble::Absent(format!("{device} has no link address")))
}

/// The router's link address, asked for if it is not known yet.
fn next_hop() -> Option<[u8; 6]> {
    let routes = fs::read_to_string("/proc/net/route").ok()?;
    let gateway = default_route(&routes)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let neighbours = fs::read_to_string("/proc/net/arp").ok()?;
        if let Some(mac) = neighbour(&neighbours, gateway) {
            return Some(mac);
        }
        if Instant::now() > deadline {
            return None;
        }
        // Any packet makes the kernel ask; what becomes of it does not matter.
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        let _ = socket.send_to(b"?", (gateway, 9));
        sleep(Duration::from_millis(10));
    }
}

/// Gateway in `/proc/net/route`, whose addresses are numbers in the machine's order.
pub(crate) fn default_route(routes: &str) -> Option<Ipv4Addr> {
    routes.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (to, via) = (fields.next()?, fields.next()?);
        let via = u32::from_str_radix(via, 16).ok()?;
        (to == "00000000" && via != 0).then(|| Ipv4Addr::from(via.to_ne_bytes()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_hop_is_read_from_proc() {
        let routes = "Iface\tDestination\tGateway \tFlags\n\
                      eth0\t0001F40A\t00000000\t0001\n\
                      eth0\t00000000\t0101FEA9\t0003\n";
        if cfg!(target_endian = "little") {
            assert_eq!(default_route(routes), Some(Ipv4Addr::new(169, 254, 1, 1)));
        }
        let arp = "IP address       HW type     Flags       HW address            Mask     Device\n\
                   169.254.1.1      0x1         0x2         ee:ee:ee:ee:ee:01     *        eth0\n\
                   10.244.1.1       0x1         0x0         00:00:00:00:00:00     *        eth0\n";
        let mac = neighbour(arp, Ipv4Addr::new(169, 254, 1, 1));
        assert_eq!(mac, Some([0xee, 0xee, 0xee, 0xee, 0xee, 1]));
        assert_eq!(neighbour(arp, Ipv4Addr::new(10, 244, 1, 1)), None);
        assert_eq!(neighbour(arp, Ipv4Addr::new(10, 244, 1, 2)), None);
    }
}
