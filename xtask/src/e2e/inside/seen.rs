//! What arrived at the outside host: written by its recorder as a line each, read by the suite.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::node::wire::Seen;

/// Longest part of a payload that is kept, in bytes. What attempts send is shorter.
const KEPT: usize = 160;

/// A packet on the outside host's device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrived {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero where the protocol has none, or in a later fragment.
    #[serde(rename = "sourcePort")]
    pub source_port: u16,
    #[serde(rename = "destinationPort")]
    pub destination_port: u16,
    /// What follows the IP header, as far as it is text.
    pub payload: String,
}

impl From<Seen> for Arrived {
    fn from(seen: Seen) -> Self {
        let kept = &seen.payload[..seen.payload.len().min(KEPT)];
        Self {
            source: seen.source,
            destination: seen.destination,
            protocol: seen.protocol,
            source_port: seen.source_port,
            destination_port: seen.destination_port,
            payload: String::from_utf8_lossy(kept).into_owned(),
        }
    }
}

/// Answer to `seen`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrivals {
    /// Packets ever.
    pub total: usize,
    /// Those after the mark.
    pub packets: Vec<Arrived>,
}

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    file: PathBuf,
    /// Packets that are known already
    #[arg(long, default_value_t = 0)]
    since: usize,
}

impl Args {
    pub fn run(&self) -> Result<Arrivals> {
        let text = fs::read_to_string(&self.file)
            .with_context(|| format!("cannot read {}", self.file.display()))?;
        read(&text, self.since)
    }
}

fn read(text: &str, since: usize) -> Result<Arrivals> {
    // The last line may not be whole yet.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines: Vec<&str> = whole.lines().collect();
    let new = lines.get(since..).unwrap_or_default();
    let packets = new
        .iter()
        .map(|line| serde_json::from_str(line).context("a line of the record"))
        .collect::<Result<_>>()?;
    Ok(Arrivals {
        total: lines.len(),
        packets,
    })
}

/// Appends packets to the record.
#[derive(Debug)]
pub(super) struct Record(File);

impl Record {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self(file))
    }

    pub(super) fn push(&mut self, arrived: &Arrived) -> Result<()> {
        let mut line = serde_json::to_string(arrived)?;
        line.push('\n');
        // One write: a reader sees the line whole, or without its end.
        self.0.write_all(line.as_bytes()).context("the record")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrived(port: u16) -> Arrived {
        Arrived {
            source: "10.244.1.11".parse().unwrap(),
            destination: "203.0.113.10".parse().unwrap(),
            protocol: 17,
            source_port: 40_000,
            destination_port: port,
            payload: "token".into(),
        }
    }

    #[test]
    fn what_is_written_is_read_from_the_mark_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seen");
        let mut record = Record::open(&path).unwrap();
        for port in [1, 2, 3] {
            record.push(&arrived(port)).unwrap();
        }
        let args = |since| Args {
            file: path.clone(),
            since,
        };
        let all = args(0).run().unwrap();
        assert_eq!((all.total, all.packets.len()), (3, 3));
        assert_eq!(args(2).run().unwrap().packets, [arrived(3)]);
        assert_eq!(args(3).run().unwrap().packets, []);
    }

    #[test]
    fn half_a_line_is_not_read() {
        let line = serde_json::to_string(&arrived(1)).unwrap();
        let read = read(&format!("{line}\n{}", &line[..20]), 0).unwrap();
        assert_eq!(read.total, 1);
    }
}
