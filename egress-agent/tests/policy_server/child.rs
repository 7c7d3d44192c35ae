//! The server in a process of its own, so that its memory can be measured from outside.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use egress_agent::policy_server::authz::Binding;
use egress_agent::tls::Identity;

use crate::grpc::Client;
use crate::pki::Authority;
use crate::policy_server::{SERVER_ID, Server};
use crate::world::{DENIED, GATEWAY, GATEWAY_ID, STRANGER_ID, client, question, served};

const DIRECTORY: &str = "SALLYPORT_TEST_CERTS";
/// What a server may grow by, whatever is done to it. A build for tests, with its allocator's
/// arenas, needs a few MiB for each thing that the limits allow.
const GROWTH: u64 = 96 << 20;
/// What a gateway may wait while others attack.
const PATIENCE: Duration = Duration::from_secs(2);

/// Not a test: the process that [`Victim::start`] starts.
#[test]
#[ignore = "is started by other tests"]
fn the_server() {
    let Some(directory) = std::env::var_os(DIRECTORY) else {
        return;
    };
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Server::start(any, directory.as_ref(), Binding::Require);
    server.serve(served());
    println!("\nserving {}", server.address);
    // Until the test ends.
    let _ = std::io::stdin().read(&mut [0]);
}

/// A server under attack.
pub struct Victim {
    pub authority: Authority,
    pub address: SocketAddr,
    gateway: Identity,
    stranger: Identity,
    _certs: tempfile::TempDir,
    process: Child,
    errors: Option<JoinHandle<String>>,
    before: u64,
}

impl Victim {
    pub async fn start() -> Self {
        let authority = Authority::new("mesh");
        let certs = tempfile::tempdir().expect("a directory");
        authority
            .sign(&[SERVER_ID])
            .write(certs.path(), &[&authority]);
        let mut process = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "child::the_server", "--ignored", "--nocapture"])
            .env(DIRECTORY, certs.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("this program again");
        let errors = process.stderr.take().expect("piped");
        let errors = thread::spawn(move || read_all(errors));
        let output = BufReader::new(process.stdout.take().expect("piped"));
        let address = output
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("serving ")?.parse().ok())
            .expect("it serves");
        let gateway = authority.sign(&[GATEWAY_ID]).identity(&[&authority]);
        let stranger = authority.sign(&[STRANGER_ID]).identity(&[&authority]);
        let mut victim = Self {
            authority,
            address,
            gateway,
            stranger,
            _certs: certs,
            process,
            errors: Some(errors),
            before: 0,
        };
        // Warm: what a first call needs is not growth.
        victim.answers().await;
        victim.before = victim.memory();
        victim
    }

    pub async fn gateway(&self) -> Client {
        client(&self.gateway, GATEWAY, self.address)
            .await
            .expect("the gateway gets in")
    }

    pub async fn stranger(&self, from: IpAddr) -> Option<Client> {
        client(&self.stranger, from, self.address).await.ok()
    }

    /// A gateway that comes now gets an answer, in time.
    pub async fn answers(&self) {
        let begin = Instant::now();
        let gateway = self.gateway().await;
        Self::answers_to(&gateway).await;
        assert!(begin.elapsed() < PATIENCE, "took {:?}", begin.elapsed());
    }

    pub async fn answers_to(gateway: &Client) {
        let answer = tokio::time::timeout(PATIENCE, gateway.check(&question()))
            .await
            .expect("in time")
            .expect("an answer");
        assert_eq!(answer.verdict(), DENIED);
    }

    /// Resident bytes.
    fn memory(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.process.id()));
        let statm = statm.expect("it runs");
        let pages: u64 = statm
            .split(' ')
            .nth(1)
            .and_then(|pages| pages.parse().ok())
            .expect("a number of pages");
        pages * 4096
    }

    pub fn is_bounded(&self) {
        let grown = self.memory().saturating_sub(self.before);
        println!("grown by {} KiB", grown >> 10);
        assert!(grown < GROWTH, "it has grown by {} MiB", grown >> 20);
    }

    /// The attack is over: the server is well, and nothing in it has panicked.
    pub async fn survived(mut self) {
        self.is_bounded();
        self.answers().await;
        assert!(self.process.try_wait().expect("its state").is_none());
        let _ = self.process.kill();
        let _ = self.process.wait();
        let errors = self.errors.take().expect("read once").join();
        let errors = errors.expect("its errors");
        assert!(!errors.contains("panicked"), "{errors}");
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn read_all(mut errors: ChildStderr) -> String {
    let mut text = Vec::new();
    let _ = errors.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}
