//! Which events are wanted, and how they are written.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use egress_common::{Reason, Verdict};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::output::{Part, Table, View, values};
use crate::telemetry::FlowEvent;
use crate::telemetry::clock;
use crate::telemetry::decode::protocol_name;

/// What an event must be; each that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// `namespace/name`.
    pub pod: Option<String>,
    pub namespace: Option<String>,
    pub verdict: Option<String>,
    pub reason: Option<String>,
    /// As [`parse_since`] gives it.
    pub since: Option<String>,
}

impl Filter {
    /// A word that no event ever has would wait for ever.
    pub fn check(&self) -> Result<()> {
        if let Some(reason) = &self.reason
            && !Reason::ALL.iter().any(|known| known.as_str() == reason)
        {
            let names: Vec<&str> = Reason::ALL
                .iter()
                .filter(|reason| !reason.passes())
                .map(|reason| reason.as_str())
                .collect();
            bail!("no reason {reason}: it is one of {}", names.join(", "));
        }
        let known = [Verdict::Audit, Verdict::Drop, Verdict::Reject].map(Verdict::as_str);
        if let Some(verdict) = &self.verdict
            && !known.contains(&verdict.as_str())
        {
            bail!("no verdict {verdict}: it is one of {}", known.join(", "));
        }
        if let Some(pod) = &self.pod
            && !pod.contains('/')
        {
            bail!("{pod} names no pod: write namespace/name");
        }
        Ok(())
    }

    pub fn admits(&self, event: &FlowEvent) -> bool {
        let is = |wanted: &Option<String>, found: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted == found)
        };
        is(&self.pod, &event.pod.label())
            && is(&self.namespace, &event.pod.namespace)
            && is(&self.verdict, &event.verdict)
            && is(&self.reason, &event.reason)
            && self.since.as_ref().is_none_or(|since| event.time >= *since)
    }
}

/// From `5m` or an RFC 3339 time to the form that events have, which sorts as text.
pub fn parse_since(text: &str) -> Result<String, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(clock::text(time.as_nanosecond()));
    }
    let ago: SignedDuration = text
        .parse()
        .map_err(|error| format!("neither a time nor how long ago: {error}"))?;
    let then = Timestamp::now()
        .checked_sub(ago)
        .map_err(|error| error.to_string())?;
    Ok(clock::text(then.as_nanosecond()))
}

/// The same event with numbers for names.
pub fn numbers(event: &FlowEvent) -> FlowEvent {
    let mut event = event.clone();
    if let Some(reason) = Reason::ALL.iter().find(|it| it.as_str() == event.reason) {
        event.reason = (*reason as u8).to_string();
    }
    let verdicts = [
        Verdict::Pass,
        Verdict::Audit,
        Verdict::Drop,
        Verdict::Reject,
    ];
    if let Some(verdict) = verdicts.iter().find(|it| it.as_str() == event.verdict) {
        event.verdict = (*verdict as u8).to_string();
    }
    if let Some(proto) = (0..=u8::MAX).find(|proto| protocol_name(*proto) == event.protocol) {
        event.protocol = proto.to_string();
    }
    event.pod.namespace.clear();
    event.pod.name.clear();
    event
}

const TITLES: [&str; 11] = [
    "TIME",
    "VERDICT",
    "POD",
    "PROCESS",
    "SOURCE",
    "DESTINATION",
    "REASON",
    "RULE",
    "+HOOK",
    "+IFINDEX",
    "+LENGTH",
];
/// Of the columns but for the last one, while following: what comes next isn't known.
const WIDTHS: [usize; 11] = [27, 7, 32, 24, 24, 34, 18, 24, 6, 7, 6];

fn cells(event: &FlowEvent) -> Vec<String> {
    let process = event.process.as_ref().map_or_else(String::new, |process| {
        format!("{}({}) uid {}", process.comm, process.pid, process.uid)
    });
    let mut destination = format!("{}/{}", event.destination.label(), event.protocol);
    if let Some(icmp) = event.icmp {
        // Writing to a string can't fail.
        let _ = write!(destination, " type {} code {}", icmp.kind, icmp.code);
    }
    vec![
        event.time.clone(),
        event.verdict.clone(),
        event.pod.label(),
        process,
        event.source.label(),
        destination,
        event.reason.clone(),
        event.rule.clone().unwrap_or_default(),
        event.hook.clone(),
        event.ifindex.to_string(),
        event.length.to_string(),
    ]
}

/// One line for one event, with the titles before it if that is wanted.
pub fn row(event: &FlowEvent, wide: bool, header: bool) -> String {
    let mut table = Table::new(&TITLES);
    if header {
        let titles = TITLES
            .iter()
            .map(|title| title.trim_start_matches('+').to_owned());
        table.row(titles.collect());
    }
    table.row(cells(event));
    table.render_fixed(wide, &WIDTHS)
}

/// `events list`.
pub fn list_view(events: &[FlowEvent], numeric: bool) -> View {
    let mut table = Table::new(&TITLES);
    for event in events {
        table.row(if numeric {
            cells(&numbers(event))
        } else {
            cells(event)
        });
    }
    View {
        kind: "EventList",
        items: values(events),
        page: vec![Part::Table(table)],
    }
}
