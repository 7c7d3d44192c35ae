//! Evaluates an object against a definition as an API server does: the schema first, and the rules
//! only where that holds.

use std::net::{Ipv4Addr, Ipv6Addr};

use kube_cel::Validator;
use regex::Regex;
use serde_json::Value;

/// What is refused, each with its path.
pub(super) fn refusals(schema: &Value, object: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    check(schema, object, "", &mut errors);
    if errors.is_empty()
        && let Err(failed) = Validator::new().validate_with_defaults(schema, object, None)
    {
        errors.extend(
            failed
                .iter()
                .map(|error| format!("{}: {}", error.field_path, error.message)),
        );
    }
    errors
}

fn check(schema: &Value, value: &Value, at: &str, errors: &mut Vec<String>) {
    let mut error = |text: String| errors.push(format!("{at}: {text}"));
    let right = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("boolean") => value.is_boolean(),
        Some("number") => value.is_number(),
        _ => true,
    };
    if !right {
        return error(format!("must be of type {}", schema["type"]));
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        error(format!("unsupported value {value}"));
    }
    if let Some(choice) = schema["anyOf"].as_array() {
        let fits = |alternative: &Value| {
            let mut inner = Vec::new();
            check(alternative, value, at, &mut inner);
            inner.is_empty()
        };
        if !choice.iter().any(fits) {
            error("must validate at least one schema (anyOf)".to_owned());
        }
    }
    match value {
        Value::String(text) => string(schema, text, &mut error),
        Value::Number(number) => {
            let number = number.as_f64().expect("small");
            if schema["minimum"]
                .as_f64()
                .is_some_and(|least| number < least)
            {
                error(format!("should be at least {}", schema["minimum"]));
            }
            if schema["maximum"].as_f64().is_some_and(|most| number > most) {
                error(format!("should be at most {}", schema["maximum"]));
            }
        }
        Value::Array(items) => {
            if schema["maxItems"]
                .as_u64()
                .is_some_and(|most| items.len() as u64 > most)
            {
                error(format!("must have at most {} items", schema["maxItems"]));
            }
            if schema["x-kubernetes-list-type"] == "set" {
                for (i, item) in items.iter().enumerate() {
                    if items[..i].contains(item) {
                        error(format!("Duplicate value {item}"));
                    }
                }
            }
            for (i, item) in items.iter().enumerate() {
                check(&schema["items"], item, &format!("{at}[{i}]"), errors);
            }
        }
        Value::Object(fields) => {
            if schema["maxProperties"]
                .as_u64()
                .is_some_and(|most| fields.len() as u64 > most)
            {
                error(format!(
                    "must have at most {} properties",
                    schema["maxProperties"]
                ));
            }
            for name in schema["required"].as_array().into_iter().flatten() {
                let name = name.as_str().expect("a name");
                if !fields.contains_key(name) {
                    error(format!("Required value: {name}"));
                }
            }
            for (name, inner) in fields {
                let at = format!("{at}.{name}").trim_start_matches('.').to_owned();
                if let Some(schema) = schema["properties"].get(name) {
                    check(schema, inner, &at, errors);
                } else if schema["additionalProperties"].is_object() {
                    check(&schema["additionalProperties"], inner, &at, errors);
                }
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
}

fn string(schema: &Value, text: &str, error: &mut impl FnMut(String)) {
    let length = text.chars().count() as u64;
    if schema["minLength"]
        .as_u64()
        .is_some_and(|least| length < least)
    {
        error(format!(
            "should be at least {} chars long",
            schema["minLength"]
        ));
    }
    if schema["maxLength"]
        .as_u64()
        .is_some_and(|most| length > most)
    {
        error(format!(
            "may not be more than {} bytes",
            schema["maxLength"]
        ));
    }
    if let Some(pattern) = schema["pattern"].as_str()
        && !Regex::new(pattern).expect("a pattern").is_match(text)
    {
        error(format!("should match '{pattern}'"));
    }
    let format = schema["format"].as_str();
    let right = match format {
        Some("ipv4") => text.parse::<Ipv4Addr>().is_ok(),
        Some("ipv6") => text.parse::<Ipv6Addr>().is_ok(),
        Some("cidr") => text.parse::<ipnet::IpNet>().is_ok(),
        Some("date-time") => {
            let time: Result<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time, _> =
                serde_json::from_value(text.into());
            time.is_ok()
        }
        None => true,
        Some(other) => panic!("no test for format {other}"),
    };
    if !right {
        error(format!("must be of type {}", format.unwrap_or_default()));
    }
}
