//! Label selectors, as Kubernetes evaluates them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use serde::{Deserialize, Deserializer};

/// Reads a selector and refuses fields it doesn't have: with `matchLabels` misspelt it would select
/// everything, and what a lockdown allows would be allowed to all.
pub(super) fn strict<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<LabelSelector>, D::Error> {
    let selector = Option::<Selector>::deserialize(deserializer)?;
    Ok(selector.map(|selector| LabelSelector {
        match_labels: selector.match_labels,
        match_expressions: selector.match_expressions.map(|all| {
            all.into_iter()
                .map(|one| LabelSelectorRequirement {
                    key: one.key,
                    operator: one.operator,
                    values: one.values,
                })
                .collect()
        }),
    }))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Selector {
    match_labels: Option<BTreeMap<String, String>>,
    match_expressions: Option<Vec<Requirement>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Requirement {
    key: String,
    operator: String,
    values: Option<Vec<String>>,
}

/// Whether `labels` satisfy the selector; no selector and an empty one match everything.
/// A requirement that [`check`] refuses matches nothing.
pub fn matches(selector: Option<&LabelSelector>, labels: &BTreeMap<String, String>) -> bool {
    let Some(selector) = selector else {
        return true;
    };
    let required = selector.match_labels.iter().flatten();
    let expressions = selector.match_expressions.iter().flatten();
    required
        .into_iter()
        .all(|(key, value)| labels.get(key) == Some(value))
        && expressions
            .into_iter()
            .all(|requirement| holds(requirement, labels))
}

fn holds(requirement: &LabelSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let value = labels.get(&requirement.key);
    let among = value.is_some_and(|value| requirement.values.iter().flatten().any(|v| v == value));
    match requirement.operator.as_str() {
        "In" => among,
        // Also true where the label is absent.
        "NotIn" => !among,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}

/// What is wrong with the selector: the path below it, and why.
pub fn check(selector: &LabelSelector) -> Result<(), (String, String)> {
    for (i, requirement) in selector.match_expressions.iter().flatten().enumerate() {
        let given = requirement
            .values
            .as_ref()
            .is_some_and(|values| !values.is_empty());
        let at = |field: &str| format!("matchExpressions[{i}].{field}");
        if requirement.key.is_empty() {
            return Err((at("key"), "must not be empty".to_owned()));
        }
        match requirement.operator.as_str() {
            "In" | "NotIn" if !given => {
                return Err((
                    at("values"),
                    format!("{} needs values", requirement.operator),
                ));
            }
            "Exists" | "DoesNotExist" if given => {
                return Err((
                    at("values"),
                    format!("{} takes no values", requirement.operator),
                ));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                let reason = format!("`{other}` is none of In, NotIn, Exists, DoesNotExist");
                return Err((at("operator"), reason));
            }
        }
    }
    Ok(())
}
