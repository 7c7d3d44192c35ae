//! Identities of the suite's mesh and of its outside host, made on the spot, as Secrets.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::objects::{self, ADMITTED, GATEWAY_ACCOUNT, Names, OTHER};
use crate::node::pki::Authority;
use crate::node::plan;

/// Service account of the agents, and the Secret that the chart looks for.
const AGENT: (&str, &str) = ("sallyport-agent", "sallyport-policy-tls");

/// A Secret for each pod that proves who it is.
pub fn secrets(names: &Names) -> Result<Vec<Value>> {
    let mesh = Authority::new("sallyport-e2e mesh")?;
    let world = Authority::new("sallyport-e2e outside")?;
    let outside = [("outside.crt".to_owned(), world.pem())];
    let own = nix::unistd::getuid().as_raw();
    let workload = |namespace: &str, account: &str, secret: &str| {
        let directory = tempfile::tempdir().context("a temporary directory")?;
        mesh.issue_workload(namespace, account, directory.path(), own)?;
        let mut files = files(directory.path())?;
        files.extend(outside.clone());
        anyhow::Ok(objects::secret(namespace, secret, &files))
    };
    let server = tempfile::tempdir().context("a temporary directory")?;
    world.issue_server(plan::OUTSIDE_NAME, server.path(), own)?;
    let held = names.held();
    Ok(vec![
        workload(&names.system(), AGENT.0, AGENT.1)?,
        workload(&names.gateway(), GATEWAY_ACCOUNT, "gateway-tls")?,
        workload(&held, ADMITTED, &format!("{ADMITTED}-tls"))?,
        workload(&held, OTHER, &format!("{OTHER}-tls"))?,
        objects::secret(&names.outside(), "outside-tls", &files(server.path())?),
    ])
}

fn files(directory: &Path) -> Result<Vec<(String, String)>> {
    ["tls.crt", "tls.key", "ca.crt"]
        .map(|name| {
            let path = directory.join(name);
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            Ok((name.to_owned(), text))
        })
        .into_iter()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_secret_holds_a_certificate_and_its_key() {
        let names = Names { prefix: "t".into() };
        for secret in secrets(&names).unwrap() {
            let name = secret["metadata"]["name"].as_str().unwrap();
            for file in ["tls.crt", "tls.key", "ca.crt"] {
                let text = secret["stringData"][file].as_str().unwrap();
                assert!(text.starts_with("-----BEGIN"), "{name} {file}");
            }
        }
    }
}
