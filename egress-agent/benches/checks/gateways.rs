//! The same Envoy on the same objects, with the rules inside and asking for each request.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use egress_agent::gateway::envoy::Authorization;

use crate::client::Connection;
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
}

pub fn run() -> Through {
    let (rbac, _, _outside) = start(Authorization::Rbac);
    let (ext_authz, _, _outside) = start(Authorization::ExtAuthz);
    let mut inside = clients(&rbac);
    let mut asking = clients(&ext_authz);
    // Connections to the outside, and everything else that only the first ones pay.
    round(&mut inside);
    round(&mut asking);
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
        rates.0.push(one);
        rates.1.push(other);
        rates.2.push(other / one);
    }
    Through {
        rbac: median(rates.0),
        ext_authz: median(rates.1),
        ratio: median(rates.2),
    }
}

fn clients(gateway: &Gateway) -> Vec<Connection> {
    let leaf = gateway.identity("productpage");
    (0..CLIENTS).map(|_| gateway.connect(Some(&leaf))).collect()
}

/// Requests per second: each client asks again as soon as it has its answer.
fn round(clients: &mut [Connection]) -> f64 {
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
    f64::from(answers.into_inner()) / begin.elapsed().as_secs_f64()
}
