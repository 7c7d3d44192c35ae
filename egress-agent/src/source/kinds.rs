//! Which kinds are read, under which `apiVersion`.

use serde::de::DeserializeOwned;

use crate::index::Object;

/// A deserializer of some kind, and what it makes of a document.
type Make<E> = fn(Document<'_>) -> Result<Object, E>;

/// One document, as text or as a value out of a `List`.
pub(super) enum Document<'a> {
    Text(&'a str),
    Value(serde_yaml_ng::Value),
}

/// Why a document is not of its kind: the path of the field, and serde's error.
pub(super) type Failure = serde_path_to_error::Error<serde_yaml_ng::Error>;

fn read<T: DeserializeOwned>(document: Document<'_>) -> Result<T, Failure> {
    match document {
        Document::Text(text) => {
            serde_path_to_error::deserialize(serde_yaml_ng::Deserializer::from_str(text))
        }
        Document::Value(value) => serde_path_to_error::deserialize(value),
    }
}

/// `apiVersion`, kind and reader of all that is read.
pub(super) const KINDS: &[(&str, &str, Make<Failure>)] = &[
    ("v1", "Namespace", |d| read(d).map(Object::Namespace)),
    ("v1", "Node", |d| read(d).map(Object::Node)),
    ("v1", "Pod", |d| read(d).map(|o| Object::Pod(Box::new(o)))),
    ("v1", "Service", |d| {
        read(d).map(|o| Object::Service(Box::new(o)))
    }),
    ("v1", "ServiceAccount", |d| {
        read(d).map(Object::ServiceAccount)
    }),
    ("discovery.k8s.io/v1", "EndpointSlice", |d| {
        read(d).map(|o| Object::EndpointSlice(Box::new(o)))
    }),
    ("sallyport.dev/v1alpha1", "EgressLockdown", |d| {
        read(d).map(|o| Object::EgressLockdown(Box::new(o)))
    }),
    ("sallyport.dev/v1alpha1", "VirtualGateway", |d| {
        read(d).map(Object::VirtualGateway)
    }),
    ("sallyport.dev/v1alpha1", "ExternalService", |d| {
        read(d).map(Object::ExternalService)
    }),
    ("sallyport.dev/v1alpha1", "AccessPolicy", |d| {
        read(d).map(Object::AccessPolicy)
    }),
    ("networking.gloo.solo.io/v2", "VirtualGateway", |d| {
        read(d).map(Object::VirtualGateway)
    }),
    ("networking.gloo.solo.io/v2", "ExternalService", |d| {
        read(d).map(Object::ExternalService)
    }),
    ("security.policy.gloo.solo.io/v2", "AccessPolicy", |d| {
        read(d).map(Object::AccessPolicy)
    }),
];

/// All kinds, for an error message.
pub(super) fn known() -> String {
    let names: Vec<String> = KINDS
        .iter()
        .map(|(version, kind, _)| format!("{kind} ({version})"))
        .collect();
    format!("{}, List (v1)", names.join(", "))
}
