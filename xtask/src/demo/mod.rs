//! The `demo` verb: the guide's story on a node in miniature.

pub mod agent;
pub mod attempts;
pub mod egressctl;
mod look;
pub mod manifests;
pub mod programs;
pub(crate) mod signals;
mod standing;
mod story;
mod table;
pub mod world;

use std::process;
use std::time::Instant;

use anyhow::Result;

use self::programs::Programs;
use self::story::Story;
use self::world::World;
use crate::cmd;
use crate::tools::preflight;
use crate::workspace::Workspace;

/// Exit code after Ctrl-C, as shells have it.
const INTERRUPTED: i32 = 130;

/// Options of the verb.
#[derive(Clone, Debug, clap::Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the command line"
)]
pub struct Args {
    /// Print the rows as one JSON document
    #[arg(long)]
    pub json: bool,
    /// Leave everything standing, and print how to look around
    #[arg(long)]
    pub keep: bool,
    /// Only take down what --keep left standing
    #[arg(long, conflicts_with_all = ["json", "keep", "hole"])]
    pub cleanup: bool,
    /// Without Sallyport: only show the hole
    #[arg(long)]
    pub hole: bool,
    /// What the egress gateway is
    #[arg(long, value_enum, default_value_t = Gateway::ExtAuthz)]
    pub gateway: Gateway,
}

/// What the egress gateway is; an Envoy either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Gateway {
    /// Configured as Istio configures one, and asks the agent about each request (`ext_authz`)
    ExtAuthz,
    /// Has a bootstrap only, and gets all else from the agent (xDS)
    Xds,
}

/// Tells the story. Whether every row was as expected.
pub fn run(workspace: &Workspace, args: &Args) -> Result<bool> {
    preflight::check("demo")?;
    if args.cleanup {
        for id in crate::node::cleanup()? {
            println!("took down node {id}");
        }
        return Ok(true);
    }
    let programs = Programs::find(workspace, args.hole)?;
    // From here on there is something to take down.
    signals::take_over()?;
    let start = Instant::now();
    let world = World::build(&programs, args.gateway, &|step| cmd::say("demo", step))?;
    let mut story = Story::new(&world, args.json)?;
    let told = match &programs.sallyport {
        None => story.hole(),
        // The agent ends with the node, or stands on with it.
        Some(sallyport) => story.tell(sallyport).map(drop),
    };
    let rows = story.into_rows();
    if args.keep && !signals::stopped() {
        eprintln!("{}", look::around(&world, &programs));
        world.node.keep()?;
    } else {
        world.node.teardown()?;
    }
    if signals::stopped() {
        eprintln!("everything is taken down");
        process::exit(INTERRUPTED);
    }
    finish(args, &rows, told, start.elapsed().as_secs())
}

fn finish(args: &Args, rows: &[table::Row], told: Result<()>, seconds: u64) -> Result<bool> {
    let ok = told.is_ok() && rows.iter().all(|row| row.ok);
    if args.json {
        let error = told.as_ref().err().map(|error| format!("{error:#}"));
        let document = table::Document {
            version: table::VERSION,
            ok,
            seconds,
            error,
            rows,
        };
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else if told.is_ok() {
        println!("{}", table::summary(rows, seconds));
    }
    told?;
    Ok(ok)
}
