//! The answer as Envoy reads it.

use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{
    CheckResponse, DeniedHttpResponse, OkHttpResponse,
};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value};
use envoy_types::pb::google::rpc::Status;
use tonic::Code;

use super::decide::Verdict;
use crate::gateway::Decision;

/// What a client is told, whatever the reason: the same as Envoy's own RBAC says.
const BODY: &str = "RBAC: access denied";
const FORBIDDEN: i32 = 403;

/// The answer, with what it rests on as metadata for the gateway's access log.
pub fn answer(verdict: &Verdict, revision: &str) -> CheckResponse {
    let (code, response) = if verdict.allowed() {
        (
            Code::Ok,
            HttpResponse::OkResponse(OkHttpResponse::default()),
        )
    } else {
        (
            Code::PermissionDenied,
            HttpResponse::DeniedResponse(denied()),
        )
    };
    CheckResponse {
        status: Some(Status {
            code: code.into(),
            message: verdict.cause.as_str().to_owned(),
            details: Vec::new(),
        }),
        dynamic_metadata: Some(metadata(verdict, revision)),
        http_response: Some(response),
    }
}

fn denied() -> DeniedHttpResponse {
    let content_type = HeaderValueOption {
        header: Some(HeaderValue {
            key: "content-type".to_owned(),
            value: "text/plain".to_owned(),
            raw_value: Vec::new(),
        }),
        ..HeaderValueOption::default()
    };
    DeniedHttpResponse {
        status: Some(HttpStatus { code: FORBIDDEN }),
        headers: vec![content_type],
        body: BODY.to_owned(),
    }
}

/// What the gateway can't know itself: whose certificate it was, and which gateway this is, it does.
fn metadata(verdict: &Verdict, revision: &str) -> Struct {
    let decision = verdict.decision.as_ref();
    let dry_run = decision.and_then(|decision| decision.dry_run);
    let word = |allowed| if allowed { "allowed" } else { "denied" };
    let fields = [
        ("verdict", Some(word(verdict.allowed()).to_owned())),
        ("reason", Some(verdict.cause.as_str().to_owned())),
        ("service", verdict.service()),
        ("object", verdict.object()),
        ("dry_run", dry_run.map(|allowed| word(allowed).to_owned())),
        ("dry_run_object", decision.and_then(Decision::would_be_by)),
        ("revision", Some(revision.to_owned())),
    ];
    let text = |text| Value {
        kind: Some(Kind::StringValue(text)),
    };
    Struct {
        fields: fields
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), text(value?))))
            .collect(),
    }
}
