//! Wildcard hosts: the upstream is the host that the client asked for, on the route's port.

use envoy_types::pb::envoy::extensions::filters::http::dynamic_forward_proxy::v3::FilterConfig;
use envoy_types::pb::envoy::extensions::filters::http::dynamic_forward_proxy::v3::filter_config::ImplementationSpecifier;
use envoy_types::pb::envoy::extensions::filters::http::header_to_metadata::v3 as header_to_metadata;
use envoy_types::pb::google::protobuf::Any;

use super::cluster::dns_cache;
use super::pb::{any, matcher, re2};
use super::state::{filter_state, value};

/// Sets a wildcard's upstream, ahead of the dynamic forward proxy.
pub(super) const UPSTREAM_FILTER: &str = "sallyport.upstream";

/// The HTTP filters that find a wildcard's host, in their order; they leave other routes alone.
pub(super) fn filters() -> [(&'static str, Any); 3] {
    let host = header_to_metadata::config::KeyValuePair {
        metadata_namespace: "sallyport".to_owned(),
        key: "host".to_owned(),
        regex_value_rewrite: Some(matcher::RegexMatchAndSubstitute {
            pattern: Some(re2("^([^:]+)(:[0-9]+)?$")),
            substitution: r"\1".to_owned(),
        }),
        ..header_to_metadata::config::KeyValuePair::default()
    };
    // The forward proxy would go to the port that the client named, so the host is taken alone.
    let host = header_to_metadata::Config {
        request_rules: vec![header_to_metadata::config::Rule {
            header: ":authority".to_owned(),
            on_header_present: Some(host),
            ..header_to_metadata::config::Rule::default()
        }],
        ..header_to_metadata::Config::default()
    };
    let proxy = FilterConfig {
        allow_dynamic_host_from_filter_state: true,
        implementation_specifier: Some(ImplementationSpecifier::DnsCacheConfig(dns_cache())),
        ..FilterConfig::default()
    };
    [
        ("sallyport.host", any(host)),
        (UPSTREAM_FILTER, filter_state(Vec::new())),
        ("envoy.filters.http.dynamic_forward_proxy", any(proxy)),
    ]
}

/// The upstream of a route to a wildcard, for [`UPSTREAM_FILTER`].
pub(super) fn dynamic_upstream(port: u16) -> Any {
    filter_state(vec![
        value(
            "envoy.upstream.dynamic_host",
            "",
            "%DYNAMIC_METADATA(sallyport:host)%",
        ),
        value("envoy.upstream.dynamic_port", "", &port.to_string()),
    ])
}
