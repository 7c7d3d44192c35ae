//! The cluster's objects in an API server, instead of a directory.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;

use serde_json::Value;
use xtask::apiserver::{ApiServer, gloo_definitions, own_definitions};

use super::Cluster;

/// What the directory holds, in an API server behind this listener that has Gloo Mesh's kinds too, and a
/// kubeconfig for it.
pub fn serve(cluster: &Cluster, listener: TcpListener) -> (ApiServer, PathBuf) {
    let api = ApiServer::serve(listener).expect("an address");
    for definition in own_definitions().into_iter().chain(gloo_definitions()) {
        api.apply(&definition).expect("a definition");
    }
    mirror(cluster, &api);
    let kubeconfig = cluster.node.directory().join("kubeconfig");
    fs::write(&kubeconfig, api.kubeconfig()).expect("write it");
    (api, kubeconfig)
}

/// Applies the files of the directory.
pub fn mirror(cluster: &Cluster, api: &ApiServer) {
    for entry in fs::read_dir(cluster.state.path()).expect("the directory") {
        let text = fs::read_to_string(entry.expect("a file").path()).expect("its text");
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            let object: Value = serde::Deserialize::deserialize(document).expect("an object");
            api.apply(&object).expect("it is taken");
        }
    }
}
