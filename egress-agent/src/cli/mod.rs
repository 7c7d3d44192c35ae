//! `egressctl`: what the kernel holds and reports, read from the pins. Works while no agent runs.
//!
//! What is read is one thing ([`snapshot`]), what is made of it another (`status`, `pods`, `dump`),
//! and how it is written a third ([`output`]); only the first touches the kernel.
#![forbid(unsafe_code)]

mod agent;
mod audit;
mod cells;
mod cgroups;
mod dump;
mod dump_node;
mod event_text;
mod events;
mod explain;
mod input;
mod maps;
pub mod output;
mod pods;
mod pods_text;
mod render;
mod render_istio;
mod snapshot;
mod status;
#[cfg(test)]
mod tests;
mod uninstall;
mod verify;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::datapath::pinned::Pinned;
use output::{Format, View};

/// `status`: something that should be held is not.
const UNCOVERED: u8 = 2;

const AFTER_HELP: &str = "\
Works from the pinned maps alone; the agent need not run, except where said.
Packets are counted as the hook sees them, bytes with the Ethernet header at a device. Times are
UTC. What has no name is printed as a number, a wildcard as ANY.

Exit status: 0 all is well; 1 an error, said on stderr; 2 (status only) a held pod is uncovered or
a hook is missing; explain: 0 allowed, 3 denied, 4 something that decides could not be asked; render
istio: 3 something could not be rendered as it is written; audit: 5 something weakens the promise and
the kernel does not make up for it; verify: 6 something
got out, or ended otherwise than it must.";

/// Look at what Sallyport holds on this node.
#[derive(Debug, Parser)]
#[command(name = "egressctl", version, after_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

/// Where to look, and how to write it.
#[derive(Clone, Debug, Args)]
struct Globals {
    /// BPF file system with the pins
    #[arg(
        long,
        global = true,
        env = "SALLYPORT_BPFFS",
        value_name = "DIR",
        default_value = "/sys/fs/bpf"
    )]
    bpffs: PathBuf,
    /// The agent's run directory
    #[arg(
        long,
        global = true,
        env = "SALLYPORT_RUN_DIR",
        value_name = "DIR",
        default_value = "/run/sallyport"
    )]
    run_dir: PathBuf,
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    output: Format,
    /// Numbers instead of names, in tables and dumps
    #[arg(short, long, global = true)]
    numeric: bool,
    /// No heading above tables
    #[arg(long, global = true)]
    no_headers: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What holds which pod; exit status 2 if a held pod is uncovered or a hook is missing
    Status,
    /// Pods and their counters
    #[command(subcommand)]
    Pods(PodsCommand),
    /// The kernel's tables
    #[command(subcommand)]
    Maps(MapsCommand),
    /// Dropped, rejected and audited packets
    Events(events::Args),
    /// Whether a pod may reach something: who decides, by which rule, and what to change
    Explain(explain::Args),
    /// What weakens the promise among a cluster's objects, and whether the kernel makes up for it
    Audit(audit::Args),
    /// Tries the numbered ways around the lockdown, from inside a held pod, with real packets
    Verify(verify::Args),
    /// The process in the pod that `verify` starts
    #[command(hide = true)]
    VerifyInside,
    /// Configuration for others, made from policy
    #[command(subcommand)]
    Render(render::Command),
    /// Ends enforcement on this node: removes all links and maps
    Uninstall(uninstall::Args),
}

#[derive(Debug, Subcommand)]
enum PodsCommand {
    /// All pods that the kernel knows
    List,
    /// All that is known of one pod
    Get {
        /// Namespace and name
        #[arg(value_name = "NAMESPACE/NAME")]
        pod: String,
    },
}

#[derive(Debug, Subcommand)]
enum MapsCommand {
    /// All pinned maps and how full they are
    List,
    /// The decoded entries of a map
    Dump {
        /// As `maps list` names it; the prefix `sp_` may be left out
        name: String,
    },
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody is left to be told if this fails.
            let _ = error.print();
            // Clap's own status for a wrong command line means "uncovered" here.
            return if error.use_stderr() {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match run(&cli) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("egressctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whoever read the output has seen enough.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let globals = &cli.globals;
    match &cli.command {
        Command::Status => {
            let snapshot = snapshot::Snapshot::read(globals)?;
            let status = status::status(&snapshot);
            print(globals, &status.view())?;
            if !status.is_well() {
                return Ok(ExitCode::from(UNCOVERED));
            }
        }
        Command::Pods(PodsCommand::List) => {
            let snapshot = snapshot::Snapshot::read(globals)?;
            print(globals, &pods_text::list_view(&pods::pods(&snapshot)))?;
        }
        Command::Pods(PodsCommand::Get { pod }) => {
            let snapshot = snapshot::Snapshot::read(globals)?;
            let pods = pods::find(pods::pods(&snapshot), pod)?;
            let recent = events::recent_of(globals, pod);
            print(globals, &pods_text::get_view(&pods, recent.as_deref()))?;
        }
        Command::Maps(MapsCommand::List) => {
            let pinned = Pinned::open(&globals.bpffs)?;
            print(globals, &maps::list_view(&maps::read(&pinned)?))?;
        }
        Command::Maps(MapsCommand::Dump { name }) => {
            let snapshot = snapshot::Snapshot::read(globals)?;
            let pinned = Pinned::open(&globals.bpffs)?;
            let names = cells::Names::new(&snapshot, globals.numeric);
            print(globals, &dump::view(&pinned, &names, name)?)?;
        }
        Command::Events(args) => events::run(globals, args)?,
        Command::Explain(args) => return explain::run(globals, args),
        Command::Audit(args) => return audit::run(globals, args),
        Command::Verify(args) => return verify::run(globals, args),
        Command::VerifyInside => egress_battery::inside::serve()?,
        Command::Render(command) => return render::run(command),
        Command::Uninstall(args) => uninstall::run(globals, args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn print(globals: &Globals, view: &View) -> Result<()> {
    let text = output::render(view, globals.output, globals.no_headers)?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}
