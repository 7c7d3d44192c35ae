//! The process in the pod: takes orders, tries, says whether it could.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::case::{By, Client, Trouble, failed};
use crate::catalogue;
use crate::ground::{Ground, Order};

/// What the process says of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// What it could not do.
    pub trouble: Option<String>,
    /// What has to be known of how it was tried.
    #[serde(default)]
    pub note: Option<String>,
}

/// Takes orders from standard input, one a line, until it ends. Runs in the pod.
pub fn serve() -> io::Result<()> {
    let mut standing = None;
    for line in io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?)?;
        // What the last case listened on.
        drop(standing.take());
        let answer = match obey(order) {
            Ok((listener, note)) => {
                standing = listener;
                Answer {
                    trouble: None,
                    note,
                }
            }
            Err(trouble) => Answer {
                trouble: Some(trouble.to_string()),
                note: None,
            },
        };
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, &answer)?;
        out.write_all(b"\n")?;
        out.flush()?;
    }
    Ok(())
}

/// What listens from now on, and what has to be known of the attempt.
type Obeyed = (Option<TcpListener>, Option<String>);

fn obey(order: Order) -> Result<Obeyed, Trouble> {
    let case = catalogue::find(order.number)
        .ok_or_else(|| Trouble::Absent(format!("there is no case {}", order.number)))?;
    let ground = Ground::find(order)?;
    match case.by {
        By::Pod(attempt) => attempt(&ground).map(|()| (None, ground.noted())),
        By::Client(client) => Ok((listen(&ground, client)?, None)),
        By::Cluster => Err(Trouble::Absent("it needs the cluster's objects".to_owned())),
    }
}

/// Waits for what comes from the node.
fn listen(ground: &Ground, client: Client) -> Result<Option<TcpListener>, Trouble> {
    let address = SocketAddr::new(ground.order.own, ground.port());
    match client {
        // The kernel completes the connection by itself.
        Client::Tcp => {
            let listener = TcpListener::bind(address).map_err(failed("listen by TCP"))?;
            Ok(Some(listener))
        }
        Client::Udp => {
            let socket = UdpSocket::bind(address).map_err(failed("listen by UDP"))?;
            let wait = Some(Duration::from_secs(3));
            socket.set_read_timeout(wait).map_err(failed("listen"))?;
            thread::spawn(move || {
                let mut buffer = [0; 64];
                if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                    // The client notices if nothing comes.
                    let _ = socket.send_to(&buffer[..length], peer);
                }
            });
            Ok(None)
        }
        Client::Nobody | Client::Echo => Ok(None),
    }
}

/// The process in the pod, from the node's side. Its cgroup goes with it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    cgroup: PathBuf,
}

impl Process {
    /// Starts `command` in this network namespace and in a new cgroup of this name below the pod's;
    /// it must call [`serve`].
    ///
    /// # Errors
    /// If the cgroup can't be made or the namespace not be entered.
    pub fn start(command: &mut Command, netns: &File, pod: &Path, name: &str) -> io::Result<Self> {
        let cgroup = pod.join(name);
        match fs::create_dir(&cgroup) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let started = spawn(command, netns, &cgroup);
        if started.is_err() {
            let _ = fs::remove_dir(&cgroup);
        }
        let mut child = started?;
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("it was asked for"));
        Ok(Self {
            child,
            orders,
            answers,
            cgroup,
        })
    }

    /// Has it try, and waits.
    pub fn ask(&mut self, order: &Order) -> io::Result<Answer> {
        let orders = self.orders.as_mut().expect("it is open until the end");
        serde_json::to_writer(&mut *orders, order)?;
        orders.write_all(b"\n")?;
        if !is_readable(self.answers.get_ref(), PATIENCE_MS)? {
            return Err(io::Error::other(
                "the process in the pod does not come back from what it tries",
            ));
        }
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(io::Error::other("the process in the pod is gone"));
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The end of its orders ends it; it may still wait for something.
        drop(self.orders.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
        for _ in 0..100 {
            match fs::remove_dir(&self.cgroup) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    thread::sleep(Duration::from_millis(10));
                }
                _ => return,
            }
        }
    }
}

/// How long an attempt may take.
const PATIENCE_MS: i32 = 20_000;

fn is_readable(file: &ChildStdout, wait_ms: i32) -> io::Result<bool> {
    let mut file = libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: it is one descriptor, and outlives the call.
    match unsafe { libc::poll(&raw mut file, 1, wait_ms) } {
        -1 => Err(io::Error::last_os_error()),
        ready => Ok(ready > 0),
    }
}

fn spawn(command: &mut Command, netns: &File, cgroup: &Path) -> io::Result<Child> {
    let procs = OpenOptions::new()
        .write(true)
        .open(cgroup.join("cgroup.procs"))?;
    let procs = OwnedFd::from(procs);
    let netns = netns.try_clone()?;
    // SAFETY: between fork and exec only system calls are made, on descriptors that were opened
    // before; nothing here allocates or takes a lock.
    unsafe {
        command.pre_exec(move || {
            // "0" is the process that writes.
            if libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) != 1 {
                return Err(io::Error::last_os_error());
            }
            if libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) == -1 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
}
