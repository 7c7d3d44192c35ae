use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

use super::*;
use crate::telemetry::flow::FlowEvent;

fn event(number: u32) -> FlowEvent {
    FlowEvent {
        length: number,
        // So that a thousand of them don't fit into the socket's buffers.
        reason: "x".repeat(1000),
        ..FlowEvent::default()
    }
}

fn number(line: &str) -> u32 {
    let event: FlowEvent = serde_json::from_str(line).expect("an event");
    event.length
}

struct Agent {
    dir: tempfile::TempDir,
    hub: Arc<Hub>,
}

impl Agent {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let hub = Hub::new();
        let server = Server::bind(dir.path()).expect("bind");
        tokio::spawn(server.run(hub.clone()));
        Self { dir, hub }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.dir.path().join(FILE))
            .await
            .expect("connect")
    }
}

#[tokio::test]
async fn recent_first_then_live() {
    let agent = Agent::start();
    agent.hub.publish(&event(1));
    agent.hub.publish(&event(2));
    let mut lines = BufReader::new(agent.connect().await).lines();
    for expected in 1..=2 {
        let line = lines.next_line().await.expect("read").expect("a line");
        assert_eq!(number(&line), expected);
    }
    agent.hub.publish(&event(3));
    let line = lines.next_line().await.expect("read").expect("a line");
    assert_eq!(number(&line), 3);
}

#[tokio::test]
async fn a_slow_follower_is_told_and_dropped_and_others_miss_nothing() {
    let agent = Agent::start();
    let mut slow = agent.connect().await;
    let mut quick = BufReader::new(agent.connect().await).lines();
    // Both are there once each has had an event.
    agent.hub.publish(&event(0));
    let mut first = [0; 1];
    slow.read_exact(&mut first).await.expect("the first event");
    assert_eq!(
        number(&quick.next_line().await.expect("read").expect("line")),
        0
    );

    for expected in 1..5000 {
        agent.hub.publish(&event(expected));
        let line = quick.next_line().await.expect("read").expect("a line");
        assert_eq!(number(&line), expected);
    }

    let mut rest = String::new();
    slow.read_to_string(&mut rest)
        .await
        .expect("until it is dropped");
    let last = rest.lines().last().expect("lines");
    let notice: Notice = serde_json::from_str(last).expect("a notice at the end");
    assert!(notice.notice.starts_with("too slow"), "{notice:?}");
    assert!(rest.lines().count() < 3000, "some were lost");
}

#[tokio::test]
async fn for_root_only_and_one_at_a_time() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::bind(dir.path()).expect("bind");
    let path = dir.path().join(FILE);
    let mode = std::fs::metadata(&path)
        .expect("there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(is_answered(dir.path()));
    assert!(matches!(
        Server::bind(dir.path()),
        Err(SocketError::InUse { .. })
    ));
    drop(server);
    assert!(!path.exists() && !is_answered(dir.path()));
}

#[test]
fn what_a_killed_agent_left_is_replaced() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join(FILE);
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
    assert!(path.exists());
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let _guard = runtime.enter();
    Server::bind(dir.path()).expect("bind over it");
}
