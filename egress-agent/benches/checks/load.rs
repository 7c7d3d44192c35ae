//! Load on the policy server.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use egress_agent::tls::{MinVersion, client_config};
use prost::Message as _;
use prost::bytes::Bytes;
use tokio::runtime;
use tokio::task::{JoinSet, LocalSet, yield_now};

use crate::grpc::{CHECK, Client, connect_from, frame, shake};
use crate::median;
use crate::objects::questions;
use crate::policy_server::server_id;
use crate::server::Process;

/// Half of what a core is to answer.
pub const RATE: u32 = 7500;
/// As of an Envoy with as many workers.
const CONNECTIONS: usize = 4;
/// Questions under way on each connection, when it goes as fast as it can.
const AT_ONCE: usize = 16;
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(1);
/// A server that is so many questions behind does not keep up: no more are asked.
const MOST_BEHIND: usize = RATE as usize;

pub struct Figures {
    /// Checks per second of the server's CPU time.
    pub per_core: f64,
    /// Checks per second.
    pub at_most: f64,
    pub p50: Duration,
    pub p99: Duration,
    /// Checks that were asked in fact, per second.
    pub kept: f64,
    /// CPU seconds per second meanwhile.
    pub busy: f64,
}

type Asked = Rc<Vec<(Bytes, bool)>>;

pub fn run(server: &Process) -> Figures {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        // The socket is looked at between any two steps: our own delay is not the server's.
        .event_interval(1)
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            let config = client_config(&server.gateway, server_id(), MinVersion::Tls13);
            let stream = connect_from([127, 0, 0, 1].into(), server.address).await;
            let stream = shake(stream.expect("a connection"), config.expect("valid")).await;
            let client = Client::new(stream.expect("a handshake")).await;
            clients.push(client.expect("HTTP/2"));
        }
        let asked: Asked = Rc::new(
            questions()
                .into_iter()
                .map(|(question, admitted)| (frame(&question.encode_to_vec()), admitted))
                .collect(),
        );
        // Each answer is looked at once.
        for (at, _) in asked.iter().enumerate() {
            ask(&clients[0], &asked, at).await;
        }
        let mut per_core = Vec::new();
        let mut at_most = Vec::new();
        for _ in 0..ROUNDS {
            let (begin, cpu) = (Instant::now(), server.cpu());
            let answers = flat_out(&clients, &asked).await;
            let (took, cpu) = (begin.elapsed(), server.cpu().saturating_sub(cpu));
            per_core.push(answers / cpu.as_secs_f64());
            at_most.push(answers / took.as_secs_f64());
        }
        // One round that something else on the machine disturbs is not the server's doing.
        let (mut p50, mut p99, mut kept, mut busy) = (vec![], vec![], vec![], vec![]);
        for _ in 0..ROUNDS {
            let (begin, cpu) = (Instant::now(), server.cpu());
            let mut times = steady(&clients, &asked).await;
            let took = begin.elapsed().as_secs_f64();
            times.sort();
            p50.push(times[times.len() / 2].as_secs_f64());
            p99.push(times[times.len() * 99 / 100].as_secs_f64());
            kept.push(f64::from(u32::try_from(times.len()).expect("not so many")) / took);
            busy.push(server.cpu().saturating_sub(cpu).as_secs_f64() / took);
        }
        Figures {
            per_core: median(per_core),
            at_most: median(at_most),
            p50: Duration::from_secs_f64(median(p50)),
            p99: Duration::from_secs_f64(median(p99)),
            kept: median(kept),
            busy: median(busy),
        }
    })
}

async fn ask(client: &Client, asked: &[(Bytes, bool)], at: usize) {
    let (question, admitted) = &asked[at % asked.len()];
    let answer = client.call(CHECK, question.clone()).await;
    let verdict = answer.expect("an answer").verdict();
    assert_eq!(verdict == 0, *admitted, "question {at}");
}

/// Always the next question as soon as one is answered. Returns how many were.
async fn flat_out(clients: &[Client], asked: &Asked) -> f64 {
    let end = Instant::now() + ROUND;
    let mut tasks = JoinSet::new();
    for (at, client) in clients.iter().enumerate() {
        for one in 0..AT_ONCE {
            let (client, asked) = (client.clone(), asked.clone());
            tasks.spawn_local(async move {
                let mut answers = 0_u32;
                let mut next = at * 251 + one * 17;
                while Instant::now() < end {
                    ask(&client, &asked, next).await;
                    answers += 1;
                    next += 1;
                }
                answers
            });
        }
    }
    tasks.join_all().await.into_iter().map(f64::from).sum()
}

/// Questions at fixed times, whether the one before is answered or not. An answer's time counts
/// from when its question was due, so that waiting behind a slow one shows.
async fn steady(clients: &[Client], asked: &Asked) -> Vec<Duration> {
    let times = Rc::new(RefCell::new(Vec::new()));
    let mut tasks = JoinSet::new();
    let begin = Instant::now();
    for at in 0.. {
        let due = begin + Duration::from_secs(1) * at / RATE;
        if due > begin + ROUND {
            break;
        }
        // Timers are too coarse.
        while Instant::now() < due {
            yield_now().await;
        }
        if tasks.len() >= MOST_BEHIND {
            break;
        }
        let at = at as usize;
        let client = clients[at % clients.len()].clone();
        let (asked, times) = (asked.clone(), times.clone());
        tasks.spawn_local(async move {
            ask(&client, &asked, at).await;
            times.borrow_mut().push(due.elapsed());
        });
        while tasks.try_join_next().is_some() {}
    }
    tasks.join_all().await;
    times.take()
}
