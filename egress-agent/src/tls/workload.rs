//! Certificates from the SPIFFE Workload API.

use std::pin::pin;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use spiffe::workload_api::WorkloadApiError;
use spiffe::{TrustDomain, WorkloadApiClient, X509Context};
use tokio::time::sleep;

use super::identity::{Identity, IdentityError};
use super::source::Publisher;

/// First and longest wait before the Workload API is asked again.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

pub(super) async fn follow(endpoint: &str, trust_domain: &str, mut publisher: Publisher) {
    let (first, longest) = RETRY;
    let mut wait = first;
    loop {
        let connected = tokio::select! {
            () = publisher.closed() => return,
            connected = connect(endpoint) => connected,
        };
        let trouble = match connected {
            Ok(contexts) => {
                let mut contexts = pin!(contexts);
                let mut refused = None;
                loop {
                    let next = tokio::select! {
                        () = publisher.closed() => return,
                        next = contexts.next() => next,
                        () = sleep(AGAIN), if refused.is_some() => refused.take().map(Ok),
                    };
                    let context = match next {
                        Some(Ok(context)) => context,
                        Some(Err(error)) => break error.to_string(),
                        None => break "it ended the stream".to_owned(),
                    };
                    match identity(&context, trust_domain) {
                        Ok(identity) => {
                            wait = first;
                            refused = None;
                            publisher.good(identity);
                        }
                        Err(error) => {
                            publisher.bad(endpoint, &error.to_string());
                            refused = Some(context);
                        }
                    }
                }
            }
            Err(error) => error.to_string(),
        };
        publisher.bad(
            endpoint,
            &format!("no certificate from the SPIFFE Workload API: {trouble}"),
        );
        tokio::select! {
            () = publisher.closed() => return,
            () = sleep(wait) => {}
        }
        wait = (wait * 2).min(longest);
    }
}

type Context = Result<X509Context, WorkloadApiError>;

/// What could not be used is tried again so often: the clock may have been wrong, and the next
/// certificate comes only when this one is half over.
const AGAIN: Duration = Duration::from_secs(10);

/// Each change of what the Workload API has for us.
async fn connect(endpoint: &str) -> Result<impl Stream<Item = Context> + Send, WorkloadApiError> {
    let client = WorkloadApiClient::connect_to(endpoint).await?;
    client.stream_x509_contexts().await
}

fn identity(context: &X509Context, trust_domain: &str) -> Result<Identity, IdentityError> {
    let missing = |what| IdentityError::Missing(what, trust_domain.to_owned());
    let domain = TrustDomain::new(trust_domain).map_err(|_| missing("trust domain"))?;
    let svid = context
        .svids()
        .iter()
        .find(|svid| *svid.spiffe_id().trust_domain() == domain)
        .ok_or_else(|| missing("X.509-SVID"))?;
    let bundle = context
        .bundle_set()
        .get(&domain)
        .ok_or_else(|| missing("trust bundle"))?;
    let der = |bytes: &[u8]| CertificateDer::from(bytes.to_vec());
    Identity::from_der(
        svid.cert_chain()
            .iter()
            .map(|one| der(one.as_bytes()))
            .collect(),
        PrivateKeyDer::from(PrivatePkcs8KeyDer::from(
            svid.private_key().as_bytes().to_vec(),
        )),
        bundle
            .authorities()
            .iter()
            .map(|one| der(one.as_bytes()))
            .collect(),
    )
}
