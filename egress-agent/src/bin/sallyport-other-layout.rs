//! For the tests of upgrades only: the agent, and as `egressctl` the command line, of a version whose
//! maps have another layout.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    if Path::new(&name).file_name() == Some("egressctl".as_ref()) {
        egress_agent::cli::main()
    } else {
        egress_agent::agent::main()
    }
}
