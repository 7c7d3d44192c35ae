//! From an API server's bytes to objects, without an API server.

use kube::api::WatchEvent;
use serde_json::Value;

use super::follow::Page;
use super::read::{Content, Item, read};
use super::store::Store;
use super::watches::{Policy, Watch};
use crate::index::Object;

/// Objects that are left when all of `text` has been told: a list, or watch events line by line.
pub(crate) fn objects(choice: u8, text: &str) -> Vec<Object> {
    let mut watches: Vec<Watch> = Watch::always(true).collect();
    watches.extend(Policy::SHARED.map(Watch::Gloo));
    watches.push(Watch::OtherPods);
    let watch = &watches[usize::from(choice) % watches.len()];
    let mut store = Store::default();
    if let Ok(page) = serde_json::from_str::<Page>(text) {
        let items = page.items.into_iter().flatten();
        store.listed(
            watch,
            items.filter_map(|value| item(watch, value)).collect(),
        );
    }
    for line in text.lines() {
        match serde_json::from_str::<WatchEvent<Value>>(line) {
            Ok(WatchEvent::Added(value) | WatchEvent::Modified(value)) => {
                if let Some(item) = item(watch, value) {
                    store.applied(watch, item);
                }
            }
            Ok(WatchEvent::Deleted(value)) => {
                if let Some(item) = item(watch, value) {
                    store.gone(watch, &item.key);
                }
            }
            Ok(WatchEvent::Bookmark(_) | WatchEvent::Error(_)) | Err(_) => {}
        }
    }
    let changes = store.changes().values();
    changes.flatten().cloned().collect()
}

/// Reads one; what stands for an object that can't be read is of its kind and name.
fn item(watch: &Watch, value: Value) -> Option<Item> {
    let item = read(watch, value)?;
    let stands = match &item.content {
        Content::Object(object) => Some(object),
        Content::Wrong { closed, error } => {
            assert!(!error.to_string().is_empty());
            closed.as_ref()
        }
        Content::Present => None,
    };
    if let Some(object) = stands {
        let id = object.id();
        assert_eq!(id.name, item.key.name);
        // An API server names the namespace of what has one, and of nothing else: without it is the
        // default one, and what has none ignores it.
        if !item.key.namespace.is_empty() && !id.namespace.is_empty() {
            assert_eq!(id.namespace, item.key.namespace);
        }
        assert_eq!(id.kind, watch.kind());
    }
    Some(item)
}
