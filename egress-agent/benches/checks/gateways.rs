//! The same Envoy on the same objects, with the rules inside and asking for each request.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use egress_agent::gateway::envoy::Authorization;
use nix::time::ClockId;
use nix::unistd::Pid;

use crate::client::Connection;
use crate::cpus::Cpus;
use crate::gateway::Gateway;
use crate::median;
use crate::world::start;

/// Clients at once, each with a connection that it keeps.
const CLIENTS: usize = 8;
const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_millis(700);

pub struct Through {
    /// Requests per second.
    pub rbac: f64,
    pub ext_authz: f64,
    /// Median over rounds, of which each measures both.
    pub ratio: f64,
    /// Microseconds of Envoy's CPU time for one request.
    pub cpu_rbac: f64,
    pub cpu_ext_authz: f64,
}

/// Gateways on the CPU for what is measured, if there is one.
pub fn run(cpus: Option<&Cpus>) -> Through {
    let (rbac, _, _outside) = start(Authorization::Rbac);
    let (ext_authz, _, _outside) = start(Authorization::ExtAuthz);
    if let Some(cpus) = cpus {
        cpus.measure(rbac.process());
        cpus.measure(ext_authz.process());
    }
    let clocks = [&rbac, &ext_authz].map(|gateway| {
        let id = i32::try_from(gateway.process()).expect("a process id");
        ClockId::pid_cpu_clock_id(Pid::from_raw(id)).expect("its clock")
    });
    let mut inside = clients(&rbac);
    let mut asking = clients(&ext_authz);
    // Connections to the outside, and everything else that only the first ones pay.
    round(&mut inside, clocks[0]);
    round(&mut asking, clocks[1]);
    let mut cpu = (Vec::new(), Vec::new());
    let mut rates = (Vec::new(), Vec::new(), Vec::new());
    for at in 0..ROUNDS {
        // Neither is always the first.
        let (one, other) = if at % 2 == 0 {
            let one = round(&mut inside, clocks[0]);
            (one, round(&mut asking, clocks[1]))
        } else {
            let other = round(&mut asking, clocks[1]);
            (round(&mut inside, clocks[0]), other)
        };
        rates.0.push(one.0);
        rates.1.push(other.0);
        rates.2.push(other.0 / one.0);
        cpu.0.push(one.1);
        cpu.1.push(other.1);
    }
    Through {
        rbac: median(rates.0),
        ext_authz: median(rates.1),
        ratio: median(rates.2),
        cpu_rbac: median(cpu.0),
        cpu_ext_authz: median(cpu.1),
    }
}

fn clients(gateway: &Gateway) -> Vec<Connection> {
    let leaf = gateway.identity("productpage");
    (0..CLIENTS).map(|_| gateway.connect(Some(&leaf))).collect()
}

/// Requests per second, and microseconds of the gateway's CPU for one: each client asks again as
/// soon as it has its answer.
fn round(clients: &mut [Connection], clock: ClockId) -> (f64, f64) {
    let cpu = || Duration::from(clock.now().expect("it runs"));
    let used = cpu();
    let ended = AtomicBool::new(false);
    let answers = AtomicU32::new(0);
    let begin = Instant::now();
    thread::scope(|scope| {
        for client in clients {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    let answer = client.ask("GET", "api.localhost", "/", "");
                    assert_eq!(answer.expect("an answer").status, 200);
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        thread::sleep(ROUND);
        ended.store(true, Ordering::Relaxed);
    });
    let answers = f64::from(answers.into_inner());
    let used = cpu().saturating_sub(used).as_secs_f64();
    (
        answers / begin.elapsed().as_secs_f64(),
        1e6 * used / answers,
    )
}
