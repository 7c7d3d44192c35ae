//! The protocol against a model of Envoy.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::google::rpc;
use proptest::prelude::*;

use super::session::{Event, ProtocolError, Session};
use crate::gateway::envoy::{CLUSTERS, LISTENERS, ROUTES, Resource, Resources, SECRETS};

pub(super) fn resources(wanted: &[(&'static str, &str, &str)]) -> Resources {
    let mut resources = Resources::default();
    for (type_url, name, version) in wanted {
        let resource = Resource {
            version: (*version).to_owned(),
            body: Any {
                type_url: (*type_url).to_owned(),
                value: version.as_bytes().to_vec(),
            },
        };
        resources
            .by_type
            .entry(type_url)
            .or_default()
            .insert((*name).to_owned(), resource);
    }
    resources
}

pub(super) fn subscribe(type_url: &str, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

pub(super) fn answer(
    response: &DeltaDiscoveryResponse,
    error: Option<&str>,
) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        error_detail: error.map(|message| rpc::Status {
            message: message.to_owned(),
            ..rpc::Status::default()
        }),
        ..DeltaDiscoveryRequest::default()
    }
}

pub(super) fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response
        .resources
        .iter()
        .map(|it| it.name.as_str())
        .collect()
}

#[test]
fn everything_once_then_only_changes() {
    let mut session = Session::default();
    let first = resources(&[(CLUSTERS, "a", "1"), (CLUSTERS, "b", "1")]);
    assert_eq!(session.respond(&first, "r1"), None);
    session.request(&subscribe(CLUSTERS, &[])).unwrap();
    let response = session.respond(&first, "r1").unwrap();
    assert_eq!(names(&response), ["a", "b"]);
    assert_eq!(session.respond(&first, "r1"), None, "one is under way");
    let second = resources(&[(CLUSTERS, "a", "2"), (CLUSTERS, "b", "1")]);
    assert_eq!(session.respond(&second, "r2"), None, "still");
    let event = session.request(&answer(&response, None)).unwrap();
    assert_eq!(
        event,
        Event::Acked {
            type_url: CLUSTERS,
            settled: true
        }
    );
    let response = session.respond(&second, "r2").unwrap();
    assert_eq!(
        (names(&response), response.system_version_info.as_str()),
        (vec!["a"], "r2")
    );
    session.request(&answer(&response, None)).unwrap();
    let third = resources(&[(CLUSTERS, "b", "1")]);
    let response = session.respond(&third, "r3").unwrap();
    assert_eq!(
        (names(&response), response.removed_resources.clone()),
        (vec![], vec!["a".to_owned()])
    );
}

#[test]
fn a_refusal_is_told_and_not_repeated() {
    let mut session = Session::default();
    session.request(&subscribe(LISTENERS, &[])).unwrap();
    let bad = resources(&[(LISTENERS, "l", "bad")]);
    let response = session.respond(&bad, "r").unwrap();
    let event = session
        .request(&answer(&response, Some("no such filter")))
        .unwrap();
    let message = "no such filter".to_owned();
    assert_eq!(
        event,
        Event::Nacked {
            type_url: LISTENERS,
            message
        }
    );
    assert_eq!(session.respond(&bad, "r"), None);
    let more = resources(&[(LISTENERS, "l", "bad"), (LISTENERS, "m", "1")]);
    let response = session.respond(&more, "r2").unwrap();
    assert_eq!(names(&response), ["m"]);
    let event = session.request(&answer(&response, None)).unwrap();
    assert_eq!(
        event,
        Event::Acked {
            type_url: LISTENERS,
            settled: false
        }
    );
    let good = resources(&[(LISTENERS, "l", "good"), (LISTENERS, "m", "1")]);
    let response = session.respond(&good, "r3").unwrap();
    assert_eq!(names(&response), ["l"]);
    let event = session.request(&answer(&response, None)).unwrap();
    assert_eq!(
        event,
        Event::Acked {
            type_url: LISTENERS,
            settled: true
        }
    );
}

#[test]
fn names_that_do_not_exist_are_answered() {
    let mut session = Session::default();
    session.request(&subscribe(ROUTES, &["x"])).unwrap();
    let none = Resources::default();
    let response = session.respond(&none, "r").unwrap();
    assert_eq!(response.removed_resources, ["x"]);
    session.request(&answer(&response, None)).unwrap();
    assert_eq!(session.respond(&none, "r"), None);
    let some = resources(&[(ROUTES, "x", "1"), (ROUTES, "y", "1")]);
    assert_eq!(names(&session.respond(&some, "r").unwrap()), ["x"]);
}

#[test]
fn who_comes_back_gets_what_it_lacks() {
    let mut session = Session::default();
    let mut request = subscribe(CLUSTERS, &["*"]);
    request.initial_resource_versions = HashMap::from([
        ("same".to_owned(), "1".to_owned()),
        ("old".to_owned(), "1".to_owned()),
        ("gone".to_owned(), "1".to_owned()),
    ]);
    session.request(&request).unwrap();
    let now = resources(&[(CLUSTERS, "same", "1"), (CLUSTERS, "old", "2")]);
    let response = session.respond(&now, "r").unwrap();
    assert_eq!(names(&response), ["old"]);
    assert_eq!(response.removed_resources, ["gone"]);
}

#[test]
fn clusters_come_first_and_go_last() {
    let mut session = Session::default();
    session.request(&subscribe(CLUSTERS, &[])).unwrap();
    session.request(&subscribe(LISTENERS, &[])).unwrap();
    let before = resources(&[(CLUSTERS, "old", "1"), (LISTENERS, "l", "old")]);
    while let Some(response) = session.respond(&before, "r") {
        session.request(&answer(&response, None)).unwrap();
    }
    let after = resources(&[(CLUSTERS, "new", "1"), (LISTENERS, "l", "new")]);
    let mut seen = Vec::new();
    while let Some(response) = session.respond(&after, "r") {
        seen.push((
            names(&response).concat(),
            response.removed_resources.concat(),
        ));
        session.request(&answer(&response, None)).unwrap();
    }
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(seen, [pair("new", ""), pair("l", ""), pair("", "old")]);
}

#[test]
fn what_is_not_served_is_left_alone() {
    let mut session = Session::default();
    let event = session
        .request(&subscribe("type.googleapis.com/x.Y", &["a"]))
        .unwrap();
    assert_eq!(event, Event::Foreign);
    assert_eq!(session.respond(&Resources::default(), "r"), None);
    let many: Vec<String> = (0..5000).map(|number| number.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(session.request(&subscribe(SECRETS, &many)).is_err());
}

/// An Envoy: it has what it accepted.
#[derive(Debug, Default)]
struct Envoy {
    has: BTreeMap<String, BTreeMap<String, String>>,
    asked: BTreeSet<&'static str>,
    unanswered: Vec<DeltaDiscoveryResponse>,
}

#[derive(Clone, Debug)]
enum Step {
    /// The server's state becomes this: (type, name, version).
    State(Vec<(usize, u8, u8)>),
    /// Envoy subscribes to a type.
    Ask(usize),
    /// The server sends what is due.
    Send,
    /// Envoy answers the oldest response.
    Answer,
    /// The stream breaks, and a new one begins with what Envoy has.
    Break,
}

const KINDS: [&str; 3] = [CLUSTERS, LISTENERS, SECRETS];

fn step() -> impl Strategy<Value = Step> {
    let state = prop::collection::vec((0..3usize, 0..3u8, 0..3u8), 0..6);
    prop_oneof![
        3 => state.prop_map(Step::State),
        2 => (0..3usize).prop_map(Step::Ask),
        4 => Just(Step::Send),
        4 => Just(Step::Answer),
        1 => Just(Step::Break),
    ]
}

impl Envoy {
    fn request(&self, type_url: &'static str) -> DeltaDiscoveryRequest {
        let mut request = subscribe(type_url, &["*"]);
        let has = self.has.get(type_url).cloned().unwrap_or_default();
        request.initial_resource_versions = has.into_iter().collect();
        request
    }

    fn take(&mut self, response: &DeltaDiscoveryResponse) {
        let has = self.has.entry(response.type_url.clone()).or_default();
        for resource in &response.resources {
            let before = has.insert(resource.name.clone(), resource.version.clone());
            assert_ne!(before.as_ref(), Some(&resource.version), "sent what it has");
        }
        for name in &response.removed_resources {
            assert!(has.remove(name).is_some(), "removed what it has not");
        }
    }
}

proptest! {
    #[test]
    fn whatever_happens_envoy_ends_with_the_last_state(
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let mut session = Session::default();
        let mut envoy = Envoy::default();
        let mut state = Resources::default();
        let settle = [Step::Ask(0), Step::Ask(1), Step::Ask(2)];
        let drain = std::iter::repeat_n([Step::Send, Step::Answer], 40).flatten();
        for step in steps.into_iter().chain(settle).chain(drain) {
            match step {
                Step::State(wanted) => {
                    let wanted: Vec<(&'static str, String, String)> = wanted
                        .into_iter()
                        .map(|(kind, name, version)| {
                            (KINDS[kind], name.to_string(), version.to_string())
                        })
                        .collect();
                    let wanted: Vec<(&'static str, &str, &str)> = wanted
                        .iter()
                        .map(|(kind, name, version)| (*kind, name.as_str(), version.as_str()))
                        .collect();
                    state = resources(&wanted);
                }
                Step::Ask(kind) => {
                    if envoy.asked.insert(KINDS[kind]) {
                        session.request(&envoy.request(KINDS[kind])).unwrap();
                    }
                }
                Step::Send => {
                    while let Some(response) = session.respond(&state, "r") {
                        envoy.unanswered.push(response);
                    }
                    prop_assert!(envoy.unanswered.len() <= KINDS.len());
                }
                Step::Answer => {
                    if !envoy.unanswered.is_empty() {
                        let response = envoy.unanswered.remove(0);
                        envoy.take(&response);
                        session.request(&answer(&response, None)).unwrap();
                    }
                }
                Step::Break => {
                    // What was under way is lost.
                    envoy.unanswered.clear();
                    session = Session::default();
                    for kind in envoy.asked.clone() {
                        session.request(&envoy.request(kind)).unwrap();
                    }
                }
            }
        }
        for kind in KINDS {
            let wanted: BTreeMap<String, String> = state
                .of(kind)
                .map(|(name, resource)| (name.clone(), resource.version.clone()))
                .collect();
            prop_assert_eq!(envoy.has.get(kind).cloned().unwrap_or_default(), wanted);
        }
    }
}

#[test]
fn a_stream_keeps_so_much_and_no_more() {
    let asks = |names: Vec<String>| DeltaDiscoveryRequest {
        type_url: CLUSTERS.to_owned(),
        resource_names_subscribe: names,
        ..DeltaDiscoveryRequest::default()
    };
    let mut session = Session::default();
    let first = asks((0..4096).map(|at| at.to_string()).collect());
    assert_eq!(session.request(&first), Ok(Event::Subscribed));
    assert_eq!(
        session.request(&first),
        Ok(Event::Subscribed),
        "they are the same"
    );
    let more = session.request(&asks(vec!["4096".to_owned()]));
    assert_eq!(more, Err(ProtocolError::TooManyNames));

    let mut session = Session::default();
    let long = |at: usize| format!("{at}-{}", "x".repeat(200_000));
    for at in 0..10 {
        assert!(session.request(&asks(vec![long(at)])).is_ok());
    }
    let more = session.request(&asks(vec![long(10)]));
    assert_eq!(more, Err(ProtocolError::TooManyBytes));
    let mut session = Session::default();
    let mut has = asks(Vec::new());
    has.initial_resource_versions = (0..11).map(|at| (at.to_string(), long(at))).collect();
    assert_eq!(session.request(&has), Err(ProtocolError::TooManyBytes));
}
