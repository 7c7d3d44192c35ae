//! Reading one object, making, changing and deleting it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::answer::Target;
use super::apply;
use super::http::{Request, Response};
use super::json_patch;
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
            Ok(steps) if request.content_type.contains("json-patch") => {
                step(store, target, &key, &steps)
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

fn step(
    store: &mut Store,
    target: &Target,
    key: &Key,
    steps: &Value,
) -> Result<std::sync::Arc<Value>, Refused> {
    let old = store.get(&target.resource, key);
    let mut object = (**old.ok_or_else(|| missing(target, key))?).clone();
    json_patch::patch(&mut object, steps)?;
    // As long as no step says otherwise, whatever version it is.
    if let Some(meta) = object["metadata"].as_object_mut() {
        meta.remove("resourceVersion");
    }
    store.put(&target.resource, object)
}

fn change(
    store: &mut Store,
    method: &str,
    target: &Target,
    key: &Key,
    mut body: Value,
) -> Result<Arc<Value>, Refused> {
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
        if resource.group == "events.k8s.io" {
            event(&body)?;
        }
        return store.put(resource, body);
    }
    // Whoever writes the status leaves the rest alone, and the other way round.
    let part = target.subresource.as_deref();
    let object = match (method, old) {
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

/// Server-side apply: makes what is not there, but not by its status.
fn apply(
    store: &mut Store,
    request: &Request,
    target: &Target,
    key: &Key,
    mut body: Value,
) -> Result<Arc<Value>, Refused> {
    let Some(manager) = request.parameter("fieldManager") else {
        return Err((400, "BadRequest", "fieldManager is required".to_owned()));
    };
    let resource = &target.resource;
    let old = store.get(resource, key).cloned();
    let part = target.subresource.as_deref();
    let applied = if let Some(part) = part {
        json!({ part: body[part].take() })
    } else {
        let fields = body.as_object_mut().into_iter();
        let mut applied: Value = fields
            .flat_map(std::mem::take)
            .filter(|(field, _)| !matches!(field.as_str(), "apiVersion" | "kind"))
            .collect();
        if let Some(meta) = applied["metadata"].as_object_mut() {
            // These tell which object, and are nobody's.
            for field in [
                "name",
                "namespace",
                "resourceVersion",
                "uid",
                "managedFields",
            ] {
                meta.remove(field);
            }
        }
        applied
    };
    if old.is_none() && part.is_some() {
        return Err(missing(target, key));
    }
    let mut nothing = json!({ "metadata": { "name": key.1 } });
    if resource.namespaced {
        nothing["metadata"]["namespace"] = json!(key.0);
    }
    let nothing = Arc::new(nothing);
    let old = old.unwrap_or(nothing);
    let manager = format!("{manager} {}", part.unwrap_or_default());
    let (own, mut others) = store.owned(resource, key, &manager);
    let force = request.flag("force");
    let object = apply::apply(&old, &applied, &own, &mut others, force)?;
    others.push((manager, apply::fields(&applied)));
    store.own(resource, key, others);
    if object == *old {
        return Ok(old);
    }
    store.put(resource, object)
}

/// What an Event can't be made without.
fn event(body: &Value) -> Result<(), Refused> {
    let needed = [
        "reportingController",
        "reportingInstance",
        "action",
        "reason",
        "type",
    ];
    let absent = needed
        .into_iter()
        .chain(["eventTime"])
        .find(|field| body[field].as_str().is_none_or(str::is_empty));
    if let Some(field) = absent {
        return Err((422, "Invalid", format!("{field}: Required value")));
    }
    if body["note"].as_str().is_some_and(|note| note.len() > 1024) {
        return Err((
            422,
            "Invalid",
            "note: can have at most 1024 characters".to_owned(),
        ));
    }
    Ok(())
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
