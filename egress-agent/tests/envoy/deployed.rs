//! The gateway of `deploy/gateway` on this machine: its own bootstrap, arguments and hooks, with
//! other ports and paths.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use egress_agent::gateway::envoy::Authorization;
use egress_agent::gateway::{OutboundPolicy, Settings, compile, from_index, render};
use egress_agent::index::Index;
use egress_agent::policy_server::authz::Binding;
use egress_agent::policy_server::{Served, clients, gateway_pods};

use crate::client::{Answer, Connection};
use crate::gateway::{envoy_binary, free_port};
use crate::manifest;
use crate::mesh::{Authority, Leaf, client_config};
use crate::policy_server::{SERVER_ID, Server};
use crate::upstream;

/// The pod's address, for the agent.
const POD_IP: &str = "127.0.0.1";

struct Deployed {
    manifests: String,
    mesh: Authority,
    server: Option<Server>,
    address: SocketAddr,
    directory: tempfile::TempDir,
    port: u16,
    admin: u16,
    envoy: Child,
}

impl Deployed {
    /// Starts the policy server, and Envoy as the Deployment says.
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path();
        let mesh = Authority::new("mesh");
        let gateway = "spiffe://cluster.local/ns/sallyport-egress/sa/egress-gateway";
        put(
            &root.join("tls"),
            &mesh,
            &mesh.sign(&["gateway.test"], &[gateway]),
        );
        put(&root.join("agent"), &mesh, &mesh.sign(&[], &[SERVER_ID]));
        let server = Server::start(
            ([127, 0, 0, 1], 0).into(),
            &root.join("agent"),
            Binding::Off,
        );
        let address = server.address;
        let (port, admin) = (free_port(), free_port());
        let manifests = manifest::text()
            .replace("8443", &port.to_string())
            .replace("15000", &admin.to_string())
            .replace("9443", &address.port().to_string())
            .replace(
                "sallyport-policy.sallyport-system.svc.cluster.local",
                "127.0.0.1",
            )
            .replace("/etc/sallyport/tls", &path(&root.join("tls")))
            .replace("/etc/envoy", &path(&root.join("envoy")))
            .replace("$(POD_NAME)", "egress-gateway-0")
            // Seconds of draining.
            .replace("- \"20\"", "- \"2\"")
            .replace("sleep 25", "sleep 0");
        let config = manifest::object(&manifests, "ConfigMap");
        fs::create_dir(root.join("envoy")).expect("a directory");
        for (name, text) in config["data"].as_object().expect("files") {
            let file = root.join("envoy").join(name);
            fs::write(file, text.as_str().expect("text")).expect("a file");
        }
        let container = manifest::container(&manifests);
        assert_eq!(container.command, Some(vec!["envoy".to_owned()]));
        let envoy = Command::new(envoy_binary())
            .args(container.args.expect("arguments"))
            .current_dir("/")
            .stdout(fs::File::create(root.join("access.log")).expect("a file"))
            .stderr(fs::File::create(root.join("envoy.log")).expect("a file"))
            .spawn()
            .expect("Envoy starts");
        Self {
            manifests,
            mesh,
            server: Some(server),
            address,
            directory,
            port,
            admin,
            envoy,
        }
    }

    /// What the agent reads: the manifests, an open host and one for productpage alone.
    fn index(&self, outside: u16) -> Index {
        let mut index = manifest::index(&self.manifests, POD_IP);
        manifest::apply(&mut index, &POLICY.replace("PORT", &outside.to_string()));
        index
    }

    /// Serves what the agent makes of this.
    fn serve(&self, revision: &str, index: &Index) {
        let objects = from_index::objects(index, "cluster.local", None, OutboundPolicy::default());
        let (policy, problems) = compile(&objects);
        assert_eq!(problems, []);
        let settings = Settings {
            cert_dir: self.path("tls"),
            upstream_ca: self.path("tls/ca.crt"),
            authorization: Authorization::Rbac,
            binding: Binding::Off,
        };
        let server = self.server.as_ref().expect("it runs");
        server.serve(Served {
            revision: revision.to_owned(),
            resources: render(&policy, &settings, &BTreeMap::new()),
            gateway_pods: gateway_pods(index, "cluster.local"),
            clients: clients(index),
            policy,
        });
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn listens(&self) -> bool {
        TcpStream::connect(("127.0.0.1", self.port)).is_ok()
    }

    fn connect(&self, account: &str) -> Connection {
        let leaf = self.mesh.identity("bookinfo", account);
        let config = client_config(&self.mesh, Some(&leaf));
        let name = "gateway.test".try_into().expect("a name");
        let session = rustls::ClientConnection::new(config, name).expect("a session");
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("Envoy listens");
        let wait = Some(Duration::from_secs(10));
        stream.set_read_timeout(wait).expect("a timeout");
        Connection::new(session, stream)
    }

    fn get(&self, account: &str, host: &str) -> Answer {
        let answer = self.connect(account).ask("GET", host, "/", "");
        answer.expect("an answer")
    }

    /// Updates that Envoy took so far, by counter.
    fn updates(&self) -> Vec<String> {
        let request = "GET /stats?filter=update_success$ HTTP/1.1\r\nhost: localhost\r\n\
                       connection: close\r\n\r\n";
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin)).expect("it listens");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("it answers");
        let counters = text.lines().filter(|line| line.contains("update_success"));
        counters.map(str::to_owned).collect()
    }

    fn until(&self, what: &str, expected: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !expected() {
            let log = fs::read_to_string(self.path("envoy.log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "{what}; Envoy says:\n{log}");
            sleep(Duration::from_millis(50));
        }
    }

    fn is_current(&self, revision: &str) -> bool {
        let nodes = self.server.as_ref().map(Server::nodes).unwrap_or_default();
        let mut revisions = nodes.iter().map(|node| node.revision.as_deref());
        revisions.any(|it| it == Some(revision))
    }

    /// Kills the policy server.
    fn kill_server(&mut self) {
        drop(self.server.take());
        self.until("the server is gone", || {
            TcpStream::connect(self.address).is_err()
        });
    }
}

impl Drop for Deployed {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.envoy.kill();
        let _ = self.envoy.wait();
    }
}

fn path(path: &Path) -> String {
    path.to_str().expect("text").to_owned()
}

fn put(directory: &Path, mesh: &Authority, leaf: &Leaf) {
    fs::create_dir(directory).expect("a directory");
    let ca = mesh.pem();
    for (name, content) in [
        ("tls.crt", &leaf.pem),
        ("tls.key", &leaf.key_pem),
        ("ca.crt", &ca),
    ] {
        fs::write(directory.join(name), content).expect("a file");
    }
}

const POLICY: &str = r"
apiVersion: v1
kind: ServiceAccount
metadata: { name: productpage, namespace: bookinfo, labels: { account: productpage } }
---
apiVersion: sallyport.dev/v1alpha1
kind: ExternalService
metadata: { name: open, namespace: global }
spec:
  hosts: [open.localhost]
  ports: [{ number: PORT, egressGatewayRoutes: { portMatch: 80 } }]
---
apiVersion: sallyport.dev/v1alpha1
kind: ExternalService
metadata: { name: api, namespace: global }
spec:
  hosts: [api.localhost]
  ports: [{ number: PORT, egressGatewayRoutes: { portMatch: 80 } }]
---
apiVersion: sallyport.dev/v1alpha1
kind: AccessPolicy
metadata: { name: api, namespace: global }
spec:
  applyToDestinations:
  - { kind: EXTERNAL_SERVICE, port: { number: PORT }, selector: { name: api, namespace: global } }
  config:
    authz:
      allowedClients:
      - serviceAccountSelector: { namespace: bookinfo, labels: { account: productpage } }
";

#[test]
fn one_manifest_is_a_whole_gateway() {
    let mut gateway = Deployed::start();
    sleep(Duration::from_millis(300));
    assert!(!gateway.listens(), "not ready without configuration");
    let index = gateway.index(upstream::serve_plain());
    gateway.serve("r1", &index);
    gateway.until("it is ready", || gateway.listens());
    assert_eq!(gateway.get("productpage", "api.localhost").status, 200);
    assert!(gateway.get("reviews", "api.localhost").is_denied());
    assert_eq!(gateway.get("reviews", "open.localhost").status, 200);
    assert!(gateway.get("productpage", "other.localhost").is_denied());
    gateway.until("it is current", || gateway.is_current("r1"));

    // The policy server is killed: what stands goes on.
    let before = gateway.updates();
    assert!(before.len() >= 4, "{before:?}");
    gateway.kill_server();
    assert_eq!(gateway.get("productpage", "api.localhost").status, 200);
    assert!(gateway.get("reviews", "api.localhost").is_denied());

    // It is back with the same: nothing is sent again. What changes then arrives.
    let server = Server::start(gateway.address, &gateway.path("agent"), Binding::Off);
    gateway.server = Some(server);
    gateway.serve("r2", &index);
    gateway.until("it is back", || gateway.is_current("r2"));
    assert_eq!(gateway.updates(), before);
    let mut more = index.clone();
    let labelled = "{apiVersion: v1, kind: ServiceAccount, metadata: {name: reviews, \
                    namespace: bookinfo, labels: {account: productpage}}}";
    manifest::apply(&mut more, labelled);
    gateway.serve("r3", &more);
    gateway.until("reviews gets through", || {
        gateway.get("reviews", "api.localhost").status == 200
    });

    // The object is deleted, and no pod is a gateway's any more.
    let mut standing = gateway.connect("productpage");
    let answer = standing.ask("GET", "api.localhost", "/", "");
    assert_eq!(answer.expect("an answer").status, 200);
    let mut none = Index::default();
    manifest::apply(&mut none, &POLICY.replace("PORT", "1"));
    gateway.serve("r4", &none);
    gateway.until("nobody listens", || !gateway.listens());
    gateway.until("it lost its stream", || {
        gateway
            .server
            .as_ref()
            .is_some_and(|it| it.nodes().is_empty())
    });
    let answer = standing.ask("GET", "api.localhost", "/", "");
    assert!(answer.is_err() || answer.is_ok_and(|it| it.status != 200));
    assert!(gateway.envoy.try_wait().expect("its state").is_none());
}

#[test]
fn before_a_pod_stops_its_clients_are_told_to_go() {
    let mut gateway = Deployed::start();
    gateway.serve("r", &gateway.index(upstream::serve_plain()));
    gateway.until("it is ready", || gateway.listens());
    let mut standing = gateway.connect("productpage");
    let answer = standing
        .ask("GET", "api.localhost", "/", "")
        .expect("an answer");
    assert!(
        !answer.head.contains("connection: close"),
        "{}",
        answer.head
    );

    let container = manifest::container(&gateway.manifests);
    let hook = container
        .lifecycle
        .and_then(|it| it.pre_stop)
        .and_then(|it| it.exec);
    let command = hook.and_then(|it| it.command).expect("a command");
    let output = Command::new(&command[0])
        .args(&command[1..])
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.starts_with("HTTP/1.1 200"),
        "{output:?}"
    );

    // New clients are still served for a while.
    assert_eq!(gateway.get("productpage", "api.localhost").status, 200);
    gateway.until("nobody listens", || !gateway.listens());
    let answer = standing.ask("GET", "api.localhost", "/", "");
    let told = answer
        .as_ref()
        .map(|it| it.head.contains("connection: close"));
    assert!(told.unwrap_or(true), "{answer:?}");
    assert!(
        gateway.envoy.try_wait().expect("its state").is_none(),
        "it runs until it is told"
    );
}
