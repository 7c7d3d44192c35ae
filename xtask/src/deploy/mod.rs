//! The `manifests` verb: plain manifests for kustomize, rendered from the chart, so that there is
//! one truth about how the agent runs.

pub mod chart;

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{cmd::say, workspace::Workspace};
use chart::{Chart, NAMESPACE};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write nothing; say what differs, and fail if something does
    #[arg(long)]
    pub check: bool,
}

/// Returns whether what is checked in is what the chart says; without `--check` it is made so.
pub fn run(workspace: &Workspace, args: &Args) -> Result<bool> {
    let folder = workspace.root.join("deploy/kustomize");
    let mut same = true;
    for (name, text) in files(&Chart::open(workspace)?)? {
        let path = folder.join(&name);
        if fs::read_to_string(&path).is_ok_and(|there| there == text) {
            continue;
        }
        same = false;
        let path = path.as_path();
        if args.check {
            say(
                "manifests",
                format_args!("differs: {}", workspace.display(path)),
            );
        } else {
            fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
            fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
            say("manifests", format_args!("{}", workspace.display(path)));
        }
    }
    if args.check && !same {
        say(
            "manifests",
            "run `cargo xtask manifests` and check in what it writes",
        );
    }
    Ok(same || !args.check)
}

/// Every file below `deploy/kustomize`, by its path there.
pub fn files(chart: &Chart) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {
            "name": NAMESPACE,
            "labels": {
                "app.kubernetes.io/name": "sallyport",
                // The agent is in the node's network and mounts its file systems.
                "pod-security.kubernetes.io/enforce": "privileged",
            },
        },
    });
    put(
        &mut files,
        "common/namespace.yaml",
        &serde_yaml_ng::to_string(&namespace)?,
    );
    let plain = chart.render(&json!({}))?;
    take(
        &mut files,
        "common",
        &plain,
        &["crds", "rbac", "serviceaccount"],
    )?;
    let below = [
        "namespace.yaml",
        "crds.yaml",
        "rbac.yaml",
        "serviceaccount.yaml",
    ];
    kustomization(&mut files, "common", &below);

    take(&mut files, "base", &plain, &["daemonset"])?;
    kustomization(&mut files, "base", &["../common", "daemonset.yaml"]);

    let policy = chart.render(&json!({
        "policyServer": { "enabled": true },
        "metrics": { "tls": { "enabled": true } },
    }))?;
    take(
        &mut files,
        "policy-server",
        &policy,
        &["daemonset", "service"],
    )?;
    let below = ["../common", "daemonset.yaml", "service.yaml"];
    kustomization(&mut files, "policy-server", &below);

    let uninstall = chart.render(&json!({ "uninstall": true }))?;
    take(
        &mut files,
        "uninstall",
        &uninstall,
        &["daemonset", "uninstall"],
    )?;
    let below = ["../common", "daemonset.yaml", "uninstall.yaml"];
    kustomization(&mut files, "uninstall", &below);

    let on = json!({ "enabled": true });
    let monitoring = chart.render(&json!({
        "metrics": { "tls": on, "podMonitor": on, "alerts": on, "dashboard": on },
    }))?;
    let below = ["podmonitor", "alerts", "dashboard"];
    take(&mut files, "monitoring", &monitoring, &below)?;
    let below = ["podmonitor.yaml", "alerts.yaml", "dashboard.yaml"];
    kustomization(&mut files, "monitoring", &below);
    Ok(files)
}

fn put(files: &mut BTreeMap<String, String>, name: &str, text: &str) {
    let text = format!(
        "# Rendered by `cargo xtask manifests` from deploy/helm/sallyport.\n{}\n",
        text.trim()
    );
    files.insert(name.to_owned(), text);
}

fn take(
    files: &mut BTreeMap<String, String>,
    folder: &str,
    rendered: &BTreeMap<String, String>,
    names: &[&str],
) -> Result<()> {
    for name in names {
        let name = format!("{name}.yaml");
        let text = rendered
            .get(&name)
            .filter(|text| !text.trim().is_empty())
            .with_context(|| format!("the chart makes no {name}"))?;
        // Not by Helm: it would take them for its own.
        let lines = text.lines().filter(|line| {
            let line = line.trim();
            line != "app.kubernetes.io/managed-by: Helm"
        });
        let text: Vec<&str> = lines.map(str::trim_end).collect();
        put(files, &format!("{folder}/{name}"), text.join("\n").trim());
    }
    Ok(())
}

fn kustomization(files: &mut BTreeMap<String, String>, folder: &str, resources: &[&str]) {
    let value = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": resources,
    });
    let text = serde_yaml_ng::to_string(&value).expect("JSON is YAML");
    put(files, &format!("{folder}/kustomization.yaml"), &text);
}

/// The documents of a YAML text, empty ones left out.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    use serde::Deserialize as _;
    let mut documents = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let value = Value::deserialize(document)?;
        if !value.is_null() {
            documents.push(value);
        }
    }
    Ok(documents)
}
