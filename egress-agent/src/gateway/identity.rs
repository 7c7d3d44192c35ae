//! Who a client is: SPIFFE ids of service accounts, read strictly.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

/// Why a URI is not the SPIFFE id of a service account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SpiffeError {
    #[error("it does not start with `spiffe://`")]
    Scheme,
    #[error("its trust domain has other characters than lower-case letters, digits, `.`, `-`, `_`")]
    TrustDomain,
    #[error("its path is not `/ns/<namespace>/sa/<service account>`")]
    Path,
    #[error("its namespace or service account is not a Kubernetes name")]
    Name,
}

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`. Cheap to clone: policy holds each
/// many times.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    /// Where the trust domain and the namespace end.
    ends: [u16; 2],
}

/// How a client's certificate is bound to the pod it was issued for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Binding {
    /// The address must be that of a pod with the certificate's service account.
    #[default]
    Require,
    /// Addresses that belong to no known pod pass; those of another account's pod don't.
    Prefer,
    /// The certificate alone counts.
    Off,
}

const SCHEME: &str = "spiffe://";
const NAMESPACE: &str = "/ns/";
const ACCOUNT: &str = "/sa/";

impl SpiffeId {
    pub fn new(
        trust_domain: &str,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, SpiffeError> {
        check_trust_domain(trust_domain)?;
        if !is_name(namespace, false) || !is_name(service_account, true) {
            return Err(SpiffeError::Name);
        }
        let uri = [
            SCHEME,
            trust_domain,
            NAMESPACE,
            namespace,
            ACCOUNT,
            service_account,
        ]
        .concat();
        let domain_end = SCHEME.len() + trust_domain.len();
        let namespace_end = domain_end + NAMESPACE.len() + namespace.len();
        // Both are checked above: no part is longer than 255.
        let end = |at: usize| u16::try_from(at).map_err(|_| SpiffeError::Name);
        Ok(Self {
            uri: uri.into(),
            ends: [end(domain_end)?, end(namespace_end)?],
        })
    }

    /// Takes exactly the form above: a suffix match, an escape, a port or one more path segment
    /// would let one identity pass for another.
    pub fn parse(uri: &str) -> Result<Self, SpiffeError> {
        let rest = uri.strip_prefix("spiffe://").ok_or(SpiffeError::Scheme)?;
        let (trust_domain, path) = rest.split_once('/').ok_or(SpiffeError::Path)?;
        let parts: Vec<&str> = path.split('/').collect();
        let ["ns", namespace, "sa", service_account] = parts[..] else {
            check_trust_domain(trust_domain)?;
            return Err(SpiffeError::Path);
        };
        Self::new(trust_domain, namespace, service_account)
    }

    pub fn trust_domain(&self) -> &str {
        &self.uri[SCHEME.len()..self.ends[0].into()]
    }

    pub fn namespace(&self) -> &str {
        &self.uri[usize::from(self.ends[0]) + NAMESPACE.len()..self.ends[1].into()]
    }

    pub fn service_account(&self) -> &str {
        &self.uri[usize::from(self.ends[1]) + ACCOUNT.len()..]
    }

    pub fn as_str(&self) -> &str {
        &self.uri
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

/// Checks a trust domain as an operator sets it.
pub fn check_trust_domain(text: &str) -> Result<(), SpiffeError> {
    let allowed = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_')
    };
    if text.is_empty() || text.len() > 255 || !text.bytes().all(allowed) {
        return Err(SpiffeError::TrustDomain);
    }
    Ok(())
}

/// How every id of a trust domain begins.
pub fn id_prefix(trust_domain: &str) -> String {
    format!("spiffe://{trust_domain}/")
}

/// An RE2 expression for the form of ids, whatever the trust domain: short, since Envoy refuses
/// programs larger than 100.
pub const ID_REGEX: &str =
    r"spiffe://[^/]+/ns/[a-z0-9](-*[a-z0-9])*/sa/[a-z0-9](-*[a-z0-9])*(\.[a-z0-9](-*[a-z0-9])*)*";

/// RFC 1123 label, or subdomain where dots may be.
fn is_name(text: &str, dots: bool) -> bool {
    let label = |label: &str| {
        let bytes = label.as_bytes();
        let edge = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        matches!((bytes.first(), bytes.last()), (Some(&a), Some(&b)) if edge(a) && edge(b))
            && bytes.iter().all(|&byte| edge(byte) || byte == b'-')
    };
    if dots {
        text.len() <= 253 && text.split('.').all(label)
    } else {
        text.len() <= 63 && label(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_form_is_read_and_printed() {
        let text = "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-productpage";
        let id = SpiffeId::parse(text).unwrap();
        assert_eq!(id.to_string(), text);
        assert_eq!(
            (id.trust_domain(), id.namespace(), id.service_account()),
            ("cluster.local", "bookinfo", "bookinfo-productpage")
        );
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "spiffe://",
            "https://cluster.local/ns/a/sa/b",
            "SPIFFE://cluster.local/ns/a/sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://Cluster.local/ns/a/sa/b",
            "spiffe://cluster.local:443/ns/a/sa/b",
            "spiffe://user@cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/b/",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local//ns/a/sa/b",
            "spiffe://cluster.local/x/ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/",
            "spiffe://cluster.local/ns//sa/b",
            "spiffe://cluster.local/ns/a/sa/b%20",
            "spiffe://cluster.local/ns/a/sa/b?x",
            "spiffe://cluster.local/ns/a/sa/b#x",
            "spiffe://cluster.local/ns/../sa/b",
            "spiffe://cluster.local/ns/A/sa/b",
            "spiffe://cluster.local/ns/a/SA/b",
            " spiffe://cluster.local/ns/a/sa/b",
        ] {
            assert!(SpiffeId::parse(text).is_err(), "{text}");
        }
    }
}
