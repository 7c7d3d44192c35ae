//! The text of a file, through decoding, index, and all that is made of it.

use std::collections::BTreeSet;

use k8s_openapi::jiff::Timestamp;

use crate::compile::{Settings, compile};
use crate::gateway::{self, OutboundPolicy, envoy};
use crate::index::{Index, Object, ObjectId};
use crate::policy_server::Served;
use crate::policy_server::authz::Binding;
use crate::risk::assess;
use crate::source::decode;

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match decode(text) {
        Ok(located) => {
            let objects: Vec<Object> = located.into_iter().map(|it| it.object).collect();
            of_objects(&objects);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// What may be made of any objects that could be read: no panic, the same in whichever order they
/// come, and nobody held without a policy that is there.
pub(super) fn of_objects(objects: &[Object]) {
    let mut seen: BTreeSet<ObjectId> = BTreeSet::new();
    let unique = objects.iter().all(|object| seen.insert(object.id()));
    let mut index = Index::default();
    index.reset(objects.to_vec());
    let settings = Settings::default();
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
    let compiled = compile(&index, &settings, &|_: &_| true, now);
    for pod in compiled.desired.pods.values() {
        if let Some(digest) = pod.policy {
            assert!(compiled.desired.policies.contains_key(&digest));
        }
        assert!(
            !pod.gateway || pod.policy.is_none(),
            "a gateway is not held"
        );
    }
    if unique {
        let mut other = Index::default();
        for object in objects.iter().rev() {
            other.apply(object.clone());
        }
        assert_eq!(compile(&other, &settings, &|_: &_| true, now), compiled);
        assert!(!other.reset(objects.to_vec()), "nothing is new");
    }
    assess(objects, &index, &settings, &|_: &_| true, now);
    let rendering = gateway::Settings {
        cert_dir: "/certs".into(),
        upstream_ca: "/ca.crt".into(),
        authorization: envoy::Authorization::Rbac,
        binding: Binding::Require,
    };
    let trust_domain = "cluster.local";
    let outbound = OutboundPolicy::RegistryOnly;
    let _ = Served::from_index(&index, trust_domain, None, outbound, Some(&rendering));
}
