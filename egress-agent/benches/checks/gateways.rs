//! Envoys on the same objects, with the rules inside and asking for each request.

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

/// Clients at once, each with a connection that it keeps: so many that the gateway's CPU is never
/// idle while an answer is on its way.
pub const CLIENTS: usize = 32;
const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_millis(700);

pub struct Through {
    /// Requests per second.
    pub inside: f64,
    pub asking: f64,
    /// Median over rounds, of which each measures both.
    pub ratio: f64,
    /// Microseconds of Envoy's CPU time for one request.
    pub cpu_inside: f64,
    pub cpu_asking: f64,
}

/// A client of a gateway, with what it asks for in turn: hosts and paths.
pub struct Client {
    pub connection: Connection,
    pub asks: Vec<(String, String)>,
}

/// The clients of a gateway, and the CPU time of its process.
pub struct Side {
    clients: Vec<Client>,
    clock: ClockId,
}

impl Side {
    /// The process gets the CPU for what is measured, if there is one.
    pub fn new(clients: Vec<Client>, process: u32, cpus: Option<&Cpus>) -> Self {
        if let Some(cpus) = cpus {
            cpus.measure(process);
        }
        let id = i32::try_from(process).expect("a process id");
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(id)).expect("its clock");
        Self { clients, clock }
    }
}

/// The guide's objects, in Envoys that the policy server configures: each route has its own rules,
/// here one, and everything that is decided is logged.
pub fn configured(cpus: Option<&Cpus>) -> Through {
    let (rbac, _, _outside) = start(Authorization::Rbac);
    let (ext_authz, _, _outside) = start(Authorization::ExtAuthz);
    let side = |gateway: &Gateway| Side::new(clients(gateway), gateway.process(), cpus);
    compare(side(&rbac), side(&ext_authz))
}

fn clients(gateway: &Gateway) -> Vec<Client> {
    let leaf = gateway.identity("productpage");
    let client = |_| Client {
        connection: gateway.connect(Some(&leaf)),
        asks: vec![("api.localhost".to_owned(), "/".to_owned())],
    };
    (0..CLIENTS).map(client).collect()
}

/// Measures both in turn.
pub fn compare(mut inside: Side, mut asking: Side) -> Through {
    // Connections to the outside, and everything else that only the first ones pay.
    round(&mut inside);
    round(&mut asking);
    let mut cpu = (Vec::new(), Vec::new());
    let mut rates = (Vec::new(), Vec::new(), Vec::new());
    for at in 0..ROUNDS {
        // Neither is always the first.
        let (one, other) = if at % 2 == 0 {
            let one = round(&mut inside);
            (one, round(&mut asking))
        } else {
            let other = round(&mut asking);
            (round(&mut inside), other)
        };
        rates.0.push(one.0);
        rates.1.push(other.0);
        rates.2.push(other.0 / one.0);
        cpu.0.push(one.1);
        cpu.1.push(other.1);
    }
    Through {
        inside: median(rates.0),
        asking: median(rates.1),
        ratio: median(rates.2),
        cpu_inside: median(cpu.0),
        cpu_asking: median(cpu.1),
    }
}

/// Requests per second, and microseconds of the gateway's CPU for one: each client asks again as
/// soon as it has its answer.
fn round(side: &mut Side) -> (f64, f64) {
    let cpu = || Duration::from(side.clock.now().expect("it runs"));
    let used = cpu();
    let ended = AtomicBool::new(false);
    let answers = AtomicU32::new(0);
    let begin = Instant::now();
    thread::scope(|scope| {
        for client in &mut side.clients {
            let (ended, answers) = (&ended, &answers);
            scope.spawn(move || {
                for (host, path) in client.asks.iter().cycle() {
                    if ended.load(Ordering::Relaxed) {
                        break;
                    }
                    let answer = client.connection.ask("GET", host, path, "");
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
