//! The agent as a program.

use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;

use super::{LogFormat, Options, run};

/// The source tells by itself, once, what the client tells at every try.
const LOG: &str = "info,kube_client=off";

/// Parses the command line, and runs until it is told to end.
///
/// # Panics
/// If the kernel gives no threads.
#[tokio::main]
pub async fn main() -> ExitCode {
    let options = Options::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match options.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    match Box::pin(run(options)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(event = "failed", "{error:#}");
            ExitCode::FAILURE
        }
    }
}
