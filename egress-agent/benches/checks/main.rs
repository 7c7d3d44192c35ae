//! What an answer of the policy server costs, and what asking it costs a gateway. All in one run;
//! `cargo xtask bench` builds what it needs and runs it; `-- --json` prints it for machines.

#[path = "../../tests/envoy/client.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod client;
mod cpus;
#[path = "../../tests/envoy/gateway.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod gateway;
mod gateways;
#[path = "../../tests/support/grpc.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod grpc;
mod istio;
#[path = "../../tests/istio/envoy.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod istio_envoy;
#[path = "../../tests/istio/istiod.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod istiod;
mod load;
#[path = "../../tests/envoy/mesh.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod mesh;
mod objects;
#[path = "../../tests/support/pki.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod pki;
#[path = "../../tests/support/policy_server.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod policy_server;
#[path = "../../tests/support/ports.rs"]
mod ports;
mod server;
#[path = "../../tests/envoy/upstream.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod upstream;
#[path = "../../tests/envoy/world.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod world;

use std::time::Duration;

use cpus::Cpus;
use gateways::Through;

/// Checks per second of the server's CPU time.
const PER_CORE: f64 = 15_000.0;
/// At half of that, 99 of 100 answers come within this.
const P99: Duration = Duration::from_millis(1);
/// Throughput of a gateway that asks, over that of the same with native rules of the same meaning.
const RATIO: f64 = 0.7;

/// One figure.
struct Row {
    what: String,
    value: f64,
    unit: &'static str,
    target: Option<Target>,
}

#[derive(Clone, Copy)]
enum Target {
    AtLeast(f64),
    Below(f64),
}

impl Row {
    fn new(what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            what: what.into(),
            value,
            unit,
            target: None,
        }
    }

    fn with(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    fn verdict(&self) -> String {
        match self.target {
            Some(Target::AtLeast(least)) if self.value >= least => format!(">= {least} ok"),
            Some(Target::AtLeast(least)) => format!(">= {least} MISSED"),
            Some(Target::Below(most)) if self.value < most => format!("< {most} ok"),
            Some(Target::Below(most)) => format!("< {most} MISSED"),
            None => String::new(),
        }
    }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    if server::serve_if_asked() {
        return;
    }
    let json = std::env::args().any(|argument| argument == "--json");
    let cpus = Cpus::split();
    if let Some(cpus) = &cpus {
        cpus.stay_aside();
    }
    let server = server::Process::start(cpus.as_ref());
    let figures = load::run(&server);
    drop(server);
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    let rate = load::RATE;
    let mut rows = vec![
        Row::new(
            "checks per second of the server's CPU",
            figures.per_core,
            "/s",
        )
        .with(Target::AtLeast(PER_CORE)),
        Row::new(
            "checks per second, as fast as it goes",
            figures.at_most,
            "/s",
        ),
        Row::new(
            format!("median answer at {rate} checks/s"),
            micros(figures.p50),
            "µs",
        ),
        Row::new(
            format!("99 of 100 answers at {rate} checks/s"),
            micros(figures.p99),
            "µs",
        )
        .with(Target::Below(micros(P99))),
        Row::new(
            format!("checks asked at {rate} checks/s"),
            figures.kept,
            "/s",
        ),
        Row::new(
            format!("server's CPU at {rate} checks/s"),
            100.0 * figures.busy,
            "% of a core",
        ),
    ];
    if std::env::var_os("SALLYPORT_ENVOY").is_some() {
        let target = Some(Target::AtLeast(RATIO));
        let istio = istio::run(cpus.as_ref());
        rows.extend(through("native policies of Istio", &istio, target));
        let configured = gateways::configured(cpus.as_ref());
        rows.extend(through("one rule for the route", &configured, None));
    }
    print(json, cpus.is_some(), &rows);
}

/// What came of two gateways, of which one has `rules`.
fn through(rules: &str, through: &Through, target: Option<Target>) -> [Row; 5] {
    let mut ratio = Row::new("the latter over the former", through.ratio, "");
    ratio.target = target;
    [
        Row::new(format!("requests by {rules}"), through.inside, "/s"),
        Row::new("requests by asking", through.asking, "/s"),
        Row::new(format!("Envoy's CPU, {rules}"), through.cpu_inside, "µs"),
        Row::new("Envoy's CPU, asking", through.cpu_asking, "µs"),
        ratio,
    ]
}

fn print(json: bool, apart: bool, rows: &[Row]) {
    if json {
        let figures: Vec<_> = rows
            .iter()
            .map(|row| {
                let (least, most) = match row.target {
                    Some(Target::AtLeast(least)) => (Some(least), None),
                    Some(Target::Below(most)) => (None, Some(most)),
                    None => (None, None),
                };
                serde_json::json!({
                    "figure": row.what, "value": row.value, "unit": row.unit,
                    "at_least": least, "below": most,
                })
            })
            .collect();
        println!(
            "{:#}",
            serde_json::json!({
                "policies": objects::POLICIES, "service_accounts": objects::ACCOUNTS,
                "own_cpu": apart,
                "figures": figures,
            })
        );
        return;
    }
    println!(
        "{} AccessPolicies, {} ServiceAccounts; mutual TLS 1.3; medians of rounds; what is measured \
         {}\n",
        objects::POLICIES,
        objects::ACCOUNTS,
        if apart {
            "has a CPU to itself"
        } else {
            "SHARES THE ONLY CPU with its clients"
        }
    );
    println!("{:<44} {:>12} {:<12} TARGET", "FIGURE", "VALUE", "");
    for row in rows {
        let digits = if row.value < 10.0 { 2 } else { 0 };
        println!(
            "{:<44} {:>12.digits$} {:<12} {}",
            row.what,
            row.value,
            row.unit,
            row.verdict()
        );
    }
}
