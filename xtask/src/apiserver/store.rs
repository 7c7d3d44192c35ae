//! The objects, by collection, with what happened to them since some version.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};

use super::apply::Fields;
use super::resources::{DEFINITIONS, Resource, built_in, defined};

/// Namespace (empty without any) and name.
pub type Key = (String, String);

/// A change of one object.
#[derive(Clone, Debug)]
pub struct Change {
    pub version: u64,
    pub collection: String,
    /// None before it was made.
    pub old: Option<Arc<Value>>,
    /// None when it was deleted.
    pub new: Option<Arc<Value>>,
}

/// All that the API server knows.
#[derive(Debug)]
pub struct Store {
    version: u64,
    /// Changes up to this version are forgotten.
    forgotten: u64,
    collections: BTreeMap<String, BTreeMap<Key, Arc<Value>>>,
    changes: VecDeque<Change>,
    /// Fields by who applied them, of each object by its collection.
    owned: BTreeMap<(String, Key), BTreeMap<String, Fields>>,
}

/// Why a change was not made: HTTP status, reason, message.
pub type Refused = (u16, &'static str, String);

impl Default for Store {
    fn default() -> Self {
        Self {
            version: 1000,
            forgotten: 1000,
            collections: BTreeMap::new(),
            changes: VecDeque::new(),
            owned: BTreeMap::new(),
        }
    }
}

impl Store {
    pub fn version(&self) -> u64 {
        self.version
    }

    /// What can be asked for: what is built in, and what the definitions that are there define.
    pub fn resources(&self) -> Vec<Resource> {
        let definitions = self.collections.get(DEFINITIONS);
        let defined = definitions
            .into_iter()
            .flat_map(BTreeMap::values)
            .flat_map(|definition| defined(definition));
        built_in().chain(defined).collect()
    }

    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<Resource> {
        let mut resources = self.resources().into_iter();
        resources.find(|r| r.group == group && r.version == version && r.plural == plural)
    }

    /// The resource of an object that says `apiVersion` and `kind`.
    pub fn resource_of(&self, object: &Value) -> Option<Resource> {
        let mut resources = self.resources().into_iter();
        resources.find(|r| object["apiVersion"] == r.api_version() && object["kind"] == r.kind)
    }

    /// Sorted by namespace and name.
    pub fn objects(&self, resource: &Resource) -> impl Iterator<Item = &Arc<Value>> {
        let objects = self.collections.get(&resource.collection());
        objects.into_iter().flat_map(BTreeMap::values)
    }

    pub fn get(&self, resource: &Resource, key: &Key) -> Option<&Arc<Value>> {
        self.collections.get(&resource.collection())?.get(key)
    }

    /// Version and objects as they were before the last `changes` changes of any collection, as far
    /// back as is remembered.
    pub fn before(&self, resource: &Resource, changes: usize) -> (u64, Vec<Arc<Value>>) {
        let collection = resource.collection();
        let mut objects = self
            .collections
            .get(&collection)
            .cloned()
            .unwrap_or_default();
        let mut version = self.version;
        for change in self.changes.iter().rev().take(changes) {
            version = change.version - 1;
            if change.collection != collection {
                continue;
            }
            let either = change.old.as_ref().or(change.new.as_ref());
            let Some(key) = either.and_then(|object| key(resource, object).ok()) else {
                continue;
            };
            match &change.old {
                Some(old) => objects.insert(key, Arc::clone(old)),
                None => objects.remove(&key),
            };
        }
        (version, objects.into_values().collect())
    }

    /// Changes of the collection after `version`; none if some of them are forgotten.
    pub fn since(&self, resource: &Resource, version: u64) -> Option<Vec<Change>> {
        if version < self.forgotten {
            return None;
        }
        let collection = resource.collection();
        let changes = self.changes.iter().rev();
        let mut found: Vec<Change> = changes
            .take_while(|change| change.version > version)
            .filter(|change| change.collection == collection)
            .cloned()
            .collect();
        found.reverse();
        Some(found)
    }

    /// Forgets what happened until now: who hasn't seen it has to list anew.
    pub fn compact(&mut self) {
        self.forgotten = self.version;
        self.changes.clear();
    }

    /// Fields of an object that this field manager has applied, and those that others have.
    pub fn owned(
        &self,
        resource: &Resource,
        key: &Key,
        manager: &str,
    ) -> (Fields, Vec<(String, Fields)>) {
        let place = (resource.collection(), key.clone());
        let mut all = self.owned.get(&place).cloned().unwrap_or_default();
        let own = all.remove(manager).unwrap_or_default();
        (own, all.into_iter().collect())
    }

    /// Says who owns which fields.
    pub fn own(&mut self, resource: &Resource, key: &Key, all: Vec<(String, Fields)>) {
        let place = (resource.collection(), key.clone());
        self.owned.insert(place, all.into_iter().collect());
    }

    /// Makes the object or puts it in place of the one that is there.
    pub fn put(&mut self, resource: &Resource, mut object: Value) -> Result<Arc<Value>, Refused> {
        let key = key(resource, &object)?;
        let collection = resource.collection();
        let old = self.get(resource, &key).cloned();
        let wanted = object["metadata"]["resourceVersion"]
            .as_str()
            .map(str::to_owned);
        if let (Some(old), Some(wanted)) = (&old, &wanted)
            && old["metadata"]["resourceVersion"] != **wanted
        {
            let message = format!(
                "{} \"{}\": the object has been modified",
                resource.plural, key.1
            );
            return Err((409, "Conflict", message));
        }
        self.version += 1;
        object["apiVersion"] = json!(resource.api_version());
        object["kind"] = json!(resource.kind);
        let meta = &mut object["metadata"];
        if resource.namespaced {
            meta["namespace"] = json!(key.0);
        }
        let made = old.as_ref().map(|old| &old["metadata"]);
        let inherit = |field: &str, new: Value| made.map_or(new, |made| made[field].clone());
        if meta["uid"].is_null() {
            meta["uid"] = inherit(
                "uid",
                json!(format!("{:08x}-0000-4000-8000-{:012x}", 7, self.version)),
            );
        }
        meta["creationTimestamp"] = inherit("creationTimestamp", json!("2026-01-01T00:00:00Z"));
        meta["resourceVersion"] = json!(self.version.to_string());
        let before = made
            .and_then(|made| made["generation"].as_u64())
            .unwrap_or(0);
        let same = old
            .as_ref()
            .is_some_and(|old| old["spec"] == object["spec"]);
        object["metadata"]["generation"] = json!(if same { before } else { before + 1 });
        let object = Arc::new(object);
        let objects = self.collections.entry(collection.clone()).or_default();
        objects.insert(key, Arc::clone(&object));
        self.changes.push_back(Change {
            version: self.version,
            collection,
            old,
            new: Some(Arc::clone(&object)),
        });
        Ok(object)
    }

    /// Deletes it; with a definition all objects of what it defines.
    pub fn delete(&mut self, resource: &Resource, key: &Key) -> Result<Arc<Value>, Refused> {
        let collection = resource.collection();
        let objects = self.collections.get_mut(&collection);
        let Some(old) = objects.and_then(|objects| objects.remove(key)) else {
            let message = format!("{} \"{}\" not found", resource.plural, key.1);
            return Err((404, "NotFound", message));
        };
        self.version += 1;
        self.changes.push_back(Change {
            version: self.version,
            collection: collection.clone(),
            old: Some(Arc::clone(&old)),
            new: None,
        });
        self.owned.remove(&(collection.clone(), key.clone()));
        self.collect(&old)?;
        if collection == DEFINITIONS {
            for resource in defined(&old) {
                let keys: Vec<Key> = self
                    .collections
                    .get(&resource.collection())
                    .map(|objects| objects.keys().cloned().collect())
                    .unwrap_or_default();
                for key in keys {
                    self.delete(&resource, &key)?;
                }
            }
        }
        Ok(old)
    }
}

impl Store {
    /// Deletes what the object owned, as a cluster's garbage collector does a little later.
    fn collect(&mut self, owner: &Value) -> Result<(), Refused> {
        let uid = &owner["metadata"]["uid"];
        let mut owned = Vec::new();
        for resource in self.resources() {
            for object in self.objects(&resource) {
                let owners = object["metadata"]["ownerReferences"].as_array();
                let mut owners = owners.into_iter().flatten();
                if !uid.is_null() && owners.any(|owner| owner["uid"] == *uid) {
                    owned.push((resource.clone(), key(&resource, object)?));
                }
            }
        }
        for (resource, key) in owned {
            // Of a kind with several versions it was found more than once.
            if self.get(&resource, &key).is_some() {
                self.delete(&resource, &key)?;
            }
        }
        Ok(())
    }
}

/// Where the object is kept.
pub fn key(resource: &Resource, object: &Value) -> Result<Key, Refused> {
    let meta = &object["metadata"];
    let Some(name) = meta["name"].as_str().filter(|name| !name.is_empty()) else {
        let message = format!("{}: metadata.name: Required value", resource.kind);
        return Err((422, "Invalid", message));
    };
    let namespace = if resource.namespaced {
        meta["namespace"].as_str().unwrap_or("default")
    } else {
        ""
    };
    Ok((namespace.to_owned(), name.to_owned()))
}
