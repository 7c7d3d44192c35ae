//! `render istio`: the policy of files as Istio's own objects.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::{Result, bail};

use super::input::{Input, Mesh};
use crate::gateway::{GatewayObjects, compile, istio};

/// Something could not be rendered as it is written.
const REFUSED: u8 = 3;

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    input: Input,
    #[command(flatten)]
    mesh: Mesh,
    /// Render paths that are no whole ones, although Istio lets dot segments through that hide
    /// behind path parameters (`/v1/%2e%2e;/x` under `/v1/*`)
    #[arg(long)]
    accept_hidden_dot_segments: bool,
    /// Render what lets the gateways ask the policy server instead
    #[arg(long)]
    custom: bool,
    /// Name of the policy server in the mesh configuration
    #[arg(
        long,
        value_name = "NAME",
        default_value = "sallyport",
        requires = "custom"
    )]
    provider: String,
    /// Host name of the policy server's Service
    #[arg(
        long,
        value_name = "HOST",
        default_value = "sallyport-policy.sallyport-system.svc.cluster.local",
        requires = "custom"
    )]
    service: String,
    /// Port of that Service
    #[arg(long, value_name = "PORT", default_value_t = 9443, requires = "custom")]
    service_port: u16,
}

/// Writes the objects to stdout, and what could not be done as written to stderr.
pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let (_, index) = args.input.read()?;
    let objects = args.mesh.objects(&index);
    if objects.gateways.is_empty() {
        bail!("there is no VirtualGateway among the objects");
    }
    let (text, complaints) = if args.custom {
        (custom(args, &objects)?, Vec::new())
    } else {
        native(args, &objects)?
    };
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    for complaint in &complaints {
        eprintln!("egressctl: {complaint}");
    }
    Ok(if complaints.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(REFUSED)
    })
}

fn native(args: &Args, objects: &GatewayObjects<'_>) -> Result<(String, Vec<String>)> {
    let (policy, problems) = compile(objects);
    let options = istio::Options {
        accept_hidden_dot_segments: args.accept_hidden_dot_segments,
    };
    let rendered = istio::render(objects, &policy, options);
    let mut text = String::from(
        "# The mesh needs `pathNormalization: { normalization: DECODE_AND_MERGE_SLASHES }`.\n\
         # A gateway without the policy `default-deny` refuses nothing.\n",
    );
    let mut complaints = Vec::new();
    for problem in problems.iter().chain(&rendered.problems) {
        writeln!(text, "# {problem}")?;
        complaints.push(problem.to_string());
    }
    for document in &rendered.policies {
        text.push_str(&document.yaml()?);
    }
    Ok((text, complaints))
}

fn custom(args: &Args, objects: &GatewayObjects<'_>) -> Result<String> {
    let provider = istio::Provider {
        name: args.provider.clone(),
        service: args.service.clone(),
        port: args.service_port,
    };
    let mut text = String::from("# For the mesh configuration (ConfigMap `istio`, key `mesh`):\n");
    for line in provider.mesh_config().lines() {
        writeln!(text, "#   {line}")?;
    }
    for document in istio::custom(objects, &provider) {
        text.push_str(&document.yaml()?);
    }
    Ok(text)
}
