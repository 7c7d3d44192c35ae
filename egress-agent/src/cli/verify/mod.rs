//! `verify`: the battery of ways around, from inside a pod of this node.
//!
//! A process in the pod sends, a tap on the node's devices sees what leaves, and the kernel's
//! counters say why the rest did not. No accomplice outside is needed: the addresses that are aimed
//! at are those that documents use, unless others are named.

mod ground;
mod play;
mod view;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;

use anyhow::{Result, bail};
use egress_battery::case::Case;
use egress_battery::catalogue;

use super::{Globals, print};
use ground::Whereabouts;

/// Something got out, or ended otherwise than it must.
const BREACH: u8 = 6;

#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "The pod is one that you choose for it: its addresses, sockets and counters are used. \
    Run as root on the pod's node. What the battery sends aims at addresses that documents use \
    (203.0.113.0/24, 2001:db8:113::/64), at the node, at the pod's gateway and resolver. The pod's own \
    traffic is counted too; choose a quiet pod, and no policy that allows those addresses. \
    What an audited pod forges comes through: on a bridge its neighbours, the resolver among them, may be \
    taken for it by the node for some seconds."
)]
pub(super) struct Args {
    /// The held pod to try it from
    #[arg(long, value_name = "NAMESPACE/NAME", required_unless_present = "list")]
    pod: Option<String>,
    /// Address outside to aim at, one of each family; nothing else may send to it meanwhile
    #[arg(long, value_name = "ADDRESS")]
    outside: Vec<IpAddr>,
    /// Also what changes the pod's network for a moment (packet filter, addresses, devices); it is
    /// put back
    #[arg(long)]
    intrusive: bool,
    /// Only this number (B-020) or group
    #[arg(long, value_name = "NUMBER|GROUP")]
    only: Vec<String>,
    /// Only list the attempts
    #[arg(long)]
    list: bool,
}

impl Args {
    fn wants(&self, case: &Case) -> bool {
        self.only.is_empty()
            || self
                .only
                .iter()
                .any(|only| only.eq_ignore_ascii_case(&case.id()) || only == case.group.as_str())
    }

    /// Whom an attempt aims at; each aims at another.
    fn aim(&self, like: IpAddr, count: u16) -> IpAddr {
        let named = self
            .outside
            .iter()
            .find(|it| it.is_ipv4() == like.is_ipv4());
        named.copied().unwrap_or_else(|| {
            if like.is_ipv4() {
                let last = u8::try_from(count % 253).unwrap_or_default() + 1;
                Ipv4Addr::new(203, 0, 113, last).into()
            } else {
                Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0x5a11, count + 1).into()
            }
        })
    }
}

pub(super) fn run(globals: &Globals, args: &Args) -> Result<ExitCode> {
    let cases: Vec<&Case> = catalogue::all().filter(|case| args.wants(case)).collect();
    if cases.is_empty() {
        bail!("no attempt has that number or group; egressctl verify --list names them");
    }
    if args.list {
        print(globals, &view::catalogue(&cases))?;
        return Ok(ExitCode::SUCCESS);
    }
    let name = args.pod.as_deref().unwrap_or_default();
    let whereabouts = Whereabouts::find(globals, name)?;
    let rows = play::all(globals, args, &whereabouts, &cases)?;
    print(globals, &view::rows(&rows))?;
    Ok(if rows.iter().any(|row| row.outcome.is_bad()) {
        ExitCode::from(BREACH)
    } else {
        ExitCode::SUCCESS
    })
}
