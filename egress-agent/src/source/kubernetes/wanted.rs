//! Which watches there have to be, by what is known so far. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::store::Store;
use super::watches::{Policy, Watch, can_exist};
use crate::index::{Index, Labels, Object};

/// More selectors than that, and one watch of all pods costs the API server less.
const MOST_SELECTORS: usize = 32;

/// Decides what is watched.
#[derive(Debug)]
pub struct Wanted {
    cluster: Option<String>,
    clients: bool,
    /// `VirtualGateway`s alone, so that the last good version counts here as it does elsewhere.
    gateways: Index,
}

impl Wanted {
    pub fn new(cluster: Option<String>, clients: bool) -> Self {
        Self {
            cluster,
            clients,
            gateways: Index::default(),
        }
    }

    /// Takes notice of what has changed in the store and was not taken from there yet.
    pub fn learn(&mut self, store: &Store) {
        let gateways = store.changes().iter();
        for (id, object) in gateways.filter(|(id, _)| id.kind == "VirtualGateway") {
            match object {
                Some(object @ Object::VirtualGateway(_)) => self.gateways.apply(object.clone()),
                _ => self.gateways.delete(id),
            };
        }
    }

    /// All there have to be. Of pods the old ones stay until the new ones have been read (`running`
    /// says which have), so that no gateway is lost in between.
    pub fn watches(&self, store: &Store, running: &BTreeMap<&Watch, bool>) -> BTreeSet<Watch> {
        let mut wanted: BTreeSet<Watch> = Watch::always().collect();
        for policy in Policy::SHARED {
            if store.count(&Watch::Definition(policy)) > 0 {
                wanted.insert(Watch::Gloo(policy));
            }
        }
        let selectors = self.selectors();
        let serves = self.clients && runs_one_of(store, &selectors);
        let mut pods = BTreeSet::new();
        if serves || selectors.len() > MOST_SELECTORS {
            pods.insert(Watch::OtherPods);
        } else {
            for (namespace, labels) in selectors {
                pods.insert(Watch::GatewayPods { namespace, labels });
            }
        }
        if pods.iter().any(|watch| running.get(watch) != Some(&true)) {
            let old = running
                .keys()
                .filter(|watch| matches!(watch, Watch::GatewayPods { .. } | Watch::OtherPods));
            wanted.extend(old.map(|watch| (*watch).clone()));
        }
        wanted.append(&mut pods);
        wanted
    }

    /// Namespaces and labels of gateways' pods.
    fn selectors(&self) -> BTreeSet<(String, Labels)> {
        let mut selectors = BTreeSet::new();
        for (key, declared) in self.gateways.virtual_gateways() {
            for workload in &declared.spec.workloads {
                let selector = &workload.selector;
                let namespace = selector.namespace.as_ref().unwrap_or(&key.namespace);
                let elsewhere = match (&selector.cluster, &self.cluster) {
                    (Some(wanted), Some(ours)) => wanted != ours,
                    _ => false,
                };
                if !selector.labels.is_empty()
                    && !elsewhere
                    && can_exist(namespace, &selector.labels)
                {
                    selectors.insert((namespace.clone(), selector.labels.clone()));
                }
            }
        }
        selectors
    }
}

/// Whether a gateway's pod is on this node.
fn runs_one_of(store: &Store, selectors: &BTreeSet<(String, Labels)>) -> bool {
    store.own_pods().iter().any(|(key, labels)| {
        selectors.iter().any(|(namespace, selector)| {
            *namespace == key.namespace && selector.iter().all(|(k, v)| labels.get(k) == Some(v))
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::read::read;
    use super::*;

    const GATEWAYS: Watch = Watch::Own(Policy::VirtualGateway);

    fn gateway(name: &str, app: &str) -> serde_json::Value {
        json!({
            "metadata": { "name": name, "namespace": "istio-egress" },
            "spec": { "workloads": [{ "selector": { "labels": { "app": app } } }] },
        })
    }

    fn wanted(wanted: &mut Wanted, store: &Store, running: &[(Watch, bool)]) -> BTreeSet<Watch> {
        wanted.learn(store);
        let running = running.iter().map(|(watch, synced)| (watch, *synced));
        let always: BTreeSet<Watch> = Watch::always().collect();
        let all = wanted.watches(store, &running.collect());
        all.difference(&always).cloned().collect()
    }

    fn pods(app: &str) -> Watch {
        Watch::GatewayPods {
            namespace: "istio-egress".into(),
            labels: Labels::from([("app".into(), app.into())]),
        }
    }

    #[test]
    fn gateways_pods_are_watched_by_their_selectors_and_the_old_ones_until_the_new_are_read() {
        let mut store = Store::default();
        let mut it = Wanted::new(None, true);
        assert!(wanted(&mut it, &store, &[]).is_empty());
        store.applied(&GATEWAYS, read(&GATEWAYS, gateway("a", "one")).expect("it"));
        assert_eq!(wanted(&mut it, &store, &[]), [pods("one")].into());
        store.take();
        store.applied(&GATEWAYS, read(&GATEWAYS, gateway("a", "two")).expect("it"));
        let both = [pods("one"), pods("two")].into();
        assert_eq!(wanted(&mut it, &store, &[(pods("one"), true)]), both);
        let synced = [(pods("one"), true), (pods("two"), true)];
        assert_eq!(wanted(&mut it, &store, &synced), [pods("two")].into());
    }

    #[test]
    fn all_pods_are_watched_only_where_a_gateway_runs() {
        let mut store = Store::default();
        let mut it = Wanted::new(None, true);
        store.applied(&GATEWAYS, read(&GATEWAYS, gateway("a", "one")).expect("it"));
        let pod = |phase: &str| {
            let pod = json!({
                "metadata": { "name": "gw", "namespace": "istio-egress", "uid": "u",
                    "labels": { "app": "one" } },
                "status": { "phase": phase },
            });
            read(&Watch::OwnPods, pod).expect("a name")
        };
        store.applied(&Watch::OwnPods, pod("Running"));
        assert_eq!(wanted(&mut it, &store, &[]), [Watch::OtherPods].into());
        let before = [(pods("one"), true)];
        assert_eq!(
            wanted(&mut it, &store, &before),
            [pods("one"), Watch::OtherPods].into()
        );
        store.applied(&Watch::OwnPods, pod("Succeeded"));
        assert_eq!(wanted(&mut it, &store, &[]), [pods("one")].into());
    }

    #[test]
    fn gloos_kinds_are_watched_while_they_are_defined() {
        let mut store = Store::default();
        let mut it = Wanted::new(None, true);
        let definition = Watch::Definition(Policy::AccessPolicy);
        let there =
            json!({ "metadata": { "name": "accesspolicies.security.policy.gloo.solo.io" } });
        store.applied(&definition, read(&definition, there).expect("it"));
        assert_eq!(
            wanted(&mut it, &store, &[]),
            [Watch::Gloo(Policy::AccessPolicy)].into()
        );
        store.listed(&definition, vec![]);
        assert!(wanted(&mut it, &store, &[]).is_empty());
    }
}
