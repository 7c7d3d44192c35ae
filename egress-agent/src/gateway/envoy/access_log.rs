//! The access log: a JSON line for each request and for each connection that is passed on, with who
//! asked, what was decided, and by which object.
//!
//! A verdict is told in the same words whoever decides. What the policy server says comes with its
//! answer. Envoy's own RBAC tells its result and the name of the policy that admits; the reason is
//! kept beside it, by filters before and behind the rules that know the route.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::accesslog::v3::access_log::ConfigType;
use envoy_types::pb::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier;
use envoy_types::pb::envoy::config::accesslog::v3::{AccessLog, AccessLogFilter, MetadataFilter};
use envoy_types::pb::envoy::extensions::access_loggers::stream::v3::StdoutAccessLog;
use envoy_types::pb::envoy::extensions::access_loggers::stream::v3::stdout_access_log::AccessLogFormat;
use envoy_types::pb::envoy::extensions::filters::common::set_filter_state::v3::FilterStateValue;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Any, BoolValue, Struct, Value};
use serde_json::json;

use super::pb::{any, core, exact, matcher};
use super::state::{filter_state, value};
use super::{Authorization, authz, binding, rbac};
use crate::gateway::access::AccessReason;
use crate::gateway::host::HostPattern;
use crate::gateway::policy::{ObjectName, Rules};
use matcher::metadata_matcher::PathSegment;
use matcher::metadata_matcher::path_segment::Segment;
use matcher::value_matcher::{MatchPattern, NullMatch};

/// Set ahead of the rules.
pub(super) const BEFORE_RULES: &str = "sallyport.asked";
/// Set once the rules have admitted.
pub(super) const BEHIND_RULES: &str = "sallyport.admitted";

/// Key of the authority as the client sent it.
const AUTHORITY: &str = "sallyport.authority";
const REASON: &str = "sallyport.reason";
const SERVICE: &str = "sallyport.service";
const OBJECT: &str = "sallyport.object";

/// The same for the log's operators.
const REASON_TEXT: &str = "sallyport.reason:PLAIN";
const OBJECT_TEXT: &str = "sallyport.object:PLAIN";
const ENFORCED_RESULT: &str = "envoy.filters.http.rbac:enforced_engine_result";
const ENFORCED_POLICY: &str = "envoy.filters.http.rbac:enforced_effective_policy_id";

/// Neither the host nor the port of a request has a route: Envoy can't tell which.
const NO_ROUTE: &str = "no-route";
/// The policy server was asked, or should have been, and there is no answer.
const NO_ANSWER: &str = "no-answer";

type Fields = Vec<(&'static str, String)>;

/// Keeps the authority as the client sent it, and why a request without a route is refused.
pub(super) fn before_rules() -> (&'static str, Any) {
    let values = vec![
        value(AUTHORITY, "envoy.string", "%REQ(:AUTHORITY)%"),
        kept(REASON, NO_ROUTE),
    ];
    (BEFORE_RULES, filter_state(values))
}

/// Comes where the rules have admitted; what it keeps is its routes' own.
pub(super) fn behind_rules() -> (&'static str, Any) {
    (BEHIND_RULES, filter_state(Vec::new()))
}

/// What these two keep of a route with rules.
pub(super) fn of_ruled_route(
    rules: &Rules,
    service: Option<&ObjectName>,
) -> [(&'static str, Any); 2] {
    let mut asked = vec![kept(REASON, AccessReason::NotAdmitted.as_str())];
    asked.extend(service.map(|service| kept(SERVICE, &format!("ExternalService/{service}"))));
    asked.extend(closing(rules).map(|policy| kept(OBJECT, &policy)));
    let admitted = vec![kept(REASON, rbac::admitted(rules, service).as_str())];
    [
        (BEFORE_RULES, filter_state(asked)),
        (BEHIND_RULES, filter_state(admitted)),
    ]
}

/// What is kept of a route that the policy server is asked about, until it answers.
pub(super) fn of_asked_route() -> (&'static str, Any) {
    (BEFORE_RULES, filter_state(vec![kept(REASON, NO_ANSWER)]))
}

/// What decides about those whom no entry admits: Envoy has no name for that.
fn closing(rules: &Rules) -> Option<String> {
    rules
        .closing()
        .map(|policy| format!("AccessPolicy/{policy}"))
}

fn kept(key: &str, text: &str) -> FilterStateValue {
    value(key, "envoy.string", text)
}

/// What is said of a request, where Envoy itself may have refused its client for the place that it
/// comes from (`binds`).
pub(super) fn of_requests(authorization: Authorization, binds: bool) -> Vec<AccessLog> {
    let mut fields = request();
    if !binds {
        fields.extend(decided(authorization));
        return vec![json_lines(&fields, None)];
    }
    let key = |key: &str| format!("{}{key}", binding::PREFIX);
    let result = key("enforced_engine_result");
    let mut elsewhere = fields.clone();
    elsewhere.extend([
        ("verdict", "denied".to_owned()),
        (
            "reason",
            metadata(rbac::FILTER, &key("enforced_effective_policy_id")),
        ),
    ]);
    fields.extend(decided(authorization));
    let denied = only_if(rbac::FILTER, &result, Some("denied"), false);
    // A request that Envoy refuses before all filters has no result.
    let other = only_if(rbac::FILTER, &result, Some("allowed"), true);
    vec![
        json_lines(&elsewhere, Some(denied)),
        json_lines(&fields, Some(other)),
    ]
}

fn request() -> Fields {
    let mut fields: Fields = [
        ("start_time", "%START_TIME%"),
        ("method", "%REQ(:METHOD)%"),
        ("path", "%REQ(:PATH)%"),
        ("protocol", "%PROTOCOL%"),
        ("response_code", "%RESPONSE_CODE%"),
        ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
        ("response_flags", "%RESPONSE_FLAGS%"),
        ("client", "%DOWNSTREAM_PEER_URI_SAN%"),
        (
            "downstream_remote_address",
            "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%",
        ),
        ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
        ("route_name", "%ROUTE_NAME%"),
        ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
        ("upstream_host", "%UPSTREAM_HOST%"),
        (
            "upstream_transport_failure_reason",
            "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
        ),
        ("bytes_received", "%BYTES_RECEIVED%"),
        ("bytes_sent", "%BYTES_SENT%"),
        ("duration", "%DURATION%"),
        ("request_id", "%REQ(X-REQUEST-ID)%"),
        ("user_agent", "%REQ(USER-AGENT)%"),
    ]
    .map(|(name, format)| (name, format.to_owned()))
    .into();
    fields.push(("authority", state(AUTHORITY)));
    fields
}

fn state(key: &str) -> String {
    format!("%FILTER_STATE({key}:PLAIN)%")
}

/// The verdict on a request. `dry_run` is what the dry-run entries would have done.
fn decided(authorization: Authorization) -> Fields {
    let mut fields = Fields::new();
    match authorization {
        Authorization::Rbac => {
            let rbac = |key: &str| metadata(rbac::FILTER, key);
            fields.extend([
                ("verdict", rbac("enforced_engine_result")),
                ("reason", state(REASON)),
                ("service", state(SERVICE)),
                (
                    "object",
                    first_of(
                        ["DYNAMIC_METADATA", ENFORCED_POLICY],
                        ["FILTER_STATE", OBJECT_TEXT],
                    ),
                ),
                ("dry_run", rbac("shadow_engine_result")),
                ("dry_run_object", rbac("shadow_effective_policy_id")),
            ]);
        }
        Authorization::ExtAuthz => {
            // The policy server is not asked where there is no route, and may not answer.
            let refused = [
                ("verdict", ["DYNAMIC_METADATA", ENFORCED_RESULT]),
                ("reason", ["FILTER_STATE", REASON_TEXT]),
            ];
            for (field, format) in authz::log_fields(authz::FILTER) {
                let refused = refused.iter().find(|(name, _)| *name == field);
                let format = refused.map_or(format, |(_, other)| {
                    first_of(
                        ["DYNAMIC_METADATA", &format!("{}:{field}", authz::FILTER)],
                        *other,
                    )
                });
                fields.push((field, format));
            }
        }
    }
    fields
}

/// The first of two command operators, each with its parameter, that has something to say.
fn first_of(one: [&str; 2], other: [&str; 2]) -> String {
    let [one, other] =
        [one, other].map(|[command, param]| json!({ "command": command, "param": param }));
    let operators = json!({ "operators": [one, other] });
    format!("%COALESCE({operators})%")
}

/// What is said of a connection that the policy server is asked about.
pub(super) fn of_asked_connection(route: &str, pattern: &HostPattern) -> Vec<AccessLog> {
    let mut fields = connection(route, pattern);
    fields.extend(authz::log_fields(authz::NETWORK_FILTER));
    vec![json_lines(&fields, None)]
}

/// What is said of a connection that Envoy's rules decide about. Nothing on its way can keep a
/// reason, so there is a form for each result; a connection that ends before its first byte has none.
pub(super) fn of_ruled_connection(
    route: &str,
    pattern: &HostPattern,
    rules: &Rules,
    [admitted, refused]: [AccessReason; 2],
) -> Vec<AccessLog> {
    let rbac = |key: &str| metadata(rbac::NETWORK_FILTER, key);
    let result = format!("{}shadow_engine_result", rbac::ENFORCED);
    let object = format!("{}shadow_effective_policy_id", rbac::ENFORCED);
    let mut fields = connection(route, pattern);
    fields.extend([
        ("verdict", rbac(&result)),
        ("object", rbac(&object)),
        ("dry_run", rbac("shadow_engine_result")),
        ("dry_run_object", rbac("shadow_effective_policy_id")),
    ]);
    // `ExternalService/namespace/name:port`
    let service = route.rsplit_once(':').map(|(service, _)| service);
    fields.extend(service.map(|service| ("service", service.to_owned())));
    let only_if = |told| only_if(rbac::NETWORK_FILTER, &result, told, told.is_none());
    let none = json_lines(&fields, Some(only_if(None)));
    let told = [("allowed", admitted), ("denied", refused)].map(|(verdict, reason)| {
        let mut fields = fields.clone();
        fields.push(("reason", reason.as_str().to_owned()));
        if let Some(policy) = closing(rules).filter(|_| verdict == "denied") {
            fields.retain(|(name, _)| *name != "object");
            fields.push(("object", policy));
        }
        json_lines(&fields, Some(only_if(Some(verdict))))
    });
    told.into_iter().chain([none]).collect()
}

fn connection(route: &str, pattern: &HostPattern) -> Fields {
    let mut fields: Fields = [
        ("start_time", "%START_TIME%"),
        ("protocol", "TLS"),
        ("server_name", "%REQUESTED_SERVER_NAME%"),
        ("response_flags", "%RESPONSE_FLAGS%"),
        (
            "connection_termination_details",
            "%CONNECTION_TERMINATION_DETAILS%",
        ),
        ("client", "%DOWNSTREAM_PEER_URI_SAN%"),
        (
            "downstream_remote_address",
            "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%",
        ),
        ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
        ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
        ("upstream_host", "%UPSTREAM_HOST%"),
        ("bytes_received", "%BYTES_RECEIVED%"),
        ("bytes_sent", "%BYTES_SENT%"),
        ("duration", "%DURATION%"),
    ]
    .map(|(name, format)| (name, format.to_owned()))
    .into();
    fields.push(("route_name", route.to_owned()));
    fields.push(("host_pattern", pattern.to_string()));
    fields
}

fn metadata(filter: &str, key: &str) -> String {
    format!("%DYNAMIC_METADATA({filter}:{key})%")
}

/// What a filter's result is this one for; without a result what has none. `or_none`: what has none as
/// well.
fn only_if(filter: &str, key: &str, result: Option<&str>, or_none: bool) -> AccessLogFilter {
    let pattern = match result {
        Some(result) => MatchPattern::StringMatch(exact(result)),
        // Holds for no result. (`invert` has no effect here.)
        None => MatchPattern::NullMatch(NullMatch::default()),
    };
    let path = PathSegment {
        segment: Some(Segment::Key(key.to_owned())),
    };
    let matcher = matcher::MetadataMatcher {
        filter: filter.to_owned(),
        path: vec![path],
        value: Some(matcher::ValueMatcher {
            match_pattern: Some(pattern),
        }),
        invert: false,
    };
    AccessLogFilter {
        filter_specifier: Some(FilterSpecifier::MetadataFilter(MetadataFilter {
            matcher: Some(matcher),
            match_if_key_not_found: Some(BoolValue { value: or_none }),
        })),
    }
}

/// JSON lines on stdout.
fn json_lines(fields: &[(&str, String)], filter: Option<AccessLogFilter>) -> AccessLog {
    let fields: HashMap<String, Value> = fields
        .iter()
        .map(|(name, format)| {
            let kind = Some(Kind::StringValue(format.clone()));
            ((*name).to_owned(), Value { kind })
        })
        .collect();
    let format = core::SubstitutionFormatString {
        format: Some(core::substitution_format_string::Format::JsonFormat(
            Struct { fields },
        )),
        ..core::SubstitutionFormatString::default()
    };
    let stdout = StdoutAccessLog {
        access_log_format: Some(AccessLogFormat::LogFormat(format)),
    };
    AccessLog {
        name: "envoy.access_loggers.stdout".to_owned(),
        filter,
        config_type: Some(ConfigType::TypedConfig(any(stdout))),
    }
}
