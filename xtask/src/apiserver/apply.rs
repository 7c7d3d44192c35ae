//! Server-side apply: each field manager owns the fields that it has applied. What it does not apply
//! any more is gone, unless another owns it too; what another owns it takes only by force.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::store::Refused;

/// Lists that are maps, by the field they are in, and the field that tells their entries apart. All
/// other lists are one value.
const MAPS: [(&str, &str); 3] = [
    ("conditions", "type"),
    ("envoys", "name"),
    ("ownerReferences", "uid"),
];

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    Field(String),
    /// Of a list that is a map, by its key.
    Entry(String),
}

pub(super) type Path = Vec<Step>;

/// Fields of one manager.
pub(super) type Fields = BTreeSet<Path>;

fn list_key(field: Option<&Step>) -> Option<&'static str> {
    let Some(Step::Field(field)) = field else {
        return None;
    };
    let found = MAPS.iter().find(|(name, _)| name == field);
    found.map(|(_, key)| *key)
}

fn entry_key(entry: &Value, key: &str) -> String {
    entry[key].as_str().unwrap_or_default().to_owned()
}

/// All fields that a value gives.
pub(super) fn fields(value: &Value) -> Fields {
    let mut found = Fields::new();
    collect(value, &mut Vec::new(), &mut found);
    found
}

fn collect(value: &Value, at: &mut Path, found: &mut Fields) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (field, inner) in map {
                at.push(Step::Field(field.clone()));
                collect(inner, at, found);
                at.pop();
            }
        }
        Value::Array(items) if list_key(at.last()).is_some() => {
            let key = list_key(at.last()).unwrap_or_default();
            for item in items {
                at.push(Step::Entry(entry_key(item, key)));
                collect(item, at, found);
                at.pop();
            }
        }
        // An empty object is there without any field of its own.
        _ => _ = found.insert(at.clone()),
    }
}

fn get<'a>(value: &'a Value, path: &[Step]) -> Option<&'a Value> {
    let mut value = value;
    for (i, step) in path.iter().enumerate() {
        value = match step {
            Step::Field(field) => value.get(field)?,
            Step::Entry(entry) => {
                let key = list_key(path.get(i.checked_sub(1)?))?;
                let mut items = value.as_array()?.iter();
                items.find(|item| entry_key(item, key) == *entry)?
            }
        };
    }
    Some(value)
}

/// Takes a field out, and what is empty without it.
fn remove(value: &mut Value, path: &[Step], list: Option<&Step>) {
    match (path, value) {
        ([Step::Field(field)], Value::Object(map)) => _ = map.remove(field),
        ([Step::Field(field), rest @ ..], Value::Object(map)) => {
            if let Some(inner) = map.get_mut(field) {
                remove(inner, rest, path.first());
                if is_empty(inner) {
                    map.remove(field);
                }
            }
        }
        ([Step::Entry(entry), rest @ ..], Value::Array(items)) => {
            let key = list_key(list).unwrap_or_default();
            for item in items
                .iter_mut()
                .filter(|item| entry_key(item, key) == *entry)
            {
                // The key goes last: by it the entry is found.
                if rest != [Step::Field(key.to_owned())] {
                    remove(item, rest, None);
                }
            }
            let bare = |item: &Value| item.as_object().is_some_and(|item| item.len() <= 1);
            if rest == [Step::Field(key.to_owned())] {
                items.retain(|item| entry_key(item, key) != *entry || !bare(item));
            }
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

fn merge(into: &mut Value, applied: &Value, field: Option<&Step>) {
    match applied {
        Value::Object(applied) => {
            if !into.is_object() {
                *into = Value::Object(Map::new());
            }
            for (name, value) in applied {
                merge(&mut into[name], value, Some(&Step::Field(name.clone())));
            }
        }
        Value::Array(items) if list_key(field).is_some() => {
            let key = list_key(field).unwrap_or_default();
            if !into.is_array() {
                *into = json!([]);
            }
            let Value::Array(there) = into else { return };
            for item in items {
                let found = there
                    .iter_mut()
                    .find(|it| entry_key(it, key) == entry_key(item, key));
                match found {
                    Some(found) => merge(found, item, None),
                    None => there.push(item.clone()),
                }
            }
        }
        value => *into = value.clone(),
    }
}

/// What comes of applying over `old`. `own` is what the manager applied before, `others` what others
/// did; from these it takes what it applies too.
pub(super) fn apply(
    old: &Value,
    applied: &Value,
    own: &Fields,
    others: &mut [(String, Fields)],
    force: bool,
) -> Result<Value, Refused> {
    let now = fields(applied);
    for (manager, theirs) in others.iter_mut() {
        let differs = |path: &&Path| get(old, path) != get(applied, path);
        let taken: Vec<Path> = theirs.intersection(&now).filter(differs).cloned().collect();
        if let (Some(path), false) = (taken.first(), force) {
            let message =
                format!("Apply failed with 1 conflict: conflict with {manager:?}: {path:?}");
            return Err((409, "Conflict", message));
        }
        for path in taken {
            theirs.remove(&path);
        }
    }
    let mut object = old.clone();
    merge(&mut object, applied, None);
    let kept = |path: &&Path| others.iter().any(|(_, theirs)| theirs.contains(*path));
    let mut gone: Vec<&Path> = own.difference(&now).filter(|path| !kept(path)).collect();
    // Of an entry everything else before its key.
    let is_key = |path: &Path| {
        let entry = path
            .len()
            .checked_sub(3)
            .and_then(|at| list_key(path.get(at)));
        matches!((entry, path.last()), (Some(key), Some(Step::Field(field))) if field == key)
    };
    gone.sort_by_key(|path| is_key(path));
    for path in gone {
        remove(&mut object, path, None);
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(conditions: &[(&str, &str)], envoys: &[&str]) -> Value {
        let conditions: Vec<Value> = conditions
            .iter()
            .map(|(kind, status)| json!({ "type": kind, "status": status }))
            .collect();
        let envoys: Vec<Value> = envoys
            .iter()
            .map(|name| json!({ "name": name, "ok": true }))
            .collect();
        let mut status = json!({});
        if !conditions.is_empty() {
            status["conditions"] = json!(conditions);
        }
        if !envoys.is_empty() {
            status["envoys"] = json!(envoys);
        }
        json!({ "status": status })
    }

    #[test]
    fn managers_own_entries_of_one_list_and_take_back_their_own() {
        let (mut a, mut b) = (Fields::new(), Fields::new());
        let mut object = json!({});
        let step = |object: &mut Value, mine: &mut Fields, other: &mut Fields, applied: &Value| {
            let mut others = vec![("other".to_owned(), std::mem::take(other))];
            *object = apply(object, applied, mine, &mut others, true).expect("by force");
            *mine = fields(applied);
            *other = others.remove(0).1;
        };
        step(&mut object, &mut a, &mut b, &status(&[], &["x", "y"]));
        step(
            &mut object,
            &mut b,
            &mut a,
            &status(&[("Ready", "True")], &["z"]),
        );
        assert_eq!(object, status(&[("Ready", "True")], &["x", "y", "z"]));
        step(&mut object, &mut a, &mut b, &status(&[], &["y"]));
        assert_eq!(object, status(&[("Ready", "True")], &["y", "z"]));
        step(
            &mut object,
            &mut b,
            &mut a,
            &status(&[("Ready", "False")], &[]),
        );
        assert_eq!(object, status(&[("Ready", "False")], &["y"]));
    }

    #[test]
    fn what_another_owns_is_taken_by_force_alone() {
        let old = status(&[("Ready", "True")], &[]);
        let theirs = || vec![("other".to_owned(), fields(&old))];
        let new = status(&[("Ready", "False")], &[]);
        let own = Fields::new();
        assert_eq!(
            apply(&old, &new, &own, &mut theirs(), false).unwrap_err().0,
            409
        );
        assert_eq!(apply(&old, &old, &own, &mut theirs(), false).unwrap(), old);
        let mut others = theirs();
        assert_eq!(apply(&old, &new, &own, &mut others, true).unwrap(), new);
        assert_eq!(
            others[0].1.len(),
            1,
            "the type is shared, the status was taken"
        );
    }
}
