//! What a pod has its own kernel pass on to its device: no socket of the pod sends it there. Everything
//! is put back.

use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::mpsc;
use std::thread::{self, sleep};
use std::time::Duration;

use egress_common::Reason::{IcmpErrorUnrelated, NotAllowed, Protocol, SourceRoute};
use nix::sched::{CloneFlags, unshare};

use super::devices::{self, INTRUSIVE, NAME, ip, tool};
use super::{pod, sockets, xdp};
use crate::case::{BOTH, Case, Group::Devices, Trouble, failed};
use crate::craft;
use crate::ground::Ground;

pub(super) const CASES: [Case; 8] = [
    pod(
        (287, Devices),
        "a bridge that the pod's own device is a port of",
        BOTH,
        &[NotAllowed],
        bridged,
    )
    .with(INTRUSIVE),
    pod(
        (288, Devices),
        "a network namespace within the pod, masqueraded by it",
        BOTH,
        &[NotAllowed],
        nested,
    )
    .with(INTRUSIVE),
    pod(
        (289, Devices),
        "traffic control that mirrors and redirects to the pod's device",
        BOTH,
        &[NotAllowed],
        redirected,
    )
    .with(INTRUSIVE),
    pod(
        (290, Devices),
        "nftables that copies (dup) and hands on (fwd) to the pod's device",
        BOTH,
        &[NotAllowed],
        handed_on,
    )
    .with(INTRUSIVE),
    pod(
        (291, Devices),
        "a route that wraps packets for IPv6 segment routing",
        BOTH,
        &[SourceRoute, Protocol],
        segment_routed,
    )
    .with(INTRUSIVE),
    pod(
        (292, Devices),
        "IPsec of the pod's own kernel: ESP, and ESP in UDP",
        BOTH,
        &[Protocol, NotAllowed],
        by_ipsec,
    )
    .with(INTRUSIVE),
    pod(
        (293, Devices),
        "frames of an XDP program that sends (XDP_TX)",
        BOTH,
        &[NotAllowed],
        xdp::send,
    )
    .with(INTRUSIVE),
    pod(
        (294, Devices),
        "answers of the pod's own kernel to the outside's forged packets",
        BOTH,
        &[NotAllowed, IcmpErrorUnrelated],
        answers,
    )
    .with(INTRUSIVE),
];

/// The other end of a pair of devices.
const PEER: &str = "sp-peer";
/// Time for what the kernel does by itself.
const MOMENT: Duration = Duration::from_millis(20);
/// Moments that a new device may take.
const TRIES: usize = 75;

/// Does it, and takes these devices away, whatever came of it.
fn with_device(
    name: &str,
    make: &str,
    attempt: impl FnOnce() -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    ip(make)?;
    let attempted = attempt();
    ip(&format!("link del {name}\n"))?;
    attempted
}

/// A device's own stack says things to its neighbours, which would be counted beside the attempt.
fn mute(device: &str) -> Result<(), Trouble> {
    std::fs::write(
        format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"),
        "1",
    )
    .map_err(failed("have a device say nothing by itself"))
}

/// A frame by the device above, as soon as it takes one.
fn send_by_device(ground: &Ground) -> Result<(), Trouble> {
    let packet = ground.udp(ground.ends(), 9999);
    let frames = [ground.frame(craft::ethertype_of(&packet), &packet)];
    let mut sent = craft::send_frames(NAME, &frames);
    // The kernel lets a new device send when it comes to it: within a second.
    for _ in 0..TRIES {
        if sent.is_ok() {
            break;
        }
        sleep(MOMENT);
        sent = craft::send_frames(NAME, &frames);
    }
    sleep(MOMENT);
    sent.map_err(failed("send by the device"))
}

fn bridged(ground: &Ground) -> Result<(), Trouble> {
    let make = format!("link add {NAME} type bridge mcast_snooping 0\n");
    with_device(NAME, &make, || {
        mute(NAME)?;
        ip(&format!(
            "link set {} master {NAME}\nlink set {NAME} up\n",
            ground.device
        ))?;
        send_by_device(ground)
    })
}

/// What comes in by one end of a pair is passed on as this tool is told.
fn through_a_pair(
    ground: &Ground,
    name: &'static str,
    args: &[&str],
    told: &str,
) -> Result<(), Trouble> {
    let make = format!("link add {NAME} type veth peer name {PEER}\n");
    with_device(NAME, &make, || {
        mute(NAME)?;
        mute(PEER)?;
        ip(&format!("link set {NAME} up\nlink set {PEER} up\n"))?;
        tool(name, args, Some(told))?;
        send_by_device(ground)
    })
}

/// A copy of it is sent, then the frame itself.
fn redirected(ground: &Ground) -> Result<(), Trouble> {
    let device = &ground.device;
    let told = format!(
        "qdisc add dev {PEER} ingress\n\
         filter add dev {PEER} ingress protocol all u32 match u32 0 0 \
         action mirred egress mirror dev {device} pipe \
         action mirred egress redirect dev {device}\n"
    );
    through_a_pair(ground, "tc", &["-batch", "-"], &told)
}

fn handed_on(ground: &Ground) -> Result<(), Trouble> {
    let device = &ground.device;
    let told = format!(
        "table netdev {NAME} {{\n\
         chain in {{\n\
         type filter hook ingress device {PEER} priority 0\n\
         dup to \"{device}\"\n\
         fwd to \"{device}\"\n\
         }}\n\
         }}\n"
    );
    let attempted = through_a_pair(ground, "nft", &["-f", "-"], &told);
    // It may not have come to be.
    let _ = tool("nft", &["delete", "table", "netdev", NAME], None);
    attempted
}

/// Sent by nobody whom the node knows, in the pod's own name.
fn nested(ground: &Ground) -> Result<(), Trouble> {
    let (near, far, width): (IpAddr, IpAddr, _) = if ground.is_v6() {
        (
            address("2001:db8:6::1"),
            address("2001:db8:6::2"),
            "64 nodad",
        )
    } else {
        (address("198.18.6.1"), address("198.18.6.2"), "24")
    };
    let to = SocketAddr::new(ground.order.aim, 9999);
    thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        let (go, gone) = mpsc::channel::<()>();
        // The namespace ends with the thread.
        let inside = scope.spawn(move || -> Result<(), Trouble> {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|error| failed("make a network namespace")(error.into()))?;
            let _ = tell.send(nix::unistd::gettid());
            if gone.recv().is_err() {
                return Ok(());
            }
            let sent = send_from(far, width, near, ground.token(), to);
            let _ = tell.send(nix::unistd::gettid());
            // Until the pair is gone: it would go with the namespace, at some other time.
            let _ = gone.recv();
            sent
        });
        let attempted = match told.recv() {
            Ok(thread) => {
                let make = format!("link add {NAME} type veth peer name {PEER} netns {thread}\n");
                with_device(NAME, &make, || {
                    ip(&format!(
                        "addr add {near}/{width} dev {NAME}\nlink set {NAME} up\n"
                    ))?;
                    tool("nft", &["-f", "-"], Some(&masquerade(ground)))?;
                    devices::forwarding(ground.is_v6(), || {
                        let _ = go.send(());
                        let _ = told.recv();
                        sleep(MOMENT);
                        Ok(())
                    })
                })
            }
            // It has said why.
            Err(_) => Ok(()),
        };
        // It may not have come to be.
        let _ = tool("nft", &["delete", "table", "inet", NAME], None);
        drop(go);
        let within = inside.join();
        attempted.and(within.expect("an attempt that panicked has said so"))
    })
}

/// From this address, by the peer in the calling thread's namespace.
fn send_from(
    own: IpAddr,
    width: &str,
    router: IpAddr,
    token: &[u8],
    to: SocketAddr,
) -> Result<(), Trouble> {
    ip(&format!(
        "addr add {own}/{width} dev {PEER}\n\
         link set {PEER} up\n\
         route add default via {router} dev {PEER}\n"
    ))?;
    let socket = |to: SocketAddr| {
        let socket = UdpSocket::bind((own, 0)).map_err(failed("open a socket"))?;
        socket.connect(to).map_err(failed("connect"))?;
        Ok(socket)
    };
    // What is sent before both ends are ready is lost; the pod refuses what it is asked by the pair.
    let probe = socket(SocketAddr::new(router, 9))?;
    probe
        .set_read_timeout(Some(MOMENT))
        .map_err(failed("set a timeout"))?;
    for _ in 0..TRIES {
        let _ = probe.send(b"?");
        let refused = probe.recv(&mut [0; 1]);
        if refused.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            break;
        }
    }
    socket(to)?.send(token).map(drop).map_err(failed("send"))
}

fn masquerade(ground: &Ground) -> String {
    format!(
        "table inet {NAME} {{\n\
         chain out {{\n\
         type nat hook postrouting priority 100\n\
         oifname \"{}\" masquerade\n\
         }}\n\
         }}\n",
        ground.device
    )
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Where packets are wrapped to: nobody else sends there.
const SEGMENT: &str = "2001:db8:113::5a12:1";

/// With a routing header, without one where it can be left out, and put into the packet itself.
fn segment_routed(ground: &Ground) -> Result<(), Trouble> {
    let aim = ground.order.aim;
    let modes: &[&str] = if ground.is_v6() {
        &["encap", "encap.red", "inline"]
    } else {
        &["encap", "encap.red"]
    };
    for mode in modes {
        let wrapped = format!("encap seg6 mode {mode} segs {SEGMENT}");
        ip(&format!(
            "route add {aim} {wrapped} dev {}\n",
            ground.device
        ))?;
        let attempted = sockets::udp(ground);
        ip(&format!("route del {aim}\n"))?;
        attempted?;
    }
    Ok(())
}

/// Without a cipher, so that the token can be seen.
fn by_ipsec(ground: &Ground) -> Result<(), Trouble> {
    let ends = format!("src {} dst {}", ground.order.own, ground.order.aim);
    let bits = if ground.is_v6() { 128 } else { 32 };
    let selector = format!(
        "src {}/{bits} dst {}/{bits}",
        ground.order.own, ground.order.aim
    );
    for wrapped in ["", " encap espinudp 4500 4500 0.0.0.0"] {
        let state = format!("{ends} proto esp spi 0x5a11");
        ip(&format!(
            "xfrm state add {state} reqid 1 mode tunnel \
             auth hmac(sha1) 0x000102030405060708090a0b0c0d0e0f10111213 enc ecb(cipher_null) \"\"{wrapped}\n"
        ))?;
        let attempted = ip(&format!(
            "xfrm policy add {selector} dir out tmpl {ends} proto esp reqid 1 mode tunnel\n"
        ))
        .and_then(|()| {
            let sent = sockets::udp(ground);
            ip(&format!("xfrm policy del {selector} dir out\n"))?;
            sent
        });
        ip(&format!("xfrm state del {state}\n"))?;
        attempted?;
    }
    Ok(())
}

/// What seems to come from the outside by a tun device is answered by the pod's device: a reset, an echo
/// with the token, and an ICMP error that quotes it.
fn answers(ground: &Ground) -> Result<(), Trouble> {
    let near = if ground.is_v6() {
        "2001:db8:5::1/64 nodad"
    } else {
        "198.18.5.1/24"
    };
    let mut tun = devices::tun(near)?;
    let forged = ground.ends().back();
    let packets = [
        ground.syn(forged, 9),
        craft::echo(forged, ground.token()),
        ground.udp(forged, 9),
    ];
    for packet in packets {
        tun.write_all(&packet)
            .map_err(failed("write into the tun device"))?;
    }
    sleep(MOMENT);
    Ok(())
}
