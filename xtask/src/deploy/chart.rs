//! The chart, rendered and checked by Helm itself.

use std::{
    collections::BTreeMap,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{tools::helm, workspace::Workspace};

const SCRIPT: &str = include_str!("helm.py");
/// Where everything of a release lives that has a namespace; part of the agents' SPIFFE ID.
pub const NAMESPACE: &str = "sallyport-system";

/// `deploy/helm/sallyport`, and the library to render it with.
#[derive(Debug)]
pub struct Chart {
    path: PathBuf,
    library: PathBuf,
}

impl Chart {
    /// Gets Helm first where it is missing.
    pub fn open(workspace: &Workspace) -> Result<Self> {
        Ok(Self {
            path: workspace.root.join("deploy/helm/sallyport"),
            library: helm::ensure(workspace)?,
        })
    }

    /// Name of each template (`daemonset.yaml`) to what comes of it with these values.
    ///
    /// # Errors
    /// With Helm's own words: values that the schema refuses, templates that don't render.
    pub fn render(&self, values: &Value) -> Result<BTreeMap<String, String>> {
        let answer = self.ask(&json!({ "do": "render", "values": values }))?;
        let all: BTreeMap<String, String> = serde_json::from_value(answer)?;
        Ok(all
            .into_iter()
            .map(|(path, text)| {
                let name = path.rsplit('/').next().unwrap_or(&path).to_owned();
                (name, text)
            })
            .collect())
    }

    /// What `helm lint --strict` finds for an API server of this version (`v1.28.0`): warnings and
    /// errors.
    pub fn lint(&self, values: &Value, kube_version: &str) -> Result<Vec<String>> {
        let answer = self.ask(&json!({
            "do": "lint", "values": values, "kubeVersion": kube_version,
        }))?;
        let findings = answer["messages"].as_array().into_iter().flatten();
        // 1 is "info", such as that a chart has no icon.
        let grave = findings.filter(|finding| finding["severity"].as_i64() != Some(1));
        let mut found: Vec<String> = grave.map(ToString::to_string).collect();
        let errors = answer["errors"].as_array().into_iter().flatten();
        found.extend(errors.map(ToString::to_string));
        Ok(found)
    }

    fn ask(&self, question: &Value) -> Result<Value> {
        let mut question = question.clone();
        question["chart"] = self.path.display().to_string().into();
        question["namespace"] = NAMESPACE.into();
        let mut child = Command::new("python3")
            .args(["-c", SCRIPT])
            .env("PYTHONPATH", &self.library)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting python3")?;
        let mut stdin = child.stdin.take().expect("stdin was piped above");
        stdin.write_all(question.to_string().as_bytes())?;
        drop(stdin);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("Helm: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::from_slice(&output.stdout).context("Helm's answer is not JSON")
    }
}
