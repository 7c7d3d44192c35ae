//! A certificate with its key, and the authorities that peers are checked by.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use thiserror::Error;

use super::peer::{Peer, PeerError};
use crate::gateway::SpiffeId;

/// What this process proves itself with. Never changed; a new one takes its place.
#[derive(Clone)]
pub struct Identity {
    pub(super) certified: Arc<CertifiedKey>,
    pub(super) roots: Arc<RootCertStore>,
    id: SpiffeId,
    not_after: SystemTime,
}

impl fmt::Debug for Identity {
    /// Without its key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.id)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Why certificate, key and authorities make no identity.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    #[error("{file}: {reason}")]
    Unreadable { file: String, reason: String },
    #[error("{file} holds no {what} in PEM form")]
    Empty { file: String, what: &'static str },
    #[error("the private key does not belong to the certificate; renew both together")]
    Mismatch,
    #[error("the private key is of no kind that is supported: {0}")]
    Key(String),
    #[error("the certificate has expired; renew it")]
    Expired,
    #[error("the certificate is not valid yet; check the clock of this node")]
    Early,
    #[error("the certificate names no service account: {0}")]
    Name(PeerError),
    #[error("an authority can't be used: {0}")]
    Authority(String),
    #[error("the Workload API gave no {0} for trust domain {1}; register this workload")]
    Missing(&'static str, String),
}

impl Identity {
    /// Reads `tls.crt` (own certificate first, then its chain), `tls.key` and `ca.crt` in PEM form.
    pub fn from_pem(certificate: &[u8], key: &[u8], roots: &[u8]) -> Result<Self, IdentityError> {
        let chain = certificates("tls.crt", certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
            rustls::pki_types::pem::Error::NoItemsFound => IdentityError::Empty {
                file: "tls.key".to_owned(),
                what: "private key",
            },
            other => IdentityError::Unreadable {
                file: "tls.key".to_owned(),
                reason: other.to_string(),
            },
        })?;
        Self::from_der(chain, key, certificates("ca.crt", roots)?)
    }

    /// Takes certificates and key in DER form.
    pub fn from_der(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, IdentityError> {
        let leaf = chain.first().ok_or_else(|| IdentityError::Empty {
            file: "tls.crt".to_owned(),
            what: "certificate",
        })?;
        let own = Peer::of_certificate(leaf).map_err(IdentityError::Name)?;
        let now = SystemTime::now();
        if now >= own.not_after {
            return Err(IdentityError::Expired);
        }
        if now < own.not_before {
            return Err(IdentityError::Early);
        }
        let certified = CertifiedKey::from_der(chain, key, &default_provider()).map_err(
            |error| match error {
                rustls::Error::InconsistentKeys(_) => IdentityError::Mismatch,
                other => IdentityError::Key(other.to_string()),
            },
        )?;
        let mut store = RootCertStore::empty();
        for root in roots {
            store
                .add(root)
                .map_err(|error| IdentityError::Authority(error.to_string()))?;
        }
        Ok(Self {
            certified: Arc::new(certified),
            roots: Arc::new(store),
            id: own.id,
            not_after: own.not_after,
        })
    }

    /// Our own SPIFFE ID.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// When our certificate expires.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Seconds since the epoch at which our certificate expires.
    pub fn not_after_seconds(&self) -> u64 {
        self.not_after
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .as_secs()
    }

    /// Whether both prove the same with the same authorities.
    pub(super) fn same(&self, other: &Self) -> bool {
        self.certified.cert == other.certified.cert && self.roots.roots == other.roots.roots
    }
}

fn certificates(file: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| IdentityError::Unreadable {
        file: file.to_owned(),
        reason: error.to_string(),
    })?;
    if found.is_empty() {
        return Err(IdentityError::Empty {
            file: file.to_owned(),
            what: "certificate",
        });
    }
    Ok(found)
}
