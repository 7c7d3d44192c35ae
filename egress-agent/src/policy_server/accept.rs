//! Takes connections: mutual TLS first, and bounded in number and time whoever connects.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::connection::Connection;
use super::places::Places;
use super::{Caller, Served};
use crate::tls::{Identities, Identity, MinVersion, Peer, PeerError, server_config};

/// Connections at once: an Envoy keeps one for each of its workers.
const MAX_CONNECTIONS: usize = 1024;
/// Of these, for callers that are no gateway: enough to be told so.
const MAX_STRANGERS: usize = 16;
/// How long a stranger's connection may stand.
const STRANGER_TIME: Duration = Duration::from_secs(10);
/// Handshakes at once, and those from one address: each costs a signature.
const MAX_HANDSHAKES: usize = 64;
const MAX_HANDSHAKES_FROM_ONE: usize = 8;
/// The same for addresses of gateways, counted apart: nobody else's slow handshakes may keep them
/// out, and an Envoy that starts connects with all its workers at once.
const MAX_GATEWAY_HANDSHAKES: usize = 256;
const MAX_HANDSHAKES_FROM_GATEWAY: usize = 64;
/// How long a handshake may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// How long to wait when the kernel can't give another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why a connection did not come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// We have no certificate yet.
    NoIdentity,
    /// Too many connections, handshakes or strangers.
    TooMany,
    /// The handshake took too long.
    Slow,
    /// The handshake failed: no certificate, one of a foreign authority, an old TLS.
    Handshake,
    /// The certificate is not that of a service account.
    Name(PeerError),
    /// The service account is of another trust domain.
    TrustDomain,
}

impl Refusal {
    /// The stable name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoIdentity => "no-identity",
            Self::TooMany => "too-many",
            Self::Slow => "slow",
            Self::Handshake => "handshake",
            Self::Name(error) => error.as_str(),
            Self::TrustDomain => "trust-domain",
        }
    }
}

/// Is told of each connection that was taken or refused.
pub trait Watcher: Send + Sync + 'static {
    fn taken(&self);
    fn refused(&self, refusal: Refusal, detail: &str);
    fn closed(&self);
}

/// What connections are taken by.
pub struct Gate {
    pub identities: Identities,
    pub oldest: MinVersion,
    pub trust_domain: String,
    pub served: watch::Receiver<Arc<Served>>,
    pub watcher: Arc<dyn Watcher>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("oldest", &self.oldest)
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}

/// Takes connections until the receiver is dropped. An error of one ends only that one.
pub async fn accept(listener: TcpListener, gate: Gate, taken: mpsc::Sender<Connection>) {
    let doors = Arc::new(Doors {
        gate,
        connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        strangers: Arc::new(Semaphore::new(MAX_STRANGERS)),
        handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
        gateway_handshakes: Arc::new(Semaphore::new(MAX_GATEWAY_HANDSHAKES)),
        from_one: Places::default(),
        config: Mutex::default(),
    });
    loop {
        let accepted = tokio::select! {
            () = taken.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: what stands goes on.
                tracing::warn!(event = "accept_failed", %error);
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        doors.clone().enter(stream, address, taken.clone());
    }
}

struct Doors {
    gate: Gate,
    connections: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    gateway_handshakes: Arc<Semaphore>,
    from_one: Places<IpAddr>,
    /// The configuration of the latest identity.
    config: Mutex<Option<(Arc<Identity>, TlsAcceptor)>>,
}

impl Doors {
    /// Begins the handshake in a task of its own, if there is room.
    fn enter(
        self: Arc<Self>,
        stream: TcpStream,
        address: SocketAddr,
        taken: mpsc::Sender<Connection>,
    ) {
        let ip = address.ip().to_canonical();
        let (handshakes, from_one) = if self.gate.served.borrow().gateway_pods.contains_key(&ip) {
            (&self.gateway_handshakes, MAX_HANDSHAKES_FROM_GATEWAY)
        } else {
            (&self.handshakes, MAX_HANDSHAKES_FROM_ONE)
        };
        let connection = self.connections.clone().try_acquire_owned();
        let handshake = handshakes.clone().try_acquire_owned();
        let (Ok(connection), Ok(handshake), Some(turn)) =
            (connection, handshake, self.from_one.take(ip, from_one))
        else {
            self.gate
                .watcher
                .refused(Refusal::TooMany, &address.to_string());
            return;
        };
        tokio::spawn(async move {
            let shaken = self.shake(stream, address, connection).await;
            drop((handshake, turn));
            match shaken {
                Ok(connection) => {
                    self.gate.watcher.taken();
                    // Refused only while the server is ending.
                    let _ = taken.send(connection).await;
                }
                Err((refusal, detail)) => {
                    self.gate
                        .watcher
                        .refused(refusal, &format!("{address}: {detail}"));
                }
            }
        });
    }

    async fn shake(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        permit: OwnedSemaphorePermit,
    ) -> Result<Connection, (Refusal, String)> {
        let acceptor = self
            .acceptor()
            .map_err(|detail| (Refusal::NoIdentity, detail))?;
        // Requests are small and somebody waits for each.
        let _ = stream.set_nodelay(true);
        let stream = timeout(HANDSHAKE_TIME, acceptor.accept(stream))
            .await
            .map_err(|_| (Refusal::Slow, "the handshake took too long".to_owned()))?
            .map_err(|error| (Refusal::Handshake, error.to_string()))?;
        let peer = peer_of(&stream).map_err(|error| (Refusal::Name(error), error.to_string()))?;
        if peer.id.trust_domain() != self.gate.trust_domain {
            return Err((Refusal::TrustDomain, peer.id.to_string()));
        }
        // A certificate must not outlive itself in a connection.
        let left = peer
            .not_after
            .duration_since(SystemTime::now())
            .unwrap_or_default();
        let is_gateway = self.gate.served.borrow().is_gateway(&peer.id);
        let (stranger, time) = if is_gateway {
            (None, left)
        } else {
            let stranger = self.strangers.clone().try_acquire_owned();
            let stranger =
                stranger.map_err(|_| (Refusal::TooMany, format!("{} is no gateway", peer.id)))?;
            (Some(stranger), left.min(STRANGER_TIME))
        };
        Ok(Connection {
            stream,
            caller: Caller {
                identity: peer.id,
                address,
            },
            left: time,
            watcher: self.gate.watcher.clone(),
            permits: (permit, stranger),
        })
    }

    fn acceptor(&self) -> Result<TlsAcceptor, String> {
        let latest = self.gate.identities.borrow().clone();
        let latest = latest.ok_or_else(|| "there is no certificate yet".to_owned())?;
        let mut made = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((identity, acceptor)) = &*made
            && Arc::ptr_eq(identity, &latest)
        {
            return Ok(acceptor.clone());
        }
        let config = server_config(&latest, self.gate.oldest).map_err(|error| error.to_string())?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        *made = Some((latest, acceptor.clone()));
        Ok(acceptor)
    }
}

fn peer_of(stream: &TlsStream<TcpStream>) -> Result<Peer, PeerError> {
    let (_, session) = stream.get_ref();
    let leaf = session.peer_certificates().and_then(<[_]>::first);
    Peer::of_certificate(leaf.ok_or(PeerError::NoName)?)
}
