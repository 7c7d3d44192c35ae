//! What weakens the promise that nothing gets around the gateways, and whether the kernel layer
//! makes up for it. Pure.
#![forbid(unsafe_code)]

mod node_access;
mod pods;
mod policies;
mod reach;
#[cfg(test)]
mod tests;

use std::fmt;

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use crate::compile::{Compiled, Settings, compile};
use crate::index::{Index, Key, Object};

/// What is risky.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A lockdown that only reports, or holds nobody.
    LockdownMode,
    /// A pod that can enter the node's own namespaces.
    NodeAccess,
    /// A pod in the node's network.
    HostNetwork,
    /// Pods that are not held, and that held pods can reach.
    WayOut,
    /// A pod that has a gateway's labels, and may be none.
    Impostor,
    /// A gateway whose pods are in another namespace than the object that says so.
    ForeignGateway,
    /// A pod that asks its sidecar to leave some of its traffic alone.
    SidecarExclusion,
    /// A pod that keeps out of its mesh.
    NoSidecar,
    /// A container with the user or group id that sidecars let pass.
    SidecarUid,
    /// A container that may change its pod's network, or write packets by itself.
    NetworkCapability,
    /// An external service for all names below one, or a range of addresses.
    WildcardHost,
    /// Addresses outside that held pods reach past the gateways.
    Exception,
    /// The gateways let through what nobody has named.
    AllowAny,
    /// Requests leave the gateway without a server being verified.
    UnverifiedServer,
    /// An entry of an access policy that decides nothing.
    DryRun,
}

impl Kind {
    /// As it is serialised.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LockdownMode => "lockdown-mode",
            Self::NodeAccess => "node-access",
            Self::HostNetwork => "host-network",
            Self::WayOut => "way-out",
            Self::Impostor => "impostor",
            Self::ForeignGateway => "foreign-gateway",
            Self::SidecarExclusion => "sidecar-exclusion",
            Self::NoSidecar => "no-sidecar",
            Self::SidecarUid => "sidecar-uid",
            Self::NetworkCapability => "network-capability",
            Self::WildcardHost => "wildcard-host",
            Self::Exception => "exception",
            Self::AllowAny => "allow-any",
            Self::UnverifiedServer => "unverified-server",
            Self::DryRun => "dry-run",
        }
    }
}

/// Whether the kernel layer makes up for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Nothing does.
    Open,
    /// In part; the text says in which.
    Partly,
    /// The pod is held below its reach.
    Neutralized,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Partly => "partly",
            Self::Neutralized => "neutralized",
        })
    }
}

/// One thing to look at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Risk {
    pub standing: Standing,
    pub kind: Kind,
    /// `Kind/namespace/name`, or `Kind/name`.
    pub object: String,
    /// Which field or container of it; empty for the whole.
    pub at: String,
    pub text: String,
    /// What to do.
    pub advice: String,
}

/// Everything risky among the objects, the worst first. They are those of the whole cluster.
///
/// `admits` says which service accounts the gateways may let through.
pub fn assess(
    objects: &[Object],
    index: &Index,
    settings: &Settings,
    admits: &impl Fn(&Key) -> bool,
    now: Timestamp,
) -> Vec<Risk> {
    let settings = Settings {
        node_name: String::new(),
        ..settings.clone()
    };
    let compiled = compile(index, &settings, admits, now);
    let mut risks = policies::of_policies(index, now);
    risks.extend(settings.allow_any.then(policies::allow_any));
    risks.extend(reach::ways_out(index, &compiled));
    risks.extend(reach::impostors(index, &compiled));
    risks.extend(reach::foreign_gateways(index));
    for object in objects {
        if let Object::Pod(pod) = object {
            risks.extend(pods::of_pod(pod, held(&compiled, pod)));
        }
    }
    risks.sort();
    risks.dedup();
    risks
}

fn held<'a>(
    compiled: &'a Compiled,
    pod: &k8s_openapi::api::core::v1::Pod,
) -> Option<&'a crate::compile::DesiredPod> {
    let uid = pod.metadata.uid.as_deref()?;
    compiled.desired.pods.get(uid)
}
