//! A gateway under test: a real Envoy fed by the policy server, and a client of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use egress_agent::gateway::envoy::{Authorization, Bootstrap, files};
use egress_agent::gateway::{
    Decision, GatewayPolicy, ObjectName, Request, Settings, SpiffeId, decide_access,
    decide_connection, render,
};
use egress_agent::policy_server::authz::Binding;
use egress_agent::policy_server::{GatewayPod, PodAccount, Served, owners};

use crate::client::{Answer, Connection};
use crate::mesh::{Authority, Leaf, client_config};
use crate::policy_server::{SERVER_ID, Server, server_id};

/// The binary, or how to come by it.
pub fn envoy_binary() -> PathBuf {
    let path = std::env::var_os("SALLYPORT_ENVOY").map(PathBuf::from);
    match path {
        Some(path) if path.is_file() => path,
        Some(path) => panic!(
            "SALLYPORT_ENVOY={} is no file; run `cargo xtask tools`",
            path.display()
        ),
        None => panic!(
            "this test runs a real Envoy: run `cargo xtask tools` to get one, and set \
             SALLYPORT_ENVOY to its path (`cargo xtask test` does both)"
        ),
    }
}

#[path = "objects.rs"]
mod objects;

pub use crate::ports::free_port;
pub use objects::Objects;

/// Who the gateway is.
pub const GATEWAY_ID: &str = "spiffe://cluster.local/ns/istio-egress/sa/istio-egressgateway";

/// A gateway whose Envoy and policy server end with it.
pub struct Gateway {
    pub port: u16,
    pub mesh: Authority,
    pub server: Server,
    /// Whose address it is.
    pub clients: BTreeMap<IpAddr, PodAccount>,
    directory: tempfile::TempDir,
    settings: Settings,
    envoy: Option<Child>,
    policy: GatewayPolicy,
    revision: u32,
    /// Port of Envoy's own interface.
    admin: u16,
}

impl Gateway {
    /// Starts an Envoy on these objects, whose gateway is `istio-egress/egress-vg` on `port`.
    pub fn start(
        port: u16,
        objects: &Objects,
        outside: &Authority,
        authorization: Authorization,
    ) -> Self {
        let mut gateway = Self::prepare(port, outside, authorization);
        gateway.apply(objects);
        gateway.run();
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                Instant::now() < deadline,
                "Envoy does not listen:\n{}",
                gateway.log()
            );
            sleep(Duration::from_millis(50));
        }
        gateway
    }

    /// Certificates, bootstrap and a policy server without policy, which binds no client.
    pub fn prepare(port: u16, outside: &Authority, authorization: Authorization) -> Self {
        Self::prepare_bound(port, outside, authorization, Binding::Off)
    }

    /// The same for clients who are bound to the addresses of [`Self::clients`].
    pub fn prepare_bound(
        port: u16,
        outside: &Authority,
        authorization: Authorization,
        binding: Binding,
    ) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path();
        let mesh = Authority::new("mesh");
        let put = |directory: &Path, leaf: &Leaf| {
            fs::create_dir(directory).expect("a directory");
            for (name, content) in [
                ("tls.crt", &leaf.pem),
                ("tls.key", &leaf.key_pem),
                ("ca.crt", &mesh.pem()),
            ] {
                fs::write(directory.join(name), content).expect("a file");
            }
        };
        let certs = root.join("certs");
        put(&certs, &mesh.sign(&["gateway.test"], &[GATEWAY_ID]));
        fs::write(certs.join("outside.crt"), outside.pem()).expect("a file");
        let agent = root.join("agent");
        put(&agent, &mesh.sign(&[], &[SERVER_ID]));
        let server = Server::start(([127, 0, 0, 1], 0).into(), &agent, binding);
        let admin = free_port();
        let files = files(&Bootstrap {
            gateway: ObjectName::new("istio-egress", "egress-vg"),
            server: ("127.0.0.1".to_owned(), server.address.port()),
            server_id: server_id(),
            cert_dir: certs.clone(),
            config_dir: root.to_owned(),
            admin_port: Some(admin),
        });
        for (name, text) in files {
            fs::write(root.join(name), text).expect("a file");
        }
        Self {
            port,
            mesh,
            server,
            clients: BTreeMap::new(),
            settings: Settings {
                upstream_ca: certs.join("outside.crt"),
                cert_dir: certs,
                authorization,
                binding,
            },
            directory,
            envoy: None,
            policy: GatewayPolicy::default(),
            revision: 0,
            admin,
        }
    }

    /// Starts Envoy.
    pub fn run(&mut self) {
        let log = fs::File::create(self.path("envoy.log")).expect("a log file");
        let access = fs::File::create(self.path("access.log")).expect("a log file");
        let envoy = Command::new(envoy_binary())
            .args(["--base-id", &self.port.to_string()])
            .args(["--concurrency", "1", "--log-level", "warning"])
            .args(["--file-flush-interval-msec", "50"])
            .args(["--service-node", "gateway-under-test"])
            .arg("--config-path")
            .arg(self.path("bootstrap.json"))
            .stdout(access)
            .stderr(log)
            .spawn()
            .expect("Envoy starts");
        self.envoy = Some(envoy);
    }

    /// Envoy's process id.
    #[allow(dead_code, reason = "for the benchmark")]
    pub fn process(&self) -> u32 {
        self.envoy.as_ref().expect("it runs").id()
    }

    /// One of Envoy's counters or gauges; 0 for one that there is not yet.
    #[allow(dead_code, reason = "each test binary uses its own part")]
    pub fn stat(&self, name: &str) -> u64 {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin)).expect("Envoy listens");
        let request = format!(
            "GET /stats?filter={name} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(": ")?.parse().ok();
        answer.lines().find_map(value).unwrap_or(0)
    }

    /// Serves policy for these objects.
    pub fn apply(&mut self, objects: &Objects) {
        let (policy, problems) = objects.compile();
        assert_eq!(problems, [], "the test's objects are sound");
        self.serve(policy);
    }

    fn serve(&mut self, policy: GatewayPolicy) {
        self.revision += 1;
        let id = ObjectName::new("istio-egress", "egress-vg");
        let pod = GatewayPod {
            identity: SpiffeId::parse(GATEWAY_ID).expect("an identity"),
            gateways: BTreeSet::from([id]),
        };
        self.server.serve(Served {
            revision: self.revision.to_string(),
            resources: render(
                &policy,
                &self.settings,
                &owners(&self.clients, "cluster.local"),
            ),
            policy: policy.clone(),
            gateway_pods: BTreeMap::from([
                (Ipv4Addr::LOCALHOST.into(), pod.clone()),
                (Ipv6Addr::LOCALHOST.into(), pod),
            ]),
            clients: self.clients.clone(),
        });
        self.policy = policy;
    }

    /// Envoy's complaint about what is served, if it has one; it is started for that.
    pub fn validate(&mut self) -> Result<(), String> {
        if self.envoy.is_none() {
            self.run();
        }
        let revision = self.revision.to_string();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            for node in self.server.nodes() {
                if let Some(rejection) = node.rejected.values().next() {
                    return Err(rejection.message.clone());
                }
                // Listeners are warm once their routes and secrets are there.
                let listens = || TcpStream::connect(("127.0.0.1", self.port)).is_ok();
                if node.revision.as_ref() == Some(&revision) && listens() {
                    return Ok(());
                }
            }
            assert!(
                Instant::now() < deadline,
                "Envoy is silent: {:?}\n{}",
                self.server.nodes(),
                self.log()
            );
            sleep(Duration::from_millis(20));
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn certs(&self) -> &Path {
        &self.settings.cert_dir
    }

    /// Where the policy server has its certificates.
    pub fn agent_certs(&self) -> PathBuf {
        self.path("agent")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("envoy.log")).unwrap_or_default()
    }

    /// Access log entries so far.
    pub fn access_log(&self) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.path("access.log")).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    pub fn identity(&self, account: &str) -> Leaf {
        self.mesh.identity("bookinfo", account)
    }

    /// A connection as this client.
    pub fn connect(&self, leaf: Option<&Leaf>) -> Connection {
        self.connect_by(client_config(&self.mesh, leaf))
    }

    pub fn connect_by(&self, config: Arc<rustls::ClientConfig>) -> Connection {
        self.connect_to(Ipv4Addr::LOCALHOST.into(), config)
    }

    /// A connection to one of the gateway's addresses, from the same.
    pub fn connect_to(&self, ip: IpAddr, config: Arc<rustls::ClientConfig>) -> Connection {
        let name = "gateway.test".try_into().expect("a name");
        let session = rustls::ClientConnection::new(config, name).expect("a session");
        let stream = TcpStream::connect((ip, self.port)).expect("Envoy listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a timeout");
        Connection::new(session, stream)
    }

    pub fn get(&self, account: &str, authority: &str, path: &str) -> Answer {
        self.ask(account, "GET", authority, path, "")
            .expect("an answer")
    }

    pub fn ask(
        &self,
        account: &str,
        method: &str,
        authority: &str,
        path: &str,
        headers: &str,
    ) -> std::io::Result<Answer> {
        let leaf = self.identity(account);
        self.connect(Some(&leaf))
            .ask(method, authority, path, headers)
    }

    /// What [`decide_connection`] says to a connection for this server name.
    pub fn decide_connection(&self, account: &str, sni: &str) -> Decision {
        let gateway = ObjectName::new("istio-egress", "egress-vg");
        let client = SpiffeId::new("cluster.local", "bookinfo", account).expect("an identity");
        let connection = egress_agent::gateway::Connection {
            gateway: &gateway,
            listener: self.port,
            client: &client,
            client_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            sni,
        };
        decide_connection(&self.policy, &connection)
    }

    /// What [`decide_access`] says to the same request.
    pub fn decide(
        &self,
        account: &str,
        method: &str,
        authority: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Decision {
        let gateway = ObjectName::new("istio-egress", "egress-vg");
        let client = SpiffeId::new("cluster.local", "bookinfo", account).expect("an identity");
        decide_access(
            &self.policy,
            &Request {
                gateway: &gateway,
                listener: self.port,
                client: &client,
                client_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
                authority,
                method,
                path,
                normalized: false,
                headers,
            },
        )
    }

    /// Asks until the answer is as expected, for configuration that is on its way.
    pub fn until(&self, what: &str, expected: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !expected() {
            assert!(
                Instant::now() < deadline,
                "{what}; Envoy says:\n{}\n{:?}",
                self.log(),
                self.access_log()
            );
            sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut envoy) = self.envoy.take() {
            // It may have ended by itself; then there is nothing to end.
            let _ = envoy.kill();
            let _ = envoy.wait();
        }
    }
}
