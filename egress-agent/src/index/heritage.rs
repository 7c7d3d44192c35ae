//! Policy objects as an earlier agent of this node took them last. Where an object is wrong at the
//! start, its last good version comes from here.

use std::collections::BTreeMap;

use kube::Resource;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Declared, Index, Key, Object, ObjectId};
use crate::api::{AccessPolicy, EgressLockdown, ExternalService, VirtualGateway};

/// Versions by object, each with the UID of the object that it was of.
#[derive(Clone, Debug, Default)]
pub struct Heritage(BTreeMap<ObjectId, Object>);

impl Heritage {
    /// What [`Index::bequeath`] has written. What can't be read of it is left out: then no version
    /// of that object is known.
    pub fn read(text: &[u8]) -> Self {
        let all: Vec<Value> = serde_json::from_slice(text).unwrap_or_default();
        let objects = all.into_iter().filter_map(object);
        Self(objects.map(|object| (object.id(), object)).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The version of this very object, once.
    pub fn take(&mut self, id: &ObjectId, uid: &str) -> Option<Object> {
        let object = self.0.remove(id)?;
        (!uid.is_empty() && object.metadata().uid.as_deref() == Some(uid)).then_some(object)
    }

    /// A newer version is known, or the object is gone.
    pub fn forget(&mut self, id: &ObjectId) {
        self.0.remove(id);
    }
}

fn object(value: Value) -> Option<Object> {
    fn typed<T: DeserializeOwned>(value: Value) -> Option<T> {
        serde_json::from_value(value).ok()
    }
    Some(match value.get("kind")?.as_str()? {
        "EgressLockdown" => Object::EgressLockdown(Box::new(typed(value)?)),
        "VirtualGateway" => Object::VirtualGateway(typed(value)?),
        "ExternalService" => Object::ExternalService(typed(value)?),
        "AccessPolicy" => Object::AccessPolicy(typed(value)?),
        _ => return None,
    })
}

impl Index {
    /// Gives it what an earlier agent knew.
    pub fn inherit(&mut self, heritage: Heritage) {
        self.heritage = heritage;
    }

    /// Whether some version of the policy object was taken as it is.
    pub fn was_taken(&self, id: &ObjectId) -> bool {
        self.uids.contains_key(id)
    }

    /// Every policy object as it stands, for the agent that comes next.
    pub fn bequeath(&self) -> Vec<u8> {
        let mut all = Vec::new();
        // What has no UID can't be told from another object of its name.
        for (id, uid) in self.uids.iter().filter(|(_, uid)| !uid.is_empty()) {
            let key = Key::new(&id.namespace, &id.name);
            let value =
                match id.kind {
                    "EgressLockdown" => self
                        .lockdowns
                        .get(&id.name)
                        .map(|spec| entry(EgressLockdown::new(&id.name, spec.clone()), id, uid)),
                    "VirtualGateway" => self.virtual_gateways.get(&key).map(|it| {
                        named(VirtualGateway::new(&id.name, it.spec.clone()), it, id, uid)
                    }),
                    "ExternalService" => self.external_services.get(&key).map(|it| {
                        named(ExternalService::new(&id.name, it.spec.clone()), it, id, uid)
                    }),
                    _ => self
                        .access_policies
                        .get(&key)
                        .map(|it| named(AccessPolicy::new(&id.name, it.spec.clone()), it, id, uid)),
                };
            all.extend(value);
        }
        Value::Array(all).to_string().into_bytes()
    }

    /// Takes note of an object of policy whose newest version was taken or refused. Whether an
    /// inherited version stands for it now.
    pub(super) fn weigh(&mut self, id: &ObjectId, uid: Option<String>, good: bool) -> bool {
        if good {
            self.heritage.forget(id);
            self.uids.insert(id.clone(), uid.unwrap_or_default());
            return false;
        }
        if self.was_taken(id) {
            return false;
        }
        let Some(old) = self.heritage.take(id, uid.as_deref().unwrap_or_default()) else {
            return false;
        };
        let told = self.problems.get(id).cloned();
        let changed = self.apply(old);
        // What is told is what is wrong with the newest version.
        if let Some(told) = told {
            self.problems.insert(id.clone(), told);
        }
        changed
    }
}

fn named<K, S>(mut object: K, it: &Declared<S>, id: &ObjectId, uid: &str) -> Value
where
    K: Resource<DynamicType = ()> + Serialize,
{
    object.meta_mut().namespace = Some(id.namespace.clone());
    object.meta_mut().labels = (!it.labels.is_empty()).then(|| it.labels.clone());
    entry(object, id, uid)
}

fn entry<K>(mut object: K, id: &ObjectId, uid: &str) -> Value
where
    K: Resource<DynamicType = ()> + Serialize,
{
    object.meta_mut().uid = Some(uid.to_owned());
    serde_json::to_value(object).unwrap_or_else(|error| panic!("{id} is plain data: {error}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lockdown(uid: &str, mode: &str, cidr: &str) -> Object {
        let value = json!({
            "apiVersion": "sallyport.dev/v1alpha1", "kind": "EgressLockdown",
            "metadata": { "name": "all", "uid": uid },
            "spec": { "mode": mode, "allow": { "cidrs": [{ "cidr": cidr }] } },
        });
        object(value).expect("a lockdown")
    }

    fn mode(index: &Index) -> Option<String> {
        let spec = index.lockdowns().get("all")?;
        Some(format!("{:?} {}", spec.mode, spec.allow.cidrs.len()))
    }

    /// An index as an agent has it that starts where another ended.
    fn heir(of: &Index) -> Index {
        let mut heir = Index::default();
        heir.inherit(Heritage::read(&of.bequeath()));
        heir
    }

    #[test]
    fn the_last_good_version_outlives_the_agent() {
        let mut first = Index::default();
        first.apply(lockdown("u", "Enforce", "203.0.113.0/24"));
        first.apply(lockdown("u", "Off", "203.0.113.1/24"));
        let mut second = heir(&first);
        assert_eq!(mode(&second), None, "nobody has told of it yet");
        assert!(second.apply(lockdown("u", "Off", "203.0.113.1/24")));
        assert_eq!(mode(&second).as_deref(), Some("Enforce 1"));
        let problems: Vec<_> = second.problems().collect();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(problems[0].field, "spec.allow.cidrs[0].cidr");
        // And the next one, and the one after it.
        let mut third = heir(&heir(&second));
        third.apply(lockdown("u", "Off", "203.0.113.1/24"));
        assert_eq!(
            mode(&third).as_deref(),
            Some("Off 0"),
            "nothing was left to it"
        );
        let mut third = heir(&second);
        third.apply(lockdown("u", "Off", "203.0.113.1/24"));
        assert_eq!(mode(&third).as_deref(), Some("Enforce 1"));
        assert!(third.apply(lockdown("u", "Audit", "203.0.113.0/24")));
        assert_eq!(mode(&third).as_deref(), Some("Audit 1"));
        assert_eq!(third.problems().count(), 0);
    }

    #[test]
    fn it_is_of_no_use_to_another_object_of_that_name() {
        let mut first = Index::default();
        first.apply(lockdown("u", "Audit", "203.0.113.0/24"));
        let mut second = heir(&first);
        second.apply(lockdown("another", "Off", "203.0.113.1/24"));
        assert_ne!(mode(&second).as_deref(), Some("Audit 1"));
        // Nor where a newer version was known meanwhile.
        let mut third = heir(&first);
        third.apply(lockdown("u", "Enforce", "198.51.100.0/24"));
        third.delete(&lockdown("u", "Off", "203.0.113.0/24").id());
        third.apply(lockdown("u", "Off", "203.0.113.1/24"));
        assert_ne!(mode(&third).as_deref(), Some("Audit 1"));
    }

    #[test]
    fn every_kind_of_policy_is_bequeathed() {
        let objects = [
            json!({ "kind": "VirtualGateway", "spec": {
                "workloads": [{ "selector": { "labels": { "app": "gw" } } }],
                "listeners": [{ "port": { "number": 443 }, "tls": { "mode": "ISTIO_MUTUAL" } }],
            } }),
            json!({ "kind": "ExternalService", "spec": {
                "hosts": ["example.com"], "ports": [{ "number": 443, "protocol": "HTTPS" }],
            } }),
            json!({ "kind": "AccessPolicy", "spec": { "config": { "authz": {
                "allowedClients": [{ "serviceAccountSelector": { "name": "a" } }],
            } } } }),
        ];
        let mut index = Index::default();
        for mut value in objects {
            let kind = value["kind"].as_str().expect("a kind").to_owned();
            let group = match kind.as_str() {
                "AccessPolicy" => "security.policy.gloo.solo.io/v2",
                _ => "networking.gloo.solo.io/v2",
            };
            value["apiVersion"] = json!(group);
            value["metadata"] = json!({
                "name": "x", "namespace": "n", "uid": "u", "labels": { "is": "here" },
            });
            index.apply(object(value).expect("an object"));
            assert_eq!(index.problems().count(), 0, "{kind}");
        }
        let mut heritage = Heritage::read(&index.bequeath());
        for kind in ["VirtualGateway", "ExternalService", "AccessPolicy"] {
            let id = ObjectId {
                kind,
                namespace: "n".to_owned(),
                name: "x".to_owned(),
            };
            let object = heritage.take(&id, "u").expect(kind);
            assert_eq!(
                object.metadata().labels.as_ref().expect("labels")["is"],
                "here"
            );
            let mut again = index.clone();
            assert!(!again.apply(object), "{kind} is as it was");
        }
        assert!(heritage.is_empty());
    }
}
