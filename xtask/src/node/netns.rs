//! Network namespaces that have a name under `/run/netns`, as `ip netns` makes them.

use std::fs::{self, File};
use std::path::PathBuf;
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use super::tool;

/// Where `ip netns` keeps the names.
pub(super) const DIR: &str = "/run/netns";

/// A network namespace with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes it: loopback up, IPv6 without the delay of duplicate address detection.
    pub(super) fn create(name: String) -> Result<Self> {
        tool::run("ip", &["netns", "add", &name], "")?;
        let netns = Self { name };
        netns.sysctl(&[
            ("ipv6/conf/all/accept_dad", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/all/disable_ipv6", "0"),
            ("ipv6/conf/default/disable_ipv6", "0"),
        ])?;
        netns.ip("link set lo up\n")?;
        Ok(netns)
    }

    /// Its name below `/run/netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it; what `nsenter --net=` takes.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(DIR).join(&self.name)
    }

    /// Runs `ip` commands in it, one a line.
    pub fn ip(&self, batch: &str) -> Result<String> {
        tool::run("ip", &["-n", &self.name, "-batch", "-"], batch)
            .with_context(|| format!("in namespace {}:\n{batch}", self.name))
    }

    /// Feeds `nft` in it.
    pub fn nft(&self, ruleset: &str) -> Result<String> {
        let path = format!("--net={}", self.path().display());
        tool::run("nsenter", &[&path, "nft", "-f", "-"], ruleset)
            .with_context(|| format!("in namespace {}:\n{ruleset}", self.name))
    }

    /// Sets values below `/proc/sys/net` in it.
    pub fn sysctl(&self, values: &[(&str, &str)]) -> Result<()> {
        let values: Vec<(String, String)> = values
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        self.within(move || {
            for (key, value) in values {
                let path = format!("/proc/sys/net/{key}");
                fs::write(&path, value).with_context(|| format!("cannot set {path}"))?;
            }
            Ok(())
        })
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets that it makes stay in the
    /// namespace wherever they are used afterwards.
    pub fn within<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T> + Send + 'static,
    {
        let path = self.path();
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")?;
            work()
        })
        .join()
        .map_err(|_| anyhow!("the thread in namespace {} panicked", self.name))?
    }

    pub(super) fn delete(name: &str) -> Result<()> {
        tool::run("ip", &["netns", "del", name], "").map(drop)
    }
}
