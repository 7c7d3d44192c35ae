//! Pods as the container runtime tells of them: it does so before their objects come, and before
//! those say which addresses a pod has.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Index, Key, Pod};

/// A pod that the runtime tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    pub key: Key,
    pub pod: Pod,
    /// It stands for the object while that is not known. A pod whose object was known and is gone
    /// must not come back as what it was when it began.
    pub early: bool,
}

impl Index {
    /// Takes all that the runtime tells of now, by UID. Whether anything changed.
    pub fn announce(&mut self, mut announced: BTreeMap<String, Announced>) -> bool {
        for (uid, it) in &mut announced {
            it.early &= self.announced.get(uid).is_none_or(|before| before.early);
        }
        if announced.values().any(|it| it.early) {
            let known = self.pods().values().map(|pod| pod.uid.as_str());
            let known: BTreeSet<&str> = known.filter(|uid| announced.contains_key(*uid)).collect();
            let known: Vec<String> = known.into_iter().map(str::to_owned).collect();
            for uid in known {
                if let Some(it) = announced.get_mut(&uid) {
                    it.early = false;
                }
            }
        }
        if self.announced == announced {
            return false;
        }
        self.announced = announced;
        true
    }

    /// Pods whose objects are not known yet.
    pub fn early_pods(&self) -> impl Iterator<Item = (&Key, &Pod)> {
        let early = self.announced.values().filter(|it| it.early);
        early.map(|it| (&it.key, &it.pod))
    }

    /// The addresses of a pod, from its object or, before that has any, from the runtime.
    pub fn ips<'a>(&'a self, pod: &'a Pod) -> &'a [IpAddr] {
        match self.announced.get(&pod.uid) {
            Some(it) if pod.ips.is_empty() => &it.pod.ips,
            _ => &pod.ips,
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1 as core;

    use super::*;
    use crate::index::Object;

    fn announced(uid: &str) -> BTreeMap<String, Announced> {
        let it = Announced {
            key: Key::new("shop", "web"),
            pod: Pod {
                uid: uid.to_owned(),
                ips: vec![IpAddr::from([10, 0, 0, 1])],
                ..Pod::default()
            },
            early: true,
        };
        [(uid.to_owned(), it)].into()
    }

    fn object(uid: &str) -> Object {
        let mut pod = core::Pod::default();
        pod.metadata.namespace = Some("shop".into());
        pod.metadata.name = Some("web".into());
        pod.metadata.uid = Some(uid.into());
        Object::Pod(Box::new(pod))
    }

    #[test]
    fn an_object_takes_the_place_of_what_was_announced_for_good() {
        let mut index = Index::default();
        assert!(index.announce(announced("u1")));
        assert!(!index.announce(announced("u1")), "nothing new");
        assert_eq!(index.early_pods().count(), 1);
        // Its predecessor of the same name is still known.
        index.apply(object("u0"));
        assert!(!index.announce(announced("u1")));
        assert_eq!(index.early_pods().count(), 1);

        index.apply(object("u1"));
        index.announce(announced("u1"));
        assert_eq!(index.early_pods().count(), 0);
        let pod = index.pods().values().next().unwrap();
        assert_eq!(index.ips(pod), [IpAddr::from([10, 0, 0, 1])], "it has none");

        let id = object("u1").id();
        assert!(index.delete(&id));
        index.announce(announced("u1"));
        assert_eq!(index.early_pods().count(), 0, "it was known once");
        index.announce(BTreeMap::new());
        assert!(index.announce(announced("u1")), "another sandbox");
    }
}
