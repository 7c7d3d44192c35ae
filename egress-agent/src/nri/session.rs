//! One connection to the runtime: the agent registers, and then answers what it is asked.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::board::{Board, Sandbox, Standing};
use super::frame::{self, FrameError, LONGEST_SENT, Message, Reader};
use super::message::{self as nri, Request, Response, Status};
use super::metrics::NriMetrics;

/// The runtime calls plugins in the order of these digits. Last, because plugins before may add
/// devices to the pod.
const INDEX: &str = "99";
const NAME: &str = "sallyport";
/// Stream of the only request that the agent makes.
const REGISTRATION: u32 = 1;
/// The runtime must have taken the agent for a plugin by then; it gives plugins five seconds.
const REGISTERED: Duration = Duration::from_secs(10);
/// A runtime that takes no answer for so long is given up.
const WRITE: Duration = Duration::from_secs(5);
/// Of what is said in an error.
const LONGEST_REASON: usize = 1000;

/// What becomes of a sandbox whose hooks don't stand in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnTimeout {
    /// It is not started, and the kubelet tries again. Static pods, and pods that nothing is dropped
    /// of, are started all the same.
    Deny,
    /// It is started; the closed gate holds it until its hooks stand.
    Allow,
}

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("the runtime has closed the connection")]
    Closed,
    #[error("can't {doing}: {source}")]
    Io {
        doing: &'static str,
        source: io::Error,
    },
    #[error("the runtime takes no answers")]
    Stuck,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the runtime doesn't take the agent as a plugin: {0}")]
    Refused(String),
    #[error("the runtime has not configured the agent as a plugin in {} s", REGISTERED.as_secs())]
    Silent,
}

/// What all connections have in common.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) board: Arc<Board>,
    /// A sandbox is held no longer than this.
    pub(super) timeout: Duration,
    pub(super) on_timeout: OnTimeout,
    pub(super) metrics: NriMetrics,
}

/// Registers, and answers until the connection ends.
pub(super) async fn run(
    mut stream: UnixStream,
    context: &Arc<Context>,
) -> Result<(), SessionError> {
    let (mut input, mut output) = stream.split();
    let (answers, mut outgoing) = mpsc::unbounded_channel();
    let mut session = Session {
        context: Arc::clone(context),
        answers,
        holds: JoinSet::new(),
        listed: Vec::new(),
        configured: false,
        timeout: context.timeout,
    };
    session.register();
    let mut reader = Reader::default();
    let mut buffer = vec![0; 16 * 1024];
    let registered = Instant::now() + REGISTERED;
    loop {
        tokio::select! {
            read = input.read(&mut buffer) => {
                let read = read.map_err(|source| SessionError::Io { doing: "read from the runtime", source })?;
                if read == 0 {
                    return Err(SessionError::Closed);
                }
                for message in reader.take(&buffer[..read])? {
                    session.take(&message)?;
                }
            }
            Some(frame) = outgoing.recv() => {
                let written = timeout(WRITE, output.write_all(&frame)).await;
                let written = written.map_err(|_| SessionError::Stuck)?;
                written.map_err(|source| SessionError::Io { doing: "answer the runtime", source })?;
            }
            Some(_) = session.holds.join_next() => {}
            () = sleep_until(registered), if !session.configured => return Err(SessionError::Silent),
        }
    }
}

/// Ends its holds with itself: nobody waits for their answers any more.
struct Session {
    context: Arc<Context>,
    answers: mpsc::UnboundedSender<Vec<u8>>,
    holds: JoinSet<()>,
    /// Sandboxes of a list that is not told to its end.
    listed: Vec<Sandbox>,
    configured: bool,
    /// At most so long a sandbox is held, by what the runtime says and what was chosen.
    timeout: Duration,
}

impl Session {
    fn register(&self) {
        let register = nri::RegisterPluginRequest {
            plugin_name: NAME.to_owned(),
            plugin_idx: INDEX.to_owned(),
        };
        let request = Request {
            service: nri::RUNTIME_SERVICE.to_owned(),
            method: "RegisterPlugin".to_owned(),
            payload: register.encode_to_vec(),
            timeout_nano: 0,
        };
        let frame = frame::encode(&Message {
            connection: frame::RUNTIME,
            stream: REGISTRATION,
            kind: frame::REQUEST,
            data: request.encode_to_vec(),
        });
        // Whoever sends has the receiver in the same function.
        let _ = self.answers.send(frame);
    }

    fn take(&mut self, message: &Message) -> Result<(), SessionError> {
        match (message.connection, message.kind) {
            (frame::RUNTIME, frame::RESPONSE) if message.stream == REGISTRATION => {
                let response = Response::decode(&*message.data)
                    .map_err(|error| SessionError::Refused(error.to_string()))?;
                match response.status {
                    Some(status) if status.code != 0 => Err(SessionError::Refused(status.message)),
                    _ => Ok(()),
                }
            }
            (frame::PLUGIN, frame::REQUEST) => {
                self.asked(message);
                Ok(())
            }
            // Kinds of messages that are yet to come.
            _ => Ok(()),
        }
    }

    fn asked(&mut self, message: &Message) {
        let stream = message.stream;
        let answer = match Request::decode(&*message.data) {
            Ok(request) => self.call(stream, &request),
            Err(error) => Err(invalid(&error)),
        };
        match answer {
            Ok(Some(payload)) => respond(&self.answers, stream, Ok(payload)),
            // A hold answers by itself.
            Ok(None) => {}
            Err(status) => respond(&self.answers, stream, Err(status)),
        }
    }

    /// Calls that are answered at once give the answer.
    fn call(&mut self, stream: u32, request: &Request) -> Result<Option<Vec<u8>>, Status> {
        if request.service != nri::PLUGIN_SERVICE {
            return Err(unimplemented(request));
        }
        let payload = &*request.payload;
        match request.method.as_str() {
            "Configure" => {
                let configure = nri::ConfigureRequest::decode(payload).map_err(|e| invalid(&e))?;
                Ok(Some(self.configure(&configure)))
            }
            "Synchronize" => {
                let list = nri::SynchronizeRequest::decode(payload).map_err(|e| invalid(&e))?;
                Ok(Some(self.synchronize(list)))
            }
            "Shutdown" => Ok(Some(Vec::new())),
            "RunPodSandbox" => {
                let pod = nri::PodRequest::decode(payload).map_err(|e| invalid(&e))?;
                Ok(self.event(stream, request, nri::RUN_POD_SANDBOX, pod.pod))
            }
            "StopPodSandbox" | "RemovePodSandbox" => {
                let pod = nri::PodRequest::decode(payload).map_err(|e| invalid(&e))?;
                Ok(self.event(stream, request, nri::REMOVE_POD_SANDBOX, pod.pod))
            }
            "StateChange" => {
                let change = nri::StateChangeEvent::decode(payload).map_err(|e| invalid(&e))?;
                Ok(self.event(stream, request, change.event, change.pod))
            }
            _ => Err(unimplemented(request)),
        }
    }

    fn configure(&mut self, request: &nri::ConfigureRequest) -> Vec<u8> {
        let runtime = Duration::from_millis(u64::try_from(request.request_timeout).unwrap_or(0));
        self.timeout = bound(self.context.timeout, runtime);
        self.configured = true;
        self.context.metrics.set_connected(true);
        tracing::info!(
            event = "nri_connected",
            runtime = request.runtime_name,
            version = request.runtime_version,
            hold_at_most_ms = self.timeout.as_millis(),
            "sandboxes are held until their hooks stand"
        );
        let events = nri::EVENTS;
        nri::ConfigureResponse { events }.encode_to_vec()
    }

    fn synchronize(&mut self, request: nri::SynchronizeRequest) -> Vec<u8> {
        let pods = request.pods.into_iter();
        let pods = pods.filter_map(nri::PodSandbox::sandbox);
        self.listed.extend(pods.map(|sandbox| Sandbox {
            running_before: true,
            ..sandbox
        }));
        if !request.more {
            self.context.board.replace(std::mem::take(&mut self.listed));
        }
        let more = request.more;
        nri::SynchronizeResponse { more }.encode_to_vec()
    }

    fn event(
        &mut self,
        stream: u32,
        request: &Request,
        event: i32,
        pod: Option<nri::PodSandbox>,
    ) -> Option<Vec<u8>> {
        // What names no pod can't be held.
        let sandbox = pod.and_then(nri::PodSandbox::sandbox);
        match (event, sandbox) {
            (nri::RUN_POD_SANDBOX, Some(sandbox)) => {
                let left = Duration::from_nanos(u64::try_from(request.timeout_nano).unwrap_or(0));
                let timeout = bound(self.timeout, left);
                let (context, answers) = (Arc::clone(&self.context), self.answers.clone());
                self.holds.spawn(async move {
                    let held = hold(&context, sandbox, timeout).await;
                    respond(&answers, stream, held.map(|()| Vec::new()));
                });
                None
            }
            (nri::STOP_POD_SANDBOX | nri::REMOVE_POD_SANDBOX, Some(sandbox)) => {
                self.context.board.remove(&sandbox.id);
                Some(Vec::new())
            }
            _ => Some(Vec::new()),
        }
    }
}

/// The shorter one, with room for the answer before the runtime gives up: it then closes the
/// connection and starts the sandbox. Zero is no bound.
fn bound(ours: Duration, runtime: Duration) -> Duration {
    if runtime.is_zero() {
        ours
    } else {
        ours.min(runtime * 3 / 4)
    }
}

/// Returns when the sandbox may start; an error if it may not.
async fn hold(context: &Context, sandbox: Sandbox, timeout: Duration) -> Result<(), Status> {
    let start = Instant::now();
    let Sandbox {
        id,
        uid,
        namespace,
        name,
        is_static,
        ..
    } = sandbox.clone();
    let version = context.board.add(sandbox);
    let held = context.board.hold(&uid, version, start + timeout).await;
    let took = start.elapsed();
    let held_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let (reason, audited) = match held {
        Ok(()) => {
            context.metrics.held("released", took);
            tracing::info!(event = "sandbox_released", namespace, name, uid, held_ms);
            return Ok(());
        }
        Err(Some(Standing::Waits { reason, audited })) => (reason, audited),
        Err(_) => ("the agent has not got to it".to_owned(), false),
    };
    let deny = context.on_timeout == OnTimeout::Deny && !audited && !is_static;
    let outcome = if deny { "denied" } else { "allowed" };
    context.metrics.held(outcome, took);
    tracing::warn!(
        event = "sandbox_timeout",
        outcome,
        namespace,
        name,
        uid,
        held_ms,
        reason
    );
    if !deny {
        return Ok(());
    }
    // The runtime takes it down again; the next one is another.
    context.board.remove(&id);
    let reason: String = reason.chars().take(LONGEST_REASON).collect();
    Err(Status {
        code: nri::UNAVAILABLE,
        message: format!(
            "sallyport: the hooks of pod {namespace}/{name} don't stand after {held_ms} ms \
             ({reason}); it is tried again. With --nri-on-timeout allow it starts behind the \
             closed gate"
        ),
    })
}

fn respond(answers: &mpsc::UnboundedSender<Vec<u8>>, stream: u32, answer: Result<Vec<u8>, Status>) {
    let response = match answer {
        Ok(payload) => Response {
            status: None,
            payload,
        },
        Err(status) => Response {
            status: Some(status),
            payload: Vec::new(),
        },
    };
    let data = response.encode_to_vec();
    debug_assert!(data.len() <= LONGEST_SENT, "what it tells is bounded");
    let frame = frame::encode(&Message {
        connection: frame::PLUGIN,
        stream,
        kind: frame::RESPONSE,
        data,
    });
    // Nobody listens when the connection is being given up.
    let _ = answers.send(frame);
}

fn invalid(error: &prost::DecodeError) -> Status {
    Status {
        code: nri::INVALID_ARGUMENT,
        message: format!("can't be read: {error}"),
    }
}

fn unimplemented(request: &Request) -> Status {
    let method: String = request.method.chars().take(100).collect();
    Status {
        code: nri::UNIMPLEMENTED,
        message: format!("there is no method {method}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_comes_before_the_runtime_gives_up() {
        let seconds = Duration::from_secs;
        assert_eq!(bound(seconds(1), Duration::ZERO), seconds(1));
        assert_eq!(bound(seconds(1), seconds(2)), seconds(1));
        assert_eq!(bound(seconds(5), seconds(2)), Duration::from_millis(1500));
    }
}
