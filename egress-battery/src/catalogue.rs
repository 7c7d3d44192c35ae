//! All cases, by number.

use std::fmt::Write as _;

use crate::attempts;
use crate::case::{By, Case, Need};

/// Every case, in the order of its number.
pub fn all() -> impl Iterator<Item = &'static Case> {
    attempts::ALL.iter().copied().flatten()
}

/// The case with this number.
pub fn find(number: u16) -> Option<&'static Case> {
    all().find(|case| case.number == number)
}

/// The catalogue as a table in Markdown, as it is published.
pub fn markdown() -> String {
    let mut text = String::from(
        "| number | group | attempt | in | must end as | takes |\n|---|---|---|---|---|---|\n",
    );
    for case in all() {
        let families = case.families.iter().map(|family| family.as_str());
        let reasons = case
            .expect
            .iter()
            .map(|reason| format!("`{}`", reason.as_str()));
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} |",
            case.id(),
            case.group.as_str(),
            case.name,
            families.collect::<Vec<_>>().join(", "),
            reasons.collect::<Vec<_>>().join(", "),
            takes(case),
        );
    }
    text
}

/// What a case takes, in words.
fn takes(case: &Case) -> String {
    let mut words: Vec<&str> = case
        .needs
        .iter()
        .map(|need| match need {
            Need::Intrusive => "`--intrusive`",
            Need::FreshContainer => "a cgroup of its own",
            Need::Gateway => "a gateway",
            Need::Dns => "a resolver",
            Need::OtherPod => "another pod",
            Need::Node => "the node's address",
            Need::Fence => "the fence",
        })
        .collect();
    match case.by {
        By::Cluster => words.push("`cargo xtask battery`"),
        By::Client(_) => words.push("a client on the node"),
        By::Pod(_) => {}
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Group;

    #[test]
    fn numbers_are_unique_and_in_order() {
        let numbers: Vec<u16> = all().map(|case| case.number).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    }

    #[test]
    fn every_case_says_what_it_expects() {
        for case in all() {
            assert!(
                !case.expect.is_empty() && !case.families.is_empty(),
                "{}",
                case.id()
            );
            if !case.must_work() {
                let drops = case.expect.iter().any(|reason| !reason.passes());
                assert!(drops, "{} expects no drop", case.id());
            }
        }
        for group in Group::ALL {
            assert!(all().any(|case| case.group == *group), "{group:?} is empty");
        }
    }

    #[test]
    fn the_published_table_is_this_one() {
        let published = include_str!("../../BATTERY.md");
        let table = published
            .find("| number |")
            .map(|start| &published[start..]);
        assert_eq!(
            table,
            Some(&*markdown()),
            "BATTERY.md is older than the catalogue: cargo xtask battery --catalogue"
        );
    }
}
