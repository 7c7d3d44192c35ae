//! The verdict on one question. Pure.

use std::net::IpAddr;

use super::attributes::Asked;
use crate::gateway::access::AccessReason;
use crate::gateway::{
    Connection, Decision, ObjectName, Request, SpiffeId, decide_access, decide_connection,
};
use crate::policy_server::{Caller, Served};

/// How a client's certificate is bound to the pod it was issued for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Binding {
    /// The address must be that of a pod with the certificate's service account.
    #[default]
    Require,
    /// Addresses that belong to no known pod pass; those of another account's pod don't.
    Prefer,
    /// The certificate alone counts.
    Off,
}

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
        }
    }
}

/// An answer with all that it rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub cause: Cause,
    /// The gateway whose policy decided.
    pub gateway: Option<ObjectName>,
    /// The client, as far as its name could be read.
    pub client: Option<SpiffeId>,
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

    /// `AccessPolicy/namespace/name#entry` of the entry that admits.
    pub fn object(&self) -> Option<String> {
        let decision = self.decision.as_ref()?;
        let (policy, entry) = (decision.object.as_ref()?, decision.entry?);
        Some(format!("AccessPolicy/{policy}#{entry}"))
    }

    /// `ExternalService/namespace/name` that names the host.
    pub fn service(&self) -> Option<String> {
        let service = self.decision.as_ref()?.service.as_ref()?;
        Some(format!("ExternalService/{service}"))
    }
}

/// Decides. The caller is a gateway; which one, and on which port, the destination tells.
pub fn decide(served: &Served, caller: &Caller, asked: &Asked<'_>, binding: Binding) -> Verdict {
    let mut verdict = Verdict {
        cause: Cause::NoPrincipal,
        gateway: None,
        client: None,
        owner: None,
        decision: None,
    };
    match identify(served, asked, binding, &mut verdict) {
        Ok(client) => {
            let (cause, gateway, decision) = ask(served, caller, asked, &client);
            verdict.cause = cause;
            verdict.gateway = gateway;
            verdict.decision = decision;
        }
        Err(cause) => verdict.cause = cause,
    }
    verdict
}

/// Who the client is, if its certificate is used from where it belongs.
fn identify(
    served: &Served,
    asked: &Asked<'_>,
    binding: Binding,
    verdict: &mut Verdict,
) -> Result<SpiffeId, Cause> {
    if asked.principal.is_empty() {
        return Err(Cause::NoPrincipal);
    }
    let client = SpiffeId::parse(asked.principal).map_err(|_| Cause::BadPrincipal)?;
    verdict.client = Some(client.clone());
    let owner = served.clients.get(&asked.client);
    verdict.owner = owner.map(|owner| {
        format!(
            "{}/{} ({})",
            owner.namespace, owner.pod, owner.service_account
        )
    });
    match (binding, owner) {
        (Binding::Off, _) | (Binding::Prefer, None) => Ok(client),
        (Binding::Require, None) => Err(Cause::UnknownAddress),
        (Binding::Require | Binding::Prefer, Some(owner)) => {
            let own = client.trust_domain() == served.policy.trust_domain
                && client.namespace() == owner.namespace
                && client.service_account() == owner.service_account;
            if own {
                Ok(client)
            } else {
                Err(Cause::StolenIdentity)
            }
        }
    }
}

/// Asks the policy of each `VirtualGateway` that selects the gateway's pod. Where several listen
/// on that port, the one that serves the host decides, and of two such the first by name: what
/// may be reached is a matter of the host's own policies, equal for both.
fn ask(
    served: &Served,
    caller: &Caller,
    asked: &Asked<'_>,
    client: &SpiffeId,
) -> (Cause, Option<ObjectName>, Option<Decision>) {
    let (address, listener) = asked.gateway;
    let pod = served.gateway_pods.get(&address);
    let Some(pod) = pod.filter(|pod| pod.identity == caller.identity) else {
        return (Cause::UnknownGateway, None, None);
    };
    if asked.http.is_none() && asked.sni.is_empty() {
        return (Cause::NoServerName, None, None);
    }
    let mut best: Option<(u8, &ObjectName, Decision)> = None;
    for gateway in &pod.gateways {
        let decision = decide_at(served, gateway, listener, client, asked.client, asked);
        let rank = match decision.reason {
            AccessReason::NoListener => 0,
            AccessReason::UnknownHost => 1,
            AccessReason::UnknownPort => 2,
            _ => 3,
        };
        if best.as_ref().is_none_or(|(before, ..)| rank > *before) {
            best = Some((rank, gateway, decision));
        }
    }
    match best {
        Some((_, gateway, decision)) => (
            Cause::Policy(decision.reason),
            Some(gateway.clone()),
            Some(decision),
        ),
        None => (Cause::UnknownGateway, None, None),
    }
}

fn decide_at(
    served: &Served,
    gateway: &ObjectName,
    listener: u16,
    client: &SpiffeId,
    client_ip: IpAddr,
    asked: &Asked<'_>,
) -> Decision {
    match &asked.http {
        Some(http) => decide_access(
            &served.policy,
            &Request {
                gateway,
                listener,
                client,
                client_ip,
                authority: http.authority,
                method: http.method,
                path: http.path,
                normalized: true,
                headers: &http.headers,
            },
        ),
        None => decide_connection(
            &served.policy,
            &Connection {
                gateway,
                listener,
                client,
                client_ip,
                sni: asked.sni,
            },
        ),
    }
}
