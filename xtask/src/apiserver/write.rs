//! Reading one object, making, changing and deleting it.

use serde_json::{Value, json};

use super::answer::Target;
use super::http::{Request, Response};
use super::store::{Key, Refused, Store};

pub(super) fn write(store: &mut Store, request: &Request, target: &Target) -> Response {
    let key: Key = (
        target.namespace.clone().unwrap_or_default(),
        target.name.clone().unwrap_or_default(),
    );
    let done = match request.method.as_str() {
        "GET" => store
            .get(&target.resource, &key)
            .cloned()
            .ok_or_else(|| missing(target, &key)),
        "DELETE" => store.delete(&target.resource, &key),
        method => match serde_json::from_slice(&request.body) {
            Ok(body) if request.content_type.contains("apply-patch") => {
                apply(store, request, target, &key, body)
            }
            Ok(body) => change(store, method, target, &key, body),
            Err(error) => Err((400, "BadRequest", error.to_string())),
        },
    };
    match done {
        Ok(object) => {
            let made = request.method == "POST";
            Response {
                status: if made { 201 } else { 200 },
                ..Response::ok(target.shown(&object))
            }
        }
        Err((code, reason, message)) => Response::failure(code, reason, &message),
    }
}

fn missing(target: &Target, key: &Key) -> Refused {
    let message = format!("{} \"{}\" not found", target.resource.plural, key.1);
    (404, "NotFound", message)
}

fn change(
    store: &mut Store,
    method: &str,
    target: &Target,
    key: &Key,
    mut body: Value,
) -> Result<std::sync::Arc<Value>, Refused> {
    let resource = &target.resource;
    let old = store.get(resource, key).cloned();
    if resource.namespaced {
        body["metadata"]["namespace"] = json!(key.0);
    }
    if method == "POST" {
        let named = super::store::key(resource, &body)?;
        if store.get(resource, &named).is_some() {
            let message = format!("{} \"{}\" already exists", resource.plural, named.1);
            return Err((409, "AlreadyExists", message));
        }
        return store.put(resource, body);
    }
    // Whoever writes the status leaves the rest alone, and the other way round.
    let part = target.subresource.as_deref();
    let object = match (method, old) {
        // Server-side apply makes what is not there.
        (_, None) if method == "PATCH" && part.is_none() && body.get("apiVersion").is_some() => {
            body["metadata"]["name"] = json!(key.1);
            body
        }
        (_, None) => return Err(missing(target, key)),
        ("PUT", Some(old)) => match part {
            Some(part) => {
                let mut object = (*old).clone();
                object[part] = body[part].take();
                object
            }
            None => body,
        },
        (_, Some(old)) => {
            let mut object = (*old).clone();
            let version = body["metadata"]["resourceVersion"].take();
            match part {
                Some(part) => merge(&mut object[part], &body[part]),
                None => merge(&mut object, &body),
            }
            if let Some(meta) = object["metadata"].as_object_mut() {
                meta.insert("resourceVersion".to_owned(), version);
            }
            object
        }
    };
    store.put(resource, object)
}

/// Server-side apply, as far as agents use it: fields are merged, and in the list `envoys` of a
/// status, which is a map by `name`, each manager's entries are its own. Those that it does not name
/// any more are gone.
fn apply(
    store: &mut Store,
    request: &Request,
    target: &Target,
    key: &Key,
    mut body: Value,
) -> Result<std::sync::Arc<Value>, Refused> {
    let Some(manager) = request.parameter("fieldManager").map(str::to_owned) else {
        return Err((400, "BadRequest", "fieldManager is required".to_owned()));
    };
    let old = store.get(&target.resource, key).cloned();
    let list = body["status"]["envoys"].take();
    if let (Some(old), Value::Array(named)) = (&old, list) {
        let names = |list: &[Value]| -> std::collections::BTreeSet<String> {
            let name = |entry: &Value| entry["name"].as_str().map(str::to_owned);
            list.iter().filter_map(name).collect()
        };
        let owned = store.owned(&target.resource, key, &manager);
        let now = names(&named);
        let others = old["status"]["envoys"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let mut entries: Vec<Value> = others
            .into_iter()
            .filter(|entry| {
                let name = entry["name"].as_str().unwrap_or_default();
                !owned.contains(name) && !now.contains(name)
            })
            .collect();
        entries.extend(named);
        body["status"]["envoys"] = Value::Array(entries);
        store.own(&target.resource, key, &manager, now);
    }
    change(store, "PATCH", target, key, body)
}

/// A merge patch (RFC 7386).
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (field, value) in patch {
        if value.is_null() {
            if let Some(fields) = into.as_object_mut() {
                fields.remove(field);
            }
        } else {
            merge(&mut into[field], value);
        }
    }
}
