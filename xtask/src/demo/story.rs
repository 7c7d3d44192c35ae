//! The story: phase by phase, what is tried, what must come of it, and what did.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Gateway;
use super::agent::{Agent, Ready};
use super::attempts::{self, Bypass, Observation, Ordinary};
use super::egressctl::{self, Egressctl, Events, Expected};
use super::manifests;
use super::programs::Sallyport;
use super::signals;
use super::standing::Standing;
use super::table::{self, Phase, Row};
use super::world::World;
use crate::node::plan;

/// What must become of a way around the sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    Reported,
    CutAndReported,
    /// The agent is down: the kernel's counters speak.
    CutAndCounted,
}

/// The story so far.
#[derive(Debug)]
pub struct Story<'a> {
    world: &'a World,
    rows: Vec<Row>,
    json: bool,
    phase: Phase,
    standing: Standing,
}

/// What reports, while the story goes on.
struct Reporters<'a> {
    egressctl: Egressctl<'a>,
    events: Option<Events>,
}

impl<'a> Story<'a> {
    pub fn new(world: &'a World, json: bool) -> Result<Self> {
        let standing = Standing::open(&world.node)?;
        Ok(Self {
            world,
            rows: Vec::new(),
            json,
            phase: Phase::NoLockdown,
            standing,
        })
    }

    /// What was seen so far.
    pub fn into_rows(self) -> Vec<Row> {
        self.rows
    }

    /// Without Sallyport: every way around the sidecar is open.
    pub fn hole(&mut self) -> Result<()> {
        self.begin(Phase::NoLockdown);
        for bypass in Bypass::ALL {
            self.bypass(bypass, Fate::Open, None)?;
        }
        self.ordinary()
    }

    /// All of it. The agent runs at its end.
    pub fn tell(&mut self, programs: &Sallyport) -> Result<Agent> {
        let (mut agent, ready) = Agent::start(programs, self.world)?;
        let egressctl = Egressctl::new(programs, &self.world.node);
        let log = self.world.node.directory().join("log/events.jsonl");
        let mut reporters = Reporters {
            events: Some(egressctl.follow(&log)?),
            egressctl: egressctl.clone(),
        };
        attempts::wait_for_policy_server(self.world)?;
        attempts::wait_for_gateway(self.world)?;

        self.phase(Phase::NoLockdown, Fate::Open, &reporters)?;
        let ready = self.declare(&mut agent, &ready, manifests::AUDIT)?;
        self.phase(Phase::Audit, Fate::Reported, &reporters)?;
        let ready = self.declare(&mut agent, &ready, manifests::ENFORCE)?;
        self.phase(Phase::Enforce, Fate::CutAndReported, &reporters)?;
        agent.kill()?;
        reporters.events = None;
        self.phase(Phase::AgentKilled, Fate::CutAndCounted, &reporters)?;

        let (agent, again) = Agent::start(programs, self.world)?;
        self.begin(Phase::AgentRestarted);
        let same = again.revision == ready.revision && again.writes == 0;
        let seen = format!(
            "{} writes, {} revision",
            again.writes,
            if again.revision == ready.revision {
                "same"
            } else {
                "another"
            }
        );
        self.row(
            "the agent starts with unchanged state",
            "0 writes",
            seen,
            "",
            same,
        );
        attempts::wait_for_policy_server(self.world)?;
        self.by_gateway(true)?;
        self.stand();
        Ok(agent)
    }

    fn declare(&mut self, agent: &mut Agent, old: &Ready, lockdown: &str) -> Result<Ready> {
        self.world.state.write(manifests::LOCKDOWN, lockdown)?;
        agent.wait_for(Some(old))
    }

    fn phase(&mut self, phase: Phase, fate: Fate, reporters: &Reporters<'_>) -> Result<()> {
        self.begin(phase);
        self.by_gateway(phase != Phase::AgentKilled)?;
        for bypass in Bypass::ALL {
            self.bypass(bypass, fate, Some(reporters))?;
        }
        self.ordinary()?;
        self.covered(&reporters.egressctl)
    }

    fn begin(&mut self, phase: Phase) {
        self.phase = phase;
        if !self.json {
            println!("{}", table::headline(phase));
        }
    }

    fn row(&mut self, attempt: &str, expected: &str, seen: String, reported: &str, ok: bool) {
        let row = Row {
            phase: self.phase,
            attempt: attempt.to_owned(),
            expected: expected.to_owned(),
            seen,
            reported: reported.to_owned(),
            ok,
        };
        if !self.json {
            println!("{}", table::line(&row));
        }
        self.rows.push(row);
    }

    /// The guide's two requests, and a third with a stolen certificate. Without the agent a
    /// gateway that asks it refuses everybody; one that was configured by it goes on.
    fn by_gateway(&mut self, agent_runs: bool) -> Result<()> {
        let asks = self.world.gateway == Gateway::ExtAuthz;
        let answers = agent_runs || !asks;
        signals::check()?;
        let productpage = &self.world.pods.productpage;
        let mark = self.world.access_log().len();
        let seen = attempts::by_gateway(self.world, productpage)?;
        let entry = attempts::access_entry(self.world, mark, productpage);
        let decided = self.decided_by(entry.as_ref());
        let body: Value = serde_json::from_str(&seen.answer.body).unwrap_or_default();
        let (expected, ok) = if answers {
            let by = if asks {
                "AccessPolicy/istio-egress/egress-access-policy#0"
            } else {
                "ExternalService/global/httpbin.org:443"
            };
            let ok = seen.answer.status == Some(200)
                && body["served_by"] == plan::OUTSIDE_NAME
                // The outside host was asked by TLS, though the application asked for plain HTTP.
                && body["url"].as_str().is_some_and(|url| url.starts_with("https://"))
                && seen.arrived == 0
                && seen.by_gateway > 0
                && decided == by;
            ("200, by the gateway, in TLS", ok)
        } else {
            let refused = seen.answer.status == Some(403);
            let ok = refused && seen.arrived == 0 && seen.by_gateway == 0;
            ("403: nobody to ask", ok)
        };
        let text = describe_gateway(&seen);
        self.row(
            "productpage asks for httpbin.org/get",
            expected,
            text,
            &decided,
            ok,
        );

        signals::check()?;
        let reviews = &self.world.pods.reviews;
        let mark = self.world.access_log().len();
        let seen = attempts::by_gateway(self.world, reviews)?;
        let entry = attempts::access_entry(self.world, mark, reviews);
        let decided = self.decided_by(entry.as_ref());
        let denied = seen.answer.status == Some(403) && seen.arrived == 0 && seen.by_gateway == 0;
        let told = seen.answer.body == "RBAC: access denied"
            && seen.answer.header("content-type") == Some("text/plain")
            && decided.contains(if asks {
                "not-admitted"
            } else {
                "rbac_access_denied"
            });
        let text = describe_gateway(&seen);
        self.row(
            "reviews asks for httpbin.org/get",
            if answers {
                "403 RBAC: access denied"
            } else {
                "403: nobody to ask"
            },
            text,
            &decided,
            denied && (told || !answers),
        );
        if asks && agent_runs {
            self.stolen()?;
        }
        Ok(())
    }

    fn stolen(&mut self) -> Result<()> {
        signals::check()?;
        let mark = self.world.access_log().len();
        let seen = attempts::with_stolen_certificate(self.world)?;
        let entry = attempts::access_entry(self.world, mark, &self.world.pods.productpage);
        let decided = self.decided_by(entry.as_ref());
        let ok = seen.answer.status == Some(403)
            && seen.by_gateway == 0
            && decided.contains("stolen-identity");
        let text = describe_gateway(&seen);
        self.row(
            "reviews asks with productpage's stolen certificate",
            "403 RBAC: access denied",
            text,
            &decided,
            ok,
        );
        Ok(())
    }

    /// What the gateway's access log names: the entry that admits, or why it refused.
    fn decided_by(&self, entry: Option<&Value>) -> String {
        let Some(entry) = entry else {
            return "nothing in the access log".to_owned();
        };
        let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        let allowed = entry["response_code"] == 200;
        match (self.world.gateway, allowed) {
            (Gateway::ExtAuthz, true) => text("object"),
            (Gateway::ExtAuthz, false) if entry["reason"].is_string() => text("reason"),
            (Gateway::Xds, true) => text("route_name"),
            (_, false) => text("response_code_details"),
        }
    }

    fn bypass(
        &mut self,
        bypass: Bypass,
        fate: Fate,
        reporters: Option<&Reporters<'_>>,
    ) -> Result<()> {
        signals::check()?;
        let pod = self.world.pods.reviews.id();
        let reason = bypass.reason();
        let events = reporters.and_then(|reporters| reporters.events.as_ref());
        let mark = events.map_or(Ok(0), Events::mark)?;
        let count = || match reporters {
            Some(reporters) => reporters.egressctl.count(&pod, reason),
            None => Ok(0),
        };
        let before = count()?;
        let tag = format!("probe-{}", self.rows.len());
        let seen = bypass.attempt(self.world, &tag)?;
        let counted = count()?.saturating_sub(before);
        let expected = Expected {
            pod: &pod,
            destination: &seen.destination.ip().to_string(),
            port: seen.destination.port(),
            reason,
        };
        let find = |events: &Events| events.find(mark, expected);
        let (ok, expected, reported) = match fate {
            Fate::Open => (open(bypass, &seen) && counted == 0, "open", String::new()),
            Fate::Reported | Fate::CutAndReported => {
                let event = find(events.context("the agent runs, so there are events")?)?;
                let told = event.as_ref().is_some_and(|event| well_told(event, bypass));
                let kept = match fate {
                    Fate::Reported => open(bypass, &seen),
                    _ => cut(&seen),
                };
                let expected = if fate == Fate::Reported {
                    "open, reported"
                } else {
                    "cut, reported"
                };
                (
                    kept && told && counted > 0,
                    expected,
                    describe_event(event.as_ref(), counted),
                )
            }
            Fate::CutAndCounted => (
                cut(&seen) && counted > 0,
                "cut, counted",
                format!("{reason}, {counted} counted"),
            ),
        };
        self.row(bypass.describe(), expected, describe(&seen), &reported, ok);
        Ok(())
    }

    fn ordinary(&mut self) -> Result<()> {
        for ordinary in Ordinary::ALL {
            signals::check()?;
            let trouble = ordinary.attempt(self.world)?;
            let ok = trouble.is_empty();
            let seen = if ok { "works".to_owned() } else { trouble };
            self.row(ordinary.describe(), "works", seen, "", ok);
        }
        self.stand();
        Ok(())
    }

    fn stand(&mut self) {
        let (seen, ok) = match self.standing.ask() {
            Ok(requests) => (format!("stands, {requests} requests so far"), true),
            Err(error) => (format!("{error:#}"), false),
        };
        self.row(
            "a client outside keeps its connection to reviews",
            "stands",
            seen,
            "",
            ok,
        );
    }

    fn covered(&mut self, egressctl: &Egressctl<'_>) -> Result<()> {
        let (status, _) = egressctl.run(&["status"])?;
        let seen = format!("{status}");
        self.row(
            "egressctl status: every held pod is covered",
            "exit 0",
            seen,
            "",
            status.success(),
        );
        Ok(())
    }
}

/// It arrived, and where an answer is due it came.
fn open(bypass: Bypass, seen: &Observation) -> bool {
    seen.arrived > 0 && (seen.answer.answered() || !bypass.expects_answer())
}

/// Nothing arrived, and nothing came back.
fn cut(seen: &Observation) -> bool {
    seen.arrived == 0 && !seen.answer.answered()
}

/// Whether the event names the process, where a socket call told who it was.
fn well_told(event: &Value, bypass: Bypass) -> bool {
    !bypass.names_process() || egressctl::process_of(event).is_some()
}

fn describe(seen: &Observation) -> String {
    let client = match seen.answer.status {
        Some(status) => status.to_string(),
        None => seen.answer.outcome.clone(),
    };
    let arrived = if seen.arrived == 0 {
        "nothing".to_owned()
    } else {
        seen.arrived.to_string()
    };
    format!("{arrived} on the wire, client: {client}")
}

fn describe_gateway(seen: &Observation) -> String {
    let status = seen
        .answer
        .status
        .map_or(seen.answer.outcome.clone(), |status| status.to_string());
    let wire = match (seen.by_gateway, seen.arrived) {
        (0, 0) => "nothing on the wire".to_owned(),
        (gateway, 0) => format!("{gateway} from the gateway"),
        (_, own) => format!("{own} from the pod itself"),
    };
    format!("{status}, {wire}")
}

fn describe_event(event: Option<&Value>, counted: u64) -> String {
    let Some(event) = event else {
        return format!("no event, {counted} counted");
    };
    let reason = event["reason"].as_str().unwrap_or("?");
    match egressctl::process_of(event) {
        Some(process) => format!("{reason}, by {process}, {counted} counted"),
        None => format!("{reason}, {counted} counted"),
    }
}
