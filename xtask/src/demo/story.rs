//! The story: phase by phase, what is tried, what must come of it, what did.

use anyhow::Result;

use super::attempts::{Bypass, Observation, Ordinary};
use super::signals;
use super::standing::Standing;
use super::table::{self, Phase, Row};
use super::world::World;

/// The story so far.
#[derive(Debug)]
pub struct Story {
    rows: Vec<Row>,
    json: bool,
    phase: Phase,
    standing: Standing,
    world: World,
}

impl Story {
    pub fn new(world: World, json: bool) -> Result<Self> {
        let standing = Standing::open(&world.node)?;
        Ok(Self { rows: Vec::new(), json, phase: Phase::NoLockdown, standing, world })
    }

    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Without Sallyport: every way around the sidecar is open.
    pub fn hole(&mut self) -> Result<()> {
        self.begin(Phase::NoLockdown);
        for bypass in Bypass::ALL {
            self.bypass(bypass)?;
        }
        self.ordinary()
    }

    fn begin(&mut self, phase: Phase) {
        self.phase = phase;
        if !self.json {
            println!("{}", table::headline(phase));
        }
    }

    fn row(&mut self, attempt: &str, expected: &str, seen: String, reported: String, ok: bool) {
        let row = Row {
            phase: self.phase,
            attempt: attempt.to_owned(),
            expected: expected.to_owned(),
            seen,
            reported,
            ok,
        };
        if self.json {
            match serde_json::to_string(&row) {
                Ok(line) => println!("{line}"),
                Err(error) => eprintln!("a row can't be written as JSON: {error}"),
            }
        } else {
            println!("{}", table::line(&row));
        }
        self.rows.push(row);
    }

    fn bypass(&mut self, bypass: Bypass) -> Result<()> {
        signals::check()?;
        let tag = format!("probe-{}", self.rows.len());
        let observed = bypass.attempt(&self.world, &tag)?;
        let ok = open(bypass, &observed);
        self.row(bypass.describe(), "open", describe(&observed), String::new(), ok);
        Ok(())
    }

    fn ordinary(&mut self) -> Result<()> {
        for ordinary in Ordinary::ALL {
            signals::check()?;
            let trouble = ordinary.attempt(&self.world)?;
            let ok = trouble.is_empty();
            let seen = if ok { "works".to_owned() } else { trouble };
            self.row(ordinary.describe(), "works", seen, String::new(), ok);
        }
        let (seen, ok) = match self.standing.ask() {
            Ok(requests) => (format!("{requests} requests on it so far"), true),
            Err(error) => (format!("{error:#}"), false),
        };
        self.row("a connection from outside to reviews, opened first", "stands", seen, String::new(), ok);
        Ok(())
    }
}

/// It arrived, and where an answer is due it came.
fn open(bypass: Bypass, observed: &Observation) -> bool {
    observed.arrived > 0 && (observed.answer.answered() || !bypass.expects_answer())
}

fn describe(observed: &Observation) -> String {
    let client = match observed.answer.status {
        Some(status) => status.to_string(),
        None => observed.answer.outcome.clone(),
    };
    format!("{} packets outside, client: {client}", observed.arrived)
}
