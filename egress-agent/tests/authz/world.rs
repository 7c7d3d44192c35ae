//! A gateway, its policy server and its clients.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use egress_agent::policy_server::Served;
use egress_agent::policy_server::authz::Binding;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
use serde_json::Value;

use crate::client::{Answer, Connection};
use crate::config;
use crate::http2::AnyName;
use crate::mesh::{Authority, Leaf, client_config};
use crate::objects::{self, GATEWAY, GATEWAY_ID, Ports};
use crate::policy_server::{SERVER_ID, Server};
use crate::ports::free_port;
use crate::upstream;

fn envoy_binary() -> PathBuf {
    let path = std::env::var_os("SALLYPORT_ENVOY").map(PathBuf::from);
    path.filter(|path| path.is_file()).expect(
        "this test runs a real Envoy: run `cargo xtask tools` to get one, and set SALLYPORT_ENVOY \
         to its path (`cargo xtask test` does both)",
    )
}

/// Puts what proves an identity where it is looked for, each file at once.
pub fn put(directory: &Path, leaf: &Leaf, authority: &Authority) {
    fs::create_dir_all(directory).expect("a directory");
    for (name, content) in [
        ("ca.crt", &authority.pem()),
        ("tls.key", &leaf.key_pem),
        ("tls.crt", &leaf.pem),
    ] {
        let draft = directory.join("draft");
        fs::write(&draft, content).expect("a file");
        fs::rename(&draft, directory.join(name)).expect("a file in place");
    }
}

/// A gateway whose Envoy and policy server end with it.
pub struct World {
    pub ports: Ports,
    pub mesh: Authority,
    /// None while it is down.
    pub server: Option<Server>,
    policy_port: u16,
    binding: Binding,
    directory: tempfile::TempDir,
    envoy: Option<Child>,
}

impl World {
    /// A gateway with the standard objects.
    pub fn start() -> Self {
        Self::start_with(Binding::Require)
    }

    pub fn start_with(binding: Binding) -> Self {
        let mut world = Self::prepare(binding);
        let mesh = &world.mesh;
        let own = mesh.sign(&["gateway.test"], &[GATEWAY_ID]);
        put(&world.gateway_certs(), &own, mesh);
        put(&world.server_certs(), &mesh.sign(&[], &[SERVER_ID]), mesh);
        world.start_server();
        world.start_envoy();
        world
    }

    /// Nothing runs yet, and nobody has a certificate.
    pub fn prepare(binding: Binding) -> Self {
        Self {
            ports: Ports {
                http: free_port(),
                raw: free_port(),
                simple: free_port(),
                tls: free_port(),
                blind: free_port(),
            },
            mesh: Authority::new("mesh"),
            server: None,
            policy_port: free_port(),
            binding,
            directory: tempfile::tempdir().expect("a directory"),
            envoy: None,
        }
    }

    pub fn gateway_certs(&self) -> PathBuf {
        self.directory.path().join("gateway")
    }

    pub fn server_certs(&self) -> PathBuf {
        self.directory.path().join("agent")
    }

    /// Starts the policy server on the standard objects.
    pub fn start_server(&mut self) {
        let address = ([127, 0, 0, 1], self.policy_port).into();
        let server = Server::start(address, &self.server_certs(), self.binding);
        server.serve(self.standard());
        self.server = Some(server);
    }

    pub fn standard(&self) -> Served {
        objects::served(&objects::standard(&self.ports), &self.ports)
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("the policy server runs")
    }

    pub fn start_envoy(&mut self) {
        let upstream = upstream::serve_plain();
        let certs = self.gateway_certs();
        let text = config::bootstrap(&self.ports, self.policy_port, upstream, &certs);
        config::write_sds(&certs);
        let path = self.directory.path().join("envoy.json");
        fs::write(&path, text.to_string()).expect("a file");
        let file = |name: &str| fs::File::create(self.directory.path().join(name)).expect("a file");
        let envoy = Command::new(envoy_binary())
            .args(["--base-id", &self.ports.http.to_string()])
            .args(["--concurrency", "1", "--log-level", "warning"])
            .args(["--file-flush-interval-msec", "50"])
            .arg("--config-path")
            .arg(path)
            .stdout(file("access.log"))
            .stderr(file("envoy.log"))
            .spawn()
            .expect("Envoy starts");
        self.envoy = Some(envoy);
        self.until("Envoy listens", || {
            TcpStream::connect(config::address(self.ports.http)).is_ok()
        });
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("envoy.log")).unwrap_or_default()
    }

    /// Access log entries so far.
    pub fn access_log(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.directory.path().join("access.log"));
        text.unwrap_or_default()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// The first entry that is as expected; waits for it.
    pub fn logged(&self, expected: impl Fn(&Value) -> bool) -> Value {
        let mut found = Value::Null;
        let deadline = Instant::now() + Duration::from_secs(10);
        while found.is_null() {
            assert!(
                Instant::now() < deadline,
                "no such entry in the access log: {:#?}",
                self.access_log()
            );
            sleep(Duration::from_millis(20));
            found = self
                .access_log()
                .into_iter()
                .find(&expected)
                .unwrap_or_default();
        }
        found
    }

    /// TCP from an address to a port of the gateway.
    pub fn dial(from: &str, port: u16) -> TcpStream {
        let ip: Ipv4Addr = from.parse().expect("an address");
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None).expect("a socket");
        let own = SockaddrIn::from(SocketAddrV4::new(ip, 0));
        bind(fd.as_raw_fd(), &own).expect("an address of loopback");
        let gateway = SocketAddrV4::new(GATEWAY.parse().expect("an address"), port);
        connect(fd.as_raw_fd(), &SockaddrIn::from(gateway)).expect("Envoy listens");
        let stream = TcpStream::from(fd);
        let limit = Some(Duration::from_secs(10));
        stream.set_read_timeout(limit).expect("a timeout");
        stream
    }

    /// A connection with this certificate from this address, for this server name.
    pub fn connect(&self, leaf: Option<&Leaf>, from: &str, port: u16, sni: &str) -> Connection {
        // The gateway proves one name, whichever it is asked for.
        let verifier = AnyName::of_gateway(&self.mesh);
        self.connect_by(verifier, leaf, from, port, sni)
    }

    /// For a client that does not mind whether the gateway's certificate has expired.
    pub fn connect_blindly(&self, leaf: &Leaf, from: &str) -> Connection {
        let verifier = AnyName::of_gateway(&self.mesh).even_expired();
        self.connect_by(verifier, Some(leaf), from, self.ports.http, "gateway.test")
    }

    fn connect_by(
        &self,
        verifier: AnyName,
        leaf: Option<&Leaf>,
        from: &str,
        port: u16,
        sni: &str,
    ) -> Connection {
        let mut config = client_config(&self.mesh, leaf);
        Arc::get_mut(&mut config)
            .expect("nobody else has it")
            .dangerous()
            .set_certificate_verifier(Arc::new(verifier));
        let name = sni.to_owned().try_into().expect("a name");
        let session = rustls::ClientConnection::new(config, name).expect("a session");
        Connection::new(session, Self::dial(from, port))
    }

    pub fn identity(&self, account: &str) -> Leaf {
        self.mesh.identity("bookinfo", account)
    }

    /// `GET` as a service account of bookinfo, from an address.
    pub fn get(&self, account: &str, from: &str, authority: &str, path: &str) -> Answer {
        self.ask(account, from, self.ports.http, authority, path, "")
    }

    pub fn ask(
        &self,
        account: &str,
        from: &str,
        port: u16,
        authority: &str,
        path: &str,
        headers: &str,
    ) -> Answer {
        let leaf = self.identity(account);
        self.connect(Some(&leaf), from, port, "gateway.test")
            .ask("GET", authority, path, headers)
            .expect("an answer")
    }

    /// Waits for what is on its way.
    pub fn until(&self, what: &str, expected: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !expected() {
            let critical = self.log().contains("[critical]");
            assert!(
                !critical && Instant::now() < deadline,
                "{what}; Envoy says:\n{}",
                self.log()
            );
            sleep(Duration::from_millis(50));
        }
    }

    /// Whether a line of the policy server's metrics begins so, and its number.
    pub fn metric(&self, begin: &str) -> u64 {
        let metrics = self.server().metrics();
        let lines = metrics.lines().filter(|line| line.starts_with(begin));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut envoy) = self.envoy.take() {
            // It may have ended by itself; then there is nothing to end.
            let _ = envoy.kill();
            let _ = envoy.wait();
        }
    }
}
