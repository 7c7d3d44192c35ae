//! Certificates of a mesh and of the outside, made on the spot.

use std::sync::Arc;
use std::time::SystemTime;

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// An authority and what it has signed.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate with its key.
pub struct Leaf {
    pub pem: String,
    pub key_pem: String,
    der: CertificateDer<'static>,
    key_der: Vec<u8>,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).expect("a self-signed certificate"),
        }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub fn der(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    /// Signs a certificate for host names and URIs.
    pub fn sign(&self, hosts: &[&str], uris: &[&str]) -> Leaf {
        self.sign_until(hosts, uris, None)
    }

    /// The same, with an end.
    pub fn sign_until(&self, hosts: &[&str], uris: &[&str], end: Option<SystemTime>) -> Leaf {
        let ia5 = |text: &&str| Ia5String::try_from(*text).expect("ASCII");
        let mut params = CertificateParams::default();
        params.subject_alt_names = hosts
            .iter()
            .map(|host| SanType::DnsName(ia5(host)))
            .chain(uris.iter().map(|uri| SanType::URI(ia5(uri))))
            .collect();
        if let Some(end) = end {
            params.not_after = end.into();
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Leaf {
            pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            der: certificate.der().clone(),
            key_der: key.serialize_der(),
        }
    }

    /// The certificate of a service account.
    pub fn identity(&self, namespace: &str, account: &str) -> Leaf {
        self.sign(
            &[],
            &[&format!(
                "spiffe://cluster.local/ns/{namespace}/sa/{account}"
            )],
        )
    }
}

impl Leaf {
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.der.clone()]
    }

    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key_der.clone()).into()
    }
}

/// A client of the gateway; without a leaf it has no certificate.
pub fn client_config(mesh: &Authority, leaf: Option<&Leaf>) -> Arc<rustls::ClientConfig> {
    client_config_of(&[mesh], leaf)
}

/// The same for one who trusts several authorities.
pub fn client_config_of(
    authorities: &[&Authority],
    leaf: Option<&Leaf>,
) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for authority in authorities {
        roots
            .add(authority.der())
            .expect("the authority's own certificate");
    }
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has them")
        .with_root_certificates(roots);
    Arc::new(match leaf {
        Some(leaf) => builder
            .with_client_auth_cert(leaf.chain(), leaf.key())
            .expect("a pair"),
        None => builder.with_no_client_auth(),
    })
}

pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
