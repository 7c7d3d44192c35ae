//! The end of enforcement on this node.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{SigSet, Signal};

use super::output::{Part, Table, View};
use super::{Globals, agent, print};
use crate::agent::{LAST_GOOD, status};
use crate::datapath::pinned::{Pinned, PinnedError};
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
}

pub fn run(globals: &Globals, args: &Args) -> Result<()> {
    let mut removed = match Pinned::all(&globals.bpffs) {
        Err(PinnedError::NotInstalled { root, .. }) if args.if_installed || args.stay => {
            eprintln!("nothing is installed at {}", root.display());
            Vec::new()
        }
        pinned => uninstall(globals, args, pinned?)?,
    };
    let withdrawn = args.report_of.as_deref().map_or(Ok(Vec::new()), withdraw);
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

/// Takes back what this node's agent has told the API server of itself.
fn withdraw(node: &str) -> Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start the runtime")?;
    let asked = async {
        let client = kubernetes::client(None).await?;
        anyhow::Ok(status::withdraw(client, node).await?)
    };
    let answer = runtime.block_on(async { tokio::time::timeout(ANSWERS, asked).await });
    answer
        .context("it does not answer")
        .flatten()
        .with_context(|| format!("can't delete the report of {node} from the API server"))
}

fn uninstall(globals: &Globals, args: &Args, pinned: Vec<Pinned>) -> Result<Vec<String>> {
    if agent::read(&globals.run_dir).running && !args.force {
        bail!("the agent runs and would put everything back: stop it first, or use --force");
    }
    let mut hooks = Vec::new();
    let mut roots = Vec::new();
    for pinned in &pinned {
        hooks.extend(pinned.own_hooks()?);
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
    let mut removed = Vec::new();
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
