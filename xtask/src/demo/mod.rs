//! The `demo` verb: the guide's story on a node in miniature.

mod attempts;
mod manifests;
mod signals;
mod standing;
mod story;
mod table;
mod world;

use std::env;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result};

use self::story::Story;
use self::world::{Programs, World};

/// Options of the verb.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Print rows as JSON, one a line
    #[arg(long)]
    pub json: bool,
    /// Leave everything standing, and print how to look around
    #[arg(long, conflicts_with = "cleanup")]
    pub keep: bool,
    /// Take down what --keep left standing
    #[arg(long)]
    pub cleanup: bool,
    /// Without Sallyport: only show the hole
    #[arg(long)]
    pub hole: bool,
}

/// Tells the story. Whether every row was as expected.
pub fn run(args: &Args) -> Result<bool> {
    if args.cleanup {
        for id in crate::node::cleanup()? {
            println!("took down node {id}");
        }
        return Ok(true);
    }
    signals::take_over()?;
    let start = Instant::now();
    let envoy = env::var_os("SALLYPORT_ENVOY").map(PathBuf::from).context("SALLYPORT_ENVOY")?;
    let programs = Programs { helper: env::current_exe()?, envoy };
    let world = World::build(&programs, &|step| eprintln!("  {step}"))?;
    let mut story = Story::new(world, args.json)?;
    story.hole()?;
    let rows = story.rows();
    if !args.json {
        println!("{}", table::summary(rows, start.elapsed().as_secs()));
    }
    Ok(rows.iter().all(|row| row.ok))
}
