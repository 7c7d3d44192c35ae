//! The command line; see `egress_agent::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    egress_agent::cli::main()
}
