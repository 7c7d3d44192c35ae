//! The cluster as the cases see it: nodes, agents, what arrives outside, what `egressctl` says.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tokio::time::sleep;

use super::cluster::{Cluster, Ended, Place, Seen, until};
use super::inside::{Arrivals, Left};
use super::objects::{Image, Names, SCRATCH};
use super::release::Release;
use crate::node::Answer;

/// Where the suite's program is in its image.
const PROBE: &str = "/usr/local/bin/e2e-probe";
/// For a program that answers at once.
const SHORT: Duration = Duration::from_secs(30);
/// Time that a packet may be under way on a node.
const SETTLE: Duration = Duration::from_millis(300);
/// Until a pod runs: its image is there already.
const POD_LIMIT: Duration = Duration::from_mins(2);

/// A node, as its object says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    /// Its internal address, IPv4 if it has one.
    pub address: Option<IpAddr>,
    pub taints: Vec<String>,
}

impl Node {
    pub fn read(object: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let mut addresses: Vec<IpAddr> = list(&object["status"]["addresses"])
            .iter()
            .filter(|address| address["type"] == "InternalIP")
            .filter_map(|address| address["address"].as_str()?.parse().ok())
            .collect();
        addresses.sort_by_key(IpAddr::is_ipv6);
        Self {
            name: text(&object["metadata"]["name"]),
            address: addresses.first().copied(),
            taints: list(&object["spec"]["taints"])
                .iter()
                .map(|taint| text(&taint["key"]))
                .collect(),
        }
    }
}

/// Packets of a pod by the reason they ended with, and whether it is one that passes.
pub type Counters = BTreeMap<String, (u64, bool)>;

/// Everything that the cases need.
#[derive(Debug)]
pub struct World {
    pub cluster: Cluster,
    pub names: Names,
    pub release: Release,
    pub probe: Image,
    pub gateway: Image,
    /// Sorted by name; the cases that need one node take the first.
    pub nodes: Vec<Node>,
}

impl World {
    /// The node that most cases are tried on.
    pub fn node(&self) -> &str {
        &self.nodes[0].name
    }

    /// A pod's own container in the held namespace.
    pub fn held(&self, pod: &str) -> Place {
        Place::new(&self.names.held(), pod, "app")
    }

    /// Runs the suite's program in a pod.
    pub async fn run(&self, place: &Place, args: &[&str], limit: Duration) -> Result<Ended> {
        let mut command = vec![PROBE.to_owned()];
        command.extend(args.iter().map(|arg| (*arg).to_owned()));
        self.cluster.exec(place, &command, limit).await
    }

    /// The answer of a `probe` or `craft`.
    pub async fn probe(&self, place: &Place, args: &[&str]) -> Result<Answer> {
        self.run(place, args, SHORT).await?.json()
    }

    pub async fn pod(&self, namespace: &str, name: &str) -> Result<Value> {
        let pod = self.cluster.get("Pod", namespace, name).await?;
        pod.with_context(|| format!("there is no pod {namespace}/{name}"))
    }

    /// The pod's addresses, IPv4 first.
    pub async fn addresses(&self, namespace: &str, name: &str) -> Result<Vec<IpAddr>> {
        let pod = self.pod(namespace, name).await?;
        Ok(addresses(&pod))
    }

    /// The pod's IPv4 address.
    pub async fn v4(&self, namespace: &str, name: &str) -> Result<IpAddr> {
        let addresses = self.addresses(namespace, name).await?;
        let v4 = addresses.into_iter().find(IpAddr::is_ipv4);
        v4.with_context(|| format!("{namespace}/{name} has no IPv4 address"))
    }

    /// `ClusterIP` of a Service.
    pub async fn cluster_ip(&self, namespace: &str, name: &str) -> Result<IpAddr> {
        let service = self.cluster.get("Service", namespace, name).await?;
        let service = service.with_context(|| format!("no Service {namespace}/{name}"))?;
        let ip = service["spec"]["clusterIP"].as_str().unwrap_or_default();
        ip.parse()
            .with_context(|| format!("{namespace}/{name} has no ClusterIP: {ip:?}"))
    }

    /// First `NodePort` of a Service.
    pub async fn node_port(&self, namespace: &str, name: &str) -> Result<u16> {
        let service = self.cluster.get("Service", namespace, name).await?;
        let port = service.and_then(|s| s.pointer("/spec/ports/0/nodePort")?.as_u64());
        let port = port.with_context(|| format!("{namespace}/{name} has no NodePort"))?;
        Ok(u16::try_from(port)?)
    }

    /// Makes a pod, and waits until its containers run, or are Ready.
    pub async fn start(&self, pod: &Value, ready: bool) -> Result<()> {
        self.cluster.apply(pod).await?;
        let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str);
        let namespace = text("/metadata/namespace").unwrap_or_default();
        let name = text("/metadata/name").unwrap_or_default();
        self.wait_for_pod(namespace, name, ready).await
    }

    pub async fn wait_for_pod(&self, namespace: &str, name: &str, ready: bool) -> Result<()> {
        let what = format!("pod {namespace}/{name}");
        until(&what, POD_LIMIT, || async {
            let pod = self.pod(namespace, name).await?;
            let fine = is_running(&pod) && (!ready || is_ready(&pod));
            Ok(if fine {
                Seen::There(())
            } else {
                Seen::NotYet(why_not(&pod))
            })
        })
        .await
    }

    /// The running agent of a node.
    pub async fn agent(&self, node: &str) -> Result<Value> {
        let labels = "app.kubernetes.io/component=agent";
        let system = self.names.system();
        let pods = self.cluster.list("Pod", &system, labels).await?;
        pods.into_iter()
            .find(|pod| {
                pod["spec"]["nodeName"] == node && pod["metadata"]["deletionTimestamp"].is_null()
            })
            .with_context(|| format!("no agent on {node}"))
    }

    /// Waits until the agent of a node is Ready, and is not the one with this UID any more.
    pub async fn wait_for_agent(&self, node: &str, not: Option<&str>) -> Result<Value> {
        until(&format!("the agent of {node}"), POD_LIMIT, || async {
            let pod = self.agent(node).await?;
            let other = not.is_none_or(|uid| pod["metadata"]["uid"] != uid);
            Ok(if other && is_ready(&pod) {
                Seen::There(pod)
            } else {
                Seen::NotYet(why_not(&pod))
            })
        })
        .await
    }

    /// Waits until every pod of the `DaemonSet` is of its newest version and Ready.
    pub async fn wait_for_daemon_set(
        &self,
        namespace: &str,
        name: &str,
        limit: Duration,
    ) -> Result<u64> {
        until(&format!("DaemonSet {namespace}/{name}"), limit, || async {
            let set = self.cluster.get("DaemonSet", namespace, name).await?;
            let set = set.context("there is none")?;
            Ok(match rolled_out(&set) {
                Some(pods) => Seen::There(pods),
                None => Seen::NotYet(self.why_not_all(namespace, &set).await),
            })
        })
        .await
    }

    async fn why_not_all(&self, namespace: &str, set: &Value) -> String {
        let status = &set["status"];
        let mut text = format!(
            "{} of {} ready",
            status["numberReady"], status["desiredNumberScheduled"]
        );
        let labels = set["spec"]["selector"]["matchLabels"].as_object();
        let labels: Vec<String> = labels
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?)))
            .collect();
        let pods = self.cluster.list("Pod", namespace, &labels.join(",")).await;
        for pod in pods.unwrap_or_default() {
            if !is_ready(&pod) {
                text = format!("{text}; {}", why_not(&pod));
            }
        }
        text
    }

    /// `egressctl` in the agent's pod of a node, with its output as JSON.
    pub async fn egressctl(&self, node: &str, args: &[&str]) -> Result<Ended> {
        let agent = self.agent(node).await?;
        let name = agent["metadata"]["name"].as_str().unwrap_or_default();
        let place = Place::new(&self.names.system(), name, "agent");
        let mut command = vec!["/egressctl".to_owned(), "-o".to_owned(), "json".to_owned()];
        command.extend(args.iter().map(|arg| (*arg).to_owned()));
        self.cluster.exec(&place, &command, SHORT).await
    }

    /// What the kernel counted for a pod; nothing if it knows none of that name.
    pub async fn counters(&self, node: &str, pod: &str) -> Result<Counters> {
        let ended = self.egressctl(node, &["pods", "get", pod]).await?;
        if ended.code != 0 {
            return Ok(Counters::new());
        }
        Ok(counters(&ended.json()?))
    }

    /// The helper of a node.
    pub async fn helper(&self, node: &str) -> Result<Place> {
        let outside = self.names.outside();
        let pods = self.cluster.list("Pod", &outside, "app=outside").await?;
        let pod = pods
            .into_iter()
            .find(|pod| pod["spec"]["nodeName"] == node && is_running(pod))
            .with_context(|| format!("no helper runs on {node}"))?;
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        Ok(Place::new(&self.names.outside(), name, "outside"))
    }

    /// How many packets the outside host of a node has ever seen.
    pub async fn mark(&self, node: &str) -> Result<usize> {
        Ok(self.arrivals(node, usize::MAX).await?.total)
    }

    /// What arrived at the outside host of a node since, after waiting for what is under way.
    pub async fn since(&self, node: &str, mark: usize) -> Result<Arrivals> {
        sleep(SETTLE).await;
        self.arrivals(node, mark).await
    }

    async fn arrivals(&self, node: &str, since: usize) -> Result<Arrivals> {
        let helper = self.helper(node).await?;
        let (file, since) = (format!("{SCRATCH}/seen"), since.to_string());
        let args = ["seen", &file, "--since", &since];
        self.run(&helper, &args, SHORT).await?.json()
    }

    /// What is left of Sallyport on a node.
    pub async fn left(&self, node: &str) -> Result<Left> {
        let helper = self.helper(node).await?;
        let args = ["left", "--bpffs", "/host/bpf"];
        self.run(&helper, &args, SHORT).await?.json()
    }

    /// Waits until every held pod of every node is held in this mode.
    pub async fn wait_for_mode(&self, mode: &str) -> Result<()> {
        let namespace = self.names.held();
        for node in &self.nodes {
            let what = format!("mode {mode} on {}", node.name);
            until(&what, POD_LIMIT, || async {
                let status: Value = self.egressctl(&node.name, &["status"]).await?.json()?;
                Ok(match not_in_mode(&status, &namespace, mode) {
                    None => Seen::There(()),
                    Some(other) => Seen::NotYet(other),
                })
            })
            .await?;
        }
        Ok(())
    }

    /// Checks before anything is made that nothing of it is there.
    pub async fn refuse_to_disturb(&self) -> Result<()> {
        if let Some(role) = self
            .cluster
            .get("ClusterRole", "", "sallyport-agent")
            .await?
        {
            let owner = &role["metadata"]["annotations"]["meta.helm.sh/release-namespace"];
            if owner.as_str() != Some(&self.names.system()) {
                bail!(
                    "Sallyport is installed in this cluster already (ClusterRole sallyport-agent, \
                     namespace {owner}); the suite would uninstall it. Use another cluster, or \
                     uninstall it first (deploy/README.md)"
                );
            }
        }
        for name in self.names.namespaces() {
            let Some(namespace) = self.cluster.get("Namespace", "", &name).await? else {
                continue;
            };
            let label = super::objects::LABEL.replace('/', "~1");
            let ours = namespace.pointer(&format!("/metadata/labels/{label}"));
            if ours.and_then(Value::as_str) != Some(self.names.prefix.as_str()) {
                bail!("namespace {name} is not the suite's: give another --namespace-prefix");
            }
        }
        Ok(())
    }
}

/// The pod's addresses, IPv4 first.
fn addresses(pod: &Value) -> Vec<IpAddr> {
    let ips = pod["status"]["podIPs"].as_array();
    let mut addresses: Vec<IpAddr> = ips
        .into_iter()
        .flatten()
        .filter_map(|ip| ip["ip"].as_str()?.parse().ok())
        .collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses
}

fn is_running(pod: &Value) -> bool {
    let statuses = pod["status"]["containerStatuses"].as_array();
    statuses.is_some_and(|all| {
        !all.is_empty() && all.iter().all(|one| one["state"]["running"].is_object())
    }) && pod["metadata"]["deletionTimestamp"].is_null()
}

pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|all| {
        all.iter()
            .any(|one| one["type"] == "Ready" && one["status"] == "True")
    }) && pod["metadata"]["deletionTimestamp"].is_null()
}

/// What a pod waits for, in the kubelet's words.
fn why_not(pod: &Value) -> String {
    let name = pod["metadata"]["name"].as_str().unwrap_or("?");
    let phase = pod["status"]["phase"].as_str().unwrap_or("?");
    let mut text = format!("{name} is {phase}");
    for statuses in ["initContainerStatuses", "containerStatuses"] {
        for status in pod["status"][statuses].as_array().into_iter().flatten() {
            for state in ["waiting", "terminated"] {
                let state = &status["state"][state];
                if state.is_object() && state["reason"] != "Completed" {
                    text = format!("{text}, {}: {}", status["name"], state["reason"]);
                    if let Some(message) = state["message"].as_str() {
                        text = format!("{text} ({})", message.trim());
                    }
                }
            }
        }
    }
    text
}

/// Number of pods of a `DaemonSet` that is rolled out.
fn rolled_out(set: &Value) -> Option<u64> {
    let status = &set["status"];
    let number = |name: &str| status[name].as_u64().unwrap_or(0);
    let wanted = number("desiredNumberScheduled");
    (status["observedGeneration"] == set["metadata"]["generation"]
        && wanted > 0
        && number("updatedNumberScheduled") == wanted
        && number("numberReady") == wanted
        && number("currentNumberScheduled") == wanted)
        .then_some(wanted)
}

/// The counters of `egressctl pods get`.
fn counters(value: &Value) -> Counters {
    let counters = value.pointer("/items/0/counters").and_then(Value::as_array);
    counters
        .into_iter()
        .flatten()
        .filter_map(|one| {
            let passes = one["passes"].as_bool()?;
            Some((
                one["reason"].as_str()?.to_owned(),
                (one["packets"].as_u64()?, passes),
            ))
        })
        .collect()
}

/// The first pod of the namespace that is not held in this mode by what should hold it.
fn not_in_mode(status: &Value, namespace: &str, mode: &str) -> Option<String> {
    let pods = status.pointer("/items/0/pods").and_then(Value::as_array);
    pods.into_iter()
        .flatten()
        .filter(|pod| pod["namespace"] == namespace)
        .find(|pod| {
            let held = pod["coverage"] == "covered" || pod["coverage"] == "host-network";
            pod["mode"] != mode || !held
        })
        .map(|pod| format!("{} is {} in {}", pod["name"], pod["coverage"], pod["mode"]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_has_one_address_and_its_taints() {
        let node = Node::read(&json!({
            "metadata": { "name": "n" },
            "spec": { "taints": [{ "key": "sallyport.dev/agent-not-ready" }] },
            "status": { "addresses": [
                { "type": "InternalIP", "address": "fd00::1" },
                { "type": "InternalIP", "address": "192.0.2.1" },
                { "type": "Hostname", "address": "n" },
            ] },
        }));
        assert_eq!(node.address, Some("192.0.2.1".parse().unwrap()));
        assert_eq!(node.taints, ["sallyport.dev/agent-not-ready"]);
    }

    #[test]
    fn rolled_out_is_all_pods_of_the_newest_generation() {
        let set = |generation: u64, updated: u64| {
            json!({
                "metadata": { "generation": 2 },
                "status": {
                    "observedGeneration": generation, "desiredNumberScheduled": 3,
                    "currentNumberScheduled": 3, "updatedNumberScheduled": updated,
                    "numberReady": 3,
                },
            })
        };
        assert_eq!(rolled_out(&set(2, 3)), Some(3));
        assert_eq!(rolled_out(&set(1, 3)), None);
        assert_eq!(rolled_out(&set(2, 2)), None);
        assert_eq!(rolled_out(&json!({})), None);
    }

    #[test]
    fn one_pod_in_another_mode_is_enough() {
        let status = |mode: &str, coverage: &str| {
            json!({ "items": [{ "pods": [
                { "namespace": "a", "name": "x", "mode": "Enforce", "coverage": "covered" },
                { "namespace": "a", "name": "y", "mode": mode, "coverage": coverage },
                { "namespace": "b", "name": "z", "mode": "Off", "coverage": "not-held" },
            ] }] })
        };
        let fine = status("Enforce", "host-network");
        assert_eq!(not_in_mode(&fine, "a", "Enforce"), None);
        assert!(not_in_mode(&status("Audit", "covered"), "a", "Enforce").is_some());
        assert!(not_in_mode(&status("Enforce", "waiting"), "a", "Enforce").is_some());
    }

    #[test]
    fn a_pod_says_what_it_waits_for() {
        let pod = json!({
            "metadata": { "name": "p" },
            "status": { "phase": "Pending", "containerStatuses": [{
                "name": "app",
                "state": { "waiting": { "reason": "ErrImageNeverPull", "message": "no image" } },
            }] },
        });
        assert!(!is_running(&pod) && !is_ready(&pod));
        let text = why_not(&pod);
        assert!(
            text.contains("ErrImageNeverPull") && text.contains("no image"),
            "{text}"
        );
    }

    #[test]
    fn counters_keep_whether_they_pass() {
        let value = json!({ "items": [{ "counters": [
            { "reason": "gateway", "packets": 3, "bytes": 9, "passes": true },
            { "reason": "vlan", "packets": 1, "bytes": 9, "passes": false },
        ] }] });
        let counters = counters(&value);
        assert_eq!(counters["gateway"], (3, true));
        assert_eq!(counters["vlan"], (1, false));
    }
}
