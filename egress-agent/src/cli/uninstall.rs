//! The end of enforcement on this node.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{SigSet, Signal};

use super::output::{Part, Table, View};
use super::{Globals, agent, print};
use crate::agent::{LAST_GOOD, startup_taint, status};
use crate::datapath::pinned::{HookTarget, Pinned, PinnedError, PinnedHook};
use crate::fence::{self, Fence};
use crate::source::kubernetes;

/// The kernel frees programs a moment after their last user has gone.
const PATIENCE: Duration = Duration::from_secs(2);
/// For the API server's answers.
const ANSWERS: Duration = Duration::from_secs(30);

#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the command line"
)]
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Don't ask
    #[arg(long)]
    yes: bool,
    /// Even while an agent runs, which will put everything back
    #[arg(long)]
    force: bool,
    /// Succeed where nothing is installed
    #[arg(long)]
    if_installed: bool,
    /// The same, and then wait to be ended: for a `DaemonSet`, whose containers must not end by
    /// themselves
    #[arg(long)]
    stay: bool,
    /// Then delete this node's report (its `EgressNode`) from the API server, and with the last one the
    /// agents' Lease
    #[arg(long, value_name = "NODE")]
    report_of: Option<String>,
    /// And take the startup taint with this key off that node, which no agent will do any more
    #[arg(long, env = "SALLYPORT_STARTUP_TAINT_KEY", value_name = "KEY")]
    startup_taint_key: Option<String>,
}

pub fn run(globals: &Globals, args: &Args) -> Result<()> {
    let mut removed = match Pinned::all(&globals.bpffs) {
        Err(error @ PinnedError::NotInstalled { .. }) => not_installed(globals, args, error)?,
        pinned => uninstall(globals, args, pinned?)?,
    };
    let taint = args.startup_taint_key.as_deref();
    let report_of = args.report_of.as_deref();
    let withdrawn = report_of.map_or(Ok(Vec::new()), |node| withdraw(node, taint));
    removed.extend(withdrawn.iter().flatten().cloned());
    if !removed.is_empty() {
        print(globals, &view(&removed))?;
    }
    withdrawn?;
    if args.stay {
        wait_for_the_end()?;
    }
    Ok(())
}

fn wait_for_the_end() -> Result<()> {
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGTERM);
    ends.add(Signal::SIGINT);
    // Blocked first, so that one that comes early is waited for too.
    ends.thread_block()?;
    ends.wait()?;
    Ok(())
}

/// Takes back what this node's agent has told the API server of itself, and what it would have taken
/// off its node.
fn withdraw(node: &str, taint: Option<&str>) -> Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start the runtime")?;
    let asked = async {
        let client = kubernetes::client(None).await?;
        let mut gone = Vec::new();
        // First, for the node's sake.
        if let Some(key) = taint
            && startup_taint::remove(&client, node, key).await?
        {
            gone.push(format!("taint/{key}"));
        }
        gone.extend(status::withdraw(client, node).await?);
        anyhow::Ok(gone)
    };
    let answer = runtime.block_on(async { tokio::time::timeout(ANSWERS, asked).await });
    answer
        .context("it does not answer")
        .flatten()
        .with_context(|| {
            format!("can't take the report of {node} and its startup taint out of the API server")
        })
}

fn uninstall(globals: &Globals, args: &Args, pinned: Vec<Pinned>) -> Result<Vec<String>> {
    if agent::read(&globals.run_dir).running && !args.force {
        bail!("the agent runs and would put everything back: stop it first, or use --force");
    }
    let mut hooks = Vec::new();
    let mut roots = Vec::new();
    for pinned in &pinned {
        let own = pinned.own_hooks()?;
        refuse_elsewhere(&own)?;
        hooks.extend(own);
        roots.push(pinned.root().display().to_string());
    }
    if !args.yes {
        confirm(&format!(
            "This ends enforcement on this node: {} hooks are detached and {} is removed. Go on? [y/N] ",
            hooks.len(),
            roots.join(" and ")
        ))?;
    }
    let programs: BTreeSet<u32> = hooks.iter().map(|hook| hook.program_id).collect();
    // First: what no hook marks any more does not come by it.
    let mut removed = take_down_tables()?;
    for pinned in pinned {
        removed.extend(pinned.remove()?);
    }
    // An agent that is installed later must not take up policy from before.
    let last_good = globals.run_dir.join(LAST_GOOD);
    match fs::remove_file(&last_good) {
        Ok(()) => removed.push(last_good.display().to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => bail!("can't remove {}: {error}", last_good.display()),
    }
    let left = wait_until_unloaded(&programs);
    if !left.is_empty() {
        print(globals, &view(&removed))?;
        bail!(
            "pins are gone, but another process still holds the programs {left:?}; \
             they are detached only when it ends (an agent?)"
        );
    }
    Ok(removed)
}

/// Where somebody has removed the pins, tables are left, and cut off whoever comes.
fn not_installed(globals: &Globals, args: &Args, error: PinnedError) -> Result<Vec<String>> {
    let tables = if args.yes && !agent::read(&globals.run_dir).running {
        take_down_tables()?
    } else {
        Vec::new()
    };
    if tables.is_empty() && !args.if_installed && !args.stay {
        return Err(error.into());
    }
    eprintln!("{error}");
    Ok(tables)
}

/// Those of fence and gate that are in this network namespace.
fn take_down_tables() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for part in fence::Part::ALL {
        let table = part.table();
        if Fence::end(part).with_context(|| format!("can't take down nf_tables/{table}"))? {
            removed.push(format!("nf_tables/{table}"));
        }
    }
    Ok(removed)
}

/// From another network namespace the fence would stay, and cut off what no hook marks any more.
fn refuse_elsewhere(hooks: &[PinnedHook]) -> Result<()> {
    let on_device = |hook: &PinnedHook| matches!(hook.target, HookTarget::Device(_));
    if hooks.iter().any(on_device) && Pinned::hooked_devices(hooks).is_empty() {
        bail!(
            "none of the devices that are hooked is in this network namespace: run it in the node's \
             (nsenter --net=/proc/1/ns/net egressctl uninstall)"
        );
    }
    Ok(())
}

fn confirm(question: &str) -> Result<()> {
    if !io::stdin().is_terminal() {
        bail!("nobody is here to confirm: use --yes");
    }
    // On stderr, so that stdout holds nothing but the answer.
    eprint!("{question}");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!("nothing was removed");
    }
    Ok(())
}

fn wait_until_unloaded(programs: &BTreeSet<u32>) -> BTreeSet<u32> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = Pinned::loaded(programs);
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What was removed.
pub fn view(removed: &[String]) -> View {
    let mut table = Table::new(&["REMOVED"]);
    for pin in removed {
        table.row(vec![pin.clone()]);
    }
    View {
        kind: "RemovedPinList",
        items: removed
            .iter()
            .map(|pin| serde_json::json!({ "pin": pin }))
            .collect(),
        page: vec![Part::Table(table)],
    }
}
