//! Ranges of the pods' addresses where neither the nodes nor the given values tell them, as in
//! clusters whose CNI gives out addresses by itself.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Result;
use serde_json::{Value, json};

use super::Settings;
use crate::cmd::say;
use crate::e2e::objects::{Container, PodOf};
use crate::e2e::world::World;

/// Settings with `podCIDRs` that the cluster's pods are in.
pub(super) async fn complete(world: &World, settings: &Settings) -> Result<Settings> {
    let mut settings = settings.clone();
    let nodes = world.cluster.list("Node", "", "").await?;
    if is_list(&settings.values["podCIDRs"]) || nodes.iter().all(tells) {
        return Ok(settings);
    }
    let mut ranges = BTreeSet::new();
    for (i, node) in world.nodes.iter().enumerate() {
        let (free, name) = (world.names.free(), format!("address-{i}"));
        let idle = Container::attacker(&world.probe, &["pause"]).value();
        let pod = PodOf::plain(&world.names, &free, &name, &node.name, vec![idle]);
        world.start(&pod.value(), false).await?;
        ranges.extend(world.addresses(&free, &name).await?.into_iter().map(around));
        world.cluster.delete("Pod", &free, &name, Some(0)).await?;
    }
    let ranges: Vec<String> = ranges.into_iter().collect();
    say(
        "e2e",
        format_args!(
            "no podCIDRs, neither of the nodes nor in --values: taking {}, where pods get addresses",
            ranges.join(", ")
        ),
    );
    add(&mut settings.values, &ranges);
    Ok(settings)
}

fn add(values: &mut Value, ranges: &[String]) {
    if values.is_null() {
        *values = json!({});
    }
    values["podCIDRs"] = json!(ranges);
}

/// Whether a node's object tells what its pods' addresses are of.
fn tells(node: &Value) -> bool {
    is_list(&node["spec"]["podCIDRs"])
}

fn is_list(value: &Value) -> bool {
    value.as_array().is_some_and(|list| !list.is_empty())
}

/// The range that a node usually has of a family: a CNI gives out addresses one after the other.
fn around(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            format!("{a}.{b}.{c}.0/24")
        }
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_of_the_addresss_family() {
        let of = |address: &str| around(address.parse().unwrap());
        assert_eq!(of("10.244.7.12"), "10.244.7.0/24");
        assert_eq!(of("fd00:10:244:1::c"), "fd00:10:244:1::/64");
        // As RFC 5952 has it or not, it must be an address.
        let network = of("fd00::c");
        let (network, _) = network.split_once('/').unwrap();
        assert_eq!(network.parse(), Ok("fd00::".parse::<IpAddr>().unwrap()));
    }

    #[test]
    fn ranges_go_beside_the_given_values() {
        let mut values = Value::Null;
        add(&mut values, &["10.0.0.0/24".to_owned()]);
        assert_eq!(values, json!({ "podCIDRs": ["10.0.0.0/24"] }));
        let mut values = json!({ "logLevel": "debug" });
        add(&mut values, &["10.0.0.0/24".to_owned()]);
        assert_eq!(values["logLevel"], "debug");
        assert!(is_list(&values["podCIDRs"]));
    }

    #[test]
    fn a_node_that_the_controller_manager_gave_a_range_tells_it() {
        assert!(tells(&json!({ "spec": { "podCIDRs": ["10.0.0.0/24"] } })));
        assert!(!tells(&json!({ "spec": {} })));
    }
}
