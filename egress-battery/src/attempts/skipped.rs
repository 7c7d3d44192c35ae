//! Frames that the kernel hands on past traffic control: those that `ifb` has sent on.
//!
//! What a pod's own traffic control redirects into an ifb device comes back to the device that it was
//! redirected from with a flag, so that it is not redirected again. The flag is cleared by the next action
//! or the next look at what comes in; where the pod has no action for it any more, that look is the node's,
//! and it leaves out taps, all programs of traffic control and netdev filters.

use std::thread::sleep;
use std::time::Duration;

use super::devices::{NAME, ip, tool};
use super::pod;
use crate::case::{BOTH, Case, Group::Devices, Need, Trouble, failed};
use crate::ground::Ground;
use egress_common::Reason::NotAllowed;

pub(super) const CASES: [Case; 1] = [pod(
    (298, Devices),
    "a frame that an ifb device has sent on, past traffic control",
    BOTH,
    &[NotAllowed],
    sent_on,
)
.with(&[Need::Intrusive, Need::Fence])];

/// Frames wait in the queue of an ifb device until nothing redirects any more. The first needs not wait,
/// and meets the action again: so it arrives as any frame does.
fn sent_on(ground: &Ground) -> Result<(), Trouble> {
    let device = &*ground.device;
    ip(&format!("link add {NAME} type ifb\nlink set {NAME} up\n"))?;
    let attempted = redirected(ground, device);
    let attempted = attempted.and_then(|()| {
        tc(&format!(
            "qdisc change dev {NAME} root tbf rate 1gbit burst 4000 limit 100000\n"
        ))?;
        // It does not come out: it only has the queue looked at.
        let kick = ground.udp(ground.ends_to(ground.order.own), 9);
        crate::craft::send_cooked(NAME, ground.next_hop, &kick)
            .map_err(failed("send by the ifb device"))?;
        sleep(Duration::from_millis(30));
        Ok(())
    });
    ip(&format!("link del {NAME}\n"))?;
    attempted
}

/// So slow that after the first frame, which takes all of the burst, nothing comes for many seconds.
fn redirected(ground: &Ground, device: &str) -> Result<(), Trouble> {
    tc(&format!(
        "qdisc add dev {NAME} root tbf rate 800bit burst 1600 limit 100000\n\
         qdisc add dev {device} clsact\n"
    ))?;
    let sent = by_filter(ground, device);
    // It goes with its filters. One that the pod had before could not be added, and stays.
    tc(&format!("qdisc del dev {device} clsact\n"))?;
    sent
}

fn by_filter(ground: &Ground, device: &str) -> Result<(), Trouble> {
    tc(&format!(
        "filter add dev {device} egress protocol all u32 match u32 0 0 \
         action mirred egress redirect dev {NAME}\n"
    ))?;
    let payload = [ground.token(), &[0; 1200]].concat();
    let packet = ground.udp_with(ground.ends(), 9999, &payload);
    ground.send_ip(&[packet.clone(), packet.clone(), packet])
}

/// `tc` in the pod's namespace, one command a line.
fn tc(batch: &str) -> Result<(), Trouble> {
    tool("tc", &["-batch", "-"], Some(batch)).map(drop)
}
