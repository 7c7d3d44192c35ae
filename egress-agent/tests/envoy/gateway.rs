//! A gateway under test: a real Envoy fed by the writer, and a client of it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use egress_agent::api::{AccessPolicy, ExternalService, VirtualGateway};
use egress_agent::gateway::{
    Decision, Declared, GatewayObject, GatewayObjects, GatewayPolicy, ObjectName, OutboundPolicy,
    Problem, Request, Settings, SpiffeId, Writer, compile, decide_access, envoy, render,
};

use serde_json::{Value, json};

use crate::client::{Answer, Connection};
use crate::mesh::{Authority, Leaf, client_config};

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

/// Objects in YAML, as an operator writes them.
#[derive(Clone, Default)]
pub struct Objects {
    pub gateways: Vec<VirtualGateway>,
    pub services: Vec<ExternalService>,
    pub policies: Vec<AccessPolicy>,
    pub outbound: OutboundPolicy,
}

impl Objects {
    pub fn parse(yaml: &str) -> Self {
        let mut objects = Self::default();
        for document in yaml.split("\n---\n") {
            let value: serde_json::Value = serde_yaml_ng::from_str(document).expect("YAML");
            let kind = value["kind"].as_str().expect("a kind").to_owned();
            match kind.as_str() {
                "VirtualGateway" => objects.gateways.push(read(value)),
                "ExternalService" => objects.services.push(read(value)),
                "AccessPolicy" => objects.policies.push(read(value)),
                other => panic!("unexpected kind {other}"),
            }
        }
        objects
    }

    pub fn compile(&self) -> (GatewayPolicy, Vec<Problem>) {
        let accounts = [
            ("productpage", true),
            ("reviews", false),
            ("ratings", false),
        ];
        let labels = BTreeMap::from([("account".to_owned(), "productpage".to_owned())]);
        compile(&GatewayObjects {
            trust_domain: "cluster.local".to_owned(),
            cluster: Some("here".to_owned()),
            outbound: self.outbound,
            gateways: self
                .gateways
                .iter()
                .map(|object| GatewayObject {
                    id: name_of(&object.metadata),
                    spec: &object.spec,
                    target_ports: BTreeMap::new(),
                })
                .collect(),
            external_services: self
                .services
                .iter()
                .map(|object| declared(&object.metadata, &object.spec))
                .collect(),
            access_policies: self
                .policies
                .iter()
                .map(|object| declared(&object.metadata, &object.spec))
                .collect(),
            service_accounts: accounts
                .map(|(name, labelled)| Declared {
                    id: ObjectName::new("bookinfo", name),
                    labels: labelled.then_some(&labels),
                    spec: &(),
                })
                .to_vec(),
        })
    }
}

fn name_of(meta: &kube::core::ObjectMeta) -> ObjectName {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    ObjectName {
        namespace: text(&meta.namespace),
        name: text(&meta.name),
    }
}

fn declared<'a, S>(meta: &'a kube::core::ObjectMeta, spec: &'a S) -> Declared<'a, S> {
    Declared {
        id: name_of(meta),
        labels: meta.labels.as_ref(),
        spec,
    }
}

fn read<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).expect("an object of its kind")
}

/// A port that nobody has.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port of loopback");
    listener.local_addr().expect("an address").port()
}

/// A gateway whose Envoy ends with it.
pub struct Gateway {
    pub port: u16,
    pub mesh: Authority,
    directory: tempfile::TempDir,
    writer: Writer,
    settings: Settings,
    envoy: Option<Child>,
    policy: GatewayPolicy,
}

impl Gateway {
    /// Starts an Envoy on these objects, whose gateway is `istio-egress/egress-vg` on `port`.
    pub fn start(port: u16, objects: &Objects, outside: &Authority) -> Self {
        let mut gateway = Self::prepare(port, outside);
        gateway.apply(objects);
        let log = fs::File::create(gateway.path("envoy.log")).expect("a log file");
        let access = fs::File::create(gateway.path("access.log")).expect("a log file");
        let envoy = Command::new(envoy_binary())
            .args([
                "--base-id",
                &port.to_string(),
                "--concurrency",
                "1",
                "--log-level",
                "warning",
            ])
            .args(["--file-flush-interval-msec", "50"])
            .arg("--config-path")
            .arg(gateway.path("bootstrap.json"))
            .stdout(access)
            .stderr(log)
            .spawn()
            .expect("Envoy starts");
        gateway.envoy = Some(envoy);
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

    /// Certificates, bootstrap and an empty configuration.
    pub fn prepare(port: u16, outside: &Authority) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path();
        let mesh = Authority::new("mesh");
        let own = mesh.sign(
            &["gateway.test"],
            &["spiffe://cluster.local/ns/istio-egress/sa/istio-egressgateway"],
        );
        let certs = root.join("certs");
        fs::create_dir(&certs).expect("a directory");
        let put =
            |name: &str, content: String| fs::write(certs.join(name), content).expect("a file");
        put("tls.crt", own.pem);
        put("tls.key", own.key_pem);
        put("ca.crt", mesh.pem());
        put("outside.crt", outside.pem());
        let settings = Settings {
            upstream_ca: certs.join("outside.crt"),
            cert_dir: certs,
            config_dir: root.join("config"),
        };
        let id = ObjectName::new("istio-egress", "egress-vg");
        let bootstrap = envoy::bootstrap(&id, &settings.config_dir);
        fs::write(root.join("bootstrap.json"), bootstrap).expect("a file");
        let writer = Writer::new(&settings.config_dir);
        let policy = GatewayPolicy::default();
        Self {
            port,
            mesh,
            directory,
            writer,
            settings,
            envoy: None,
            policy,
        }
    }

    /// Writes configuration for these objects.
    pub fn apply(&mut self, objects: &Objects) {
        let (policy, problems) = objects.compile();
        assert_eq!(problems, [], "the test's objects are sound");
        self.writer
            .write(&render(&policy, &self.settings))
            .expect("files are written");
        self.policy = policy;
    }

    /// Lets Envoy judge the configuration, all in one file since it looks into no other in this
    /// mode; its complaint if it has one.
    pub fn validate(&self) -> Result<(), String> {
        let own = self.settings.config_dir.join("istio-egress.egress-vg");
        let resources = |name: &str| {
            let text = fs::read_to_string(own.join(name)).expect("it was written");
            let response: Value = serde_json::from_str(&text).expect("JSON");
            let mut resources = response["resources"].clone();
            for resource in resources.as_array_mut().expect("a list") {
                resource.as_object_mut().expect("an object").remove("@type");
            }
            resources
        };
        let secret = |name: &str| resources(name)[0].clone();
        let mut listeners = resources("lds.json");
        for listener in listeners.as_array_mut().expect("a list") {
            let chain = &mut listener["filter_chains"][0];
            let tls = &mut chain["transport_socket"]["typed_config"]["common_tls_context"];
            tls["tls_certificate_sds_secret_configs"] = json!([{ "name": "certificate" }]);
            tls["validation_context_sds_secret_config"] = json!({ "name": "trust" });
            let manager = &mut chain["filters"][0]["typed_config"];
            let routes = manager["rds"]["route_config_name"]
                .as_str()
                .expect("a name")
                .to_owned();
            manager.as_object_mut().expect("an object").remove("rds");
            manager["route_config"] = secret(&format!("{routes}.json"));
        }
        let bootstrap = json!({ "static_resources": {
            "listeners": listeners,
            "clusters": resources("cds.json"),
            "secrets": [secret("sds-certificate.json"), secret("sds-trust.json")],
        } });
        let path = self.path("static.json");
        fs::write(&path, bootstrap.to_string()).expect("a file");
        let output = Command::new(envoy_binary())
            .args([
                "--mode",
                "validate",
                "--base-id",
                &self.port.to_string(),
                "--config-path",
            ])
            .arg(path)
            .output()
            .expect("Envoy starts");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            Ok(())
        } else {
            Err(text)
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn certs(&self) -> &Path {
        &self.settings.cert_dir
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
        let config = client_config(&self.mesh, leaf);
        let name = "gateway.test".try_into().expect("a name");
        let session = rustls::ClientConnection::new(config, name).expect("a session");
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("Envoy listens");
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
                "{what}; Envoy says:\n{}",
                self.log()
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
