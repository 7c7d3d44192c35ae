//! The definitions of Sallyport's kinds: that they are checked in as the types say, that an API
//! server takes them, and what they refuse.

mod cases;
mod schema;
mod structural;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use egress_agent::api::crds::{self, ApiServer};
use serde_json::Value;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// `openAPIV3Schema` by kind.
fn schemas(server: ApiServer) -> BTreeMap<String, Value> {
    crds::all(server)
        .into_iter()
        .map(|(_, crd)| {
            let kind = crd["spec"]["names"]["kind"].as_str().expect("a kind");
            let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            (kind.to_owned(), schema.clone())
        })
        .collect()
}

#[test]
fn the_definitions_are_checked_in() {
    let folder = deploy().join("crds");
    let mut found = Vec::new();
    for folder in [folder.clone(), folder.join("before-1.31")] {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|end| end == "yaml") {
                found.push(path);
            }
        }
    }
    let mut made = Vec::new();
    for (name, text) in crds::files() {
        let path = folder.join(name);
        let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            checked_in == text,
            "{}: run `cargo xtask crds`",
            path.display()
        );
        made.push(path);
    }
    found.sort();
    made.sort();
    assert_eq!(
        found, made,
        "what is there beside the definitions: remove it"
    );
}

/// `kubectl` reads YAML 1.1, in which a bare `Off` is a boolean.
#[test]
fn a_mode_is_a_text_in_yaml_1_1_too() {
    let (_, text) = crds::files()
        .into_iter()
        .find(|(name, _)| name == "egresslockdowns.yaml")
        .expect("the lockdown");
    assert!(text.contains("- 'Off'\n"), "{text}");
}
