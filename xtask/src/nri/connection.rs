//! One plugin's connection: frames, calls to the plugin and its one call to the runtime.

use std::collections::HashMap;
use std::io::{self, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::proto::{self, bytes_of, fields, number_of, text_of};
use super::sandbox::Sandbox;

const PLUGIN: u32 = 1;
const RUNTIME: u32 = 2;
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;
/// Real runtimes write through a buffer of this size, so that longer messages come in several
/// frames, and read into one: a longer frame is an error to them.
const BUFFER: usize = 4096;
const PLUGIN_SERVICE: &str = "nri.pkg.api.v1alpha1.Plugin";
const RUNTIME_SERVICE: &str = "nri.pkg.api.v1alpha1.Runtime";
/// Bits of all events that there are.
const ALL_EVENTS: u64 = (1 << 14) - 1;

/// How a plugin answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It agreed, after so long.
    Done(Duration),
    /// It answered with an error: its code and its words.
    Refused(u64, String),
    /// Not in time.
    Late,
    /// Its connection ended instead.
    Lost,
    /// There is none.
    NoPlugin,
}

/// A plugin, as it introduced itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subscribed {
    pub name: String,
    pub index: String,
    /// Events, as a mask; event n is bit n-1.
    pub events: u64,
}

/// A payload, or a code with its words.
type Response = Result<Vec<u8>, (u64, String)>;

#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    state: Mutex<State>,
    registered: Mutex<Receiver<()>>,
}

#[derive(Debug)]
struct State {
    next: u32,
    waiting: HashMap<u32, Sender<Response>>,
    subscribed: Subscribed,
    registered: Sender<()>,
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        let (sender, registered) = channel();
        Ok(Self {
            stream,
            state: Mutex::new(State {
                next: 1,
                waiting: HashMap::new(),
                subscribed: Subscribed::default(),
                registered: sender,
            }),
            registered: Mutex::new(registered),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn close(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    pub(super) fn subscribed(&self) -> Subscribed {
        self.state().subscribed.clone()
    }

    pub(super) fn registered(&self, patience: Duration) -> Result<(), String> {
        let registered = self.registered.lock();
        let registered = registered.unwrap_or_else(PoisonError::into_inner);
        let came = registered.recv_timeout(patience);
        came.map_err(|error| format!("no registration: {error}"))
    }

    pub(super) fn configure(&self, timeout: Duration) -> Result<(), String> {
        let mut request = Vec::new();
        proto::bytes(&mut request, 2, b"double");
        proto::bytes(&mut request, 3, b"v2.0.0");
        proto::number(&mut request, 4, 5000);
        proto::number(
            &mut request,
            5,
            u64::try_from(timeout.as_millis()).unwrap_or(0),
        );
        let answer = self.response("Configure", &request, timeout);
        let answer = answer.map_err(|answer| format!("Configure: {answer:?}"))?;
        let answer = fields(&answer).ok_or("Configure: the answer is no message")?;
        let events = number_of(&answer, 2);
        if events & !ALL_EVENTS != 0 {
            return Err(format!("it wants events that there are not: {events:#x}"));
        }
        self.state().subscribed.events = events;
        Ok(())
    }

    /// In two parts, as of a full node.
    pub(super) fn synchronize(&self, running: &[Sandbox], timeout: Duration) -> Result<(), String> {
        let (first, second) = running.split_at(running.len() / 2);
        for (part, more) in [(first, true), (second, false)] {
            let mut request = Vec::new();
            for sandbox in part {
                proto::bytes(&mut request, 1, &sandbox.encode());
            }
            let mut container = Vec::new();
            proto::bytes(&mut container, 1, &[b'c'; 3000]);
            proto::bytes(&mut request, 2, &container);
            proto::bytes(&mut request, 2, &container);
            if more {
                proto::number(&mut request, 3, 1);
            }
            let answer = self.response("Synchronize", &request, timeout);
            let answer = answer.map_err(|answer| format!("Synchronize: {answer:?}"))?;
            let answer = fields(&answer).ok_or("Synchronize: the answer is no message")?;
            if (number_of(&answer, 2) != 0) != more {
                return Err("the plugin can't take a list in parts".to_owned());
            }
        }
        Ok(())
    }

    pub(super) fn call(&self, method: &str, payload: &[u8], timeout: Duration) -> Answer {
        let start = Instant::now();
        match self.response(method, payload, timeout) {
            Ok(_) => Answer::Done(start.elapsed()),
            Err(answer) => answer,
        }
    }

    fn response(&self, method: &str, payload: &[u8], timeout: Duration) -> Result<Vec<u8>, Answer> {
        let mut request = Vec::new();
        proto::bytes(&mut request, 1, PLUGIN_SERVICE.as_bytes());
        proto::bytes(&mut request, 2, method.as_bytes());
        proto::bytes(&mut request, 3, payload);
        let nanos = u64::try_from(timeout.as_nanos()).unwrap_or(0);
        proto::number(&mut request, 4, nanos);
        let (sender, answer) = channel();
        let stream = {
            let mut state = self.state();
            let stream = state.next;
            state.next += 2;
            state.waiting.insert(stream, sender);
            stream
        };
        if self.send(PLUGIN, stream, REQUEST, &request).is_err() {
            return Err(Answer::Lost);
        }
        match answer.recv_timeout(timeout) {
            Ok(Ok(payload)) => Ok(payload),
            Ok(Err((code, message))) => Err(Answer::Refused(code, message)),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => Err(Answer::Late),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => Err(Answer::Lost),
        }
    }

    fn send(&self, connection: u32, stream: u32, kind: u8, data: &[u8]) -> io::Result<()> {
        let mut message = length(data);
        message.extend(stream.to_be_bytes());
        message.extend([kind, 0]);
        message.extend(data);
        let mut frames = Vec::new();
        for part in message.chunks(BUFFER) {
            frames.extend(connection.to_be_bytes());
            frames.extend(length(part));
            frames.extend(part);
        }
        // The lock keeps frames of one message together.
        let _state = self.state();
        (&self.stream).write_all(&frames)
    }

    /// Reads until the connection ends.
    ///
    /// # Errors
    /// If the plugin sends what a real runtime would not take.
    pub(super) fn read_to_end(&self) -> io::Result<()> {
        let read = self.read();
        // Who waits gets no answer any more.
        self.state().waiting.clear();
        self.close();
        read
    }

    fn read(&self) -> io::Result<()> {
        let mut input = BufReader::new(self.stream.try_clone()?);
        let mut pending: HashMap<u32, Vec<u8>> = HashMap::new();
        loop {
            let mut header = [0; 8];
            if input.read_exact(&mut header).is_err() {
                return Ok(());
            }
            let connection = be(&header[..4]);
            let length = be(&header[4..]) as usize;
            if length > BUFFER {
                return Err(io::Error::other(format!("a frame of {length} bytes")));
            }
            let mut part = vec![0; length];
            if input.read_exact(&mut part).is_err() {
                return Ok(());
            }
            let bytes = pending.entry(connection).or_default();
            bytes.extend(part);
            while bytes.len() >= 10 {
                let end = 10 + be(&bytes[..4]) as usize;
                if bytes.len() < end {
                    break;
                }
                let message: Vec<u8> = bytes.drain(..end).collect();
                let stream = be(&message[4..8]);
                self.take(connection, stream, message[8], &message[10..])
                    .map_err(io::Error::other)?;
            }
        }
    }

    fn take(&self, connection: u32, stream: u32, kind: u8, data: &[u8]) -> Result<(), String> {
        let message = fields(data).ok_or("what it sends is no message")?;
        match (connection, kind) {
            (PLUGIN, RESPONSE) => {
                let status = fields(&bytes_of(&message, 1)).ok_or("a status is no message")?;
                let response = match number_of(&status, 1) {
                    0 => Ok(bytes_of(&message, 2)),
                    code => Err((code, text_of(&status, 2))),
                };
                let waiting = self.state().waiting.remove(&stream);
                let waiting = waiting.ok_or(format!("an answer to nothing ({stream})"))?;
                // Who asked may have given up.
                let _ = waiting.send(response);
                Ok(())
            }
            (RUNTIME, REQUEST) if stream % 2 == 1 => {
                let service = text_of(&message, 1);
                let method = text_of(&message, 2);
                if (service.as_str(), method.as_str()) != (RUNTIME_SERVICE, "RegisterPlugin") {
                    return Err(format!("it calls {service}/{method}"));
                }
                let plugin = fields(&bytes_of(&message, 3)).ok_or("no registration")?;
                let (name, index) = (text_of(&plugin, 1), text_of(&plugin, 2));
                let digits = index.len() == 2 && index.bytes().all(|it| it.is_ascii_digit());
                if name.is_empty() || !digits {
                    return Err(format!("it registers as {name:?} at {index:?}"));
                }
                {
                    let mut state = self.state();
                    state.subscribed.name = name;
                    state.subscribed.index = index;
                }
                self.send(RUNTIME, stream, RESPONSE, &[])
                    .map_err(|error| error.to_string())?;
                let _ = self.state().registered.send(());
                Ok(())
            }
            _ => Err(format!(
                "a message of kind {kind} on connection {connection}, stream {stream}"
            )),
        }
    }
}

fn be(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn length(of: &[u8]) -> Vec<u8> {
    let length = u32::try_from(of.len()).unwrap_or(u32::MAX);
    length.to_be_bytes().to_vec()
}
