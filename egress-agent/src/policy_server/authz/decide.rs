//! The verdict on one question. Pure.

use super::attributes::Asked;
use crate::gateway::access::{AccessReason, decide_access_with};
pub use crate::gateway::identity::Binding;
use crate::gateway::{
    Connection, Decision, ObjectName, Request, SpiffeId, decide_connection, envoy, has_two_readings,
};
use crate::policy_server::{Caller, GatewayPod, PodAccount, Served};

/// Why a question was answered as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The policy decided.
    Policy(AccessReason),
    /// The gateway's address is not that of a pod which serves as the caller's identity.
    UnknownGateway,
    /// The client presented no certificate, or one without a name.
    NoPrincipal,
    /// The client's name is not the SPIFFE ID of a service account.
    BadPrincipal,
    /// The client's address belongs to no known pod.
    UnknownAddress,
    /// The client's address is that of a pod with another service account.
    StolenIdentity,
    /// A connection without server name: nothing tells where it should go.
    NoServerName,
    /// The policy admits, but the gateway would pass it on to where another policy says: it has
    /// not taken its new configuration yet.
    StaleRoute,
}

impl Cause {
    /// The stable name in logs, metrics and metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Policy(reason) => reason.as_str(),
            Self::UnknownGateway => "unknown-gateway",
            Self::NoPrincipal => "no-principal",
            Self::BadPrincipal => "bad-principal",
            Self::UnknownAddress => "unknown-address",
            Self::StolenIdentity => "stolen-identity",
            Self::NoServerName => "no-server-name",
            Self::StaleRoute => "stale-route",
        }
    }
}

/// An answer with all that it rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub cause: Cause,
    /// The gateway whose policy decided.
    pub gateway: Option<ObjectName>,
    /// Name of the pod that owns the client's address, with its service account.
    pub owner: Option<String>,
    /// None where the policy was not asked.
    pub decision: Option<Decision>,
}

impl Verdict {
    pub fn allowed(&self) -> bool {
        self.decision
            .as_ref()
            .is_some_and(|decision| decision.allowed)
    }

    /// The object that decided, with its entry where one did.
    pub fn object(&self) -> Option<String> {
        self.decision.as_ref()?.decided_by()
    }

    /// `ExternalService/namespace/name` that names the host.
    pub fn service(&self) -> Option<String> {
        let service = self.decision.as_ref()?.service.as_ref()?;
        Some(format!("ExternalService/{service}"))
    }
}

/// Decides. The caller is a gateway; which one, and on which port, the destination tells. What the
/// gateway did not prove to be is said before anything about the client.
pub fn decide(served: &Served, caller: &Caller, asked: &Asked<'_>, binding: Binding) -> Verdict {
    let (address, listener) = asked.gateway;
    let client = read_client(asked.principal);
    let owner = served.clients.get(&asked.client);
    let mut verdict = Verdict {
        cause: Cause::UnknownGateway,
        gateway: None,
        owner: owner.map(
            |PodAccount {
                 namespace,
                 pod,
                 service_account,
             }| { format!("{namespace}/{pod} ({service_account})") },
        ),
        decision: None,
    };
    let pod = served.gateway_pods.get(&address);
    let Some(pod) = pod.filter(|pod| pod.identity == caller.identity) else {
        return verdict;
    };
    let listens = |gateway: &&ObjectName| {
        let gateway = served.policy.gateways.get(*gateway);
        gateway.is_some_and(|gateway| gateway.listeners.contains_key(&listener))
    };
    // Until the policy says which one decides.
    verdict.gateway = pod.gateways.iter().find(listens).cloned();
    let client = client.and_then(|client| {
        check_owner(&client, owner, &served.policy.trust_domain, binding)?;
        Ok(client)
    });
    match client {
        Err(cause) => verdict.cause = cause,
        Ok(_) if asked.http.is_none() && asked.sni.is_empty() => {
            verdict.cause = Cause::NoServerName;
        }
        // Of a gateway that leaves paths as clients write them: the server may read it otherwise.
        Ok(_)
            if asked
                .http
                .as_ref()
                .is_some_and(|http| has_two_readings(http.path)) =>
        {
            verdict.cause = Cause::Policy(AccessReason::BadPath);
        }
        Ok(client) => {
            if let Some(answer) = ask(served, pod, asked, &client) {
                verdict.gateway = Some(answer.gateway.clone());
                if answer.decision.allowed && answer.elsewhere {
                    verdict.cause = Cause::StaleRoute;
                } else {
                    verdict.cause = Cause::Policy(answer.decision.reason);
                    verdict.decision = Some(answer.decision);
                }
            }
        }
    }
    verdict
}

fn read_client(principal: &str) -> Result<SpiffeId, Cause> {
    if principal.is_empty() {
        return Err(Cause::NoPrincipal);
    }
    SpiffeId::parse(principal).map_err(|_| Cause::BadPrincipal)
}

/// Whether the client's certificate is used from where it belongs.
fn check_owner(
    client: &SpiffeId,
    owner: Option<&PodAccount>,
    trust_domain: &str,
    binding: Binding,
) -> Result<(), Cause> {
    match (binding, owner) {
        (Binding::Off, _) | (Binding::Prefer, None) => Ok(()),
        (Binding::Require, None) => Err(Cause::UnknownAddress),
        (Binding::Require | Binding::Prefer, Some(owner)) => {
            let own = client.trust_domain() == trust_domain
                && client.namespace() == owner.namespace
                && client.service_account() == owner.service_account;
            if own {
                Ok(())
            } else {
                Err(Cause::StolenIdentity)
            }
        }
    }
}

/// What one `VirtualGateway` says.
struct Answer<'a> {
    gateway: &'a ObjectName,
    decision: Decision,
    /// Its policy has another way for it than the gateway's Envoy would take.
    elsewhere: bool,
}

impl Answer<'_> {
    fn rank(&self) -> u8 {
        match self.decision.reason {
            AccessReason::NoListener => 0,
            AccessReason::UnknownHost => 1,
            AccessReason::UnknownPort => 2,
            _ if self.elsewhere => 3,
            _ => 4,
        }
    }
}

/// Asks the policy of each `VirtualGateway` that selects the gateway's pod. Where several listen
/// on that port, the one that serves the host decides, and of two such the first by name: what
/// may be reached is a matter of the host's own policies, equal for both.
fn ask<'a>(
    served: &Served,
    pod: &'a GatewayPod,
    asked: &Asked<'_>,
    client: &SpiffeId,
) -> Option<Answer<'a>> {
    let mut best: Option<Answer<'_>> = None;
    for gateway in &pod.gateways {
        let answer = ask_one(served, gateway, client, asked);
        if best
            .as_ref()
            .is_none_or(|before| answer.rank() > before.rank())
        {
            best = Some(answer);
        }
    }
    best
}

fn ask_one<'a>(
    served: &Served,
    gateway: &'a ObjectName,
    client: &SpiffeId,
    asked: &Asked<'_>,
) -> Answer<'a> {
    let (_, listener) = asked.gateway;
    let client_ip = asked.client;
    let (decision, way) = if let Some(http) = &asked.http {
        let headers: Vec<(&str, &str)> = http
            .headers
            .iter()
            .map(|(name, value)| (*name, value.as_ref()))
            .collect();
        let request = Request {
            gateway,
            listener,
            client,
            client_ip,
            authority: http.authority,
            method: http.method,
            path: http.path,
            normalized: true,
            headers: &headers,
        };
        let decision = decide_access_with(&served.policy, &request, http.lines);
        let way = asked
            .upstream
            .map(|_| envoy::way_of_request(&served.policy, &request));
        (decision, way)
    } else {
        let connection = Connection {
            gateway,
            listener,
            client,
            client_ip,
            sni: asked.sni,
        };
        let decision = decide_connection(&served.policy, &connection);
        let way = asked
            .upstream
            .map(|_| envoy::way_of_connection(&served.policy, &connection));
        (decision, way)
    };
    Answer {
        gateway,
        decision,
        elsewhere: way.is_some_and(|way| way.as_deref() != asked.upstream),
    }
}
