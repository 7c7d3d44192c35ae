//! Certificates made on the spot: the mesh's SPIFFE identities, and the outside host's own.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};

/// Trust domain of the mesh.
pub const TRUST_DOMAIN: &str = "cluster.local";

/// The SPIFFE ID of a service account.
pub fn spiffe_id(namespace: &str, service_account: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{service_account}")
}

/// An authority that lives as long as this value.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    /// Without its key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// A new one, signed by itself.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().context("cannot make a key")?;
        let issuer = CertifiedIssuer::self_signed(params, key)
            .context("cannot make a certificate authority")?;
        Ok(Self { issuer })
    }

    /// Its certificate.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Writes `tls.crt` and `tls.key` of a workload of the mesh, and `ca.crt`, for this user.
    pub fn issue_workload(
        &self,
        namespace: &str,
        service_account: &str,
        directory: &Path,
        uid: u32,
    ) -> Result<()> {
        self.issue_workload_for(namespace, service_account, directory, uid, None)
    }

    /// As `issue_workload`, valid from the one time to the other, in seconds since 1970.
    pub fn issue_workload_for(
        &self,
        namespace: &str,
        service_account: &str,
        directory: &Path,
        uid: u32,
        valid: Option<Range<u64>>,
    ) -> Result<()> {
        let id = spiffe_id(namespace, service_account);
        let name = SanType::URI(id.as_str().try_into().context("a SPIFFE ID")?);
        self.issue(name, directory, uid, valid)
            .with_context(|| format!("certificate of {id}"))
    }

    /// Writes `tls.crt` and `tls.key` of a server with this name, and `ca.crt`, for this user.
    pub fn issue_server(&self, name: &str, directory: &Path, uid: u32) -> Result<()> {
        let san = SanType::DnsName(name.try_into().context("a DNS name")?);
        self.issue(san, directory, uid, None)
            .with_context(|| format!("certificate of {name}"))
    }

    fn issue(
        &self,
        name: SanType,
        directory: &Path,
        uid: u32,
        valid: Option<Range<u64>>,
    ) -> Result<()> {
        let mut params = CertificateParams::default();
        if let Some(valid) = valid {
            let at = |seconds| date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
            (params.not_before, params.not_after) = (at(valid.start), at(valid.end));
        }
        params.subject_alt_names = vec![name];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().context("cannot make a key")?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .context("cannot sign")?;
        fs::create_dir_all(directory)?;
        for (file, content, mode) in [
            ("tls.crt", certificate.pem(), 0o644),
            ("tls.key", key.serialize_pem(), 0o400),
            ("ca.crt", self.pem(), 0o644),
        ] {
            let path = directory.join(file);
            fs::write(&path, content)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            std::os::unix::fs::chown(&path, Some(uid), Some(uid))?;
        }
        Ok(())
    }
}
