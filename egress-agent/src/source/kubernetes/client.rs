//! A client of the API server, from a kubeconfig or from a pod's service account.

use std::path::Path;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use super::error::ConnectError;

/// A connection stands in so long, or is tried again.
const CONNECT: Duration = Duration::from_secs(10);

/// With a file that one; else what `$KUBECONFIG` names; else, in a pod, its service account, whose
/// token is read again as it is renewed; else `~/.kube/config`.
///
/// # Errors
/// If there is none of them, or it can't be read. The API server is not asked yet.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, ConnectError> {
    let options = KubeConfigOptions::default();
    let mut config = if let Some(file) = kubeconfig {
        let explain = |error| ConnectError::Kubeconfig {
            file: file.display().to_string(),
            error,
        };
        let kubeconfig = Kubeconfig::read_from(file).map_err(explain)?;
        Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .map_err(explain)?
    } else if let Some(file) = std::env::var_os("KUBECONFIG") {
        let explain = |error| ConnectError::Kubeconfig {
            file: file.display().to_string(),
            error,
        };
        Config::from_kubeconfig(&options).await.map_err(explain)?
    } else {
        match Config::incluster() {
            Ok(config) => config,
            Err(in_cluster) => Config::from_kubeconfig(&options)
                .await
                .map_err(|error| ConnectError::Nothing(error, in_cluster))?,
        }
    };
    config.connect_timeout = Some(CONNECT);
    // Each watch waits and tries again by itself, and tells.
    config.default_retry = false;
    let server = config.cluster_url.to_string();
    Client::try_from(config).map_err(|error| ConnectError::Client { server, error })
}
