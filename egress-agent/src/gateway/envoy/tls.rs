//! The gateway's own side of mutual TLS: its certificate, and which clients there are at all.

#![expect(clippy::unnecessary_wraps, reason = "fields of messages are optional")]

use std::path::Path;

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::downstream_tls_context::SessionTicketKeysType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, Secret,
    SubjectAltNameMatcher, TlsCertificate, TlsParameters,
};

use super::pb::{ads, any, core, file, prefix, tls_socket, yes};
use crate::gateway::identity::id_prefix;

const CERTIFICATE: &str = "certificate";
const TRUST: &str = "trust";

/// Mutual TLS with the mesh's identities, for requests (HTTP/2 and HTTP/1.1) or for bytes.
pub(super) fn downstream(alpn: &[&str]) -> Option<core::TransportSocket> {
    let secret = |name: &str| SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(ads()),
    };
    let common = CommonTlsContext {
        tls_params: at_least_tls12(),
        alpn_protocols: alpn.iter().map(ToString::to_string).collect(),
        tls_certificate_sds_secret_configs: vec![secret(CERTIFICATE)],
        validation_context_type: Some(ValidationContextType::ValidationContextSdsSecretConfig(
            secret(TRUST),
        )),
        ..CommonTlsContext::default()
    };
    // A session that is resumed would skip the check of a certificate that has since been revoked
    // by a new authority.
    let context = DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: yes(),
        disable_stateful_session_resumption: true,
        session_ticket_keys_type: Some(SessionTicketKeysType::DisableStatelessSessionResumption(
            true,
        )),
        ..DownstreamTlsContext::default()
    };
    tls_socket(any(context))
}

/// The gateway's own certificate. As a secret with a watched directory it is read again when the
/// directory changes, so that it can be rotated.
pub(super) fn certificate(cert_dir: &Path) -> Secret {
    Secret {
        name: CERTIFICATE.to_owned(),
        r#type: Some(Type::TlsCertificate(TlsCertificate {
            certificate_chain: file(&cert_dir.join("tls.crt")),
            private_key: file(&cert_dir.join("tls.key")),
            watched_directory: watched(cert_dir),
            ..TlsCertificate::default()
        })),
    }
}

/// Which clients there are at all: those of the trust domain.
pub(super) fn trust(cert_dir: &Path, trust_domain: &str) -> Secret {
    let domain = SubjectAltNameMatcher {
        san_type: SanType::Uri.into(),
        matcher: Some(prefix(&id_prefix(trust_domain))),
        oid: String::new(),
    };
    Secret {
        name: TRUST.to_owned(),
        r#type: Some(Type::ValidationContext(CertificateValidationContext {
            trusted_ca: file(&cert_dir.join("ca.crt")),
            watched_directory: watched(cert_dir),
            match_typed_subject_alt_names: vec![domain],
            ..CertificateValidationContext::default()
        })),
    }
}

fn watched(directory: &Path) -> Option<core::WatchedDirectory> {
    Some(core::WatchedDirectory {
        path: directory.to_string_lossy().into_owned(),
        ..core::WatchedDirectory::default()
    })
}

pub(super) fn at_least_tls12() -> Option<TlsParameters> {
    Some(TlsParameters {
        tls_minimum_protocol_version: TlsProtocol::TlSv12.into(),
        ..TlsParameters::default()
    })
}
