//! A double of the Kubernetes API server: objects of any kind in memory, list and watch over JSON
//! as the real one does them, and faults by a seed. It checks nothing of what objects say, and lets
//! everybody do everything unless it is given objects of RBAC.

mod absence;
mod answer;
mod apply;
mod authorize;
mod faults;
mod http;
mod json_patch;
mod list;
mod resources;
mod select;
mod store;
mod watch;
mod write;

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufReader, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;

pub use absence::Absence;
pub use faults::{Fault, Faults};
pub use resources::{definition, gloo_definitions, own_definitions};

use authorize::Authorizer;
use faults::Dice;
use store::{Refused, Store};

/// Bookmarks come so often where they are asked for.
const BOOKMARKS: Duration = Duration::from_millis(200);
/// Looks for new connections so often: from another network namespace none can wake it.
const ACCEPT: Duration = Duration::from_millis(5);

/// What a request was: its verb as RBAC has it, and the resource (`pods`,
/// `virtualgateways.sallyport.dev`).
pub type Asked = (&'static str, String);

/// A running API server.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    listener: Arc<TcpListener>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stopped: AtomicBool,
    away: Mutex<Option<Absence>>,
    connections: Mutex<HashMap<u64, TcpStream>>,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    store: Store,
    dice: Dice,
    /// What is left of lists that are read in pages, by token.
    pages: BTreeMap<u64, list::Rest>,
    next_page: u64,
    asked: Vec<Asked>,
    /// Resources that nobody may read.
    forbidden: Vec<String>,
    /// Without one everybody may do everything.
    authorizer: Option<Authorizer>,
    denied: Vec<Asked>,
}

impl Shared {
    /// A panic of another connection's thread has left whole objects.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<u64, TcpStream>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn absence(&self) -> Option<Absence> {
        *self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_away(&self) -> bool {
        self.stopped.load(Ordering::SeqCst) || self.absence() == Some(Absence::Breaks)
    }
}

impl ApiServer {
    /// Serves on a port of loopback.
    ///
    /// # Errors
    /// If there is no port.
    pub fn start() -> io::Result<Self> {
        Self::serve(TcpListener::bind("127.0.0.1:0")?)
    }

    /// Serves there; in which network namespace that is, is the caller's.
    ///
    /// # Errors
    /// If the listener has no address.
    pub fn serve(listener: TcpListener) -> io::Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            stopped: AtomicBool::new(false),
            away: Mutex::default(),
            connections: Mutex::default(),
            next: AtomicU64::new(0),
        });
        let listener = Arc::new(listener);
        let (ear, accepting) = (Arc::clone(&listener), Arc::clone(&shared));
        let accepting = thread::spawn(move || accept(&ear, &accepting));
        Ok(Self {
            shared,
            listener,
            address,
            accepting: Some(accepting),
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A kubeconfig that leads here.
    pub fn kubeconfig(&self) -> String {
        self.kubeconfig_in("default")
    }

    /// A kubeconfig of somebody who is in this namespace.
    pub fn kubeconfig_in(&self, namespace: &str) -> String {
        serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "double",
                "cluster": { "server": format!("http://{}", self.address) } }],
            "users": [{ "name": "agent", "user": {} }],
            "contexts": [{ "name": "double", "context": {
                "cluster": "double", "user": "agent", "namespace": namespace } }],
            "current-context": "double",
        })
        .to_string()
    }

    /// Makes or replaces an object that says `apiVersion` and `kind`.
    ///
    /// # Errors
    /// If there is no such resource, or the object has no name.
    pub fn apply(&self, object: &Value) -> Result<Arc<Value>, Refused> {
        self.change(|store| {
            let resource = store.resource_of(object).ok_or_else(|| unknown(object))?;
            let mut object = object.clone();
            if let Some(meta) = object["metadata"].as_object_mut() {
                meta.remove("resourceVersion");
            }
            store.put(&resource, object)
        })
    }

    /// Deletes the object of that kind, namespace and name.
    ///
    /// # Errors
    /// If there is none.
    pub fn delete(&self, object: &Value) -> Result<Arc<Value>, Refused> {
        self.change(|store| {
            let resource = store.resource_of(object).ok_or_else(|| unknown(object))?;
            let key = store::key(&resource, object)?;
            store.delete(&resource, &key)
        })
    }

    fn change<T>(
        &self,
        change: impl FnOnce(&mut Store) -> Result<T, Refused>,
    ) -> Result<T, Refused> {
        let done = change(&mut self.shared.state().store);
        self.shared.changed.notify_all();
        done
    }

    /// The object as it is now.
    pub fn get(&self, object: &Value) -> Option<Arc<Value>> {
        let state = self.shared.state();
        let resource = state.store.resource_of(object)?;
        let key = store::key(&resource, object).ok()?;
        state.store.get(&resource, &key).cloned()
    }

    /// All objects of a resource, by group, version and plural.
    pub fn list(&self, group: &str, version: &str, plural: &str) -> Vec<Value> {
        let state = self.shared.state();
        let resource = state.store.resource(group, version, plural);
        let objects = resource
            .iter()
            .flat_map(|resource| state.store.objects(resource));
        objects.map(|object| (**object).clone()).collect()
    }

    /// Forgets all changes until now: who was not watching has to list anew.
    pub fn compact(&self) {
        let mut state = self.shared.state();
        state.store.compact();
        state.pages.clear();
    }

    /// From now on this goes wrong.
    pub fn set_faults(&self, faults: Faults) {
        self.shared.state().dice = Dice::new(faults);
    }

    /// What has gone wrong since faults were set, and where.
    pub fn faults(&self) -> Vec<(Fault, String)> {
        self.shared.state().dice.happened().to_vec()
    }

    /// Nobody may list or watch this resource (`pods`, `virtualgateways.sallyport.dev`) any more.
    pub fn forbid(&self, resources: &[&str]) {
        let mut state = self.shared.state();
        state.forbidden = resources.iter().map(|&name| name.to_owned()).collect();
    }

    /// From now on whoever comes may do what the bindings among these objects give, and nothing else.
    pub fn authorize(&self, objects: &[Value]) {
        self.shared.state().authorizer = Some(Authorizer::new(objects));
    }

    /// What nobody was allowed since the last time; resources with their subresource
    /// (`egresslockdowns.sallyport.dev/status`).
    pub fn take_denied(&self) -> Vec<Asked> {
        std::mem::take(&mut self.shared.state().denied)
    }

    /// What was asked since the last time.
    pub fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.shared.state().asked)
    }

    /// Breaks all connections.
    pub fn break_connections(&self) {
        for (_, stream) in self.shared.connections().drain() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.shared.changed.notify_all();
    }

    /// Connections that stand.
    pub fn connections(&self) -> usize {
        self.shared.connections().len()
    }
}

fn unknown(object: &Value) -> Refused {
    let message = format!(
        "no resource for {} of {}",
        object["kind"], object["apiVersion"]
    );
    (404, "NotFound", message)
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.break_connections();
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.stopped.load(Ordering::SeqCst) {
        let Ok((stream, _)) = listener.accept() else {
            thread::sleep(ACCEPT);
            continue;
        };
        if shared.is_away() {
            continue;
        }
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            let id = shared.next.fetch_add(1, Ordering::Relaxed);
            if let Ok(copy) = stream.try_clone() {
                shared.connections().insert(id, copy);
            }
            // How a connection ends is for the client to judge.
            let _ = converse(stream, &shared);
            shared.connections().remove(&id);
        });
    }
}

fn converse(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // A client that doesn't read must not hold a thread for ever.
    stream.set_write_timeout(Some(Duration::from_secs(30)))?;
    let mut input = BufReader::new(stream.try_clone()?);
    while let Some(request) = http::Request::read(&mut input)? {
        if shared.is_away() {
            break;
        }
        match shared.absence() {
            Some(Absence::Silent) => {}
            Some(Absence::Fails) => {
                let message = "the database is away";
                let answer = http::Response::failure(500, "InternalError", message);
                stream.write_all(&answer.bytes())?;
            }
            _ if answer::answer(&mut stream, shared, &request)? => {}
            _ => break,
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
    Ok(())
}
