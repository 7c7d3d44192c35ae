//! Who a certificate is for.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use thiserror::Error;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::gateway::SpiffeId;
use crate::gateway::identity::SpiffeError;

/// What a certificate says of its owner. Whether it is true is for the handshake to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub id: SpiffeId,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// Why a certificate is not that of a service account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PeerError {
    #[error("it can't be read")]
    Unreadable,
    #[error("it has no URI as subject alternative name")]
    NoName,
    #[error("it has more than one URI as subject alternative name")]
    SeveralNames,
    #[error("its URI is not `spiffe://<trust domain>/ns/<namespace>/sa/<account>`: {0}")]
    Spiffe(#[from] SpiffeError),
}

impl PeerError {
    /// The stable name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::NoName => "no-spiffe-id",
            Self::SeveralNames => "several-spiffe-ids",
            Self::Spiffe(_) => "bad-spiffe-id",
        }
    }
}

impl Peer {
    /// Reads a certificate in DER form. It must bear exactly one URI: with two, one of them could
    /// be read here and the other elsewhere.
    pub fn of_certificate(der: &[u8]) -> Result<Self, PeerError> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| PeerError::Unreadable)?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|_| PeerError::Unreadable)?
            .ok_or(PeerError::NoName)?;
        let mut uris = names.value.general_names.iter().filter_map(|name| {
            if let GeneralName::URI(uri) = name {
                Some(*uri)
            } else {
                None
            }
        });
        let uri = uris.next().ok_or(PeerError::NoName)?;
        if uris.next().is_some() {
            return Err(PeerError::SeveralNames);
        }
        let validity = certificate.validity();
        Ok(Self {
            id: SpiffeId::parse(uri)?,
            not_before: time(validity.not_before.timestamp()),
            not_after: time(validity.not_after.timestamp()),
        })
    }
}

/// Seconds since the epoch; earlier ones are the epoch.
fn time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
