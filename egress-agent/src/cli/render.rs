//! What can be written from declared policy for others to use.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Args as ClapArgs, Subcommand};

use crate::gateway::envoy::{Bootstrap, FILES, files};
use crate::gateway::{ObjectName, SpiffeId};

/// What to render.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum Command {
    /// The bootstrap of a gateway's Envoy that gets everything else from the policy server
    Bootstrap(BootstrapArgs),
    /// Istio's own objects, so that its gateways ask nobody for each request; exit status 3 if
    /// something can't be said so
    Istio(super::render_istio::Args),
}

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct BootstrapArgs {
    /// The `VirtualGateway`
    #[arg(long, value_name = "NAMESPACE/NAME")]
    gateway: String,
    /// Host name or address of the policy server, and its port
    #[arg(
        long,
        value_name = "HOST:PORT",
        default_value = "sallyport-policy.sallyport-system.svc.cluster.local:9443"
    )]
    server: String,
    /// Who the policy server must prove to be
    #[arg(
        long,
        value_name = "SPIFFE ID",
        default_value = "spiffe://cluster.local/ns/sallyport-system/sa/sallyport-agent"
    )]
    server_id: String,
    /// Directory of tls.crt, tls.key and ca.crt, by the path that Envoy sees
    #[arg(long, value_name = "DIR", default_value = "/etc/sallyport/tls")]
    cert_dir: PathBuf,
    /// Directory of the three files, by the path that Envoy sees
    #[arg(long, value_name = "DIR", default_value = "/etc/envoy")]
    config_dir: PathBuf,
    /// Which file to print: Envoy starts with bootstrap.json, which names the others
    #[arg(long, value_name = "NAME", default_value = FILES[0], value_parser = FILES)]
    file: String,
    /// Port of Envoy's admin interface, on loopback only
    #[arg(long, value_name = "PORT")]
    admin_port: Option<u16>,
}

pub(super) fn run(command: &Command) -> Result<ExitCode> {
    let args = match command {
        Command::Bootstrap(args) => args,
        Command::Istio(args) => return super::render_istio::run(args),
    };
    let files = files(&read(args)?);
    let (_, text) = files
        .iter()
        .find(|(name, _)| *name == args.file)
        .with_context(|| format!("--file {}: there is no such file", args.file))?;
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn read(args: &BootstrapArgs) -> Result<Bootstrap> {
    let Some((namespace, name)) = args.gateway.split_once('/') else {
        bail!("--gateway {}: expected NAMESPACE/NAME", args.gateway);
    };
    let server = args.server.rsplit_once(':').and_then(|(host, port)| {
        let host = host.trim_matches(['[', ']']);
        Some((host.to_owned(), port.parse().ok()?)).filter(|_| !host.is_empty())
    });
    Ok(Bootstrap {
        gateway: ObjectName::new(namespace, name),
        server: server.with_context(|| format!("--server {}: expected HOST:PORT", args.server))?,
        server_id: SpiffeId::parse(&args.server_id)
            .with_context(|| format!("--server-id {}", args.server_id))?,
        cert_dir: args.cert_dir.clone(),
        config_dir: args.config_dir.clone(),
        admin_port: args.admin_port,
    })
}
