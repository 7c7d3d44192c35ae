//! Host names: how a policy writes them, how a request names them, and which pattern wins.

use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;

use thiserror::Error;

/// A pattern that no host can be read from, or a host that is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HostError {
    #[error("the host is empty")]
    Empty,
    #[error("`{0}` is an IP address; an external service names addresses under `addresses`")]
    Address(String),
    #[error("`{0}` is not a host name (letters, digits, `-` and `_` in labels of at most 63)")]
    Syntax(String),
    #[error("`{0}`: a wildcard is `*` alone or the whole first label, as in `*.example.com`")]
    Wildcard(String),
    #[error("`{0}` has no port from 1 to 65535 behind its colon")]
    Port(String),
}

/// A host name in lower-case ASCII (IDNA), without trailing dot and port. Never an IP address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(String);

impl HostName {
    /// Reads a host as an operator writes it; names outside ASCII are converted by IDNA.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        let ascii = idna::domain_to_ascii(text).map_err(|_| HostError::Syntax(text.to_owned()))?;
        Self::from_ascii(&ascii, text)
    }

    /// Reads a host as it stands in a request: what is not ASCII there is no host.
    pub fn of_request(text: &str) -> Result<Self, HostError> {
        Self::from_ascii(&text.to_ascii_lowercase(), text)
    }

    fn from_ascii(ascii: &str, given: &str) -> Result<Self, HostError> {
        let name = ascii.strip_suffix('.').unwrap_or(ascii);
        if name.is_empty() {
            return Err(HostError::Empty);
        }
        if name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
            return Err(HostError::Address(given.to_owned()));
        }
        let labels = name.split('.').all(is_label);
        // A last label that starts with a digit is how an address is written in its odd forms
        // (`127.1`, `0x7f.1`): no top-level domain does.
        let top = name.rsplit('.').next().unwrap_or(name);
        if !labels || name.len() > 253 || top.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(HostError::Syntax(given.to_owned()));
        }
        Ok(Self(name.to_owned()))
    }

    /// What follows a dot of a host name, which is one itself.
    pub(super) fn parent(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_label(label: &str) -> bool {
    let edge = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let bytes = label.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(&first), Some(&last)) if edge(first) && edge(last))
        && bytes.len() <= 63
        && bytes.iter().all(|&byte| edge(byte) || byte == b'-')
}

/// Splits what stands in `Host` or `:authority` into host and port; 80 where there is none.
pub fn split_authority(authority: &str) -> Result<(HostName, u16), HostError> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !authority.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let port = match port {
        None => 80,
        // `parse` alone would take `+80`; a port with a leading zero is nobody's.
        Some(text) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => text
            .parse()
            .ok()
            .filter(|&port| port != 0 && !text.starts_with('0'))
            .ok_or_else(|| HostError::Port(authority.to_owned()))?,
        Some(_) => return Err(HostError::Port(authority.to_owned())),
    };
    Ok((HostName::of_request(host)?, port))
}

/// A host, or every name below one. They are ordered most specific first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    Exact(HostName),
    /// `*.example.com`: any number of labels below it, not the name itself.
    Below(HostName),
    /// `*`.
    Any,
}

impl HostPattern {
    pub fn parse(text: &str) -> Result<Self, HostError> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if let Some(parent) = text.strip_prefix("*.") {
            if parent.contains('*') {
                return Err(HostError::Wildcard(text.to_owned()));
            }
            return HostName::parse(parent).map(Self::Below);
        }
        if text.contains('*') {
            return Err(HostError::Wildcard(text.to_owned()));
        }
        HostName::parse(text).map(Self::Exact)
    }

    pub fn matches(&self, host: &HostName) -> bool {
        match self {
            Self::Exact(name) => name == host,
            Self::Below(parent) => is_below(host.as_str(), parent.as_str()),
            Self::Any => true,
        }
    }

    /// Whether every host of `other` is a host of this one.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (_, Self::Any) | (Self::Exact(_), Self::Below(_)) => false,
            (_, Self::Exact(host)) => self.matches(host),
            (Self::Below(parent), Self::Below(child)) => {
                parent == child || is_below(child.as_str(), parent.as_str())
            }
        }
    }

    pub fn is_wildcard(&self) -> bool {
        !matches!(self, Self::Exact(_))
    }

    /// The one host of a pattern that is none.
    pub fn name(&self) -> Option<&HostName> {
        match self {
            Self::Exact(name) => Some(name),
            Self::Below(_) | Self::Any => None,
        }
    }
}

fn is_below(name: &str, parent: &str) -> bool {
    name.strip_suffix(parent)
        .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}

impl Ord for HostPattern {
    fn cmp(&self, other: &Self) -> Ordering {
        fn key(pattern: &HostPattern) -> (u8, usize, &str) {
            match pattern {
                HostPattern::Exact(name) => (0, 0, name.as_str()),
                // Of two that match one host the longer is below the shorter.
                HostPattern::Below(parent) => (1, usize::MAX - parent.0.len(), parent.as_str()),
                HostPattern::Any => (2, 0, ""),
            }
        }
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for HostPattern {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name.as_str()),
            Self::Below(parent) => write!(f, "*.{parent}"),
            Self::Any => f.write_str("*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> HostPattern {
        HostPattern::parse(text).unwrap()
    }

    fn host(text: &str) -> HostName {
        HostName::of_request(text).unwrap()
    }

    #[test]
    fn names_are_brought_to_one_form() {
        for text in ["httpbin.org", "HTTPBIN.org", "httpbin.org."] {
            assert_eq!(HostName::parse(text).unwrap().as_str(), "httpbin.org");
        }
        assert_eq!(
            HostName::parse("bücher.example").unwrap().as_str(),
            "xn--bcher-kva.example"
        );
        assert!(HostName::of_request("bücher.example").is_err());
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for text in [
            "",
            ".",
            "a..b",
            "-a.b",
            "a-.b",
            "a b",
            "a/b",
            "10.0.0.1",
            "::1",
            "[::1]",
            "127.1",
            "0x7f.0.0.1",
            "2130706433",
            "a:80",
            "user@host",
            "a%2eb",
        ] {
            assert!(HostName::of_request(text).is_err(), "{text}");
        }
        assert!(HostName::of_request(&format!("{}.org", "a".repeat(64))).is_err());
    }

    #[test]
    fn a_wildcard_is_any_depth_below_and_not_the_name() {
        let com = pattern("*.example.com");
        assert!(com.matches(&host("a.example.com")));
        assert!(com.matches(&host("a.b.Example.com.")));
        for text in [
            "example.com",
            "aexample.com",
            "a.example.com.evil.org",
            "example.org",
        ] {
            assert!(!com.matches(&host(text)), "{text}");
        }
        assert!(pattern("*.com").matches(&host("example.com")));
        assert!(pattern("*").matches(&host("localhost")));
        for text in ["a*.com", "*a.com", "*.*.com", "a.*", "**"] {
            assert!(HostPattern::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_most_specific_comes_first() {
        let mut all: Vec<_> = ["*", "*.com", "b.a.com", "*.a.com", "a.com"]
            .map(pattern)
            .into();
        all.sort();
        let text: Vec<_> = all.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["a.com", "b.a.com", "*.a.com", "*.com", "*"]);
    }

    #[test]
    fn covering() {
        for (outer, inner, expected) in [
            ("*", "*.com", true),
            ("*.com", "*", false),
            ("*.com", "*.a.com", true),
            ("*.com", "*.com", true),
            ("*.a.com", "*.com", false),
            ("*.a.com", "a.com", false),
            ("a.com", "a.com", true),
            ("a.com", "*.a.com", false),
        ] {
            assert_eq!(
                pattern(outer).covers(&pattern(inner)),
                expected,
                "{outer} {inner}"
            );
        }
    }

    #[test]
    fn the_port_is_split_off() {
        for (text, port) in [("a.org", 80), ("a.org:80", 80), ("A.org.:8080", 8080)] {
            assert_eq!(split_authority(text), Ok((host("a.org"), port)), "{text}");
        }
        for text in [
            "a.org:",
            "a.org:0",
            "a.org:+80",
            "a.org:65536",
            "a.org:080",
            "[::1]:80",
            ":80",
        ] {
            assert!(split_authority(text).is_err(), "{text}");
        }
    }
}
