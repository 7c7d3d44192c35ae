//! A plain reading of access policies, for tests that need no gateway.

use k8s_openapi::jiff::Timestamp;

use crate::api::access_policy::{Authz, Destination};
use crate::api::external_service::ExternalPort;
use crate::api::{AccessPolicySpec, ExternalServiceSpec, ObjectSelector};
use crate::compile::{self, Compiled, GatewayAdmission, Settings};
use crate::index::{Declared, Index, Key, Labels};

/// Looks at the clients of each policy and leaves the conditions on a request (method, path,
/// headers) to the gateway.
#[derive(Clone, Copy, Debug)]
pub struct ByClients<'a> {
    pub index: &'a Index,
    /// Name of this cluster, for selectors that give one; without it every name is ours.
    pub cluster: Option<&'a str>,
    /// The gateways let hosts through that no external service names.
    pub allow_any: bool,
}

impl GatewayAdmission for ByClients<'_> {
    fn admits(&self, account: &Key) -> bool {
        self.allow_any
            || self.index.external_services().iter().any(|(key, service)| {
                service
                    .spec
                    .ports
                    .iter()
                    .any(|port| self.admits_to(account, key, service, port))
            })
    }
}

impl ByClients<'_> {
    /// A service without any policy is open; else one entry that admits is enough.
    fn admits_to(
        &self,
        account: &Key,
        key: &Key,
        service: &Declared<ExternalServiceSpec>,
        port: &ExternalPort,
    ) -> bool {
        let applies = |policy: &&AccessPolicySpec| {
            policy
                .apply_to_destinations
                .iter()
                .any(|d| self.is_about(d, key, service, port))
        };
        let policies = self.index.access_policies().values().map(|p| &p.spec);
        let mut policies = policies.filter(applies).peekable();
        policies.peek().is_none()
            || policies
                .flat_map(|policy| policy.config.authz.iter().chain(&policy.config.authz_list))
                .any(|entry| self.admits_by(account, entry))
    }

    fn is_about(
        &self,
        destination: &Destination,
        key: &Key,
        service: &Declared<ExternalServiceSpec>,
        port: &ExternalPort,
    ) -> bool {
        let on_port = destination.port.as_ref().is_none_or(|wanted| {
            wanted.number.is_none_or(|number| number == port.number)
                && wanted
                    .name
                    .as_ref()
                    .is_none_or(|name| port.name.as_ref() == Some(name))
        });
        on_port && self.selects(&destination.selector, key, Some(&service.labels))
    }

    fn admits_by(&self, account: &Key, entry: &Authz) -> bool {
        if entry.dry_run {
            return true;
        }
        if entry.allowed_clients.is_empty() {
            // An entry with nothing in it admits nobody; one with conditions admits any client.
            return *entry != Authz::default();
        }
        let labels = self.index.service_accounts().get(account);
        entry
            .allowed_clients
            .iter()
            .any(|client| self.selects(&client.service_account_selector, account, labels))
    }

    fn selects(&self, selector: &ObjectSelector, key: &Key, labels: Option<&Labels>) -> bool {
        let none = Labels::new();
        let labels = labels.unwrap_or(&none);
        selector.name.as_ref().is_none_or(|name| *name == key.name)
            && selector
                .namespace
                .as_ref()
                .is_none_or(|namespace| *namespace == key.namespace)
            && selector
                .labels
                .iter()
                .all(|(k, v)| labels.get(k) == Some(v))
            && match (&selector.cluster, self.cluster) {
                (Some(wanted), Some(ours)) => wanted == ours,
                _ => true,
            }
    }
}

/// Compiles with [`ByClients`] to say who reaches the gateways.
pub fn compile(index: &Index, settings: &Settings, now: Timestamp) -> Compiled {
    let admission = ByClients {
        index,
        cluster: settings.cluster_name.as_deref(),
        allow_any: settings.allow_any,
    };
    compile::compile(index, settings, &admission, now)
}
