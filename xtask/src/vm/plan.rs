//! What a machine does, and how it went: what passes between here and there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where the machine finds its plan, a list of [`Task`]s.
pub const PLAN: &str = "/plan.json";
/// Begins a line of the console that is a [`Word`].
pub const MARK: &str = "@@sallyport ";
/// Lines of a program's output that come back.
pub const TAIL: usize = 120;

/// One program to be run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Column of the table.
    pub name: String,
    pub program: String,
    pub args: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub limit_s: u64,
}

/// What the machine says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Word {
    /// It has booted; its kernel's release.
    Up {
        release: String,
    },
    /// It could not be set up.
    Broken {
        why: String,
    },
    Done(Done),
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    pub name: String,
    /// Exit status; none after a signal, or when its time was over.
    pub exit: Option<i32>,
    pub seconds: u64,
    /// The end of what it printed.
    pub output: Vec<String>,
}
