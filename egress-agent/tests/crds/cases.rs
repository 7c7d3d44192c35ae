//! Objects that are taken and objects that are refused, and why. `cases.yaml` is also what the
//! cluster suite gives a real API server.

use egress_agent::api::crds::ApiServer;
use egress_agent::source::decode;
use serde::Deserialize;
use serde_json::Value;

use super::schema::refusals;
use super::{deploy, schemas};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    /// What the case shows.
    name: String,
    kind: String,
    spec: Value,
    /// Part of the message with which it is refused; taken without it.
    #[serde(default)]
    refused: Option<String>,
    /// Part of the message with which only the agents refuse it: the API server keeps what it doesn't
    /// know, so that they see it.
    #[serde(default)]
    refused_by_agents: Option<String>,
    /// The rule parses addresses, which API servers before 1.31 can't.
    #[serde(default)]
    since131: bool,
    /// Only the API server refuses it, for a reason of its own.
    #[serde(default)]
    schema_only: bool,
}

fn cases() -> Vec<Case> {
    serde_yaml_ng::from_str(include_str!("cases.yaml")).expect("cases")
}

fn object(case: &Case) -> Value {
    serde_json::json!({
        "apiVersion": "sallyport.dev/v1alpha1",
        "kind": case.kind,
        "metadata": { "name": "case" },
        "spec": case.spec,
    })
}

#[test]
fn nonsense_is_refused_when_it_is_applied() {
    for server in [ApiServer::Current, ApiServer::Before1_31] {
        let schemas = schemas(server);
        for case in cases() {
            let refusals = refusals(&schemas[&case.kind], &object(&case));
            let expected = case
                .refused
                .as_deref()
                .filter(|_| server == ApiServer::Current || !case.since131);
            match expected {
                None => assert!(refusals.is_empty(), "{}: {refusals:?}", case.name),
                Some(text) => assert!(
                    refusals.iter().any(|refusal| refusal.contains(text)),
                    "{}: not refused with `{text}`: {refusals:?}",
                    case.name
                ),
            }
        }
    }
}

/// Every rule refuses something in the cases, so that none stands there untried.
#[test]
fn every_rule_has_a_case() {
    fn messages(schema: &Value, found: &mut Vec<String>) {
        match schema {
            Value::Object(fields) => {
                for rule in schema["x-kubernetes-validations"]
                    .as_array()
                    .into_iter()
                    .flatten()
                {
                    found.push(rule["message"].as_str().expect("a message").to_owned());
                }
                fields.values().for_each(|inner| messages(inner, found));
            }
            Value::Array(items) => items.iter().for_each(|inner| messages(inner, found)),
            _ => {}
        }
    }
    let schemas = schemas(ApiServer::Current);
    let seen: Vec<String> = cases()
        .iter()
        .flat_map(|case| refusals(&schemas[&case.kind], &object(case)))
        .collect();
    for (kind, schema) in &schemas {
        let mut all = Vec::new();
        messages(schema, &mut all);
        for message in all {
            assert!(
                seen.iter().any(|text| text.contains(&message)),
                "{kind}: no case for `{message}`"
            );
        }
    }
}

/// What the API server takes the agent takes, and the other way round: a file and an applied object
/// must not differ in meaning.
#[test]
fn the_agent_sees_it_the_same_way() {
    for case in cases().into_iter().filter(|case| !case.schema_only) {
        let mut object = object(&case);
        if case.kind != "EgressLockdown" {
            object["metadata"]["namespace"] = "default".into();
        }
        let refused = match decode(&object.to_string()) {
            Err(error) => Some(error.to_string()),
            Ok(read) => {
                let mut index = egress_agent::index::Index::default();
                for located in read {
                    index.apply(located.object);
                }
                index
                    .problems()
                    .find(|problem| problem.effect == egress_agent::index::Effect::Refused)
                    .map(ToString::to_string)
            }
        };
        let expected = case.refused.is_some() || case.refused_by_agents.is_some();
        assert_eq!(refused.is_some(), expected, "{}: {refused:?}", case.name);
        let told = refused.unwrap_or_default();
        assert!(
            told.contains(case.refused_by_agents.as_deref().unwrap_or_default()),
            "{}: {told}",
            case.name
        );
    }
}

/// The guide's manifests, with the group of their kinds here.
#[test]
fn the_guide_applies() {
    let schemas = schemas(ApiServer::Current);
    let folder = deploy().join("examples/guide");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("a file");
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            let mut object = Value::deserialize(document).expect("YAML");
            let kind = object["kind"].as_str().expect("a kind").to_owned();
            object["apiVersion"] = "sallyport.dev/v1alpha1".into();
            let Some(schema) = schemas.get(&kind) else {
                continue;
            };
            let refusals = refusals(schema, &object);
            assert!(refusals.is_empty(), "{}: {refusals:?}", path.display());
            seen += 1;
        }
    }
    assert!(seen >= 5, "{seen} objects");
}
