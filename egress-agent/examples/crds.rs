//! Prints the definitions of Sallyport's kinds as one JSON object: path below `deploy/crds` to
//! definition. `cargo xtask crds` writes them down.

use std::collections::BTreeMap;

use egress_agent::api::crds;

fn main() {
    println!(
        "{}",
        serde_json::to_string(&BTreeMap::from_iter(crds::files())).expect("plain data")
    );
}
