//! The objects that the suite writes; pure.

mod guide;
mod pods;
mod values;

pub use guide::{
    access_policy, endpoint_slice, external_service, gateway_service, leaking_service, lockdown,
    virtual_gateway,
};
pub use pods::{Container, HELPER, Image, PodOf, gateway_pod, outside_daemon_set, service_account};
pub use values::chart_values;

use serde_json::{Value, json};

/// Mark of everything that the suite makes; its value is the prefix of the namespaces.
pub const LABEL: &str = "sallyport.dev/e2e";

/// Service account that the guide admits, and the one that it does not.
pub const ADMITTED: &str = "bookinfo-productpage";
pub const OTHER: &str = "bookinfo-reviews";
pub const GATEWAY_ACCOUNT: &str = "istio-egressgateway";
/// Label of the gateway's pods.
pub const GATEWAY_APP: &str = "istio-egressgateway";
pub const GATEWAY: &str = "egress-vg";
/// Port of the gateway's pods.
pub const GATEWAY_PORT: u16 = 8443;
/// Port that the workloads listen on.
pub const WORKLOAD_PORT: u16 = 9080;
/// Directory of certificates in pods.
pub const CERTS: &str = "/etc/sallyport/tls";
/// Scratch directory in pods.
pub const SCRATCH: &str = "/scratch";

/// Names of namespaces and of what has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    pub prefix: String,
}

impl Names {
    fn with(&self, what: &str) -> String {
        format!("{}-{what}", self.prefix)
    }

    /// Where the agents are.
    pub fn system(&self) -> String {
        self.with("system")
    }

    /// What the lockdown holds.
    pub fn held(&self) -> String {
        self.with("bookinfo")
    }

    pub fn gateway(&self) -> String {
        self.with("istio-egress")
    }

    /// Where external services are declared.
    pub fn global(&self) -> String {
        self.with("global")
    }

    /// Nobody holds it.
    pub fn free(&self) -> String {
        self.with("free")
    }

    /// The privileged helpers.
    pub fn outside(&self) -> String {
        self.with("outside")
    }

    pub fn namespaces(&self) -> [String; 6] {
        [
            self.system(),
            self.held(),
            self.gateway(),
            self.global(),
            self.free(),
            self.outside(),
        ]
    }

    /// The lockdown.
    pub fn lockdown(&self) -> &str {
        &self.prefix
    }
}

/// A namespace whose pods may do everything: the attempts need raw sockets, the helpers the node.
pub fn namespace(names: &Names, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {
            "name": name,
            "labels": {
                LABEL: names.prefix,
                "pod-security.kubernetes.io/enforce": "privileged",
            },
        },
    })
}

/// A Secret of files.
pub fn secret(namespace: &str, name: &str, files: &[(String, String)]) -> Value {
    let data: serde_json::Map<String, Value> = files
        .iter()
        .map(|(file, text)| (file.clone(), Value::from(text.as_str())))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": { "namespace": namespace, "name": name },
        "stringData": data,
    })
}

pub fn config_map(namespace: &str, name: &str, files: &[(String, String)]) -> Value {
    let data: serde_json::Map<String, Value> = files
        .iter()
        .map(|(file, text)| (file.clone(), Value::from(text.as_str())))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "namespace": namespace, "name": name },
        "data": data,
    })
}
