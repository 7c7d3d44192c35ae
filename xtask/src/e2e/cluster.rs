//! The API server, as the suite needs it: apply, look, delete, and run programs in pods.

use std::fmt::Debug;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{
    ApiResource, AttachParams, DeleteParams, DynamicObject, GroupVersionKind, ListParams,
    LogParams, Patch, PatchParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::time::{sleep, timeout};

/// Who owns the fields of what the suite applies.
const MANAGER: &str = "sallyport-e2e";
/// Between two looks at something that is waited for.
const LOOK: Duration = Duration::from_millis(400);
/// A request to the API server that takes longer has failed.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// How a program in a pod ended, and what it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Its output as JSON, however it ended.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_str(&self.stdout).with_context(|| {
            format!(
                "exit {} and no JSON: {} {}",
                self.code,
                self.stdout.trim(),
                self.stderr.trim()
            )
        })
    }
}

/// Where a program is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub namespace: String,
    pub pod: String,
    pub container: String,
}

impl Place {
    pub fn new(namespace: &str, pod: &str, container: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            container: container.to_owned(),
        }
    }

    /// As `egressctl` names pods.
    pub fn id(&self) -> String {
        format!("{}/{}", self.namespace, self.pod)
    }
}

/// A connection to the API server.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
}

impl Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

impl Cluster {
    /// `kubeconfig` is `$KUBECONFIG` or `~/.kube/config` if it is not given.
    pub async fn connect(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Self> {
        let file = match kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        }
        .context("no kubeconfig: set KUBECONFIG or give --kubeconfig")?;
        let options = KubeConfigOptions {
            context: context.map(str::to_owned),
            ..KubeConfigOptions::default()
        };
        let config = Config::from_custom_kubeconfig(file, &options)
            .await
            .context("the kubeconfig can't be used")?;
        let client = Client::try_from(config).context("the kubeconfig can't be used")?;
        Ok(Self { client })
    }

    /// Version of the API server.
    pub async fn version(&self) -> Result<String> {
        let version = limited(self.client.apiserver_version())
            .await
            .context("the API server does not answer")?;
        Ok(version.git_version)
    }

    /// Makes the object so, whatever was there.
    pub async fn apply(&self, object: &Value) -> Result<()> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let kind = text("/kind").context("an object without a kind")?;
        let name = text("/metadata/name").context("an object without a name")?;
        let api = self.api(kind, text("/metadata/namespace"))?;
        let params = PatchParams::apply(MANAGER).force();
        limited(api.patch(name, &params, &Patch::Apply(object)))
            .await
            .with_context(|| format!("applying {kind} {name}"))?;
        Ok(())
    }

    pub async fn get(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>> {
        let api = self.api(kind, Some(namespace).filter(|n| !n.is_empty()))?;
        let found = limited(api.get_opt(name))
            .await
            .with_context(|| format!("reading {kind} {name}"))?;
        found
            .map(|o| serde_json::to_value(o).context("an object"))
            .transpose()
    }

    /// All of a kind in a namespace, or everywhere if that is empty.
    pub async fn list(&self, kind: &str, namespace: &str, labels: &str) -> Result<Vec<Value>> {
        let api = self.api(kind, Some(namespace).filter(|n| !n.is_empty()))?;
        let params = ListParams::default().labels(labels);
        let found = limited(api.list(&params))
            .await
            .with_context(|| format!("listing {kind}"))?;
        let values = found.items.into_iter().map(serde_json::to_value);
        Ok(values.collect::<Result<_, _>>()?)
    }

    /// Asks for its end; fine if it is not there. `grace` is in seconds.
    pub async fn delete(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        grace: Option<u32>,
    ) -> Result<()> {
        let api = self.api(kind, Some(namespace).filter(|n| !n.is_empty()))?;
        let params = DeleteParams {
            grace_period_seconds: grace,
            ..DeleteParams::default()
        };
        match limited(api.delete(name, &params)).await {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("deleting {kind} {name}")),
        }
    }

    /// Adds a container to a running pod.
    pub async fn add_ephemeral(&self, place: &Place, container: &Value) -> Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &place.namespace);
        let patch = serde_json::json!({ "spec": { "ephemeralContainers": [container] } });
        limited(api.patch_ephemeral_containers(
            &place.pod,
            &PatchParams::default(),
            &Patch::Strategic(patch),
        ))
        .await
        .with_context(|| format!("adding a container to {}", place.id()))?;
        Ok(())
    }

    pub async fn logs(&self, place: &Place) -> Result<String> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &place.namespace);
        let params = LogParams {
            container: Some(place.container.clone()),
            tail_lines: Some(40),
            ..LogParams::default()
        };
        limited(api.logs(&place.pod, &params))
            .await
            .with_context(|| format!("reading the log of {}", place.id()))
    }

    /// Runs a program in a container and waits for its end, at most `limit`.
    pub async fn exec(&self, place: &Place, command: &[String], limit: Duration) -> Result<Ended> {
        let what = || format!("`{}` in {}", command.join(" "), place.id());
        match timeout(limit, self.exec_unbounded(place, command)).await {
            Ok(ended) => ended.with_context(what),
            Err(_) => bail!("{} took longer than {} s", what(), limit.as_secs()),
        }
    }

    async fn exec_unbounded(&self, place: &Place, command: &[String]) -> Result<Ended> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &place.namespace);
        let params = AttachParams::default()
            .stdout(true)
            .stderr(true)
            .container(&place.container);
        let mut process = api.exec(&place.pod, command.iter(), &params).await?;
        let mut stdout = process.stdout().context("no standard output")?;
        let mut stderr = process.stderr().context("no standard error")?;
        let status = process.take_status().context("no status")?;
        let (mut said, mut complained) = (Vec::new(), Vec::new());
        // Both at once: a full pipe would hold up the other.
        let (read, complaint, status) = tokio::join!(
            stdout.read_to_end(&mut said),
            stderr.read_to_end(&mut complained),
            status
        );
        read.context("reading standard output")?;
        complaint.context("reading standard error")?;
        let status = status.context("the connection ended before the program")?;
        let status = serde_json::to_value(status)?;
        Ok(Ended {
            code: exit_code(&status)?,
            stdout: String::from_utf8_lossy(&said).into_owned(),
            stderr: String::from_utf8_lossy(&complained).into_owned(),
        })
    }

    fn api(&self, kind: &str, namespace: Option<&str>) -> Result<Api<DynamicObject>> {
        let resource = resource(kind)?;
        Ok(match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        })
    }
}

/// Group, version and plural of the kinds that the suite touches.
fn resource(kind: &str) -> Result<ApiResource> {
    let (group, version, plural) = match kind {
        "Namespace" => ("", "v1", "namespaces"),
        "Node" => ("", "v1", "nodes"),
        "Pod" => ("", "v1", "pods"),
        "Service" => ("", "v1", "services"),
        "ServiceAccount" => ("", "v1", "serviceaccounts"),
        "Secret" => ("", "v1", "secrets"),
        "ConfigMap" => ("", "v1", "configmaps"),
        "Event" => ("", "v1", "events"),
        "EndpointSlice" => ("discovery.k8s.io", "v1", "endpointslices"),
        "DaemonSet" => ("apps", "v1", "daemonsets"),
        "Lease" => ("coordination.k8s.io", "v1", "leases"),
        "ClusterRole" => ("rbac.authorization.k8s.io", "v1", "clusterroles"),
        "CustomResourceDefinition" => ("apiextensions.k8s.io", "v1", "customresourcedefinitions"),
        "EgressNode" => ("sallyport.dev", "v1alpha1", "egressnodes"),
        "EgressLockdown" => ("sallyport.dev", "v1alpha1", "egresslockdowns"),
        "VirtualGateway" => ("sallyport.dev", "v1alpha1", "virtualgateways"),
        "ExternalService" => ("sallyport.dev", "v1alpha1", "externalservices"),
        "AccessPolicy" => ("sallyport.dev", "v1alpha1", "accesspolicies"),
        _ => bail!("the suite knows no {kind}"),
    };
    let kind = GroupVersionKind::gvk(group, version, kind);
    Ok(ApiResource::from_gvk_with_plural(&kind, plural))
}

async fn limited<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T> {
    match timeout(REQUEST_LIMIT, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => bail!("no answer for {} s", REQUEST_LIMIT.as_secs()),
    }
}

pub fn is_not_found(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(kube::Error::Api(status)) if status.code == 404)
}

/// What a program ended with, from the status that ends an exec.
fn exit_code(status: &Value) -> Result<i32> {
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array();
    causes
        .into_iter()
        .flatten()
        .find(|cause| cause["reason"] == "ExitCode")
        .and_then(|cause| cause["message"].as_str()?.parse().ok())
        .with_context(|| format!("it could not be run: {}", status["message"]))
}

/// Looks again and again until there is something, at most for `limit`; what was seen last is part
/// of the error.
pub async fn until<T, F>(what: &str, limit: Duration, mut look: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Seen<T>>>,
{
    let deadline = Instant::now() + limit;
    loop {
        let last = match look().await {
            Ok(Seen::There(found)) => return Ok(found),
            Ok(Seen::NotYet(last)) => last,
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() > deadline {
            bail!("{what}: not within {} s; {last}", limit.as_secs());
        }
        sleep(LOOK).await;
    }
}

/// One look at something that is waited for.
#[derive(Debug)]
pub enum Seen<T> {
    There(T),
    /// How it is instead.
    NotYet(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_exit_code_is_among_the_causes() {
        assert_eq!(exit_code(&json!({ "status": "Success" })).unwrap(), 0);
        let failed = json!({
            "status": "Failure", "reason": "NonZeroExitCode",
            "details": { "causes": [{ "reason": "ExitCode", "message": "2" }] },
        });
        assert_eq!(exit_code(&failed).unwrap(), 2);
        let none = json!({ "status": "Failure", "message": "no such container" });
        let error = exit_code(&none).unwrap_err().to_string();
        assert!(error.contains("no such container"), "{error}");
    }

    #[test]
    fn kinds_have_their_own_plural() {
        let policies = resource("AccessPolicy").unwrap();
        assert_eq!(
            (policies.plural.as_str(), policies.api_version.as_str()),
            ("accesspolicies", "sallyport.dev/v1alpha1")
        );
        assert!(resource("Deployment").is_err());
    }

    #[tokio::test]
    async fn waiting_tells_what_was_seen_last() {
        let error = until::<(), _>("a pod", Duration::ZERO, || async {
            Ok(Seen::NotYet("it is Pending".into()))
        })
        .await
        .unwrap_err()
        .to_string();
        assert!(error.contains("it is Pending"), "{error}");
    }
}
