//! The `battery` verb: every numbered way around, on a node in miniature.
//!
//! First what needs the cluster's objects without Sallyport, and what a pod can do alone under Audit:
//! the control. What does not come out there proves nothing later. Then all of it under Enforce.

mod agent;
mod moved;
mod objects;
mod older;
mod services;
mod table;
mod tries;
mod works;
mod world;

use std::process;
use std::time::Instant;

use anyhow::{Context as _, Result};
use egress_battery::catalogue;

use self::agent::Agent;
use self::table::Row;
use self::world::World;
use crate::cmd;
use crate::demo::programs::Sallyport;
use crate::demo::signals;
use crate::tools::preflight;
use crate::workspace::Workspace;

/// Exit code after Ctrl-C, as shells have it.
const INTERRUPTED: i32 = 130;
/// Where the catalogue is published.
const PUBLISHED: &str = "BATTERY.md";

/// Options of the verb.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Print the rows as one JSON document
    #[arg(long)]
    pub json: bool,
    /// Only write the catalogue to BATTERY.md
    #[arg(long, conflicts_with = "json")]
    pub catalogue: bool,
    /// Only this number (B-020) or group of what a pod can do alone; may be given several times
    #[arg(long, value_name = "NUMBER|GROUP")]
    pub only: Vec<String>,
}

/// Plays it. Whether every row was as it must be. Without a workspace where the environment names the
/// programs.
pub fn run(args: &Args) -> Result<bool> {
    if args.catalogue {
        return publish(&Workspace::find()?);
    }
    preflight::check("battery")?;
    let sallyport = match Sallyport::named()? {
        Some(named) => named,
        None => Sallyport::build(&Workspace::find()?)?,
    };
    // From here on there is something to take down.
    signals::take_over()?;
    let start = Instant::now();
    let world = World::build()?;
    let mut rows = Vec::new();
    let played = if args.only.is_empty() {
        play(&world, &sallyport, &mut rows)
    } else {
        alone(&world, &sallyport, &args.only, &mut rows)
    };
    world.node.teardown()?;
    if signals::stopped() {
        eprintln!("everything is taken down");
        process::exit(INTERRUPTED);
    }
    rows.sort_by(|a, b| (&a.number, &a.family).cmp(&(&b.number, &b.family)));
    // What was seen is told even if it ended too early.
    table::print(args.json, &rows, played.is_ok(), start.elapsed().as_secs())?;
    played?;
    Ok(rows.iter().all(|row| row.ok))
}

/// Replaces the table; the words above it are written by hand.
fn publish(workspace: &Workspace) -> Result<bool> {
    let path = workspace.root.join(PUBLISHED);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let words = text.split("| number |").next().unwrap_or_default();
    let text = format!("{words}{}", catalogue::markdown());
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(true)
}

fn say(step: &str) -> Result<()> {
    cmd::say("battery", step);
    signals::check()
}

fn play(world: &World, sallyport: &Sallyport, rows: &mut Vec<Row>) -> Result<()> {
    say("without Sallyport: what needs the cluster's objects")?;
    let control = objects::without(world)?;
    let mut older = older::Connections::open(world)?;
    let moved = moved::without(world)?;
    services::prepare(world)?;
    let mut works = works::Standing::open(world)?;

    say("audited: what a pod can do alone")?;
    let mut agent = Agent::start(sallyport, world)?;
    let audited = agent.verify(world, &[])?;
    older.open_audited(world)?;
    agent.declare(|| older::allow(world))?;
    older.open_allowed(world)?;
    agent.declare(|| world.lockdown("Enforce"))?;

    say("held: what a pod can do alone")?;
    let held = agent.verify(world, &[])?;
    rows.extend(table::beside(held, audited));
    say("held: older connections, and what must go on working")?;
    rows.extend(older.rows(world, &agent)?);
    rows.extend(works.rows(world, &mut agent)?);
    say("held: what needs the cluster's objects")?;
    rows.extend(moved::rows(world, &agent, moved)?);
    objects::held(world, &mut agent, &control, rows)
}

/// What a pod can do alone, and of that only these numbers or groups.
fn alone(world: &World, sallyport: &Sallyport, only: &[String], rows: &mut Vec<Row>) -> Result<()> {
    say("audited")?;
    let mut agent = Agent::start(sallyport, world)?;
    let audited = agent.verify(world, only)?;
    agent.declare(|| world.lockdown("Enforce"))?;
    say("held")?;
    let held = agent.verify(world, only)?;
    rows.extend(table::beside(held, audited));
    Ok(())
}
