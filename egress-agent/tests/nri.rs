//! The agent as an NRI plugin, against a double of the runtime's side. What a pass would say of pods
//! is said by the tests.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use egress_agent::nri::{Board, OnTimeout, Settings, Standing, follow};
use egress_agent::telemetry::Metrics;
use xtask::nri::{Answer, Calls, Runtime, Sandbox, Settings as RuntimeSettings, Subscribed};

const PATIENCE: Duration = Duration::from_secs(10);
/// gRPC's codes.
const INVALID_ARGUMENT: u64 = 3;
const UNIMPLEMENTED: u64 = 12;
const UNAVAILABLE: u64 = 14;

/// An agent's plugin, without the agent.
struct Plugin {
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    socket: PathBuf,
    _tokio: tokio::runtime::Runtime,
    _directory: tempfile::TempDir,
}

impl Plugin {
    fn new(timeout_ms: u64, on_timeout: OnTimeout) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("nri.sock");
        let board = Arc::new(Board::default());
        let metrics = Metrics::new(None);
        let settings = Settings {
            socket: socket.clone(),
            expected: true,
            timeout: Duration::from_millis(timeout_ms),
            on_timeout,
        };
        let tokio = tokio::runtime::Runtime::new().expect("a runtime");
        tokio.spawn(follow(settings, board.clone(), metrics.nri().clone()));
        Self {
            board,
            metrics,
            socket,
            _tokio: tokio,
            _directory: directory,
        }
    }

    /// One that has passed once.
    fn ready(timeout_ms: u64, on_timeout: OnTimeout) -> Self {
        let plugin = Self::new(timeout_ms, on_timeout);
        plugin.board.publish(0, BTreeMap::new());
        plugin
    }

    /// What a pass that knows all sandboxes says of this pod.
    fn say(&self, uid: &str, standing: Standing) {
        let version = self.board.sandboxes().version;
        let pods = BTreeMap::from([(uid.to_owned(), standing)]);
        self.board.publish(version, pods);
    }

    fn measures(&self, line: &str) -> bool {
        let text = self.metrics.render().expect("text");
        text.lines().any(|it| it == line)
    }

    fn wait_for_pod(&self, uid: &str) {
        until("the sandbox", || {
            self.board.sandboxes().by_uid.contains_key(uid)
        });
    }
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waiting for {what}");
        sleep(Duration::from_millis(2));
    }
}

fn start(socket: &Path, settings: RuntimeSettings) -> Runtime {
    let runtime = Runtime::start(socket, settings).expect("a socket");
    runtime.plugin(PATIENCE).expect("the agent registers");
    runtime
}

fn sandbox(name: &str) -> Sandbox {
    Sandbox {
        id: format!("sandbox-{name}"),
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        namespace: "shop".to_owned(),
        labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
        netns: Some("/run/netns/none".into()),
        ips: vec!["10.0.0.7".to_owned()],
        ..Sandbox::default()
    }
}

fn waits(audited: bool) -> Standing {
    Standing::Waits {
        reason: "a macvlan leads out of it".to_owned(),
        audited,
    }
}

#[test]
fn it_registers_after_the_first_pass_and_learns_of_pods_that_run() {
    let plugin = Plugin::new(1000, OnTimeout::Deny);
    let settings = RuntimeSettings {
        running: vec![sandbox("one"), sandbox("two"), sandbox("three")],
        ..RuntimeSettings::default()
    };
    let runtime = Runtime::start(&plugin.socket, settings).expect("a socket");
    let early = runtime.plugin(Duration::from_millis(300));
    assert_eq!(early, None, "an agent that knows nothing holds nobody");
    plugin.board.publish(0, BTreeMap::new());
    let subscribed = runtime.plugin(PATIENCE).expect("it registers");
    let expected = Subscribed {
        name: "sallyport".to_owned(),
        index: "99".to_owned(),
        events: 0b111,
    };
    assert_eq!(subscribed, expected);
    plugin.wait_for_pod("uid-three");
    let sandboxes = plugin.board.sandboxes();
    assert_eq!(sandboxes.by_uid.len(), 3);
    let one = &sandboxes.by_uid["uid-one"];
    assert_eq!((one.namespace.as_str(), one.name.as_str()), ("shop", "one"));
    assert_eq!(one.labels["app"], "one");
    assert_eq!(one.ips, ["10.0.0.7".parse::<std::net::IpAddr>().unwrap()]);
    assert!(one.running_before && !one.host_network);
    assert_eq!(one.netns.as_deref(), Some(Path::new("/run/netns/none")));
    assert!(plugin.measures("sallyport_nri_connected 1"));
    assert_eq!(runtime.faults(), Vec::<String>::new());
}

#[test]
fn a_sandbox_is_held_until_its_hooks_stand_however_it_is_told() {
    for calls in [Calls::Own, Calls::StateChange] {
        let plugin = Plugin::ready(1500, OnTimeout::Deny);
        let settings = RuntimeSettings {
            calls,
            ..RuntimeSettings::default()
        };
        let runtime = start(&plugin.socket, settings);
        let web = sandbox("web");
        let answer = thread::scope(|scope| {
            let held = scope.spawn(|| runtime.run_pod_sandbox(&web));
            plugin.wait_for_pod("uid-web");
            plugin.say("uid-web", waits(false));
            sleep(Duration::from_millis(300));
            assert!(!held.is_finished(), "its hooks don't stand");
            plugin.say("uid-web", Standing::Ready);
            held.join().expect("an answer")
        });
        let Answer::Done(took) = answer else {
            panic!("{calls:?}: {answer:?}");
        };
        assert!(took >= Duration::from_millis(300), "{took:?}");
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert!(plugin.measures("sallyport_nri_sandboxes_total{outcome=\"released\"} 1"));
        assert!(plugin.measures("sallyport_nri_hold_duration_seconds_count 1"));

        let told = runtime.stop_pod_sandbox(&web);
        assert!(matches!(told, Answer::Done(_)), "{told:?}");
        assert!(plugin.board.sandboxes().by_uid.is_empty());
        assert_eq!(runtime.faults(), Vec::<String>::new());
    }
}

#[test]
fn in_time_it_says_no_or_yes_as_chosen() {
    let from_file = || {
        let mut it = sandbox("web");
        let source = "kubernetes.io/config.source".to_owned();
        it.annotations.insert(source, "file".to_owned());
        it
    };
    let cases = [
        (OnTimeout::Deny, sandbox("web"), Some(false), false),
        (OnTimeout::Deny, sandbox("web"), None, false),
        // Nothing of it would be dropped.
        (OnTimeout::Deny, sandbox("web"), Some(true), true),
        // The API server itself may be such a pod.
        (OnTimeout::Deny, from_file(), None, true),
        (OnTimeout::Allow, sandbox("web"), Some(false), true),
        (OnTimeout::Allow, sandbox("web"), None, true),
    ];
    for (on_timeout, web, said, allowed) in cases {
        let plugin = Plugin::ready(200, on_timeout);
        let runtime = start(&plugin.socket, RuntimeSettings::default());
        let answer = thread::scope(|scope| {
            let held = scope.spawn(|| runtime.run_pod_sandbox(&web));
            plugin.wait_for_pod("uid-web");
            if let Some(audited) = said {
                plugin.say("uid-web", waits(audited));
            }
            held.join().expect("an answer")
        });
        match answer {
            Answer::Done(took) => {
                assert!(allowed, "{on_timeout:?} {said:?}");
                assert!(took >= Duration::from_millis(200), "{took:?}");
                assert!(plugin.measures("sallyport_nri_sandboxes_total{outcome=\"allowed\"} 1"));
            }
            Answer::Refused(code, message) => {
                assert!(!allowed, "{on_timeout:?} {said:?}: {message}");
                assert_eq!(code, UNAVAILABLE);
                assert!(message.contains("shop/web"), "{message}");
                let why = message.contains("a macvlan leads out of it");
                assert_eq!(why, said.is_some(), "{message}");
                assert!(plugin.measures("sallyport_nri_sandboxes_total{outcome=\"denied\"} 1"));
                // The runtime takes it down; the next try is another sandbox.
                assert!(plugin.board.sandboxes().by_uid.is_empty());
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn it_answers_before_an_impatient_runtime_gives_it_up() {
    let plugin = Plugin::ready(60_000, OnTimeout::Deny);
    let settings = RuntimeSettings {
        request_timeout: Duration::from_millis(800),
        ..RuntimeSettings::default()
    };
    let runtime = start(&plugin.socket, settings);
    let answer = runtime.run_pod_sandbox(&sandbox("web"));
    assert!(matches!(answer, Answer::Refused(..)), "{answer:?}");
    assert!(runtime.has_plugin());
}

#[test]
fn when_the_runtime_restarts_it_is_back_with_what_runs_then() {
    let plugin = Plugin::ready(60_000, OnTimeout::Deny);
    let settings = |running: &[&str]| RuntimeSettings {
        running: running.iter().map(|name| sandbox(name)).collect(),
        ..RuntimeSettings::default()
    };
    let runtime = start(&plugin.socket, settings(&["one", "two"]));
    plugin.wait_for_pod("uid-two");
    // It ends while it waits for an answer.
    thread::scope(|scope| {
        let held = scope.spawn(|| runtime.run_pod_sandbox(&sandbox("web")));
        plugin.wait_for_pod("uid-web");
        runtime.close_plugin();
        let answer = held.join().expect("an answer");
        assert_eq!(answer, Answer::Lost);
    });
    drop(runtime);
    until("the loss", || plugin.measures("sallyport_nri_connected 0"));
    let runtime = start(&plugin.socket, settings(&["two"]));
    until("the new list", || {
        plugin.board.sandboxes().by_uid.len() == 1
    });
    let answer = thread::scope(|scope| {
        let held = scope.spawn(|| runtime.run_pod_sandbox(&sandbox("web")));
        plugin.wait_for_pod("uid-web");
        plugin.say("uid-web", Standing::Ready);
        held.join().expect("an answer")
    });
    assert!(matches!(answer, Answer::Done(_)), "{answer:?}");
}

#[test]
fn what_it_does_not_know_it_says_so_and_goes_on() {
    let plugin = Plugin::ready(1000, OnTimeout::Deny);
    let runtime = start(&plugin.socket, RuntimeSettings::default());
    for (method, payload, code) in [
        ("CreateContainer", &b""[..], UNIMPLEMENTED),
        ("", b"", UNIMPLEMENTED),
        ("RunPodSandbox", b"\xff\xff\xff", INVALID_ARGUMENT),
        ("Synchronize", b"\x0a\x7f", INVALID_ARGUMENT),
        ("StateChange", b"\x08", INVALID_ARGUMENT),
    ] {
        let answer = runtime.call(method, payload);
        assert!(
            matches!(answer, Answer::Refused(got, _) if got == code),
            "{method}: {answer:?}"
        );
    }
    // Events of containers, and a sandbox without a name.
    for (method, payload) in [("StateChange", &b"\x08\x06"[..]), ("RunPodSandbox", b"")] {
        let answer = runtime.call(method, payload);
        assert!(matches!(answer, Answer::Done(_)), "{method}: {answer:?}");
    }
    assert!(runtime.has_plugin());
    assert_eq!(runtime.faults(), Vec::<String>::new());
}

#[test]
fn who_speaks_otherwise_or_not_at_all_is_left_and_tried_again() {
    let plugin = Plugin::ready(1000, OnTimeout::Deny);
    let listener = UnixListener::bind(&plugin.socket).expect("a socket");
    let garbage: [&[u8]; 4] = [
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
        &[0xff; 64],
        // A registration that is refused.
        &[
            0, 0, 0, 2, 0, 0, 0, 18, 0, 0, 0, 8, 0, 0, 0, 1, 2, 0, //
            0x0a, 6, 8, 7, 0x12, 2, b'n', b'o',
        ],
        // Half a frame, and the end.
        &[0, 0, 0, 1, 0, 0, 0, 99, 1],
    ];
    for bytes in garbage {
        let (mut stream, _) = listener.accept().expect("it comes again");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut registration = [0; 8];
        stream.read_exact(&mut registration).expect("a frame");
        stream.write_all(bytes).expect("it listens");
        if bytes.len() == 9 {
            continue;
        }
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("it hangs up");
    }
    // A byte at a time, with all the time in the world, is no fault; silence is.
    let (mut silent, _) = listener.accept().expect("it comes again");
    silent
        .set_read_timeout(Some(PATIENCE * 2))
        .expect("a timeout");
    let start_of_silence = Instant::now();
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).expect("it hangs up");
    assert!(start_of_silence.elapsed() > Duration::from_secs(8));
    drop(listener);
    let runtime = start(&plugin.socket, RuntimeSettings::default());
    assert!(runtime.has_plugin());
}
