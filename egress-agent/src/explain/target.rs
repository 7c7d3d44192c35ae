//! What somebody wants to reach, as a URL.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use thiserror::Error;

use super::frame::Kind;

/// Why a text is no target.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TargetError {
    #[error(
        "`{0}` is no target; write https://host/path, http://host:port/path, tcp://host:port, \
         udp://host:port or icmp://host"
    )]
    Scheme(String),
    #[error("`{0}` has no host")]
    Host(String),
    #[error("`{0}` needs a port from 1 to 65535")]
    Port(String),
}

/// A target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `https`, `http`, `tcp`, `udp`, `icmp`.
    pub scheme: String,
    /// A name or an address, without brackets.
    pub host: String,
    /// 0 for ICMP.
    pub port: u16,
    /// Path and query; `/` without one.
    pub path: String,
    pub kind: Kind,
}

impl Target {
    /// Whether a gateway can pass it on.
    pub fn is_web(&self) -> bool {
        matches!(self.scheme.as_str(), "http" | "https" | "tcp")
            && self.host.parse::<IpAddr>().is_err()
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let scheme = || TargetError::Scheme(text.to_owned());
        let (name, rest) = text.split_once("://").ok_or_else(scheme)?;
        let (kind, default_port) = match name {
            "https" => (Kind::Tcp, Some(443)),
            "http" => (Kind::Tcp, Some(80)),
            "tcp" => (Kind::Tcp, None),
            "udp" => (Kind::Udp, None),
            "icmp" => (Kind::Icmp, Some(0)),
            _ => return Err(scheme()),
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        let (host, port) = split(authority);
        if host.is_empty() {
            return Err(TargetError::Host(text.to_owned()));
        }
        let port = match port {
            Some(port) => port.parse().ok().filter(|&port: &u16| port != 0),
            None => default_port,
        };
        Ok(Self {
            scheme: name.to_owned(),
            host: host.trim_matches(['[', ']']).to_owned(),
            port: port.ok_or_else(|| TargetError::Port(text.to_owned()))?,
            path: path.to_owned(),
            kind,
        })
    }
}

/// Host and port; an IPv6 address stands in brackets where a port follows.
fn split(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        match self.scheme.as_str() {
            "icmp" => write!(f, "icmp://{host}"),
            "tcp" | "udp" => write!(f, "{}://{host}:{}", self.scheme, self.port),
            _ => write!(f, "{}://{host}:{}{}", self.scheme, self.port, self.path),
        }
    }
}
