//! `query.sock` in the run directory: what the gateways' policy says to a question, for `egressctl`.
//!
//! One line of JSON each way. Who may open the socket (root) may ask about every pod.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use super::xds::{NodeState, XdsStatus};
use super::{PodAccount, Served};
use crate::gateway::access::AccessReason;
use crate::gateway::policy::Listener;
use crate::gateway::{
    Connection, Decision, ObjectName, Request, SpiffeId, decide_access, decide_connection, trial,
};

/// Name of the socket in the run directory.
pub const FILE: &str = "query.sock";
/// A question is no longer than this, in bytes.
const MAX_QUESTION: u64 = 64 << 10;
/// Questions at once, and how long one may take.
const AT_ONCE: usize = 8;
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);

/// May this pod have that?
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Question {
    pub namespace: String,
    pub pod: String,
    /// `http`; `https`: TLS to the host, begun by the pod or by the gateway; or `tcp`: by name.
    pub scheme: String,
    pub host: String,
    pub port: u16,
    pub method: String,
    /// Path and query.
    pub path: String,
    pub headers: Vec<(String, String)>,
}

/// What the gateways would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyAnswer {
    /// State of policy that answered.
    pub revision: String,
    /// The pod's SPIFFE ID; none if the agent does not know the pod.
    pub client: Option<String>,
    /// For each gateway and listener, and each way to ask it.
    pub ways: Vec<Way>,
    /// Envoys that have refused a part of their configuration.
    pub rejected: Vec<NodeState>,
}

/// One way through one gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Way {
    /// `namespace/name` of the `VirtualGateway`.
    pub gateway: String,
    /// Port of its pods.
    pub listener: u16,
    /// How the pod asks: `http://host:80/path` (the gateway originates TLS where that is
    /// configured), or `tls://host` for TLS of its own.
    pub ask: String,
    pub allowed: bool,
    pub reason: String,
    pub service: Option<String>,
    /// Entry that admits it.
    pub object: Option<String>,
    /// What it would be with the dry-run entries.
    pub dry_run: Option<bool>,
    pub trials: Vec<Tried>,
}

/// An entry that was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tried {
    pub entry: String,
    pub dry_run: bool,
    /// Fields that don't hold.
    pub failed: Vec<String>,
}

/// Answers from one state of policy. Pure.
pub fn answer(served: &Served, question: &Question) -> PolicyAnswer {
    let mut answer = PolicyAnswer {
        revision: served.revision.clone(),
        ..PolicyAnswer::default()
    };
    let owned = served
        .clients
        .iter()
        .find(|(_, owner)| owner.namespace == question.namespace && owner.pod == question.pod);
    let Some((
        &client_ip,
        PodAccount {
            namespace,
            service_account,
            ..
        },
    )) = owned
    else {
        return answer;
    };
    let Ok(client) = SpiffeId::new(&served.policy.trust_domain, namespace, service_account) else {
        return answer;
    };
    answer.client = Some(client.to_string());
    for (gateway, policy) in &served.policy.gateways {
        for (&listener, served_here) in &policy.listeners {
            for authority in authorities(served_here, question) {
                let headers: Vec<(&str, &str)> = question
                    .headers
                    .iter()
                    .map(|(name, value)| (name.as_str(), value.as_str()))
                    .collect();
                let request = Request {
                    gateway,
                    listener,
                    client: &client,
                    client_ip,
                    authority: &authority,
                    method: &question.method,
                    path: &question.path,
                    normalized: false,
                    headers: &headers,
                };
                let decision = decide_access(&served.policy, &request);
                let trials = trial::of_request(&served.policy, &request);
                let ask = format!("http://{authority}{}", question.path);
                answer
                    .ways
                    .push(way(gateway, listener, ask, &decision, trials));
            }
            if question.scheme != "http" {
                let connection = Connection {
                    gateway,
                    listener,
                    client: &client,
                    client_ip,
                    sni: &question.host,
                };
                let decision = decide_connection(&served.policy, &connection);
                if decision.reason != AccessReason::UnknownHost {
                    let trials = trial::of_connection(&served.policy, &connection);
                    let port = trial::port_of_connection(&served.policy, &connection);
                    let ask = format!("tls://{}", question.host);
                    let mut way = way(gateway, listener, ask, &decision, trials);
                    if port.is_some_and(|port| port != question.port) {
                        // A server name names no port: this way leads to another one.
                        way.allowed = false;
                        AccessReason::UnknownPort
                            .as_str()
                            .clone_into(&mut way.reason);
                        way.object = None;
                    }
                    answer.ways.push(way);
                }
            }
        }
    }
    // What is allowed first; of what is not, what came nearest.
    answer
        .ways
        .sort_by_key(|way| (!way.allowed, way.service.is_none()));
    answer
}

/// How a request for this is written: as asked, and for `https` by each client port from which a
/// gateway originates TLS to that port.
fn authorities(listener: &Listener, question: &Question) -> Vec<String> {
    if question.scheme == "tcp" {
        return Vec::new();
    }
    if question.scheme != "https" {
        return vec![format!("{}:{}", question.host, question.port)];
    }
    let ports = listener
        .routes_of(&question.host)
        .into_iter()
        .flatten()
        .filter(|(_, route)| route.upstream.tls.is_some() && route.upstream.port == question.port)
        .map(|(&port, _)| port);
    let found: Vec<String> = ports
        .map(|port| format!("{}:{port}", question.host))
        .collect();
    if found.is_empty() {
        // So that the answer says why not.
        return vec![format!("{}:80", question.host)];
    }
    found
}

fn way(
    gateway: &ObjectName,
    listener: u16,
    ask: String,
    decision: &Decision,
    trials: Vec<trial::Trial>,
) -> Way {
    let object = decision.object.as_ref().zip(decision.entry);
    Way {
        gateway: gateway.to_string(),
        listener,
        ask,
        allowed: decision.allowed,
        reason: decision.reason.as_str().to_owned(),
        service: decision
            .service
            .as_ref()
            .map(|service| format!("ExternalService/{service}")),
        object: object.map(|(policy, entry)| format!("AccessPolicy/{policy}#{entry}")),
        dry_run: decision.dry_run,
        trials: trials
            .into_iter()
            .map(|trial| Tried {
                entry: trial.entry,
                dry_run: trial.dry_run,
                failed: trial.failed.into_iter().map(str::to_owned).collect(),
            })
            .collect(),
    }
}

/// The listening socket.
#[derive(Debug)]
pub struct QuerySocket {
    listener: UnixListener,
    served: watch::Receiver<Arc<Served>>,
    status: XdsStatus,
}

impl QuerySocket {
    /// Makes the socket, for root only, in the place of one that a killed agent left. The run
    /// directory is locked, so nobody else answers there.
    pub fn bind(
        run_dir: &Path,
        served: watch::Receiver<Arc<Served>>,
        status: XdsStatus,
    ) -> io::Result<Self> {
        let (path, draft) = (run_dir.join(FILE), run_dir.join(format!("{FILE}.new")));
        match std::fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&draft)?;
        std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&draft, &path)?;
        Ok(Self {
            listener,
            served,
            status,
        })
    }

    /// Answers for ever; drop the future to stop.
    pub async fn run(self) {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            let Ok((stream, _)) = self.listener.accept().await else {
                sleep(PAUSE).await;
                continue;
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                continue;
            };
            let served = self.served.borrow().clone();
            let nodes = self.status.follow();
            tokio::spawn(async move {
                let _place = place;
                let rejected = nodes
                    .borrow()
                    .values()
                    .filter(|node| !node.rejected.is_empty())
                    .cloned()
                    .collect();
                // Who asks sees that no answer came.
                let _ = timeout(PATIENCE, serve(stream, &served, rejected)).await;
            });
        }
    }
}

async fn serve(stream: UnixStream, served: &Served, rejected: Vec<NodeState>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    (&mut stream)
        .take(MAX_QUESTION)
        .read_line(&mut line)
        .await?;
    let text = match serde_json::from_str::<Question>(&line) {
        Ok(question) => {
            let answer = PolicyAnswer {
                rejected,
                ..answer(served, &question)
            };
            serde_json::to_string(&answer)?
        }
        Err(error) => serde_json::json!({ "error": error.to_string() }).to_string(),
    };
    stream.write_all(format!("{text}\n").as_bytes()).await
}

/// Asks a running agent.
///
/// # Errors
/// If none answers.
pub fn ask(run_dir: &Path, question: &Question) -> io::Result<PolicyAnswer> {
    use std::io::{BufRead as _, Write as _};
    let mut stream = std::os::unix::net::UnixStream::connect(run_dir.join(FILE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{}\n", serde_json::to_string(question)?).as_bytes())?;
    let mut line = String::new();
    std::io::BufReader::new(stream).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::gateway::host::HostPattern;
    use crate::gateway::policy::{Gateway, Passthrough, PassthroughRoute, Rules};

    /// `db.org` is passed on to port 5432, for everybody.
    fn mk_served() -> Served {
        let route = PassthroughRoute {
            service: ObjectName::new("global", "db"),
            host: None,
            port: 5432,
            rules: Rules::default(),
        };
        let pattern = HostPattern::parse("db.org").unwrap();
        let passthrough = Passthrough {
            served: Some(route),
        };
        let listener = Listener {
            passthrough: BTreeMap::from([(pattern, passthrough)]),
            ..Listener::default()
        };
        let gateway = Gateway {
            listeners: BTreeMap::from([(8443, listener)]),
        };
        let mut served = Served::default();
        served.policy.trust_domain = "cluster.local".to_owned();
        let name = ObjectName::new("istio-egress", "vg");
        served.policy.gateways.insert(name, gateway);
        let account = PodAccount {
            namespace: "bookinfo".to_owned(),
            pod: "reviews-v1".to_owned(),
            service_account: "reviews".to_owned(),
        };
        served.clients.insert([10, 1, 2, 3].into(), account);
        served
    }

    #[test]
    fn what_is_passed_on_leads_to_one_port() {
        for (port, allowed, reason) in [(5432, true, "no-policy"), (443, false, "unknown-port")] {
            let question = Question {
                namespace: "bookinfo".to_owned(),
                pod: "reviews-v1".to_owned(),
                scheme: "https".to_owned(),
                host: "db.org".to_owned(),
                port,
                method: "GET".to_owned(),
                path: "/".to_owned(),
                headers: Vec::new(),
            };
            let answer = answer(&mk_served(), &question);
            let way = answer.ways.iter().find(|way| way.ask == "tls://db.org");
            let way = way.expect("a way by server name");
            assert_eq!(
                (way.allowed, way.reason.as_str()),
                (allowed, reason),
                "{way:?}"
            );
            assert_eq!(way.service.as_deref(), Some("ExternalService/global/db"));
        }
    }
}
