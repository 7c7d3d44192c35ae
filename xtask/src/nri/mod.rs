//! A double of a container runtime's side of NRI: it takes a plugin's registration, configures it,
//! tells it of sandboxes and waits for its answers, as containerd and CRI-O do. What it sends and
//! reads is put together here byte by byte, so that it can't share a mistake with the agent.

mod connection;
mod proto;
mod sandbox;

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub use connection::{Answer, Subscribed};
pub use sandbox::Sandbox;

use connection::Connection;

/// Looks for new connections so often.
const ACCEPT: Duration = Duration::from_millis(5);

/// How runtimes tell of sandboxes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Calls {
    /// `RunPodSandbox` and its kin.
    #[default]
    Own,
    /// `StateChange` with an event, as runtimes before NRI 0.11 do.
    StateChange,
}

/// What a runtime is like.
#[derive(Clone, Debug)]
pub struct Settings {
    pub calls: Calls,
    /// A plugin that takes longer is given up, and what it was asked about goes on.
    pub request_timeout: Duration,
    /// Pods that run already when a plugin comes.
    pub running: Vec<Sandbox>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            calls: Calls::default(),
            request_timeout: Duration::from_secs(2),
            running: Vec::new(),
        }
    }
}

/// A running runtime. Dropping it ends it and its connections.
#[derive(Debug)]
pub struct Runtime {
    socket: PathBuf,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    settings: Settings,
    plugin: Mutex<Option<Arc<Connection>>>,
    changed: Condvar,
    /// The runtime asks its plugins about one thing at a time.
    asking: Mutex<()>,
    stopped: AtomicBool,
    /// What plugins did that none may.
    faults: Mutex<Vec<String>>,
}

impl Shared {
    fn plugin(&self) -> MutexGuard<'_, Option<Arc<Connection>>> {
        self.plugin.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Runtime {
    /// Listens there; a socket that a runtime before has left is taken away.
    ///
    /// # Errors
    /// If it can't listen.
    pub fn start(socket: &Path, settings: Settings) -> io::Result<Self> {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket)?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            settings,
            plugin: Mutex::default(),
            changed: Condvar::new(),
            asking: Mutex::default(),
            stopped: AtomicBool::new(false),
            faults: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        let accepting = thread::spawn(move || accept(&listener, &accepting));
        Ok(Self {
            socket: socket.to_owned(),
            shared,
            accepting: Some(accepting),
        })
    }

    /// Waits until a plugin is registered, configured and synchronized; what it subscribed.
    pub fn plugin(&self, patience: Duration) -> Option<Subscribed> {
        let deadline = Instant::now() + patience;
        let mut plugin = self.shared.plugin();
        loop {
            if let Some(plugin) = &*plugin {
                return Some(plugin.subscribed());
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let waited = self.shared.changed.wait_timeout(plugin, left);
            plugin = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether a plugin is there.
    pub fn has_plugin(&self) -> bool {
        self.shared.plugin().is_some()
    }

    /// Ends the plugin's connection, as a runtime does that ends.
    pub fn close_plugin(&self) {
        if let Some(plugin) = &*self.shared.plugin() {
            plugin.close();
        }
    }

    /// Asks the plugin whether this sandbox may start, and waits for its answer.
    pub fn run_pod_sandbox(&self, sandbox: &Sandbox) -> Answer {
        self.ask("RunPodSandbox", 1, sandbox)
    }

    /// Tells the plugin that the sandbox ends.
    pub fn stop_pod_sandbox(&self, sandbox: &Sandbox) -> Answer {
        self.ask("StopPodSandbox", 2, sandbox)
    }

    /// Calls any method of the plugin with any payload.
    pub fn call(&self, method: &str, payload: &[u8]) -> Answer {
        let _one = self.shared.asking.lock();
        let plugin = self.shared.plugin().clone();
        let Some(plugin) = plugin else {
            return Answer::NoPlugin;
        };
        let answer = plugin.call(method, payload, self.shared.settings.request_timeout);
        if answer == Answer::Late {
            // As the real ones do: the plugin is given up.
            plugin.close();
        }
        answer
    }

    fn ask(&self, method: &str, event: u64, sandbox: &Sandbox) -> Answer {
        let pod = sandbox.encode();
        let mut payload = Vec::new();
        match self.shared.settings.calls {
            Calls::Own => {
                proto::bytes(&mut payload, 1, &pod);
                self.call(method, &payload)
            }
            Calls::StateChange => {
                proto::number(&mut payload, 1, event);
                proto::bytes(&mut payload, 2, &pod);
                self.call("StateChange", &payload)
            }
        }
    }

    /// What plugins did that none may, such as frames that the real ones have no room for.
    pub fn faults(&self) -> Vec<String> {
        let faults = self.shared.faults.lock();
        faults.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        if let Some(plugin) = self.shared.plugin().take() {
            plugin.close();
        }
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    while !shared.stopped.load(Ordering::SeqCst) {
        let Ok((stream, _)) = listener.accept() else {
            thread::sleep(ACCEPT);
            continue;
        };
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            if let Err(error) = serve(stream, &shared)
                && !shared.stopped.load(Ordering::SeqCst)
            {
                let faults = shared.faults.lock();
                faults
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(error.to_string());
            }
        });
    }
}

/// Takes a plugin in, and looks after its connection to its end.
fn serve(stream: std::os::unix::net::UnixStream, shared: &Arc<Shared>) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    let connection = Arc::new(Connection::new(stream)?);
    let reading = Arc::clone(&connection);
    let reader = thread::spawn(move || reading.read_to_end());
    let settings = &shared.settings;
    let taken = connection
        .registered(Duration::from_secs(5))
        .and_then(|()| connection.configure(settings.request_timeout))
        .and_then(|()| connection.synchronize(&settings.running, settings.request_timeout));
    if let Err(error) = taken {
        connection.close();
        let _ = reader.join();
        return Err(io::Error::other(error));
    }
    *shared.plugin() = Some(Arc::clone(&connection));
    shared.changed.notify_all();
    let ended = reader.join();
    let mut plugin = shared.plugin();
    if plugin
        .as_ref()
        .is_some_and(|it| Arc::ptr_eq(it, &connection))
    {
        *plugin = None;
    }
    ended.unwrap_or_else(|_| Err(io::Error::other("the reader panicked")))
}
