//! TLS configurations made of an identity.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};

use super::identity::Identity;
use super::peer::Peer;
use crate::gateway::SpiffeId;

/// The oldest TLS that is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MinVersion {
    Tls12,
    #[default]
    Tls13,
}

impl MinVersion {
    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static FROM_12: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];
        static FROM_13: [&SupportedProtocolVersion; 1] = [&TLS13];
        match self {
            Self::Tls12 => &FROM_12,
            Self::Tls13 => &FROM_13,
        }
    }
}

/// gRPC goes over HTTP/2 only.
const ALPN: &[u8] = b"h2";

/// A server that takes only clients whose certificate one of the identity's authorities signed.
///
/// # Errors
/// If the authorities can't check anybody.
pub fn server_config(identity: &Identity, oldest: MinVersion) -> Result<ServerConfig, Error> {
    let provider = Arc::new(default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(identity.roots.clone(), provider.clone())
            // The names of authorities are no business of whoever may connect.
            .clear_root_hint_subjects()
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(oldest.versions())?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A session that is resumed skips the check against authorities that have changed since.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// A client that takes only a server which proves to be `server`.
///
/// # Errors
/// If the authorities can't check anybody.
pub fn client_config(
    identity: &Identity,
    server: SpiffeId,
    oldest: MinVersion,
) -> Result<ClientConfig, Error> {
    let provider = Arc::new(default_provider());
    let chain =
        WebPkiServerVerifier::builder_with_provider(identity.roots.clone(), provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(oldest.versions())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(SpiffeServer { chain, server }))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// Checks the chain as always, and in place of a DNS name the SPIFFE ID.
#[derive(Debug)]
struct SpiffeServer {
    chain: Arc<WebPkiServerVerifier>,
    server: SpiffeId,
}

impl ServerCertVerifier for SpiffeServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let checked = self.chain.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match checked {
            // The name is looked at after everything else was found good.
            Ok(_)
            | Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => {}
            Err(error) => return Err(error),
        }
        let found = Peer::of_certificate(end_entity)
            .map_err(|error| Error::General(format!("the server's certificate: {error}")))?;
        if found.id != self.server {
            return Err(Error::General(format!(
                "the server is {}, not {}",
                found.id, self.server
            )));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
