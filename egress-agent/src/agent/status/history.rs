//! What the policy objects were, by the digests that nodes tell. Pure.
//!
//! A node tells one digest for each kind. Watches deliver the changes of a kind in the same order to
//! every agent, so who aggregates has had the same digest at some time; how long ago is a number, its
//! mark, and each object has the mark at which it came to its generation. A node holds what an object
//! says if its mark is not below that. So nothing is kept for each node and object.

use std::collections::{BTreeMap, VecDeque};

use crate::api::status::{Realized, digest};
use crate::index::ObjectId;
use crate::source::Declared;

/// Kinds that have a status.
pub const KINDS: [&str; 4] = [
    "EgressLockdown",
    "VirtualGateway",
    "ExternalService",
    "AccessPolicy",
];
/// Digests of a kind that are remembered. A node that reports later than so many changes is behind
/// until its next report.
const REMEMBERED: usize = 4096;

/// A point in what a kind went through; later ones are greater.
pub type Mark = u64;

/// Marks of a node, by [`KINDS`]; none where its digest was never seen.
pub type Marks = [Option<Mark>; KINDS.len()];

/// All kinds' past.
#[derive(Clone, Debug, Default)]
pub struct History {
    kinds: [Kind; KINDS.len()],
}

#[derive(Clone, Debug, Default)]
struct Kind {
    now: Mark,
    digest: String,
    marks: BTreeMap<String, Mark>,
    order: VecDeque<(Mark, String)>,
    /// UID, generation, and since when it has been these.
    objects: BTreeMap<ObjectId, (String, i64, Mark)>,
}

impl History {
    /// Takes notice of all there is now, and digests it. Only Sallyport's own objects count.
    pub fn learn(&mut self, declared: &BTreeMap<ObjectId, Declared>) -> Realized {
        let own = |kind: &'static str| {
            let of =
                move |(id, declared): &(&ObjectId, &Declared)| id.kind == kind && declared.is_own();
            declared.iter().filter(of)
        };
        for (kind, name) in self.kinds.iter_mut().zip(KINDS) {
            kind.learn(own(name));
        }
        let [lockdowns, gateways, services, policies] =
            self.kinds.each_ref().map(|kind| kind.digest.clone());
        Realized {
            egress_lockdowns: lockdowns,
            virtual_gateways: gateways,
            external_services: services,
            access_policies: policies,
        }
    }

    /// Marks of what a node has realized; `before` stands where a digest is not known.
    pub fn marks(&self, realized: &Realized, before: Marks) -> Marks {
        let digests = [
            &realized.egress_lockdowns,
            &realized.virtual_gateways,
            &realized.external_services,
            &realized.access_policies,
        ];
        let mut marks = before;
        for ((mark, kind), digest) in marks.iter_mut().zip(&self.kinds).zip(digests) {
            if let Some(seen) = kind.marks.get(digest) {
                *mark = Some(*seen);
            }
        }
        marks
    }

    /// Since when the object has been as it is; none if it is not known.
    pub fn since(&self, id: &ObjectId) -> Option<Mark> {
        let at = KINDS.iter().position(|kind| *kind == id.kind)?;
        let (.., mark) = self.kinds[at].objects.get(id)?;
        Some(*mark)
    }
}

impl Kind {
    fn learn<'a>(&mut self, all: impl Iterator<Item = (&'a ObjectId, &'a Declared)> + Clone) {
        let facts = all.clone().map(|(id, declared)| {
            let (namespace, name) = (id.namespace.as_str(), id.name.as_str());
            (namespace, name, declared.uid.as_str(), declared.generation)
        });
        let digest = digest(facts);
        if digest == self.digest {
            return;
        }
        self.now += 1;
        let now = self.now;
        let mut objects = BTreeMap::new();
        for (id, declared) in all {
            let before = self.objects.remove(id);
            let same = before.filter(|(uid, generation, _)| {
                *uid == declared.uid && *generation == declared.generation
            });
            let since = same.map_or(now, |(.., since)| since);
            let known = (declared.uid.clone(), declared.generation, since);
            objects.insert(id.clone(), known);
        }
        self.objects = objects;
        self.digest.clone_from(&digest);
        // The same objects may come again: one was made and deleted.
        self.marks.insert(digest.clone(), now);
        self.order.push_back((now, digest));
        while self.order.len() > REMEMBERED {
            if let Some((mark, digest)) = self.order.pop_front()
                && self.marks.get(&digest) == Some(&mark)
            {
                self.marks.remove(&digest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(name: u8) -> ObjectId {
        ObjectId {
            kind: "AccessPolicy",
            namespace: "n".into(),
            name: format!("p{name}"),
        }
    }

    fn declared(uid: u32, generation: i64) -> Declared {
        Declared {
            api_version: "sallyport.dev/v1alpha1".into(),
            uid: format!("u{uid}"),
            generation,
            ..Declared::default()
        }
    }

    #[test]
    fn gloos_objects_are_in_no_digest() {
        let mut history = History::default();
        let nothing = history.learn(&BTreeMap::new());
        let mut gloo = declared(1, 1);
        gloo.api_version = "security.policy.gloo.solo.io/v2".into();
        assert_eq!(history.learn(&BTreeMap::from([(id(1), gloo)])), nothing);
    }

    proptest! {
        /// A node that stands at some state of the past holds exactly the objects that are now as
        /// they were then.
        #[test]
        fn a_mark_tells_what_a_node_holds(
            changes in prop::collection::vec((0..4_u8, prop::bool::weighted(0.7)), 1..40),
            at in any::<prop::sample::Index>(),
        ) {
            let mut history = History::default();
            let mut now: BTreeMap<ObjectId, Declared> = BTreeMap::new();
            let mut past = vec![(now.clone(), history.learn(&now))];
            for (uid, (name, there)) in (0_u32..).zip(changes) {
                match now.get_mut(&id(name)) {
                    Some(known) if there => known.generation += 1,
                    Some(_) => _ = now.remove(&id(name)),
                    None => _ = now.insert(id(name), declared(uid, 1)),
                }
                past.push((now.clone(), history.learn(&now)));
            }
            let (then, realized) = at.get(&past);
            let [.., mark] = history.marks(realized, Marks::default());
            let mark = mark.expect("it was seen");
            for (id, object) in &now {
                let holds = history.since(id).is_some_and(|since| since <= mark);
                prop_assert_eq!(holds, then.get(id) == Some(object), "{}", id);
            }
        }
    }

    #[test]
    fn a_digest_that_was_never_seen_changes_no_mark() {
        let mut history = History::default();
        let realized = history.learn(&BTreeMap::from([(id(1), declared(1, 1))]));
        let before = history.marks(&realized, Marks::default());
        let strange = Realized {
            access_policies: "strange".into(),
            ..Realized::default()
        };
        assert_eq!(history.marks(&strange, before)[3], before[3]);
        assert!(before[3].is_some());
    }
}
