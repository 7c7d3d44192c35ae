//! JSON patch (RFC 6902): `add`, `remove`, `replace` and `test`.

use serde_json::Value;

use super::store::Refused;

/// Takes the steps one after the other. One that can't be taken, or a test that fails, is the end of
/// it.
pub(super) fn patch(object: &mut Value, steps: &Value) -> Result<(), Refused> {
    let steps = steps.as_array();
    let steps = steps.ok_or_else(|| refused("a JSON patch is a list"))?;
    steps.iter().try_for_each(|each| step(object, each))
}

fn refused(message: &str) -> Refused {
    (422, "Invalid", message.to_owned())
}

fn step(object: &mut Value, step: &Value) -> Result<(), Refused> {
    let path = step["path"].as_str().unwrap_or_default();
    let nothing = || refused(&format!("there is nothing at {path}"));
    let (above, last) = path.rsplit_once('/').ok_or_else(nothing)?;
    let value = &step["value"];
    let op = step["op"].as_str().unwrap_or_default();
    if matches!(op, "remove" | "replace" | "test") && object.pointer(path).is_none() {
        return Err(nothing());
    }
    if op == "test" {
        return match object.pointer(path) {
            Some(there) if there == value => Ok(()),
            _ => Err(refused(&format!("the test at {path} failed"))),
        };
    }
    let place = object.pointer_mut(above).ok_or_else(nothing)?;
    let key = last.replace("~1", "/").replace("~0", "~");
    match (op, place) {
        ("remove", Value::Object(fields)) => drop(fields.remove(&key)),
        ("remove", Value::Array(items)) => drop(items.remove(number(&key, items.len())?)),
        ("replace" | "add", Value::Object(fields)) => drop(fields.insert(key, value.clone())),
        ("replace", Value::Array(items)) => {
            let at = number(&key, items.len())?;
            items[at] = value.clone();
        }
        ("add", Value::Array(items)) if key == "-" => items.push(value.clone()),
        ("add", Value::Array(items)) => {
            let at = number(&key, items.len() + 1)?;
            items.insert(at, value.clone());
        }
        _ => return Err(refused(&format!("can't {op} at {path}"))),
    }
    Ok(())
}

fn number(key: &str, below: usize) -> Result<usize, Refused> {
    let number = key.parse().ok().filter(|number| *number < below);
    number.ok_or_else(|| refused(&format!("there is no item {key}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn steps_are_taken_in_order_until_one_fails() {
        let mut object = json!({ "a": [1, 2, 3], "b/c": 1 });
        let steps = json!([
            { "op": "test", "path": "/a/2", "value": 3 },
            { "op": "remove", "path": "/a/2" },
            { "op": "add", "path": "/a/-", "value": 4 },
            { "op": "replace", "path": "/b~1c", "value": 2 },
        ]);
        patch(&mut object, &steps).expect("it fits");
        assert_eq!(object, json!({ "a": [1, 2, 4], "b/c": 2 }));
        for wrong in [
            json!([{ "op": "test", "path": "/a/0", "value": 9 }]),
            json!([{ "op": "remove", "path": "/a/3" }]),
            json!([{ "op": "remove", "path": "/x" }]),
            json!({ "a": 1 }),
        ] {
            assert_eq!(patch(&mut object, &wrong).unwrap_err().0, 422, "{wrong}");
        }
    }
}
