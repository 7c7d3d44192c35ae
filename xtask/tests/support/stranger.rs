//! What a stranger with root on the node does is noticed, told, and undone.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{Agent, Cluster};

/// It is noticed, and put back, within this time.
const NOTICED: Duration = Duration::from_secs(1);
/// TCP has repeated by then what it lost in a cut that was as long as a look takes to come.
const RECOVERY: Duration = Duration::from_millis(700);
/// Between a pass and another one that follows it.
const QUIET: Duration = Duration::from_secs(1);
/// The best of so many: a busy machine is no fault of the agent's.
const TRIES: usize = 3;

/// Where the agent has its pins.
pub struct Pins(PathBuf);

impl Pins {
    pub fn of(cluster: &Cluster) -> Self {
        let layouts = fs::read_dir(cluster.node.bpffs().join("sallyport")).expect("pins");
        let paths = layouts.map(|entry| entry.expect("a layout").path());
        let mut layouts = paths.filter(|path| !path.is_symlink());
        Self(layouts.next().expect("a layout"))
    }

    /// Names of the maps.
    pub fn maps(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.0.join("maps")).expect("maps");
        let name = |entry: fs::DirEntry| entry.file_name().into_string().expect("a name");
        entries.map(|entry| name(entry.expect("a map"))).collect()
    }

    pub fn link(&self, name: &str) -> PathBuf {
        self.0.join("links").join(name)
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.0.join("maps").join(name)
    }
}

/// A pass that has written something says so at its end.
const PASS: &str = "\"reconciled\"";

/// Waits until there is nothing to write any more.
pub fn settled(cluster: &Cluster) {
    let count = || cluster.log().matches(PASS).count();
    let mut before = count();
    loop {
        sleep(QUIET);
        let now = count();
        if now == before {
            return;
        }
        before = now;
    }
}

/// Does it, and waits until a pass has undone it; three times.
pub fn undone(
    cluster: &Cluster,
    agent: &mut Agent,
    event: &str,
    what: &str,
    deed: impl Fn(),
    is_back: impl Fn() -> bool,
) {
    // What is done while a pass undoes it already may be undone with it, and not told apart.
    undone_with(cluster, agent, &[event, PASS], what, deed, is_back);
}

/// Does it, and waits until it is undone and the log has a new line with each of these; three times.
pub fn undone_with(
    cluster: &Cluster,
    agent: &mut Agent,
    lines: &[&str],
    what: &str,
    deed: impl Fn(),
    is_back: impl Fn() -> bool,
) {
    let mut best = Duration::MAX;
    for _ in 0..TRIES {
        let count = |line: &str| cluster.log().matches(line).count();
        let before: Vec<usize> = lines.iter().map(|line| count(line)).collect();
        let begun = Instant::now();
        deed();
        agent.wait(cluster, what, |_| is_back().then_some(()));
        best = best.min(begun.elapsed());
        for (line, before) in lines.iter().zip(before) {
            agent.wait(cluster, &format!("{what}: {line}"), |_| {
                (count(line) > before).then_some(())
            });
        }
        // What was lost meanwhile is sent again by then: cuts in a row would add up.
        sleep(RECOVERY);
    }
    println!("{what}: undone after {best:?} at best");
    assert!(best < NOTICED, "{what}: {best:?}");
}

/// The agent's metrics.
pub struct Metrics(String);

impl Metrics {
    /// Agents that are started from now on serve them.
    pub fn asked_for(cluster: &mut Cluster) -> Self {
        let bind = || {
            let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
            Ok(listener.local_addr()?.port())
        };
        let port = cluster.node.host().within(bind).expect("a port");
        let address = format!("127.0.0.1:{port}");
        let flags = ["--metrics-address".to_owned(), address.clone()];
        cluster.flags.extend(flags);
        Self(address)
    }

    /// Those of this kind so far.
    pub fn disturbances(&self, cluster: &Cluster, kind: &str) -> u64 {
        let address = self.0.clone();
        let text = cluster.node.host().within(move || get(&address));
        let text = text.expect("metrics");
        let counted = format!("sallyport_disturbances_total{{kind=\"{kind}\"}} ");
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(&counted));
        let number = lines.next();
        let number = number.unwrap_or_else(|| panic!("no {counted} in {text}"));
        number.parse().expect("a number")
    }
}

fn get(address: &str) -> anyhow::Result<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
