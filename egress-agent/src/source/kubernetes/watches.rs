//! What is watched: one list and watch of the API each, as narrow as the API allows. Pure.

use std::fmt;

use crate::api::{GLOO_NETWORKING_GROUP, GLOO_SECURITY_GROUP, GROUP, VERSION};
use crate::index::{Key, Labels, ObjectId};

/// Gloo Mesh's version of its kinds.
const GLOO_VERSION: &str = "v2";

/// One list and watch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Watch {
    /// Definitions of a kind of Gloo Mesh: whether it is there to be watched.
    Definition(Policy),
    Namespaces,
    Nodes,
    ServiceAccounts,
    Services,
    EndpointSlices,
    /// Pods of this node.
    OwnPods,
    /// Pods of other nodes that a `VirtualGateway` selects.
    GatewayPods {
        namespace: String,
        labels: Labels,
    },
    /// Pods of other nodes in a namespace of which very many selectors ask.
    NamespacePods {
        namespace: String,
    },
    /// All pods of other nodes.
    OtherPods,
    Own(Policy),
    Gloo(Policy),
}

/// Kinds that say who may do what.
#[allow(clippy::enum_variant_names, reason = "named as the kinds are")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Policy {
    EgressLockdown,
    VirtualGateway,
    ExternalService,
    AccessPolicy,
}

impl Policy {
    /// Those that Gloo Mesh has too.
    pub const SHARED: [Self; 3] = [
        Self::VirtualGateway,
        Self::ExternalService,
        Self::AccessPolicy,
    ];

    pub fn kind(self) -> &'static str {
        match self {
            Self::EgressLockdown => "EgressLockdown",
            Self::VirtualGateway => "VirtualGateway",
            Self::ExternalService => "ExternalService",
            Self::AccessPolicy => "AccessPolicy",
        }
    }

    fn plural(self) -> &'static str {
        match self {
            Self::EgressLockdown => "egresslockdowns",
            Self::VirtualGateway => "virtualgateways",
            Self::ExternalService => "externalservices",
            Self::AccessPolicy => "accesspolicies",
        }
    }

    fn gloo_group(self) -> &'static str {
        match self {
            Self::AccessPolicy => GLOO_SECURITY_GROUP,
            _ => GLOO_NETWORKING_GROUP,
        }
    }
}

/// How a watch asks the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
    /// Empty for all namespaces and for resources without any.
    pub namespace: String,
    pub label_selector: Option<String>,
    pub field_selector: Option<String>,
    pub metadata_only: bool,
}

impl Resource {
    /// Path of the collection.
    pub fn path(&self) -> String {
        let mut path = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        if !self.namespace.is_empty() {
            path += "/namespaces/";
            path += &self.namespace;
        }
        format!("{path}/{}", self.plural)
    }

    /// The one object that is asked for, if it is only one.
    pub fn only_name(&self) -> Option<&str> {
        self.field_selector
            .as_deref()?
            .strip_prefix("metadata.name=")
    }
}

impl fmt::Display for Resource {
    /// As RBAC has it: `pods`, `virtualgateways.sallyport.dev`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.plural)?;
        if self.group.is_empty() {
            Ok(())
        } else {
            write!(f, ".{}", self.group)
        }
    }
}

impl Watch {
    /// Watches of every agent, whatever the objects say; with `gloo` those that tell whether Gloo
    /// Mesh's kinds are there, too.
    pub fn always(gloo: bool) -> impl Iterator<Item = Self> {
        let own = [
            Policy::EgressLockdown,
            Policy::VirtualGateway,
            Policy::ExternalService,
            Policy::AccessPolicy,
        ];
        [
            Self::Namespaces,
            Self::Nodes,
            Self::ServiceAccounts,
            Self::Services,
            Self::EndpointSlices,
            Self::OwnPods,
        ]
        .into_iter()
        .chain(
            Policy::SHARED
                .map(Self::Definition)
                .into_iter()
                .filter(move |_| gloo),
        )
        .chain(own.map(Self::Own))
    }

    /// Whether a cluster may do without: Gloo Mesh's kinds, which not every agent may read.
    pub fn is_optional(&self) -> bool {
        matches!(self, Self::Definition(_) | Self::Gloo(_))
    }

    /// Whether no other watch may tell of the same objects.
    pub fn is_alone(&self) -> bool {
        matches!(
            self,
            Self::Namespaces
                | Self::Nodes
                | Self::ServiceAccounts
                | Self::Services
                | Self::EndpointSlices
        )
    }

    /// Whether it tells of pods of other nodes.
    pub fn is_of_others(&self) -> bool {
        matches!(
            self,
            Self::GatewayPods { .. } | Self::NamespacePods { .. } | Self::OtherPods
        )
    }

    /// Kind of the objects that come of it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Definition(_) => "CustomResourceDefinition",
            Self::Namespaces => "Namespace",
            Self::Nodes => "Node",
            Self::ServiceAccounts => "ServiceAccount",
            Self::Services => "Service",
            Self::EndpointSlices => "EndpointSlice",
            Self::OwnPods
            | Self::GatewayPods { .. }
            | Self::NamespacePods { .. }
            | Self::OtherPods => "Pod",
            Self::Own(policy) | Self::Gloo(policy) => policy.kind(),
        }
    }

    /// An object that it tells of.
    pub fn id(&self, key: &Key) -> ObjectId {
        ObjectId {
            kind: self.kind(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        }
    }

    /// Whether `other` may tell of the same objects.
    pub fn overlaps(&self, other: &Self) -> bool {
        self != other && self.kind() == other.kind() && !matches!(self, Self::Definition(_))
    }

    pub fn resource(&self, node: &str) -> Resource {
        let mut resource = Resource {
            group: "",
            version: "v1",
            plural: "pods",
            namespace: String::new(),
            label_selector: None,
            field_selector: None,
            metadata_only: false,
        };
        match self {
            Self::Definition(policy) => {
                resource.group = "apiextensions.k8s.io";
                resource.plural = "customresourcedefinitions";
                // By name, so that a rule of RBAC can name the three.
                let name = format!("metadata.name={}.{}", policy.plural(), policy.gloo_group());
                resource.field_selector = Some(name);
                resource.metadata_only = true;
            }
            Self::Namespaces => {
                resource.plural = "namespaces";
                resource.metadata_only = true;
            }
            Self::ServiceAccounts => {
                resource.plural = "serviceaccounts";
                resource.metadata_only = true;
            }
            Self::Nodes => resource.plural = "nodes",
            Self::Services => resource.plural = "services",
            Self::EndpointSlices => {
                resource.group = "discovery.k8s.io";
                resource.plural = "endpointslices";
            }
            Self::OwnPods => {
                resource.field_selector = Some(format!("spec.nodeName={node}"));
            }
            Self::GatewayPods { namespace, labels } => {
                resource.namespace.clone_from(namespace);
                let terms: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                resource.label_selector = Some(terms.join(","));
                resource.field_selector = Some(format!("spec.nodeName!={node}"));
            }
            Self::NamespacePods { namespace } => {
                resource.namespace.clone_from(namespace);
                resource.field_selector = Some(format!("spec.nodeName!={node}"));
            }
            Self::OtherPods => {
                resource.field_selector = Some(format!("spec.nodeName!={node}"));
            }
            Self::Own(policy) => {
                resource.group = GROUP;
                resource.version = VERSION;
                resource.plural = policy.plural();
            }
            Self::Gloo(policy) => {
                resource.group = policy.gloo_group();
                resource.version = GLOO_VERSION;
                resource.plural = policy.plural();
            }
        }
        resource
    }
}

impl fmt::Display for Watch {
    /// For logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Definition(policy) => {
                write!(
                    f,
                    "definition of {}.{}",
                    policy.plural(),
                    policy.gloo_group()
                )
            }
            Self::OwnPods => f.write_str("pods of this node"),
            Self::GatewayPods { namespace, labels } => {
                let resource = Self::GatewayPods {
                    namespace: namespace.clone(),
                    labels: labels.clone(),
                }
                .resource("");
                let selector = resource.label_selector.unwrap_or_default();
                write!(f, "gateway pods {namespace}/{selector}")
            }
            Self::NamespacePods { namespace } => write!(f, "pods of {namespace}"),
            Self::OtherPods => f.write_str("pods of other nodes"),
            other => write!(f, "{}", other.resource("")),
        }
    }
}

/// Whether pods can have these labels, in such a namespace: others need no watch, and must not get
/// into a request.
pub fn can_exist(namespace: &str, labels: &Labels) -> bool {
    let dns = |text: &str, longest: usize, more: &str| {
        let ok = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
        let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        text.len() <= longest
            && text.chars().all(ok)
            && end(text.chars().next())
            && end(text.chars().last())
    };
    let key = |key: &str| match key.split_once('/') {
        Some((prefix, name)) => dns(prefix, 253, "-.") && dns(name, 63, "-_."),
        None => dns(key, 63, "-_."),
    };
    dns(namespace, 63, "-")
        && labels
            .iter()
            .all(|(k, v)| key(k) && (v.is_empty() || dns(v, 63, "-_.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_for_as_little_as_it_can() {
        let own = Watch::OwnPods.resource("node-1");
        assert_eq!(own.path(), "/api/v1/pods");
        assert_eq!(own.field_selector.as_deref(), Some("spec.nodeName=node-1"));
        let gateway = Watch::GatewayPods {
            namespace: "istio-egress".to_owned(),
            labels: [("app", "gw"), ("tier", "edge")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
        };
        let gateway = gateway.resource("node-1");
        assert_eq!(gateway.path(), "/api/v1/namespaces/istio-egress/pods");
        assert_eq!(gateway.label_selector.as_deref(), Some("app=gw,tier=edge"));
        assert_eq!(
            gateway.field_selector.as_deref(),
            Some("spec.nodeName!=node-1")
        );
        let gloo = Watch::Gloo(Policy::AccessPolicy).resource("");
        assert_eq!(
            gloo.path(),
            "/apis/security.policy.gloo.solo.io/v2/accesspolicies"
        );
        let definition = Watch::Definition(Policy::VirtualGateway).resource("");
        assert_eq!(
            definition.field_selector.as_deref(),
            Some("metadata.name=virtualgateways.networking.gloo.solo.io")
        );
        assert!(definition.metadata_only && Watch::Namespaces.resource("").metadata_only);
    }

    #[test]
    fn what_no_pod_can_have_is_not_asked_for() {
        let labels = |k: &str, v: &str| Labels::from([(k.to_owned(), v.to_owned())]);
        assert!(can_exist("a-b", &labels("app.kubernetes.io/name", "x_1.y")));
        assert!(can_exist("a", &labels("app", "")));
        for (namespace, key, value) in [
            ("a/../b", "app", "x"),
            ("a", "app", "x,y=z"),
            ("a", "app", "x "),
            ("a", "a/b/c", "x"),
            ("a", "-app", "x"),
            ("", "app", "x"),
        ] {
            assert!(
                !can_exist(namespace, &labels(key, value)),
                "{namespace} {key} {value}"
            );
        }
    }
}
