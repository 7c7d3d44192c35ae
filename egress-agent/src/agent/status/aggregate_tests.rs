use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::super::pace::Pace;
use super::super::queue::Queue;
use super::*;
use crate::api::status::{Envoy, LockdownStatus, RejectedConfiguration, UncoveredPod};

fn id(kind: &'static str, name: &str) -> ObjectId {
    let namespace = if kind == "EgressLockdown" { "" } else { "n" };
    ObjectId {
        kind,
        namespace: namespace.into(),
        name: name.into(),
    }
}

fn declared(generation: i64) -> Declared {
    Declared {
        api_version: "sallyport.dev/v1alpha1".into(),
        uid: "u".into(),
        generation,
        ..Declared::default()
    }
}

fn finding(effect: &str) -> Finding {
    Finding {
        field: "spec.x".into(),
        reason: "is wrong".into(),
        effect: effect.into(),
    }
}

/// A cluster whose agents are played.
#[derive(Default)]
struct World {
    history: History,
    declared: BTreeMap<ObjectId, Declared>,
    findings: Findings,
    present: BTreeMap<String, String>,
    nodes: Nodes,
    without: BTreeSet<String>,
}

impl World {
    /// What a node tells that holds all there is now.
    fn report(&mut self) -> EgressNodeSpec {
        EgressNodeSpec {
            realized: self.history.learn(&self.declared),
            ..EgressNodeSpec::default()
        }
    }

    fn node(&mut self, name: &str, report: EgressNodeSpec) {
        self.present.insert(name.into(), "uid".into());
        let (now, age) = (Instant::now(), Duration::ZERO);
        self.nodes
            .apply(name.into(), report, &self.history, now, age);
    }

    fn status(&mut self, id: &ObjectId) -> Status {
        self.history.learn(&self.declared);
        self.nodes.learn(&self.history);
        let all = statuses(
            &self.declared,
            &self.findings,
            &self.present,
            &self.nodes,
            &self.without,
            &self.history,
        );
        all[id].clone()
    }

    fn condition(&mut self, id: &ObjectId, kind: &str) -> Holds {
        let conditions = self.status(id).conditions;
        let found = conditions.into_iter().find(|holds| holds.kind == kind);
        found.expect("the condition")
    }
}

#[test]
fn a_change_is_realized_when_every_node_holds_it() {
    let mut world = World::default();
    let (a, b) = (id("AccessPolicy", "a"), id("AccessPolicy", "b"));
    world.declared.insert(a.clone(), declared(1));
    world.declared.insert(b.clone(), declared(1));
    assert_eq!(world.condition(&a, REALIZED).status, "Unknown");
    let first = world.report();
    world.node("node-1", first.clone());
    world.node("node-2", first);
    assert_eq!(world.condition(&a, REALIZED).status, "True");
    world.declared.insert(a.clone(), declared(2));
    let status = world.status(&a);
    assert_eq!((status.nodes.realized, status.nodes.total), (0, 2));
    assert_eq!(world.status(&b).nodes.realized, 2, "nothing changed there");
    let second = world.report();
    world.node("node-2", second);
    assert_eq!(world.status(&a).nodes.behind, ["node-1"]);
    let told = world.condition(&a, REALIZED);
    assert_eq!((told.status, told.reason), ("False", "InProgress"));
    assert!(told.message.contains("node-1"), "{}", told.message);
    // A node that is gone holds up nobody.
    world.present.remove("node-1");
    assert_eq!(world.condition(&a, REALIZED).status, "True");
}

#[test]
fn nodes_without_an_agent_are_counted_and_named_and_nothing_is_true_of_all_nodes() {
    let mut world = World::default();
    let a = id("EgressLockdown", "a");
    world.declared.insert(a.clone(), declared(1));
    let report = world.report();
    world.node("node-1", report.clone());
    world.node("stale", report);
    world.without = ["u1", "u2", "u3", "u4", "u5", "u6", "stale"]
        .map(String::from)
        .into();
    for kind in [REALIZED, COVERED] {
        let told = world.condition(&a, kind);
        assert_eq!((told.status, told.reason), ("False", "NodesWithoutAgent"));
        let names = "7 nodes no agent reports, such as stale, u1, u2, u3, u4:";
        assert!(told.message.contains(names), "{}", told.message);
    }
    let status = world.status(&a);
    assert_eq!((status.nodes.realized, status.nodes.total), (1, 1));
    assert_eq!(status.nodes.without_agent, 7);
    let body = status.body(&json!({}), "2026-01-01T00:00:00Z");
    assert_eq!(body["nodes"]["withoutAgent"], 7);
    assert!(body["nodes"]["since"].is_null());
    world.without.clear();
    assert_eq!(world.condition(&a, REALIZED).reason, "OnAllNodes");
    let body = world.status(&a).body(&json!({}), "2026-01-01T00:00:00Z");
    assert!(body["nodes"]["withoutAgent"].is_null());
}

#[test]
fn a_node_that_was_faster_is_counted_when_its_digest_is_known() {
    let mut world = World::default();
    let a = id("ExternalService", "a");
    let mut ahead = History::default();
    world.declared.insert(a.clone(), declared(1));
    let report = EgressNodeSpec {
        realized: ahead.learn(&world.declared),
        ..EgressNodeSpec::default()
    };
    world.node("node-1", report);
    assert_eq!(world.status(&a).nodes.realized, 1);
}

#[test]
fn a_refused_object_is_told_and_never_realized() {
    let mut world = World::default();
    let a = id("VirtualGateway", "a");
    world.declared.insert(a.clone(), declared(3));
    let report = world.report();
    world.node("node-1", report);
    world
        .findings
        .insert(a.clone(), vec![finding(REFUSED), finding(IGNORED)]);
    let told = world.condition(&a, ACCEPTED);
    assert_eq!((told.status, told.reason), ("False", "Refused"));
    assert!(told.message.starts_with("spec.x: is wrong"));
    assert_eq!(world.condition(&a, REALIZED).reason, "Refused");
    assert_eq!(world.condition(&a, SUPPORTED).status, "False");
    assert_eq!(world.status(&a).unsupported.len(), 2);
    world.findings.insert(a.clone(), vec![finding(IGNORED)]);
    assert_eq!(world.condition(&a, ACCEPTED).status, "True");
    assert_eq!(world.condition(&a, SUPPORTED).reason, "Ignored");
    assert_eq!(world.condition(&a, REALIZED).status, "True");
}

#[test]
fn a_lockdown_adds_up_its_pods_and_names_who_is_not_held() {
    let mut world = World::default();
    let a = id("EgressLockdown", "a");
    world.declared.insert(a.clone(), declared(1));
    assert_eq!(world.condition(&a, COVERED).reason, "NoPods");
    let counts = |enforced, uncovered| PodCounts {
        enforced,
        audited: 0,
        uncovered,
    };
    let mut report = world.report();
    report.lockdowns.insert("a".into(), counts(3, 0));
    world.node("node-1", report.clone());
    assert_eq!(world.condition(&a, COVERED).status, "True");
    report.lockdowns.insert("a".into(), counts(1, 1));
    report.uncovered.push(UncoveredPod {
        namespace: "bookinfo".into(),
        name: "web".into(),
        reason: "no device".into(),
    });
    world.node("node-2", report);
    let told = world.condition(&a, COVERED);
    assert_eq!(told.status, "False");
    assert!(told.message.contains("bookinfo/web on node-2 (no device)"));
    assert_eq!(world.status(&a).pods, Some(counts(4, 1)));
}

#[test]
fn a_gateway_is_programmed_when_all_its_envoys_are() {
    let mut world = World::default();
    let a = id("VirtualGateway", "a");
    let mut gateway = declared(1);
    gateway.envoys = vec![Envoy {
        name: "gw-1".into(),
        programmed: true,
        ..Envoy::default()
    }];
    world.declared.insert(a.clone(), gateway.clone());
    assert_eq!(world.condition(&a, PROGRAMMED).status, "True");
    gateway.envoys.push(Envoy {
        name: "gw-2".into(),
        rejected: vec![RejectedConfiguration {
            kind: "Listener".into(),
            message: "no such filter".into(),
            ..RejectedConfiguration::default()
        }],
        ..Envoy::default()
    });
    world.declared.insert(a.clone(), gateway);
    let told = world.condition(&a, PROGRAMMED);
    assert_eq!(told.status, "False");
    assert!(told.message.contains("gw-2 refuses a Listener: no such"));
}

#[test]
fn what_still_holds_keeps_its_time_and_the_kinds_type_reads_it() {
    let mut world = World::default();
    let a = id("EgressLockdown", "a");
    world.declared.insert(a.clone(), declared(1));
    let report = world.report();
    world.node("node-1", report.clone());
    let first = world.status(&a).body(&json!({}), "2026-01-01T00:00:00Z");
    let again = world.status(&a).body(&first, "2026-02-02T00:00:00Z");
    assert_eq!(first, again, "nothing changed");
    world.present.insert("node-2".into(), "u".into());
    world.node("node-2", EgressNodeSpec::default());
    let behind = world.status(&a).body(&first, "2026-02-02T00:00:00Z");
    let read: LockdownStatus = serde_json::from_value(behind.clone()).unwrap();
    let time = |kind: &str| {
        let found = read.conditions.iter().find(|it| it.type_ == kind).unwrap();
        serde_json::to_value(&found.last_transition_time).unwrap()
    };
    assert_eq!(time(ACCEPTED), "2026-01-01T00:00:00Z");
    assert_eq!(time(REALIZED), "2026-02-02T00:00:00Z");
    assert!(read.nodes.since.is_none());
    assert!(is_urgent(&first, &behind));
    // As the API server gives it back, with fields of others.
    let mut back = behind.clone();
    back["envoys"] = json!([{ "name": "gw" }]);
    back["conditions"].as_array_mut().unwrap().reverse();
    assert_eq!(written(&back), behind);
}

#[test]
fn an_object_that_is_made_anew_is_told_anew() {
    let mut world = World::default();
    let a = id("AccessPolicy", "a");
    world.declared.insert(a.clone(), declared(1));
    let (mut queue, now) = (Queue::default(), Instant::now());
    let pace = Pace::of(3);
    let want = |world: &mut World, queue: &mut Queue| {
        let all = BTreeMap::from([(a.clone(), world.status(&a))]);
        queue.want(&all, "2026-01-01T00:00:00Z");
    };
    want(&mut world, &mut queue);
    let body = queue.next(now, &pace).map(|(_, body)| body.clone());
    queue.done(&a, body, now);
    want(&mut world, &mut queue);
    assert!(queue.is_empty());
    world.declared.get_mut(&a).unwrap().uid = "another".into();
    want(&mut world, &mut queue);
    assert!(queue.next(now, &pace).is_some(), "it has no status");
}

proptest! {
    /// Whatever is wanted: no object's status is written too often, and in the end all are as
    /// wanted, with one write each.
    #[test]
    fn statuses_keep_their_pace_and_all_get_their_turn(
        changes in prop::collection::vec((0..6_usize, 0..3_i64), 0..40),
    ) {
        let pace = Pace::of(5_000);
        let mut now = Instant::now();
        let mut queue = Queue::default();
        let mut world = World::default();
        let ids: Vec<_> = (0..6).map(|i| id("AccessPolicy", &format!("p{i}"))).collect();
        for id in &ids {
            world.declared.insert(id.clone(), declared(1));
        }
        let mut written: BTreeMap<ObjectId, Vec<Instant>> = BTreeMap::new();
        let mut changes = changes.into_iter();
        let mut quiet = 0;
        while quiet < 100 {
            if let Some((which, more)) = changes.next() {
                let object = world.declared.get_mut(&ids[which]).unwrap();
                object.generation += more;
            }
            let all = statuses(
                &world.declared, &world.findings, &world.present, &world.nodes, &world.without,
                &world.history,
            );
            queue.want(&all, "2026-01-01T00:00:00Z");
            let next = queue.next(now, &pace).map(|(id, body)| (id.clone(), body.clone()));
            quiet += 1;
            if let Some((id, body)) = next {
                quiet = 0;
                written.entry(id.clone()).or_default().push(now);
                queue.done(&id, Some(body), now);
            }
            now += pace.status;
        }
        prop_assert!(queue.is_empty());
        prop_assert_eq!(written.len(), ids.len());
        for times in written.values() {
            for pair in times.windows(2) {
                prop_assert!(pair[1] - pair[0] >= Duration::from_secs(30));
            }
        }
    }
}
