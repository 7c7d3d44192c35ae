//! A client that brings its own bytes: mutual TLS to the gateway for the server name of an outside
//! host, as a sidecar opens it, and inside it whatever the client speaks to that host.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
    StreamOwned,
};

use crate::client::{Answer, Connection, Session};
use crate::gateway::Gateway;
use crate::mesh::{Authority, Leaf, client_config, provider};

/// Knows the gateway by its certificate, whatever server name was asked for.
#[derive(Debug)]
struct ByCertificate(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for ByCertificate {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let own = ServerName::try_from("gateway.test").expect("a name");
        self.0
            .verify_server_cert(end_entity, intermediates, &own, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Opens TLS to the gateway for a server name; without one it names none.
pub fn open(gateway: &Gateway, leaf: Option<&Leaf>, sni: Option<&str>) -> Session {
    let mut roots = RootCertStore::empty();
    roots
        .add(gateway.mesh.der())
        .expect("the authority's own certificate");
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .expect("a verifier");
    let mut config = ClientConfig::clone(&client_config(&gateway.mesh, leaf));
    config
        .dangerous()
        .set_certificate_verifier(Arc::new(ByCertificate(verifier)));
    config.enable_sni = sni.is_some();
    let name = sni.unwrap_or("gateway.test").to_owned();
    let name = ServerName::try_from(name).expect("a name");
    let session = ClientConnection::new(Arc::new(config), name).expect("a session");
    let stream = TcpStream::connect(("127.0.0.1", gateway.port)).expect("Envoy listens");
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a timeout");
    StreamOwned::new(session, stream)
}

/// The same as a service account.
pub fn open_as(gateway: &Gateway, account: &str, sni: &str) -> Session {
    open(gateway, Some(&gateway.identity(account)), Some(sni))
}

/// Asks for a page of `host` by TLS of the client's own, inside a session for the same name.
pub fn get(
    gateway: &Gateway,
    outside: &Authority,
    account: &str,
    host: &str,
) -> std::io::Result<Answer> {
    let config = client_config(outside, None);
    let name = ServerName::try_from(host.to_owned()).expect("a name");
    let inner = ClientConnection::new(config, name).expect("a session");
    let outer = open_as(gateway, account, host);
    Connection::over(StreamOwned::new(inner, outer)).ask("GET", host, "/", "")
}
