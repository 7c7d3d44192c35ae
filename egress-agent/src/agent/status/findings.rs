//! What is wrong with policy objects, from all who look at them. Pure.

use std::collections::BTreeMap;

use crate::api::status::Finding;
use crate::gateway;
use crate::index::{Effect, ObjectId, Problem};
use crate::source::Declared;

use super::history::KINDS;

/// The object is not taken; its last good version stands, if there is one.
pub const REFUSED: &str = "Refused";
/// What holds the field serves and admits nothing; the rest of the object is taken.
pub const PART_REFUSED: &str = "PartRefused";
/// The field has no effect.
pub const IGNORED: &str = "Ignored";

/// By object; the gravest first.
pub type Findings = BTreeMap<ObjectId, Vec<Finding>>;

/// Lays together what source, index and gateways have to say of each declared object.
pub fn findings<'a>(
    declared: &BTreeMap<ObjectId, Declared>,
    problems: impl Iterator<Item = &'a Problem>,
    gateways: impl Iterator<Item = &'a gateway::Problem>,
) -> Findings {
    let mut all = Findings::new();
    let mut add = |id: &ObjectId, field: &str, reason: &str, effect: &str| {
        if !declared.contains_key(id) {
            return;
        }
        let of = all.entry(id.clone()).or_default();
        // Index and gateways look at the same fields.
        if !of.iter().any(|finding| finding.field == field) {
            of.push(Finding {
                field: field.to_owned(),
                reason: reason.to_owned(),
                effect: effect.to_owned(),
            });
        }
    };
    for (id, declared) in declared {
        if let Some((field, reason)) = &declared.unreadable {
            add(id, field, reason, REFUSED);
        }
        if let Some(other) = &declared.shadows {
            let reason = format!(
                "the object of the same name in {other} has no effect beside this one; remove one \
                 of the two"
            );
            add(id, "", &reason, IGNORED);
        }
    }
    for problem in problems {
        let effect = match problem.effect {
            Effect::Refused => REFUSED,
            Effect::Ignored => IGNORED,
        };
        add(&problem.object, &problem.field, &problem.reason, effect);
    }
    for problem in gateways {
        let effect = match problem.effect {
            gateway::Effect::Refused => PART_REFUSED,
            gateway::Effect::Ignored => IGNORED,
        };
        if let Some(id) = parse(&problem.object) {
            add(&id, &problem.field, &problem.reason, effect);
        }
    }
    for findings in all.values_mut() {
        let grave = [REFUSED, PART_REFUSED];
        let rank = |finding: &Finding| grave.iter().position(|effect| *effect == finding.effect);
        findings
            .sort_by_key(|finding| (rank(finding).unwrap_or(grave.len()), finding.field.clone()));
    }
    all
}

/// `Kind/namespace/name` or `Kind/name`.
fn parse(object: &str) -> Option<ObjectId> {
    let (kind, rest) = object.split_once('/')?;
    let (namespace, name) = rest.split_once('/').unwrap_or(("", rest));
    Some(ObjectId {
        kind: KINDS.into_iter().find(|known| *known == kind)?,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

/// Findings of this effect as one text: fields and reasons.
pub fn text(findings: &[Finding], effect: &str) -> String {
    let of = findings.iter().filter(|finding| finding.effect == effect);
    let texts = of.map(|finding| match finding.field.as_str() {
        "" => finding.reason.clone(),
        field => format!("{field}: {}", finding.reason),
    });
    texts.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gravest_comes_first_and_a_field_once() {
        let id = parse("AccessPolicy/n/p").unwrap();
        let declared = BTreeMap::from([(
            id.clone(),
            Declared {
                unreadable: Some(("spec.config".into(), "is no map".into())),
                ..Declared::default()
            },
        )]);
        let problem = |field: &str, effect| Problem {
            object: id.clone(),
            field: field.into(),
            reason: "is not supported".into(),
            effect,
        };
        let index = [
            problem("spec.a", Effect::Ignored),
            problem("spec.b", Effect::Refused),
        ];
        let gateway =
            ["AccessPolicy/n/p", "AccessPolicy/n/gone", "Pod/n/p"].map(|object| gateway::Problem {
                object: object.into(),
                field: "spec.a".into(),
                effect: gateway::Effect::Refused,
                reason: "not supported; remove it".into(),
            });
        let all = findings(&declared, index.iter(), gateway.iter());
        assert_eq!(all.len(), 1);
        let fields: Vec<_> = all[&id].iter().map(|f| f.field.as_str()).collect();
        assert_eq!(fields, ["spec.b", "spec.config", "spec.a"]);
        assert_eq!(
            text(&all[&id], REFUSED),
            "spec.b: is not supported; spec.config: is no map"
        );
    }
}
