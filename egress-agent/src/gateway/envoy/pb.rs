//! Envoy's messages under short names, and the few shapes that stand everywhere.
//!
//! Most give an `Option`, since that is what every field of a message takes.

#![expect(clippy::unnecessary_wraps, reason = "fields of messages are optional")]

use std::path::Path;

pub(super) use envoy_types::pb::envoy::config::core::v3 as core;
pub(super) use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::google::protobuf::{Any, BoolValue, Duration, UInt32Value};
pub(super) use envoy_types::util::pack_any as any;

use core::config_source::ConfigSourceSpecifier;
use core::data_source::Specifier;
use core::socket_address::PortSpecifier;
use core::substitution_format_string::Format;
use matcher::string_matcher::MatchPattern;

pub(super) fn seconds(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}

pub(super) fn millis(millis: i32) -> Option<Duration> {
    Some(Duration {
        seconds: i64::from(millis / 1000),
        nanos: millis % 1000 * 1_000_000,
    })
}

pub(super) fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

pub(super) fn yes() -> Option<BoolValue> {
    Some(BoolValue { value: true })
}

/// A file, by the path that Envoy sees.
pub(super) fn file(path: &Path) -> Option<core::DataSource> {
    Some(core::DataSource {
        specifier: Some(Specifier::Filename(path.to_string_lossy().into_owned())),
        watched_directory: None,
    })
}

fn inline(text: &str) -> core::DataSource {
    core::DataSource {
        specifier: Some(Specifier::InlineString(text.to_owned())),
        watched_directory: None,
    }
}

/// A text with command operators, such as `%REQ(:AUTHORITY)%`.
pub(super) fn text_format(text: &str) -> core::SubstitutionFormatString {
    core::SubstitutionFormatString {
        format: Some(Format::TextFormatSource(inline(text))),
        ..core::SubstitutionFormatString::default()
    }
}

/// The stream that the listener itself came by.
pub(super) fn ads() -> core::ConfigSource {
    core::ConfigSource {
        resource_api_version: core::ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource::default(),
        )),
        ..core::ConfigSource::default()
    }
}

pub(super) fn address(host: &str, port: u16) -> Option<core::Address> {
    Some(core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: host.to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(port.into())),
            ..core::SocketAddress::default()
        })),
    })
}

pub(super) fn extension(name: &str, config: Any) -> core::TypedExtensionConfig {
    core::TypedExtensionConfig {
        name: name.to_owned(),
        typed_config: Some(config),
    }
}

pub(super) fn tls_socket(config: Any) -> Option<core::TransportSocket> {
    Some(core::TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(config)),
    })
}

pub(super) fn string(pattern: MatchPattern) -> matcher::StringMatcher {
    matcher::StringMatcher {
        match_pattern: Some(pattern),
        ignore_case: false,
    }
}

pub(super) fn exact(text: &str) -> matcher::StringMatcher {
    string(MatchPattern::Exact(text.to_owned()))
}

pub(super) fn prefix(text: &str) -> matcher::StringMatcher {
    string(MatchPattern::Prefix(text.to_owned()))
}

/// The whole value must match.
pub(super) fn regex(text: &str) -> matcher::StringMatcher {
    string(MatchPattern::SafeRegex(re2(text)))
}

pub(super) fn re2(text: &str) -> matcher::RegexMatcher {
    matcher::RegexMatcher {
        regex: text.to_owned(),
        engine_type: None,
    }
}
