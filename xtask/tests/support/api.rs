//! The cluster's objects in an API server, instead of a directory.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;

use serde_json::{Value, json};
use xtask::apiserver::{ApiServer, own_definitions};

use super::Cluster;

/// What the directory holds, in an API server behind this listener, and a kubeconfig for it.
pub fn serve(cluster: &Cluster, listener: TcpListener) -> (ApiServer, PathBuf) {
    let api = ApiServer::serve(listener).expect("an address");
    for definition in own_definitions() {
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
            let mut object: Value = serde::Deserialize::deserialize(document).expect("an object");
            // The example is in Gloo Mesh's group, which this API server doesn't have.
            let version = object["apiVersion"].as_str().unwrap_or_default();
            if version.contains("gloo") {
                object["apiVersion"] = json!("sallyport.dev/v1alpha1");
            }
            api.apply(&object).expect("it is taken");
        }
    }
}
