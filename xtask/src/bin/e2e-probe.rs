//! What the end-to-end suite runs inside pods: one small program without a shell around it.

use std::process::ExitCode;

use clap::Parser;
use xtask::e2e::inside::Inside;

#[derive(Debug, Parser)]
#[command(name = "e2e-probe", about = "The end-to-end suite's side in pods")]
struct Cli {
    #[command(subcommand)]
    verb: Inside,
}

fn main() -> ExitCode {
    match Cli::parse().verb.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
