//! Certificates of all kinds, made on the spot: good ones and such as nobody should take.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use egress_agent::tls::Identity;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    SanType, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// An authority and what it has signed.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate with its key.
#[derive(Clone)]
pub struct Leaf {
    pub pem: String,
    pub key_pem: String,
    pub der: CertificateDer<'static>,
    pub key_der: Vec<u8>,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        // SPIFFE asks for the trust domain in an authority's certificate.
        let domain = Ia5String::try_from("spiffe://cluster.local").expect("ASCII");
        params.subject_alt_names = vec![SanType::URI(domain)];
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

    /// A certificate for these URIs that holds from and until so many seconds from now.
    pub fn sign_for(&self, uris: &[&str], from: i64, until: i64) -> Leaf {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970");
        let at = |offset: i64| {
            let seconds = now.as_secs().checked_add_signed(offset).expect("a time");
            date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds)
        };
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris
            .iter()
            .map(|uri| SanType::URI(Ia5String::try_from(*uri).expect("ASCII")))
            .collect();
        // For clients that look at names of hosts.
        let host = Ia5String::try_from("policy.sallyport").expect("ASCII");
        params.subject_alt_names.push(SanType::DnsName(host));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.not_before = at(from);
        params.not_after = at(until);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Leaf {
            pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            der: certificate.der().clone(),
            key_der: key.serialize_der(),
        }
    }

    /// One that holds for an hour.
    pub fn sign(&self, uris: &[&str]) -> Leaf {
        self.sign_for(uris, -60, 3600)
    }
}

impl Leaf {
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key_der.clone()).into()
    }

    /// With the authorities that its owner trusts.
    pub fn identity(&self, roots: &[&Authority]) -> Identity {
        let roots = roots.iter().map(|root| root.der()).collect();
        Identity::from_der(vec![self.der.clone()], self.key(), roots).expect("an identity")
    }

    /// Writes the files that the policy server reads.
    pub fn write(&self, directory: &Path, roots: &[&Authority]) {
        fs::create_dir_all(directory).expect("a directory");
        let roots: String = roots.iter().map(|root| root.pem()).collect();
        fs::write(directory.join("tls.crt"), &self.pem).expect("a file");
        fs::write(directory.join("tls.key"), &self.key_pem).expect("a file");
        fs::write(directory.join("ca.crt"), roots).expect("a file");
    }
}
