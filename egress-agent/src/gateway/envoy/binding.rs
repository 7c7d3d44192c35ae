//! A certificate counts only where its pod is, also where Envoy decides by rules of its own.
//!
//! Whose address it is changes with every pod. So this is a resource of its own (ECDS) that filters
//! name: neither listeners nor routes change with it, and it holds for the next request of
//! connections that stand. The address is looked up, and has one identity.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use envoy_types::pb::envoy::config::listener::v3::{Filter, filter};
use envoy_types::pb::envoy::config::rbac::v3::Action as RbacAction;
use envoy_types::pb::envoy::config::rbac::v3::rbac::Action;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as http;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpFilter, http_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3 as network;
use envoy_types::pb::envoy::extensions::matching::common_inputs::network::v3::{
    DirectSourceIpInput, SourceIpInput,
};
use envoy_types::pb::envoy::extensions::matching::common_inputs::ssl::v3::UriSanInput;
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::xds::core::v3::TypedExtensionConfig as Named;
use envoy_types::pb::xds::r#type::matcher::v3::Matcher;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_tree::{MatchMap, TreeType};
use envoy_types::pb::xds::r#type::matcher::v3::matcher::{
    MatcherTree, MatcherType, OnMatch, on_match,
};
use prost::Name;

use super::pb::{ads, any, core, extension};
use crate::gateway::SpiffeId;
use crate::gateway::identity::Binding;

/// Whose address it is.
pub type Owners = BTreeMap<IpAddr, SpiffeId>;

const HTTP: &str = "sallyport.binding.http";
const NETWORK: &str = "sallyport.binding.network";

/// What the HTTP filter puts before its words for the access log.
pub(super) const PREFIX: &str = "binding_";

/// The names under which refusals stand in the access log, those of the policy server's.
const STOLEN: &str = "stolen-identity";
const UNKNOWN: &str = "unknown-address";

/// What the filters name.
pub(super) fn resources(owners: &Owners, binding: Binding) -> [core::TypedExtensionConfig; 2] {
    let of_request = http::Rbac {
        matcher: Some(matcher(owners, binding, any(DirectSourceIpInput {}))),
        rules_stat_prefix: PREFIX.to_owned(),
        ..http::Rbac::default()
    };
    let of_connection = network::Rbac {
        matcher: Some(matcher(owners, binding, any(SourceIpInput {}))),
        stat_prefix: PREFIX.to_owned(),
        ..network::Rbac::default()
    };
    [
        extension(HTTP, any(of_request)),
        extension(NETWORK, any(of_connection)),
    ]
}

/// Stands before the rules of requests.
pub(super) fn http_filter() -> HttpFilter {
    HttpFilter {
        name: HTTP.to_owned(),
        config_type: Some(http_filter::ConfigType::ConfigDiscovery(discovered::<
            http::Rbac,
        >())),
        ..HttpFilter::default()
    }
}

/// Stands before the rules of connections that are passed on.
pub(super) fn network_filter() -> Filter {
    Filter {
        name: NETWORK.to_owned(),
        config_type: Some(filter::ConfigType::ConfigDiscovery(discovered::<
            network::Rbac,
        >())),
    }
}

fn discovered<M: Name>() -> core::ExtensionConfigSource {
    core::ExtensionConfigSource {
        config_source: Some(ads()),
        type_urls: vec![M::type_url()],
        ..core::ExtensionConfigSource::default()
    }
}

/// By address, then by identity. An address that is missing is nobody's.
fn matcher(owners: &Owners, binding: Binding, address: Any) -> Matcher {
    let unknown = match binding {
        Binding::Require => Action::Deny,
        Binding::Prefer | Binding::Off => Action::Allow,
    };
    let owned = owners.iter().map(|(ip, owner)| {
        let own = HashMap::from([(owner.to_string(), answer("bound", Action::Allow))]);
        let identity = tree(any(UriSanInput {}), own, answer(STOLEN, Action::Deny));
        let on_match = on_match::OnMatch::Matcher(Box::new(identity));
        let found = OnMatch {
            on_match: Some(on_match),
            ..OnMatch::default()
        };
        (ip.to_string(), found)
    });
    tree(address, owned.collect(), answer(UNKNOWN, unknown))
}

/// Envoy takes no tree without branches.
fn tree(input: Any, branches: HashMap<String, OnMatch>, otherwise: OnMatch) -> Matcher {
    let tree = MatcherTree {
        input: Some(named("input", input)),
        tree_type: Some(TreeType::ExactMatchMap(MatchMap { map: branches })),
    };
    let empty = matches!(&tree.tree_type, Some(TreeType::ExactMatchMap(all)) if all.map.is_empty());
    Matcher {
        on_no_match: Some(Box::new(otherwise)),
        matcher_type: (!empty).then_some(MatcherType::MatcherTree(tree)),
    }
}

fn answer(name: &str, action: Action) -> OnMatch {
    let action = RbacAction {
        name: name.to_owned(),
        action: action.into(),
    };
    OnMatch {
        on_match: Some(on_match::OnMatch::Action(named("action", any(action)))),
        ..OnMatch::default()
    }
}

fn named(name: &str, config: Any) -> Named {
    Named {
        name: name.to_owned(),
        typed_config: Some(config),
    }
}
