//! Which watches there have to be, by what is known so far. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::store::Store;
use super::watches::{Policy, Watch, can_exist};
use crate::index::{Index, Key, Labels, Object};
use crate::source::SourceError;

/// More selectors than that, and all pods of the namespaces with the most of them are watched
/// instead; only where that many namespaces have gateways those of the whole cluster.
const MOST_SELECTORS: usize = 32;
/// Gateways that are declared in one namespace are looked for in so many others: else whoever may
/// write them somewhere could have every agent watch all pods.
const MOST_ELSEWHERE: usize = 8;

/// Namespaces and labels.
type Selectors = BTreeSet<(String, Labels)>;
/// Namespaces by the gateway that names them.
type Ignored = BTreeMap<Key, BTreeSet<String>>;

/// Decides what is watched.
#[derive(Debug)]
pub struct Wanted {
    cluster: Option<String>,
    clients: bool,
    gloo: bool,
    /// `VirtualGateway`s alone, so that the last good version counts here as it does elsewhere.
    gateways: Index,
}

impl Wanted {
    pub fn new(cluster: Option<String>, clients: bool, gloo: bool) -> Self {
        Self {
            cluster,
            clients,
            gloo,
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
        let mut wanted: BTreeSet<Watch> = Watch::always(self.gloo).collect();
        for policy in Policy::SHARED {
            if store.count(&Watch::Definition(policy)) > 0 {
                wanted.insert(Watch::Gloo(policy));
            }
        }
        let (selectors, _) = self.selectors();
        let serves = self.clients && runs_one_of(store, &selectors);
        let mut pods = if serves {
            [Watch::OtherPods].into()
        } else {
            gathered(selectors)
        };
        if pods.iter().any(|watch| running.get(watch) != Some(&true)) {
            let old = running.keys().filter(|watch| watch.is_of_others());
            wanted.extend(old.map(|watch| (*watch).clone()));
        }
        wanted.append(&mut pods);
        wanted
    }

    /// Selectors that nothing is looked for by, because there are too many.
    pub fn problems(&self) -> Vec<SourceError> {
        let (_, ignored) = self.selectors();
        let problems = ignored.into_iter().map(|(declared, namespaces)| SourceError {
            object: format!("VirtualGateway/{declared}"),
            field: "spec.workloads".to_owned(),
            reason: format!(
                "selects pods of {}, and gateways of namespace {} are looked for in {MOST_ELSEWHERE} \
                 other namespaces at most: pods there are no gateways; declare it where they are",
                namespaces.into_iter().collect::<Vec<_>>().join(", "),
                declared.namespace,
            ),
            ..SourceError::default()
        });
        problems.collect()
    }

    /// Namespaces and labels of gateways' pods, and by gateway the namespaces that are left out.
    fn selectors(&self) -> (Selectors, Ignored) {
        let mut selectors = BTreeSet::new();
        let mut ignored = Ignored::new();
        let mut elsewhere_of: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
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
                    let others = elsewhere_of.entry(&key.namespace).or_default();
                    if *namespace != key.namespace && !others.contains(namespace) {
                        if others.len() >= MOST_ELSEWHERE {
                            let ignored = ignored.entry(key.clone()).or_default();
                            ignored.insert(namespace.clone());
                            continue;
                        }
                        others.insert(namespace.clone());
                    }
                    selectors.insert((namespace.clone(), selector.labels.clone()));
                }
            }
        }
        (selectors, ignored)
    }
}

/// The watches for these selectors: one for each, but for namespaces with the most of them while there
/// are too many.
fn gathered(selectors: Selectors) -> BTreeSet<Watch> {
    let mut left = selectors.len();
    let mut namespaces: BTreeMap<String, Vec<Labels>> = BTreeMap::new();
    for (namespace, labels) in selectors {
        namespaces.entry(namespace).or_default().push(labels);
    }
    if namespaces.len() > MOST_SELECTORS {
        return [Watch::OtherPods].into();
    }
    let mut namespaces: Vec<_> = namespaces.into_iter().collect();
    namespaces.sort_by_key(|(_, labels)| Reverse(labels.len()));
    let mut watches = BTreeSet::new();
    for (namespace, labels) in namespaces {
        if left > MOST_SELECTORS {
            left -= labels.len() - 1;
            watches.insert(Watch::NamespacePods { namespace });
            continue;
        }
        let one = |labels| Watch::GatewayPods {
            namespace: namespace.clone(),
            labels,
        };
        watches.extend(labels.into_iter().map(one));
    }
    watches
}

/// Whether a gateway's pod is on this node.
fn runs_one_of(store: &Store, selectors: &Selectors) -> bool {
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
        let always: BTreeSet<Watch> = Watch::always(true).collect();
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
        let mut it = Wanted::new(None, true, true);
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
        let mut it = Wanted::new(None, true, true);
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

    fn many(store: &mut Store, name: &str, selectors: impl Iterator<Item = (String, String)>) {
        let workloads = selectors.map(|(namespace, app)| {
            json!({ "selector": { "labels": { "app": app }, "namespace": namespace } })
        });
        let gateway = json!({
            "metadata": { "name": name, "namespace": "istio-egress" },
            "spec": { "workloads": workloads.collect::<Vec<_>>() },
        });
        store.applied(&GATEWAYS, read(&GATEWAYS, gateway).expect("it"));
    }

    #[test]
    fn many_selectors_of_a_namespace_are_one_watch_of_that_namespace() {
        let (mut store, mut it) = (Store::default(), Wanted::new(None, true, true));
        let labels = |ns: &'static str, n: u32| (0..n).map(move |i| (ns.into(), format!("a{i}")));
        let all = labels("one", 30).chain(labels("two", 3));
        many(&mut store, "a", all);
        let found = wanted(&mut it, &store, &[]);
        let whole = Watch::NamespacePods {
            namespace: "one".into(),
        };
        assert!(found.contains(&whole) && found.len() == 4, "{found:?}");
        assert!(it.problems().is_empty());
        store.take();
        many(&mut store, "a", labels("one", 29).chain(labels("two", 3)));
        assert_eq!(wanted(&mut it, &store, &[]).len(), MOST_SELECTORS);
    }

    #[test]
    fn who_declares_gateways_somewhere_has_nobody_watch_the_whole_cluster() {
        let (mut store, mut it) = (Store::default(), Wanted::new(None, true, true));
        let everywhere = (0..40).map(|i| (format!("n{i:02}"), "x".to_owned()));
        let here = ("istio-egress".to_owned(), "x".to_owned());
        many(&mut store, "a", everywhere.chain([here]));
        let found = wanted(&mut it, &store, &[]);
        assert_eq!(found.len(), MOST_ELSEWHERE + 1, "{found:?}");
        assert!(!found.contains(&Watch::OtherPods));
        let problems = it.problems();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].object, "VirtualGateway/istio-egress/a");
        assert!(problems[0].reason.contains("n08, n09"), "{}", problems[0]);
    }

    #[test]
    fn gloos_kinds_are_watched_while_they_are_defined() {
        let mut store = Store::default();
        let mut it = Wanted::new(None, true, true);
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
