//! The service around the verdict.

use std::sync::Arc;

use envoy_types::pb::envoy::service::auth::v3::authorization_server::Authorization as _;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse, OkHttpResponse};
use envoy_types::pb::google::protobuf::value::Kind;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tonic::{Code, Request, Status};

use super::super::fixture::{PRODUCTPAGE, REVIEWS, caller, mk_served, request};
use super::super::{Authz, Binding};
use crate::policy_server::metrics::PolicyMetrics;
use crate::policy_server::{Caller, Served};

struct Service {
    authz: Authz,
    registry: Registry,
    served: watch::Sender<Arc<Served>>,
}

impl Service {
    fn new() -> Self {
        let mut registry = Registry::default();
        let metrics = PolicyMetrics::register(&mut registry);
        let (served, receiver) = watch::channel(Arc::new(mk_served()));
        Self {
            authz: Authz::new(receiver, Binding::Require, metrics),
            registry,
            served,
        }
    }

    async fn check(
        &self,
        who: Option<Caller>,
        question: &CheckRequest,
    ) -> Result<CheckResponse, Status> {
        let mut request = Request::new(question.clone());
        if let Some(who) = who {
            request.extensions_mut().insert(who);
        }
        let answer = self.authz.check(request).await?;
        Ok(answer.into_inner())
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    fn count(&self, line: &str) {
        let metrics = self.metrics();
        assert!(metrics.lines().any(|it| it == line), "{line}\n{metrics}");
    }
}

fn metadata(answer: &CheckResponse, key: &str) -> Option<String> {
    let metadata = answer.dynamic_metadata.as_ref()?;
    match metadata.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text.clone()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn answers() {
    let service = Service::new();
    let egress = || Some(caller("egress"));
    let question = request("productpage", PRODUCTPAGE, "api.example", "/b");
    let answer = service.check(egress(), &question).await.unwrap();
    assert_eq!(answer.status.as_ref().unwrap().code, 0);
    let Some(HttpResponse::OkResponse(ok)) = &answer.http_response else {
        panic!("{answer:?}");
    };
    assert_eq!(
        *ok,
        OkHttpResponse::default(),
        "nothing is changed in the request"
    );
    let revision = mk_served().revision;
    for (key, expected) in [
        ("verdict", Some("allowed")),
        ("reason", Some("admitted")),
        ("service", Some("ExternalService/global/api")),
        ("object", Some("AccessPolicy/istio-egress/api#0")),
        ("dry_run", Some("allowed")),
        ("revision", Some(revision.as_str())),
        ("owner", None),
    ] {
        assert_eq!(metadata(&answer, key).as_deref(), expected, "{key}");
    }

    let question = request("productpage", REVIEWS, "api.example", "/b");
    let answer = service.check(egress(), &question).await.unwrap();
    let code = Code::from(answer.status.as_ref().unwrap().code);
    assert_eq!(code, Code::PermissionDenied);
    let Some(HttpResponse::DeniedResponse(denied)) = &answer.http_response else {
        panic!("{answer:?}");
    };
    assert_eq!(denied.status.as_ref().unwrap().code, 403);
    assert_eq!(denied.body, "RBAC: access denied");
    assert_eq!(denied.headers.len(), 1);
    let header = denied.headers[0].header.as_ref().unwrap();
    assert_eq!(
        (header.key.as_str(), header.value.as_str()),
        ("content-type", "text/plain")
    );
    assert_eq!(
        metadata(&answer, "reason").as_deref(),
        Some("stolen-identity")
    );
    service.count(
        "access_decisions_total{gateway=\"istio-egress/egress-vg\",verdict=\"denied\",\
         reason=\"stolen-identity\",object=\"\"} 1",
    );
    service.count(
        "access_decisions_total{gateway=\"istio-egress/egress-vg\",verdict=\"allowed\",\
         reason=\"admitted\",object=\"AccessPolicy/istio-egress/api#0\"} 1",
    );
    service.count("access_duration_seconds_count 2");
}

#[tokio::test]
async fn only_gateways_are_answered() {
    let service = Service::new();
    let question = request("productpage", PRODUCTPAGE, "api.example", "/b");
    let refused = service.check(None, &question).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let refused = service
        .check(Some(caller("other")), &question)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    service.count("policy_callers_refused_total{reason=\"no-gateway\"} 1");
    let refused = service
        .check(Some(caller("egress")), &CheckRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    service.count("policy_callers_refused_total{reason=\"bad-request\"} 1");
    assert!(!service.metrics().contains("access_decisions_total{"));
}

#[tokio::test]
async fn the_latest_state_answers() {
    let service = Service::new();
    let question = request("productpage", PRODUCTPAGE, "api.example", "/b");
    let asked = || service.check(Some(caller("egress")), &question);
    assert_eq!(asked().await.unwrap().status.unwrap().code, 0);
    // The pod is gone, and with it who its address was.
    let mut next = mk_served();
    next.clients.remove(&PRODUCTPAGE.parse().unwrap());
    next.revision = "next".to_owned();
    service.served.send_replace(Arc::new(next));
    let answer = asked().await.unwrap();
    assert_eq!(
        metadata(&answer, "reason").as_deref(),
        Some("unknown-address")
    );
    assert_eq!(metadata(&answer, "revision").as_deref(), Some("next"));
    service.served.send_replace(Arc::default());
    assert_eq!(asked().await.unwrap_err().code(), Code::PermissionDenied);
}
