//! What procfs says of an open map, program or link; the kernel's own word for some of it takes more rights.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// What it says of a descriptor, by the name of the line.
pub(super) fn describe(object: BorrowedFd<'_>) -> io::Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", object.as_raw_fd()))?;
    Ok(facts(&text))
}

pub(super) fn facts(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
        .collect()
}
