//! A cluster that is changed at random, with all that was ever true of it.

use std::collections::BTreeMap;

use egress_agent::index::{Index, Object};
use egress_agent::source::decode;
use serde_json::{Value, json};
use xtask::apiserver::{ApiServer, gloo_definitions};

use super::objects::{self, NODE, gloo};
use super::world::cluster;

/// Exceptions that lockdowns have now and then, by number.
pub const CIDRS: [&str; 4] = [
    "192.0.2.0/25",
    "192.0.2.128/25",
    "198.51.100.0/24",
    "203.0.113.0/24",
];

/// Numbers by a seed (an LCG; its upper half is random enough).
pub struct Random(u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    pub fn flip(&mut self) -> bool {
        self.below(2) == 0
    }
}

/// What is true, as objects by API version, kind, namespace and name.
pub type Truth = BTreeMap<String, Value>;

pub fn name_of(object: &Value) -> String {
    let meta = &object["metadata"];
    format!(
        "{} {} {} {}",
        object["apiVersion"], object["kind"], meta["namespace"], meta["name"]
    )
}

/// The cluster, changed at random, with all the states that it had.
pub struct History {
    pub api: ApiServer,
    pub random: Random,
    pub truth: Truth,
    /// As an index that knows all pods.
    pub states: Vec<Index>,
    gloo: bool,
}

impl History {
    pub fn new(seed: u64) -> Self {
        let mut history = Self {
            api: cluster(),
            random: Random(seed),
            truth: Truth::new(),
            states: Vec::new(),
            gloo: false,
        };
        // What `cluster` makes, once more, so that it is known here.
        for object in [
            objects::node(NODE, 1),
            objects::node("node-2", 2),
            objects::namespace("bookinfo"),
            objects::namespace("istio-egress"),
            objects::service_account("bookinfo", "default"),
            objects::pod("bookinfo", "web", NODE, "10.244.1.10", "web"),
            objects::pod("bookinfo", "elsewhere", "node-2", "10.244.2.10", "web"),
            objects::pod("istio-egress", "gw", "node-2", "10.244.2.20", "gateway"),
            objects::lockdown("all", "bookinfo", &[]),
        ] {
            history.put(object);
        }
        history.states.drain(..history.states.len() - 1);
        history
    }

    pub fn put(&mut self, mut object: Value) {
        let taken = self.api.apply(&object).expect("it is taken");
        // The server's, as is that of what is made anew.
        object["metadata"]["uid"] = taken["metadata"]["uid"].clone();
        self.truth.insert(name_of(&object), object);
        self.note();
    }

    pub fn drop(&mut self, object: &Value) {
        if self.truth.remove(&name_of(object)).is_some() {
            self.api.delete(object).expect("it is there");
            self.note();
        }
    }

    fn note(&mut self) {
        let mut index = Index::default();
        index.reset(self.truth.values().map(typed).collect());
        self.states.push(index);
    }

    /// One change of one object.
    pub fn change(&mut self) {
        let there = self.random.flip();
        let number = self.random.below(4);
        let mut object = match self.random.below(9) {
            0 => {
                let mut cidrs = CIDRS.to_vec();
                cidrs.retain(|_| self.random.flip());
                objects::lockdown(&format!("l{}", number % 2), "bookinfo", &cidrs)
            }
            1 => objects::pod(
                "bookinfo",
                &format!("own{number}"),
                NODE,
                &format!("10.244.1.{}", 20 + self.random.below(8)),
                "web",
            ),
            2 | 3 => {
                let apps = ["gateway", "other"];
                let app = apps[usize::from(self.random.flip())];
                let ip = format!("10.244.2.{}", 20 + self.random.below(8));
                let name = format!("gw{number}");
                objects::pod("istio-egress", &name, "node-2", &ip, app)
            }
            4 => {
                let app = ["gateway", "other"][usize::from(self.random.flip())];
                objects::gateway("istio-egress", &format!("vg{}", number % 2), app)
            }
            5 => objects::service("bookinfo", "s", "10.96.0.7", "web", 80),
            6 => {
                let outside = self.random.flip();
                let ip = if outside {
                    "203.0.113.9"
                } else {
                    "10.244.1.10"
                };
                objects::slice("bookinfo", "s", 80, &[(ip, "web")])
            }
            7 => objects::service_account("bookinfo", &format!("sa{number}")),
            _ => return self.change_gloo(there, number),
        };
        if object["kind"] == "Pod" && self.random.below(3) == 0 {
            object["status"]["conditions"][0]["status"] = json!("False");
        }
        if there {
            self.put(object);
        } else {
            self.drop(&object);
        }
    }

    /// Objects of Gloo Mesh's group, and its definitions.
    pub fn change_gloo(&mut self, there: bool, number: u64) {
        if number == 0 {
            self.gloo = !self.gloo;
            for definition in gloo_definitions() {
                if self.gloo {
                    self.api.apply(&definition).expect("it is taken");
                } else {
                    self.api.delete(&definition).expect("it is there");
                }
            }
            self.truth
                .retain(|name, _| self.gloo || !name.contains("gloo"));
            self.note();
        } else if self.gloo {
            let object = gloo(objects::gateway(
                "istio-egress",
                &format!("gloo{number}"),
                "gateway",
            ));
            if there {
                self.put(object);
            } else {
                self.drop(&object);
            }
        }
    }
}

pub fn typed(object: &Value) -> Object {
    let mut objects = decode(&object.to_string()).expect("a good object");
    objects.pop().expect("one").object
}
