//! The policy server in this process, on loopback.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use egress_agent::gateway::SpiffeId;
use egress_agent::policy_server::Served;
use egress_agent::policy_server::authz::Binding;
use egress_agent::policy_server::metrics::PolicyMetrics;
use egress_agent::policy_server::server::{Options, PolicyServer};
use egress_agent::policy_server::thread;
use egress_agent::policy_server::xds::{NodeState, XdsStatus};
use egress_agent::tls::{MinVersion, Source};
use prometheus_client::registry::Registry;
use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

/// Who the server is.
pub const SERVER_ID: &str = "spiffe://cluster.local/ns/sallyport-system/sa/sallyport-agent";

pub fn server_id() -> SpiffeId {
    SpiffeId::parse(SERVER_ID).expect("an identity")
}

/// What tells it to stop, and what tells that it has.
type Running = (oneshot::Sender<()>, oneshot::Receiver<()>);

/// A server that ends with this value.
pub struct Server {
    runtime: Option<Runtime>,
    running: Option<Running>,
    /// The server ends at once when this is dropped.
    alive: Option<oneshot::Sender<()>>,
    served: watch::Sender<Arc<Served>>,
    status: XdsStatus,
    registry: Arc<Registry>,
    pub address: SocketAddr,
}

impl Server {
    /// Starts it at `address` (port 0: any) with tls.crt, tls.key and ca.crt of `certs`.
    pub fn start(address: SocketAddr, certs: &Path, binding: Binding) -> Self {
        // The agent's; the server has a thread of its own, as there.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (served, follower) = watch::channel(Arc::new(Served::default()));
        let mut registry = Registry::with_prefix("sallyport");
        let metrics = PolicyMetrics::register(&mut registry);
        let status = XdsStatus::default();
        let (identities, following) = Source::files(certs).follow();
        runtime.spawn(following);
        runtime.spawn(metrics.clone().follow_expiry(identities.clone()));
        let deadline = Instant::now() + Duration::from_secs(10);
        while identities.borrow().is_none() {
            assert!(
                Instant::now() < deadline,
                "no certificate in {}",
                certs.display()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        let options = Options {
            served: follower,
            identities,
            oldest: MinVersion::Tls13,
            trust_domain: "cluster.local".to_owned(),
            binding,
            metrics,
            status: status.clone(),
        };
        let (stop, told) = oneshot::channel::<()>();
        let (alive, gone) = oneshot::channel::<()>();
        let (tell, listens) = mpsc::channel();
        let serving = async move {
            let server = PolicyServer::bind(address, options).await;
            let server = server.expect("the server listens");
            tell.send(server.address().expect("an address"))
                .expect("somebody waits");
            // It is told by a message, or never.
            let stop = async {
                if told.await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = server.run(stop) => {}
                _ = gone => {}
            }
        };
        let running = thread::spawn("policy", serving).expect("a thread");
        let address = listens.recv().expect("it listens");
        Self {
            runtime: Some(runtime),
            running: Some((stop, running)),
            alive: Some(alive),
            served,
            status,
            registry: Arc::new(registry),
            address,
        }
    }

    /// Serves this from now on.
    pub fn serve(&self, served: Served) {
        self.served.send_replace(Arc::new(served));
    }

    /// Ends it at once, as if it had been killed, and waits until its port is free.
    pub fn kill(&mut self) {
        drop(self.alive.take());
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::net::TcpListener::bind(self.address).is_err() {
            assert!(Instant::now() < deadline, "it is still there");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Tells it to stop, and waits until it has.
    pub fn stop(mut self) {
        let (stop, running) = self.running.take().expect("it stops once");
        stop.send(()).expect("it runs");
        let runtime = self.runtime.as_ref().expect("it runs");
        let ended = runtime.block_on(async { timeout(Duration::from_secs(10), running).await });
        ended.expect("it ends in time").expect("it does not panic");
    }

    /// The Envoys that are connected.
    pub fn nodes(&self) -> Vec<NodeState> {
        self.status.follow().borrow().values().cloned().collect()
    }

    /// All metrics as text.
    pub fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("text");
        text
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
