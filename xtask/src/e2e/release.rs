//! The release of the chart in the cluster.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

use crate::tools::helm;
use crate::workspace::Workspace;

const SCRIPT: &str = include_str!("release.py");
/// Name of the release.
pub const NAME: &str = "sallyport";
/// Helm does not wait for pods, so it is done soon.
const LIMIT: Duration = Duration::from_mins(2);

/// The chart, and how to reach the cluster with Helm.
#[derive(Clone, Debug)]
pub struct Release {
    chart: PathBuf,
    library: PathBuf,
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
    namespace: String,
}

impl Release {
    /// Gets Helm first where it is missing.
    pub fn new(
        workspace: &Workspace,
        kubeconfig: Option<&Path>,
        context: Option<&str>,
        namespace: &str,
    ) -> Result<Self> {
        Ok(Self {
            chart: workspace.root.join("deploy/helm/sallyport"),
            library: helm::ensure(workspace)?,
            kubeconfig: kubeconfig.map(Path::to_owned),
            context: context.map(str::to_owned),
            namespace: namespace.to_owned(),
        })
    }

    /// What Helm says of the release: `deployed`.
    pub async fn install(&self, values: &Value) -> Result<String> {
        let answer = self.ask("install", values).await?;
        Ok(state(&answer))
    }

    /// These values and no others.
    pub async fn upgrade(&self, values: &Value) -> Result<String> {
        let answer = self.ask("upgrade", values).await?;
        Ok(state(&answer))
    }

    /// Fine if there is none.
    pub async fn uninstall(&self) -> Result<()> {
        self.ask("uninstall", &Value::Null).await?;
        Ok(())
    }

    async fn ask(&self, what: &str, values: &Value) -> Result<Value> {
        let question = json!({
            "do": what,
            "name": NAME,
            "chart": self.chart,
            "values": values,
            "namespace": self.namespace,
            "kubeconfig_path": self.kubeconfig,
            "kube_context": self.context,
        });
        let mut child = Command::new("python3")
            .args(["-c", SCRIPT])
            .env("PYTHONPATH", &self.library)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A release that is left half-written by Ctrl-C can still be removed.
            .kill_on_drop(true)
            .spawn()
            .context("starting python3")?;
        let mut stdin = child.stdin.take().expect("stdin was piped above");
        stdin.write_all(question.to_string().as_bytes()).await?;
        drop(stdin);
        let Ok(output) = timeout(LIMIT, child.wait_with_output()).await else {
            bail!("helm {what}: not done within {} s", LIMIT.as_secs());
        };
        let output = output?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            // The last line of Python's traceback is Helm's own words.
            bail!("helm {what}: {}", said.trim().lines().last().unwrap_or("?"));
        }
        serde_json::from_slice(&output.stdout).context("Helm's answer is not JSON")
    }
}

/// The state of a release in Helm's answer, which has had several forms.
fn state(answer: &Value) -> String {
    [&answer["status"], &answer["info"]["status"]]
        .into_iter()
        .find_map(Value::as_str)
        .unwrap_or("unknown")
        .to_owned()
}
