//! The objects' fields word by word: each alone, each beside the others, and what it does not mean.

mod entries;
mod hosts;
mod selectors;

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::super::access::AccessReason::{
    Admitted, AnyHost, BadHost, NoPolicy, NotAdmitted, TrustDomain, UnknownHost, UnknownPort,
};
use super::super::access::{AccessReason, Decision, Request, decide_access};
use super::super::policy::{Effect, HostRoutes};
use super::super::{ObjectName, OutboundPolicy, SpiffeId};
use super::{PORT, World, mk_authz, mk_client, mk_https, mk_id, mk_policy, mk_service, mk_to};

fn open() -> World {
    World::exposing(&["*"]).service("api", &["api.org"])
}

fn with(authz: Value) -> World {
    open().policy(mk_authz("a", "api", authz))
}

/// A request that differs from `GET http://api.org/` of productpage at 10.1.2.3 in some things.
struct Asked<'a> {
    client: SpiffeId,
    ip: &'a str,
    method: &'a str,
    authority: &'a str,
    path: &'a str,
    headers: &'a [(&'a str, &'a str)],
}

impl Default for Asked<'_> {
    fn default() -> Self {
        Self {
            client: mk_id("productpage"),
            ip: "10.1.2.3",
            method: "GET",
            authority: "api.org",
            path: "/",
            headers: &[],
        }
    }
}

impl Asked<'_> {
    fn decide(&self, world: &World) -> Decision {
        let request = Request {
            gateway: &ObjectName::new("istio-egress", "egress-vg"),
            listener: PORT,
            client: &self.client,
            client_ip: self.ip.parse::<IpAddr>().unwrap(),
            authority: self.authority,
            method: self.method,
            path: self.path,
            normalized: false,
            headers: self.headers,
        };
        decide_access(&world.compile().0, &request)
    }

    fn reason(&self, world: &World) -> AccessReason {
        self.decide(world).reason
    }
}

fn to_host(world: &World, authority: &str) -> AccessReason {
    let asked = Asked {
        authority,
        ..Asked::default()
    };
    asked.reason(world)
}
