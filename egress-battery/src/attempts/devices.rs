//! Devices that a pod makes for itself. Everything is put back.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use egress_common::Reason::{NotAllowed, Protocol, Spoofed, Vlan};

use super::{pod, sockets};
use crate::case::{BOTH, Case, Group::Devices, Need, Trouble, failed};
use crate::ground::{Ground, ends};

pub(super) const INTRUSIVE: &[Need] = &[Need::Intrusive];

pub(super) const CASES: [Case; 7] = [
    pod(
        (280, Devices),
        "a tun device of its own, routed on",
        BOTH,
        &[Spoofed],
        routed,
    )
    .with(INTRUSIVE),
    pod(
        (281, Devices),
        "a macvlan device on the pod's own",
        BOTH,
        &[NotAllowed, Spoofed],
        |g| {
            let device = format!("link {g}", g = g.device);
            stacked(g, &device, "macvlan mode bridge")
        },
    )
    .with(INTRUSIVE),
    pod(
        (282, Devices),
        "a VLAN device on the pod's own",
        BOTH,
        &[Vlan],
        |g| {
            let device = format!("link {g}", g = g.device);
            stacked(g, &device, "vlan id 5")
        },
    )
    .with(INTRUSIVE),
    pod(
        (283, Devices),
        "a VXLAN device to the outside",
        BOTH,
        &[NotAllowed],
        |g| {
            let kind = format!(
                "vxlan id 5 dstport 4789 local {} remote {}",
                g.order.own, g.order.aim
            );
            stacked(g, "", &kind)
        },
    )
    .with(INTRUSIVE),
    pod(
        (284, Devices),
        "an IPIP, SIT or ip6tnl device to the outside",
        BOTH,
        &[Protocol],
        |g| {
            let kind = if g.is_v6() { "ip6tnl mode any" } else { "ipip" };
            stacked(
                g,
                "",
                &format!("{kind} local {} remote {}", g.order.own, g.order.aim),
            )
        },
    )
    .with(INTRUSIVE),
    pod(
        (285, Devices),
        "a GRE device to the outside",
        BOTH,
        &[Protocol],
        |g| {
            let kind = if g.is_v6() { "ip6gre" } else { "gre" };
            stacked(
                g,
                "",
                &format!("{kind} local {} remote {}", g.order.own, g.order.aim),
            )
        },
    )
    .with(INTRUSIVE),
    pod(
        (286, Devices),
        "another link address on the pod's own device",
        BOTH,
        &[NotAllowed],
        |g| {
            let old = g.own_mac.map(|byte| format!("{byte:02x}")).join(":");
            ip(&format!(
                "link set {} address 02:5a:11:00:00:01\n",
                g.device
            ))?;
            let attempted = g
                .send_ip(&[g.udp(g.ends(), 9999)])
                .and_then(|()| sockets::udp(g));
            ip(&format!("link set {} address {old}\n", g.device))?;
            attempted
        },
    )
    .with(INTRUSIVE),
];

pub(super) const NAME: &str = "sp-battery";

/// A device of this kind, and UDP to the outside by it.
pub(super) fn stacked(ground: &Ground, device: &str, kind: &str) -> Result<(), Trouble> {
    ip(&format!("link add {device} name {NAME} type {kind}\n"))?;
    let attempted = by_device(ground);
    ip(&format!("link del {NAME}\n"))?;
    attempted
}

pub(super) fn by_device(ground: &Ground) -> Result<(), Trouble> {
    ip(&format!("link set {NAME} up\n"))?;
    // Past the routes: the device itself says where it leads.
    let packet = ground.udp(ground.ends(), 9999);
    crate::craft::send_cooked(NAME, ground.next_hop, &packet)
        .map_err(failed("send by the device"))?;
    sleep(Duration::from_millis(20));
    Ok(())
}

/// `linux/if_tun.h`.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const IFF_TUN: i16 = 1;
const IFF_NO_PI: i16 = 0x1000;

/// A tun device, up, with this address: what is written into it comes out of the stack as if it had
/// been received. It goes with the file.
pub(super) fn tun(near: &str) -> Result<File, Trouble> {
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(failed("open /dev/net/tun"))?;
    let mut request = [0_u8; 40];
    request[..NAME.len()].copy_from_slice(NAME.as_bytes());
    request[16..18].copy_from_slice(&(IFF_TUN | IFF_NO_PI).to_ne_bytes());
    // SAFETY: the request is a struct ifreq, of 40 bytes, and outlives the call.
    let done = unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF as _, request.as_mut_ptr()) };
    if done == -1 {
        return Err(failed("make a tun device")(io::Error::last_os_error()));
    }
    ip(&format!("addr add {near} dev {NAME}\nlink set {NAME} up\n"))?;
    Ok(tun)
}

/// With forwarding the pod's kernel routes on what comes by the tun device.
fn routed(ground: &Ground) -> Result<(), Trouble> {
    let (near, source): (_, IpAddr) = if ground.is_v6() {
        (
            "2001:db8:5::1/64 nodad",
            "2001:db8:5::2".parse().expect("an address"),
        )
    } else {
        ("198.18.5.1/24", "198.18.5.2".parse().expect("an address"))
    };
    let mut tun = tun(near)?;
    let packet = ground.udp(ends(source, ground.order.aim), 9999);
    forwarding(ground.is_v6(), || {
        let written = tun.write_all(&packet);
        sleep(Duration::from_millis(20));
        written.map_err(failed("write into the tun device"))
    })
}

/// Does it while the pod's kernel routes on. Forwarding for IPv6 makes the kernel forget what routers
/// have told it; it is for a moment.
pub(super) fn forwarding(
    v6: bool,
    attempt: impl FnOnce() -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    let switch = if v6 {
        "/proc/sys/net/ipv6/conf/all/forwarding"
    } else {
        "/proc/sys/net/ipv4/ip_forward"
    };
    let before = std::fs::read_to_string(switch).map_err(failed("read whether it forwards"))?;
    std::fs::write(switch, "1").map_err(failed("forward"))?;
    let attempted = attempt();
    std::fs::write(switch, before.trim()).map_err(failed("put back whether it forwards"))?;
    attempted
}

/// `ip` in the pod's namespace, one command a line.
pub(super) fn ip(batch: &str) -> Result<(), Trouble> {
    tool("ip", &["-batch", "-"], Some(batch)).map(drop)
}

/// Runs a program of the node in the pod's namespace.
pub(super) fn tool(
    name: &'static str,
    args: &[&str],
    input: Option<&str>,
) -> Result<String, Trouble> {
    let child = Command::new(name)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Trouble::Absent(format!("{name} is not installed")));
        }
        other => other.map_err(failed("start a program"))?,
    };
    if let Some(input) = input {
        let mut stdin = child.stdin.take().expect("it was asked for");
        stdin
            .write_all(input.as_bytes())
            .map_err(failed("tell a program"))?;
    }
    let output = child
        .wait_with_output()
        .map_err(failed("wait for a program"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Trouble::Absent(format!(
        "{name}: {}",
        said.trim().replace('\n', ", ")
    )))
}
