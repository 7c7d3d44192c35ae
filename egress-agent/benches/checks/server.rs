//! The server in a process of its own, whose CPU time is nobody else's.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use egress_agent::policy_server::authz::Binding;
use egress_agent::tls::Identity;
use nix::time::ClockId;
use nix::unistd::Pid;

use crate::cpus::{Cpus, pin_to};
use crate::objects::{GATEWAY_ID, PORT, served};
use crate::pki::Authority;
use crate::policy_server::{SERVER_ID, Server};

const DIRECTORY: &str = "SALLYPORT_BENCH_CERTS";
const CPU: &str = "SALLYPORT_BENCH_CPU";

/// Serves, if this process was started for it.
pub fn serve_if_asked() -> bool {
    let Some(directory) = std::env::var_os(DIRECTORY) else {
        return false;
    };
    if let Ok(cpu) = std::env::var(CPU) {
        pin_to(cpu.parse().expect("a number"));
    }
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Server::start(any, directory.as_ref(), Binding::Require);
    server.serve(served(PORT));
    println!("serving {}", server.address);
    // Until the benchmark ends.
    let _ = std::io::stdin().read(&mut [0]);
    true
}

pub struct Process {
    pub address: SocketAddr,
    /// Of the gateway that asks.
    pub gateway: Identity,
    clock: ClockId,
    child: Child,
    _certs: tempfile::TempDir,
}

impl Process {
    /// Starts it, on the CPU for what is measured if there is one.
    pub fn start(cpus: Option<&Cpus>) -> Self {
        let authority = Authority::new("mesh");
        let certs = tempfile::tempdir().expect("a directory");
        authority
            .sign(&[SERVER_ID])
            .write(certs.path(), &[&authority]);
        let mut process = Command::new(std::env::current_exe().expect("this program"))
            .env(DIRECTORY, certs.path())
            .envs(cpus.map(|cpus| (CPU, cpus.measured.to_string())))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program again");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        let address = output
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("serving ")?.parse().ok())
            .expect("it serves");
        let id = Pid::from_raw(i32::try_from(process.id()).expect("a process id"));
        Self {
            address,
            gateway: authority.sign(&[GATEWAY_ID]).identity(&[&authority]),
            clock: ClockId::pid_cpu_clock_id(id).expect("its clock"),
            child: process,
            _certs: certs,
        }
    }

    /// CPU time of all its threads so far.
    pub fn cpu(&self) -> Duration {
        self.clock.now().expect("it runs").into()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
