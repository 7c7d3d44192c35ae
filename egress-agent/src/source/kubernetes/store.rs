//! What all watches together say: which objects there are, which of two claims to one counts, and
//! what is wrong. Pure.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::read::{Content, Item};
use super::watches::{Policy, Watch};
use crate::index::{Heritage, Key, Labels, Object, ObjectId};
use crate::source::{AllDeclared, Declared, SourceError};

/// Objects by watch, and what has changed since it was last asked.
#[derive(Debug, Default)]
pub struct Store {
    watches: BTreeMap<Watch, BTreeMap<Key, Claim>>,
    /// Of pods of this node that have not finished.
    own_pods: BTreeMap<Key, Labels>,
    changes: BTreeMap<ObjectId, Option<Object>>,
    wrong: BTreeMap<(Watch, Key), SourceError>,
    /// Something of what is wrong is different.
    news: bool,
    /// Something that is told of policy beside its contents is different.
    declared_news: bool,
    heritage: Heritage,
}

/// What one watch says of one object.
#[derive(Debug, Default)]
struct Claim {
    version: u64,
    /// Some version of it could be read.
    good: bool,
    /// Of the version that was read last.
    digest: Option<u64>,
    /// Kept only of kinds that two groups have, to fall back on when the other's goes.
    object: Option<Box<Object>>,
    /// Of policy alone.
    declared: Option<Box<Declared>>,
}

/// What has changed, all of it at once.
#[derive(Debug)]
pub struct Changes {
    /// None is an object that is gone.
    pub objects: BTreeMap<ObjectId, Option<Object>>,
    /// All that is wrong now, sorted.
    pub problems: Vec<SourceError>,
    /// How many of the problems may hide something that holds pods.
    pub unread: usize,
    /// What is known of all policy objects, where that has changed.
    pub declared: Option<AllDeclared>,
}

impl Store {
    /// Gives it what an earlier agent knew of policy.
    pub fn inherit(&mut self, heritage: Heritage) {
        self.heritage = heritage;
    }

    /// All that there is by this watch.
    pub fn listed(&mut self, watch: &Watch, items: Vec<Item>) {
        let known = self.watches.entry(watch.clone()).or_default();
        let present: BTreeSet<&Key> = items.iter().map(|item| &item.key).collect();
        let gone: Vec<Key> = known
            .keys()
            .filter(|key| !present.contains(key))
            .cloned()
            .collect();
        for key in gone {
            self.gone(watch, &key);
        }
        for item in items {
            // Versions of a store that was put back begin anew: what is listed is true.
            if let Some(claim) = self.claim(watch, &item.key) {
                claim.version = 0;
            }
            self.applied(watch, item);
        }
    }

    /// One object is new or different. An older version than is known is an echo.
    pub fn applied(&mut self, watch: &Watch, item: Item) {
        let Item {
            key,
            version,
            mut declared,
            content,
            digest,
        } = item;
        let claims = self.watches.entry(watch.clone()).or_default();
        let claim = claims.entry(key.clone()).or_default();
        if version != 0 && version < claim.version {
            return;
        }
        claim.version = version;
        if let (Some(declared), Content::Wrong { error, .. }) = (&mut declared, &content) {
            declared.unreadable = Some((error.field.clone(), error.reason.clone()));
        }
        let uid = declared.as_ref().map(|declared| declared.uid.clone());
        self.declared_news |= claim.declared != declared;
        claim.declared = declared;
        let id = watch.id(&key);
        let object = match content {
            Content::Present => return,
            Content::Object(object) => {
                claim.good = true;
                let same = digest.is_some() && claim.digest == digest;
                claim.digest = digest;
                self.heritage.forget(&id);
                self.news |= self.wrong.remove(&(watch.clone(), key.clone())).is_some();
                (!same).then_some(object)
            }
            Content::Wrong { error, closed } => {
                claim.digest = None;
                let inherited = match &uid {
                    Some(uid) if !claim.good => self.heritage.take(&id, uid),
                    _ => None,
                };
                let good = claim.good;
                claim.good |= inherited.is_some();
                let before = self
                    .wrong
                    .insert((watch.clone(), key.clone()), error.clone());
                self.news |= before != Some(error);
                inherited.map(Box::new).or(closed.filter(|_| !good))
            }
        };
        let Some(object) = object else { return };
        if *watch == Watch::OwnPods
            && let Object::Pod(pod) = &*object
        {
            let status = pod.status.as_ref();
            let phase = status.and_then(|status| status.phase.as_deref());
            if matches!(phase, Some("Succeeded" | "Failed")) {
                self.own_pods.remove(&key);
            } else {
                let labels = pod.metadata.labels.clone().unwrap_or_default();
                self.own_pods.insert(key.clone(), labels);
            }
        }
        if matches!(watch, Watch::Own(_) | Watch::Gloo(_))
            && let Some(claim) = self.claim(watch, &key)
        {
            claim.object = Some(object.clone());
        }
        if !self.yields(watch, &key, version) {
            self.changes.insert(object.id(), Some(*object));
        }
    }

    /// An object is gone, or not selected any more.
    pub fn gone(&mut self, watch: &Watch, key: &Key) {
        let claims = self.watches.get_mut(watch);
        let Some(claim) = claims.and_then(|claims| claims.remove(key)) else {
            return;
        };
        self.declared_news |= claim.declared.is_some();
        self.news |= self.wrong.remove(&(watch.clone(), key.clone())).is_some();
        if *watch == Watch::OwnPods {
            self.own_pods.remove(key);
        }
        if matches!(watch, Watch::Definition(_)) {
            return;
        }
        let id = watch.id(key);
        self.heritage.forget(&id);
        let rival = self.rivals(watch, key).next();
        let rival = rival.map(|(other, claim)| (other.clone(), claim.object.clone()));
        match rival {
            None => {
                self.changes.insert(id, None);
            }
            Some((Watch::Gloo(_), object)) => {
                self.news = true;
                // One that never could be read is no reason to keep the one that is gone.
                self.changes.insert(id, object.map(|object| *object));
            }
            Some((Watch::Own(_), _)) => self.news = true,
            // Another watch tells of the same pod.
            Some(_) => {}
        }
    }

    /// The watch has ended: nothing stands for its objects any more.
    pub fn forget(&mut self, watch: &Watch) {
        let keys = self.watches.get(watch).into_iter().flat_map(BTreeMap::keys);
        for key in keys.cloned().collect::<Vec<_>>() {
            self.gone(watch, &key);
        }
        self.watches.remove(watch);
    }

    /// How many objects the watch tells of.
    pub fn count(&self, watch: &Watch) -> usize {
        self.watches.get(watch).map_or(0, BTreeMap::len)
    }

    /// Labels of this node's pods that have not finished.
    pub fn own_pods(&self) -> &BTreeMap<Key, Labels> {
        &self.own_pods
    }

    /// What has changed and was not taken yet.
    pub fn changes(&self) -> &BTreeMap<ObjectId, Option<Object>> {
        &self.changes
    }

    /// All that has changed since the last time; none if nothing has.
    pub fn take(&mut self) -> Option<Changes> {
        if self.changes.is_empty() && !self.news && !self.declared_news {
            return None;
        }
        self.news = false;
        let declared = std::mem::take(&mut self.declared_news).then(|| self.declared());
        let may_hold = |watch: &Watch| {
            matches!(
                watch,
                Watch::Own(Policy::EgressLockdown) | Watch::Namespaces | Watch::OwnPods
            )
        };
        let unread = self.wrong.keys().filter(|(watch, key)| {
            let claim = self.watches.get(watch).and_then(|claims| claims.get(key));
            may_hold(watch) && claim.is_some_and(|claim| !claim.good)
        });
        let unread = unread.count();
        let mut problems: Vec<SourceError> = self.wrong.values().cloned().collect();
        problems.extend(self.shadowed());
        problems.sort();
        Some(Changes {
            objects: std::mem::take(&mut self.changes),
            problems,
            unread,
            declared,
        })
    }

    /// What is known of all policy objects; of two of the same name, of the one that counts.
    fn declared(&self) -> AllDeclared {
        let mut all: BTreeMap<ObjectId, Declared> = BTreeMap::new();
        for (watch, claims) in &self.watches {
            for (key, claim) in claims {
                let Some(declared) = &claim.declared else {
                    continue;
                };
                match all.entry(watch.id(key)) {
                    Entry::Vacant(entry) => _ = entry.insert((**declared).clone()),
                    Entry::Occupied(mut entry) => {
                        let (first, second) = (entry.get_mut(), (**declared).clone());
                        if second.is_own() {
                            let first = std::mem::replace(first, second);
                            entry.get_mut().shadows = Some(first.api_version);
                        } else {
                            first.shadows = Some(second.api_version);
                        }
                    }
                }
            }
        }
        Arc::new(all)
    }

    fn claim(&mut self, watch: &Watch, key: &Key) -> Option<&mut Claim> {
        self.watches.get_mut(watch)?.get_mut(key)
    }

    /// What other watches say of the object.
    fn rivals<'a>(
        &'a self,
        watch: &'a Watch,
        key: &'a Key,
    ) -> impl Iterator<Item = (&'a Watch, &'a Claim)> {
        self.watches
            .iter()
            .filter(|(other, _)| watch.overlaps(other))
            .filter_map(|(other, claims)| Some((other, claims.get(key)?)))
    }

    /// Whether another watch's claim counts: Sallyport's own group before Gloo Mesh's, and of a pod
    /// the newer version.
    fn yields(&mut self, watch: &Watch, key: &Key, version: u64) -> bool {
        let yields = self.rivals(watch, key).any(|(other, claim)| match other {
            Watch::Own(_) => true,
            Watch::Gloo(_) => false,
            _ => version != 0 && claim.version > version,
        });
        if matches!(watch, Watch::Own(_) | Watch::Gloo(_)) && self.rivals(watch, key).count() > 0 {
            self.news = true;
        }
        yields
    }

    /// Objects of Gloo Mesh's groups that stand behind one of Sallyport's own.
    fn shadowed(&self) -> Vec<SourceError> {
        let mut problems = Vec::new();
        for policy in Policy::SHARED {
            let (Some(own), Some(gloo)) = (
                self.watches.get(&Watch::Own(policy)),
                self.watches.get(&Watch::Gloo(policy)),
            ) else {
                continue;
            };
            let resource = Watch::Gloo(policy).resource("");
            for key in gloo.keys().filter(|key| own.contains_key(key)) {
                problems.push(SourceError {
                    object: format!("{}/{key}", policy.kind()),
                    reason: format!(
                        "the one of group {} has no effect, because there is one of the same name \
                         in group {}; remove one of the two",
                        resource.group,
                        crate::api::GROUP
                    ),
                    ..SourceError::default()
                });
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::read::read;
    use super::*;
    use crate::api::lockdown::Mode;
    use crate::index::Index;

    const OWN: Watch = Watch::Own(Policy::ExternalService);
    const GLOO: Watch = Watch::Gloo(Policy::ExternalService);

    fn item(watch: &Watch, version: u64, name: &str, more: &Value) -> Item {
        let mut value = json!({ "metadata": {
            "name": name, "namespace": "n", "uid": "u", "resourceVersion": version.to_string(),
        } });
        for (field, more) in more.as_object().expect("an object") {
            match (value.get_mut(field), more) {
                (Some(Value::Object(there)), Value::Object(more)) => there.extend(more.clone()),
                _ => value[field] = more.clone(),
            }
        }
        read(watch, value).expect("a name")
    }

    fn service(watch: &Watch, version: u64, host: &str) -> Item {
        item(watch, version, "s", &json!({ "spec": { "hosts": [host] } }))
    }

    /// Hosts of the service as it stands, and how many problems there are.
    fn taken(store: &mut Store) -> (Option<Vec<String>>, usize) {
        let changes = store.take().expect("something has changed");
        let hosts = match changes.objects.into_values().next() {
            Some(Some(Object::ExternalService(service))) => Some(service.spec.hosts),
            _ => None,
        };
        (hosts, changes.problems.len())
    }

    #[test]
    fn the_own_group_goes_before_the_others_and_is_told() {
        let mut store = Store::default();
        store.applied(&GLOO, service(&GLOO, 1, "gloo"));
        assert_eq!(taken(&mut store), (Some(vec!["gloo".into()]), 0));
        store.applied(&OWN, service(&OWN, 2, "own"));
        assert_eq!(taken(&mut store), (Some(vec!["own".into()]), 1));
        let both = store.declared();
        let (_, declared) = both.first_key_value().expect("it is told");
        assert!(declared.is_own());
        assert_eq!(
            declared.shadows.as_deref(),
            Some("networking.gloo.solo.io/v2")
        );
        store.applied(&GLOO, service(&GLOO, 3, "changed"));
        assert_eq!(taken(&mut store), (None, 1), "it has no effect");
        store.gone(&OWN, &Key::new("n", "s"));
        assert_eq!(taken(&mut store), (Some(vec!["changed".into()]), 0));
        store.forget(&GLOO);
        assert_eq!(taken(&mut store), (None, 0));
    }

    #[test]
    fn a_list_that_is_the_same_tells_it_again_and_one_that_differs_takes_away() {
        let mut store = Store::default();
        store.listed(
            &OWN,
            vec![
                service(&OWN, 5, "a"),
                item(&OWN, 5, "t", &json!({ "spec": {} })),
            ],
        );
        assert_eq!(store.take().expect("changes").objects.len(), 2);
        store.listed(&OWN, vec![service(&OWN, 3, "older, but listed")]);
        let changes = store.take().expect("changes").objects;
        let gone: Vec<_> = changes.iter().filter(|(_, o)| o.is_none()).collect();
        assert_eq!((changes.len(), gone.len()), (2, 1));
        assert_eq!(gone[0].0.name, "t");
    }

    #[test]
    fn an_echo_of_an_older_version_changes_nothing() {
        let mut store = Store::default();
        store.applied(&OWN, service(&OWN, 5, "new"));
        store.take();
        store.applied(&OWN, service(&OWN, 4, "old"));
        assert!(store.take().is_none());
    }

    #[test]
    fn the_last_good_version_of_a_wrong_object_stands() {
        let watch = Watch::Own(Policy::EgressLockdown);
        let lockdown = |version, mode: &str| {
            item(&watch, version, "all", &json!({ "spec": { "mode": mode } }))
        };
        let mut store = Store::default();
        store.applied(&watch, lockdown(1, "Sometimes"));
        let changes = store.take().expect("it is told");
        assert_eq!((changes.objects.len(), changes.problems.len()), (1, 1));
        assert_eq!(changes.unread, 1, "no version of it is known");
        store.applied(&watch, lockdown(2, "Enforce"));
        let changes = store.take().expect("it is good");
        assert_eq!((changes.objects.len(), changes.problems.len()), (1, 0));
        store.listed(&watch, vec![lockdown(3, "Never")]);
        let changes = store.take().expect("it is told");
        assert_eq!((changes.objects.len(), changes.problems.len()), (0, 1));
        assert_eq!(changes.unread, 0, "its last good version stands");
        store.listed(&watch, vec![]);
        let changes = store.take().expect("it is gone");
        assert_eq!((changes.objects.len(), changes.problems.len()), (1, 0));
    }

    #[test]
    fn an_inherited_version_stands_for_what_cannot_be_read() {
        let watch = Watch::Own(Policy::EgressLockdown);
        let lockdown = |version: u64, mode: &str| {
            let value = json!({
                "metadata": { "name": "all", "uid": "u", "resourceVersion": version.to_string() },
                "spec": { "mode": mode },
            });
            read(&watch, value).expect("a name")
        };
        let mut first = Store::default();
        first.applied(&watch, lockdown(1, "Enforce"));
        let mut index = Index::default();
        for object in first.take().expect("it is good").objects.into_values() {
            index.apply(object.expect("it is there"));
        }
        let mut store = Store::default();
        store.inherit(Heritage::read(&index.bequeath()));
        store.applied(&watch, lockdown(2, "Sometimes"));
        let changes = store.take().expect("it is told");
        assert_eq!((changes.problems.len(), changes.unread), (1, 0));
        let Some(Some(Object::EgressLockdown(stands))) = changes.objects.into_values().next()
        else {
            panic!("nothing stands for it");
        };
        assert_eq!(stands.spec.mode, Mode::Enforce);
        assert_eq!(stands.metadata.uid.as_deref(), Some("u"));
        store.applied(&watch, lockdown(3, "Never"));
        let changes = store.take().expect("it is told");
        assert_eq!((changes.objects.len(), changes.unread), (0, 0));
    }

    #[test]
    fn a_pod_stands_while_any_watch_tells_of_it() {
        let gateway = Watch::GatewayPods {
            namespace: "n".into(),
            labels: Labels::from([("app".into(), "gw".into())]),
        };
        let pod = |watch: &Watch, version, ready: &str| {
            let status =
                json!({ "status": { "conditions": [{ "type": "Ready", "status": ready }] } });
            item(watch, version, "p", &status)
        };
        let ready = |store: &mut Store| {
            let objects = store.take()?.objects;
            Some(match objects.into_values().next()? {
                Some(Object::Pod(pod)) => Some(pod.status?.conditions?[0].status.clone()),
                _ => None,
            })
        };
        let mut store = Store::default();
        store.applied(&gateway, pod(&gateway, 4, "True"));
        assert_eq!(ready(&mut store), Some(Some("True".into())));
        store.listed(&Watch::OtherPods, vec![pod(&Watch::OtherPods, 3, "False")]);
        assert_eq!(ready(&mut store), None, "the newer version stands");
        store.forget(&gateway);
        assert_eq!(ready(&mut store), None, "the other tells of it");
        store.applied(&Watch::OtherPods, pod(&Watch::OtherPods, 5, "False"));
        assert_eq!(ready(&mut store), Some(Some("False".into())));
        store.gone(&Watch::OtherPods, &Key::new("n", "p"));
        assert_eq!(ready(&mut store), Some(None));
    }
}
