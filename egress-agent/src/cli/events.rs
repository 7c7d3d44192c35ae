//! Events: those at hand, or live. A running agent hands them out; without one the ring is read
//! here, under the lock that makes this its only reader.

use std::io::{self, BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use super::event_text::{Filter, list_view, numbers, parse_since, row};
use super::output::Format;
use super::{Globals, print};
use crate::datapath::pinned::Pinned;
use crate::telemetry::FlowEvent;
use crate::telemetry::events::Reader;
use crate::telemetry::flow::Notice;
use crate::telemetry::{hub, socket};

/// The recent events have all come when the socket is silent for this long.
const SILENCE: Duration = Duration::from_millis(200);
/// While the ring is read here: between two looks into it, and for an agent that has started.
const LOOK: Duration = Duration::from_millis(50);
const AGENT_LOOK: Duration = Duration::from_millis(250);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Verb {
    /// The recent ones
    List,
}

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[arg(value_enum)]
    verb: Option<Verb>,
    /// Go on with what comes, until interrupted
    #[arg(short, long, conflicts_with = "verb")]
    follow: bool,
    /// Only this pod's
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pod: Option<String>,
    #[arg(long)]
    namespace: Option<String>,
    /// audit, drop or reject
    #[arg(long)]
    verdict: Option<String>,
    /// Such as not-allowed
    #[arg(long)]
    reason: Option<String>,
    /// A time (RFC 3339), or how long ago: 90s, 5m, 2h
    #[arg(long, value_parser = parse_since)]
    since: Option<String>,
    /// The last so many; with --follow, end after so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

impl Args {
    fn filter(&self) -> Filter {
        Filter {
            pod: self.pod.clone(),
            namespace: self.namespace.clone(),
            verdict: self.verdict.clone(),
            reason: self.reason.clone(),
            since: self.since.clone(),
        }
    }
}

pub fn run(globals: &Globals, args: &Args) -> Result<()> {
    let filter = args.filter();
    filter.check()?;
    if args.follow {
        return follow(globals, args, &filter);
    }
    let mut events = at_hand(globals)?;
    events.retain(|event| filter.admits(event));
    let limit = args.limit.unwrap_or(usize::MAX);
    let shown = &events[events.len().saturating_sub(limit)..];
    print(globals, &list_view(shown, globals.numeric))
}

/// A pod's recent events; none if no agent runs, which is who keeps them.
pub fn recent_of(globals: &Globals, pod: &str) -> Option<Vec<FlowEvent>> {
    let mut events = from_agent(&globals.run_dir).ok()??;
    events.retain(|event| event.pod.label() == pod);
    Some(events)
}

fn at_hand(globals: &Globals) -> Result<Vec<FlowEvent>> {
    if let Some(events) = from_agent(&globals.run_dir)? {
        return Ok(events);
    }
    let pinned = Pinned::open(&globals.bpffs)?;
    let Some(mut reader) = Reader::open(&pinned, &globals.run_dir)? else {
        bail!(
            "another process reads the events, by the lock in {}: an `egressctl events -f`?",
            globals.run_dir.display()
        );
    };
    let mut events = reader.drain(hub::RECENT);
    // The kernel may be writing some just now.
    std::thread::sleep(LOOK);
    events.extend(reader.drain(hub::RECENT));
    Ok(events)
}

/// The recent events of a running agent; none if none runs.
fn from_agent(run_dir: &Path) -> Result<Option<Vec<FlowEvent>>> {
    let Some(mut lines) = Lines::connect(run_dir, SILENCE)? else {
        return Ok(None);
    };
    let mut events = Vec::new();
    while let Next::Line(line) = lines.next()?
        && events.len() < hub::RECENT
    {
        match event(&line)? {
            Ok(event) => events.push(event),
            Err(notice) => eprintln!("egressctl: {}", notice.notice),
        }
    }
    Ok(Some(events))
}

/// A line is an event or a notice.
fn event(line: &[u8]) -> Result<Result<FlowEvent, Notice>> {
    if let Ok(notice) = serde_json::from_slice::<Notice>(line) {
        return Ok(Err(notice));
    }
    serde_json::from_slice(line)
        .map(Ok)
        .context("the agent sent something that is no event: is it of another version?")
}

/// Lines of the agent's socket.
struct Lines {
    stream: BufReader<UnixStream>,
    line: Vec<u8>,
}

enum Next {
    Line(Vec<u8>),
    /// Nothing came for so long as was waited.
    Silence,
    /// The agent has hung up.
    End,
}

impl Lines {
    fn connect(run_dir: &Path, patience: Duration) -> Result<Option<Self>> {
        let path = run_dir.join(socket::FILE);
        match UnixStream::connect(&path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(patience))?;
                Ok(Some(Self {
                    stream: BufReader::new(stream),
                    line: Vec::new(),
                }))
            }
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error).with_context(|| format!("can't ask {}", path.display())),
        }
    }

    fn next(&mut self) -> Result<Next> {
        // What came of a line before a time-out stays in `line`.
        match self.stream.read_until(b'\n', &mut self.line) {
            Ok(0) => Ok(Next::End),
            Ok(_) if self.line.ends_with(b"\n") => Ok(Next::Line(std::mem::take(&mut self.line))),
            Ok(_) => Ok(Next::End),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Ok(Next::Silence)
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(Next::End),
            Err(error) => Err(error).context("can't read from the agent"),
        }
    }
}

/// Where the events come from changes when an agent ends or starts.
fn follow(globals: &Globals, args: &Args, filter: &Filter) -> Result<()> {
    let mut out = Out {
        globals,
        filter,
        left: args.limit,
        last: String::new(),
        header: !globals.no_headers,
    };
    let mut told = "";
    while out.wants_more() {
        let said = if let Some(lines) = Lines::connect(&globals.run_dir, AGENT_LOOK)? {
            follow_agent(lines, &mut out)?;
            "the agent has ended, its events are read from the kernel"
        } else {
            let pinned = Pinned::open(&globals.bpffs)?;
            if let Some(reader) = Reader::open(&pinned, &globals.run_dir)? {
                follow_ring(reader, &globals.run_dir, &mut out)?;
                "an agent has started, it hands out the events"
            } else {
                std::thread::sleep(AGENT_LOOK);
                "another process reads the events; waiting for it to end"
            }
        };
        if said != told && out.wants_more() {
            eprintln!("egressctl: {said}");
            told = said;
        }
    }
    Ok(())
}

fn follow_agent(mut lines: Lines, out: &mut Out<'_>) -> Result<()> {
    // An agent tells the recent ones first: those of before were seen already.
    let seen = out.last.clone();
    while out.wants_more() {
        match lines.next()? {
            Next::Line(line) => match event(&line)? {
                Ok(event) if event.time > seen => out.write(&event)?,
                Ok(_) => {}
                Err(notice) => eprintln!("egressctl: {}", notice.notice),
            },
            Next::Silence => {}
            Next::End => break,
        }
    }
    Ok(())
}

fn follow_ring(mut reader: Reader, run_dir: &Path, out: &mut Out<'_>) -> Result<()> {
    let mut looked = Instant::now();
    while out.wants_more() {
        for event in reader.drain(hub::RECENT) {
            out.write(&event)?;
        }
        if looked.elapsed() >= AGENT_LOOK {
            looked = Instant::now();
            if socket::is_answered(run_dir) {
                break;
            }
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Writes one event after the other.
struct Out<'a> {
    globals: &'a Globals,
    filter: &'a Filter,
    left: Option<usize>,
    /// Time of the latest event, whether it was written or not.
    last: String,
    header: bool,
}

impl Out<'_> {
    fn wants_more(&self) -> bool {
        self.left != Some(0)
    }

    fn write(&mut self, event: &FlowEvent) -> Result<()> {
        if event.time > self.last {
            self.last.clone_from(&event.time);
        }
        if !self.wants_more() || !self.filter.admits(event) {
            return Ok(());
        }
        let text = match self.globals.output {
            Format::Json => serde_json::to_string(event)? + "\n",
            Format::Yaml => format!("---\n{}", serde_yaml_ng::to_string(event)?),
            Format::Table | Format::Wide => {
                let wide = self.globals.output == Format::Wide;
                let numeric = if self.globals.numeric {
                    numbers(event)
                } else {
                    event.clone()
                };
                let header = std::mem::take(&mut self.header);
                row(&numeric, wide, header)
            }
        };
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()?;
        self.left = self.left.map(|left| left - 1);
        Ok(())
    }
}
