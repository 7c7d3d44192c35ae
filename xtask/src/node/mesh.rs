//! A client of the mesh without a sidecar: what an attacker with somebody's certificate does.

use std::fs;
use std::io::BufReader;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned,
};

use super::http::{self, Message};

/// GET over mutual TLS with the `tls.crt` and `tls.key` of a directory. Whom it talks to it does
/// not care.
pub fn get(
    peer: SocketAddr,
    certs: &Path,
    authority: &str,
    path: &str,
    wait: Duration,
) -> Result<Message> {
    let mut session = Session::open(peer, certs, authority, wait)?;
    session.get(path)
}

/// A connection for several requests.
#[derive(Debug)]
pub(crate) struct Session {
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
    authority: String,
}

impl Session {
    pub(crate) fn open(
        peer: SocketAddr,
        certs: &Path,
        authority: &str,
        wait: Duration,
    ) -> Result<Self> {
        let name: ServerName<'_> = authority.to_owned().try_into().context("a host name")?;
        let session = ClientConnection::new(Arc::new(config(certs)?), name)?;
        let stream = TcpStream::connect_timeout(&peer, wait)?;
        stream.set_read_timeout(Some(wait))?;
        Ok(Self {
            stream: BufReader::new(StreamOwned::new(session, stream)),
            authority: authority.to_owned(),
        })
    }

    pub(crate) fn get(&mut self, path: &str) -> Result<Message> {
        http::write_request(self.stream.get_mut(), &self.authority, path)?;
        http::read(&mut self.stream)?.context("the connection was closed")
    }
}

fn config(certs: &Path) -> Result<ClientConfig> {
    let read = |name: &str| {
        let path = certs.join(name);
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read("tls.crt")?).collect();
    let key = PrivateKeyDer::from_pem_slice(&read("tls.key")?).context("tls.key")?;
    Ok(
        ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody))
            .with_client_auth_cert(chain.context("tls.crt")?, key)?,
    )
}

/// Takes every server.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = default_provider().signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = default_provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
