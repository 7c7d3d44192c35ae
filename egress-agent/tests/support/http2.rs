//! A client that speaks HTTP/2, many requests at once.

use std::sync::Arc;

use h2::client::SendRequest;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::codegen::Bytes;

use crate::mesh::{Authority, Leaf, client_config, provider};

/// Takes the server's certificate for whatever server name the client asks.
#[derive(Debug)]
pub struct AnyName {
    inner: Arc<WebPkiServerVerifier>,
    /// What the certificate must be for; none if only its authority matters.
    name: Option<ServerName<'static>>,
    even_expired: bool,
}

impl AnyName {
    pub fn of_gateway(mesh: &Authority) -> Self {
        Self::of(mesh, Some("gateway.test".try_into().expect("a name")))
    }

    /// The agent's certificate has a SPIFFE ID only.
    pub fn of_agent(mesh: &Authority) -> Self {
        Self::of(mesh, None)
    }

    fn of(mesh: &Authority, name: Option<ServerName<'static>>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(mesh.der()).expect("an authority");
        let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider());
        Self {
            inner: builder.build().expect("a verifier"),
            name,
            even_expired: false,
        }
    }

    pub fn even_expired(mut self) -> Self {
        self.even_expired = true;
        self
    }
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        asked: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let name = self.name.as_ref().unwrap_or(asked);
        let verified = self
            .inner
            .verify_server_cert(end_entity, intermediates, name, ocsp, now);
        match verified {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.name.is_none() => Ok(ServerCertVerified::assertion()),
            Err(Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            )) if self.even_expired => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// A connection; clones share it.
#[derive(Clone)]
pub struct Http2 {
    sender: SendRequest<Bytes>,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub content_type: Option<String>,
    pub body: String,
}

impl Reply {
    pub fn is_denied(&self) -> bool {
        self.status == 403
            && self.body == "RBAC: access denied"
            && self.content_type.as_deref() == Some("text/plain")
    }
}

impl Http2 {
    /// Over a connection to the gateway.
    pub async fn connect(mesh: &Authority, leaf: &Leaf, stream: std::net::TcpStream) -> Self {
        let mut config = client_config(mesh, Some(leaf));
        Arc::get_mut(&mut config)
            .expect("nobody else has it")
            .alpn_protocols = vec![b"h2".to_vec()];
        stream.set_nonblocking(true).expect("a socket");
        let stream = TcpStream::from_std(stream).expect("a socket");
        let name = "gateway.test".try_into().expect("a name");
        let connector = TlsConnector::from(config);
        let stream = connector.connect(name, stream).await.expect("a session");
        let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        tokio::spawn(async move {
            // It ends with the test.
            let _ = connection.await;
        });
        Self { sender }
    }

    pub async fn get(&self, authority: &str, path: &str) -> Reply {
        let request = http::Request::get(format!("https://{authority}{path}"))
            .body(())
            .expect("a request");
        let mut sender = self.sender.clone().ready().await.expect("a connection");
        let (response, _) = sender.send_request(request, true).expect("it is sent");
        let (head, mut body) = response.await.expect("an answer").into_parts();
        let mut content = Vec::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk.expect("the body goes on");
            content.extend_from_slice(&chunk);
            let _ = body.flow_control().release_capacity(chunk.len());
        }
        let content_type = head.headers.get("content-type");
        Reply {
            status: head.status.as_u16(),
            content_type: content_type.map(|it| it.to_str().expect("ASCII").to_owned()),
            body: String::from_utf8(content).expect("text"),
        }
    }
}
