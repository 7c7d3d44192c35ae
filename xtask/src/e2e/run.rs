//! The verb itself: what it is told, and how it begins and ends.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::signal::unix::{SignalKind, signal};

use super::cluster::Cluster;
use super::kind::{Cni, Kind};
use super::objects::{Image, Names};
use super::release::Release;
use super::report::{End, Format, Report};
use super::story::Settings;
use super::world::{Node, World};
use super::{cases, cleanup, release, story, world};
use crate::cmd::say;
use crate::image::Reference;
use crate::workspace::Workspace;

/// A run that takes longer hangs somewhere; it is ended and cleaned up.
const WHOLE: Duration = Duration::from_mins(40);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The agent's image, such as localhost/sallyport/agent:0.1.0
    #[arg(long, value_name = "REF", required_unless_present = "list")]
    pub image: Option<String>,
    /// Image that the agents are upgraded to under traffic; the same one if not given
    #[arg(long, value_name = "REF")]
    pub upgrade_image: Option<String>,
    /// The suite's own image (`cargo xtask image --e2e`)
    #[arg(long, value_name = "REF", default_value_t = Reference::own("e2e").to_string())]
    pub probe_image: String,
    /// An image with Envoy at /usr/local/bin/envoy; the suite's own if not given
    #[arg(long, value_name = "REF")]
    pub gateway_image: Option<String>,
    /// Never for images that are on the nodes already, or `IfNotPresent`
    #[arg(long, default_value = "IfNotPresent", value_parser = ["Never", "IfNotPresent", "Always"])]
    pub image_pull_policy: String,
    /// $KUBECONFIG or ~/.kube/config if not given
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's current context if not given
    #[arg(long)]
    pub context: Option<String>,
    /// Begin the names of all namespaces with this
    #[arg(long, default_value = "sallyport-e2e")]
    pub namespace_prefix: String,
    /// More values of the chart (YAML), such as podCIDRs where the CNI gives out addresses by itself
    #[arg(long, value_name = "FILE")]
    pub values: Option<PathBuf>,
    /// Pods that send from their first instruction on
    #[arg(long, default_value_t = 10)]
    pub starts: usize,
    /// Leave everything standing
    #[arg(long)]
    pub keep: bool,
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    /// Report only this case or group, such as bypass-udp or works; may be given several times
    #[arg(long, value_name = "CASE")]
    pub only: Vec<String>,
    /// List the cases
    #[arg(long)]
    pub list: bool,
    /// Make a kind cluster first, and delete it at the end
    #[arg(long)]
    pub kind: bool,
    /// Its network
    #[arg(long, value_enum, default_value_t = Cni::Kindnet, requires = "kind")]
    cni: Cni,
    /// Manifest of Calico or Cilium, which kind does not bring along
    #[arg(long, value_name = "FILE", requires = "kind")]
    pub cni_manifest: Option<PathBuf>,
    /// Image archives for the nodes of the kind cluster
    #[arg(long, value_name = "FILE", requires = "kind")]
    pub image_archive: Vec<PathBuf>,
}

/// Runs it; whether every chosen case went well and nothing is left in the cluster.
pub fn run(workspace: &Workspace, args: &Args) -> Result<bool> {
    if args.list {
        for case in cases::CASES {
            println!("{case}");
        }
        return Ok(true);
    }
    let unknown = cases::unknown(&args.only);
    if !unknown.is_empty() {
        bail!("no such case: {unknown:?}; --list has all");
    }
    let kind = args
        .kind
        .then(|| {
            let manifest = args.cni_manifest.as_deref();
            Kind::create(
                workspace,
                args.cni,
                manifest,
                &args.image_archive,
                args.keep,
            )
        })
        .transpose()?;
    let kubeconfig = match &kind {
        Some(kind) => Some(kind.kubeconfig().to_owned()),
        None => args.kubeconfig.clone(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(suite(workspace, args, kubeconfig))
}

async fn suite(workspace: &Workspace, args: &Args, kubeconfig: Option<PathBuf>) -> Result<bool> {
    let settings = settings(args)?;
    let names = Names {
        prefix: args.namespace_prefix.clone(),
    };
    let context = args.context.as_deref();
    let cluster = Cluster::connect(kubeconfig.as_deref(), context).await?;
    let server = cluster.version().await?;
    let nodes = nodes(&cluster).await?;
    let image = |reference: &str| Image {
        reference: reference.to_owned(),
        pull_policy: args.image_pull_policy.clone(),
    };
    let world = World {
        release: Release::new(workspace, kubeconfig.as_deref(), context, &names.system())?,
        cluster,
        names,
        probe: image(&args.probe_image),
        gateway: image(args.gateway_image.as_ref().unwrap_or(&args.probe_image)),
        nodes,
    };
    say(
        "e2e",
        format_args!("Kubernetes {server}, {} nodes", world.nodes.len()),
    );
    world.refuse_to_disturb().await?;
    let definitions = !definitions_are_there(&world).await?;
    if remains(&world).await? {
        say("e2e", "an earlier run has left something");
        let left = cleanup::all(&world, &settings, false).await;
        if !left.is_empty() {
            bail!(
                "an earlier run's remains can't be removed: {}",
                left.join("; ")
            );
        }
    }

    let mut report = Report::new(&args.only, args.output);
    let error = tokio::select! {
        told = tokio::time::timeout(WHOLE, story::tell(&world, &settings, &mut report)) => {
            match told {
                Ok(told) => told.err(),
                Err(_) => Some(anyhow!("not done within {} minutes", WHOLE.as_secs() / 60)),
            }
        }
        signal = interrupted() => Some(signal.map_or_else(|e| e, |name| anyhow!("{name}"))),
    };
    if let Some(error) = &error {
        say("e2e", format_args!("ended early: {error:#}"));
    }
    let left = if args.keep {
        say(
            "e2e",
            format_args!(
                "kept: namespaces {}-*, release {}; the next run with this prefix removes them first",
                world.names.prefix,
                release::NAME
            ),
        );
        Vec::new()
    } else {
        tokio::select! {
            left = cleanup::all(&world, &settings, definitions) => left,
            _ = interrupted() => vec![format!(
                "interrupted while cleaning up: namespaces {}-*, release {} (the next run removes them)",
                world.names.prefix, release::NAME
            )],
        }
    };
    let end = End {
        server,
        nodes: world.nodes.len(),
        error,
        left,
    };
    report.finish(&end)
}

fn settings(args: &Args) -> Result<Settings> {
    let values = match &args.values {
        // What is given with --cni has its default there, and kindnet none.
        None => args.cni.values(),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            serde_yaml_ng::from_str(&text)
                .with_context(|| format!("{} is no YAML", path.display()))?
        }
    };
    Ok(Settings {
        image: args.image.clone().context("--image is missing")?,
        upgrade_image: args.upgrade_image.clone(),
        pull_policy: args.image_pull_policy.clone(),
        values,
        starts: args.starts,
    })
}

/// Ready nodes by name. A control plane's taint does not matter: every pod here tolerates all.
async fn nodes(cluster: &Cluster) -> Result<Vec<Node>> {
    let objects = cluster.list("Node", "", "").await?;
    let mut nodes: Vec<Node> = objects
        .iter()
        .filter(|node| world::is_ready(node))
        .map(Node::read)
        .collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    if nodes.is_empty() {
        bail!("the cluster has no Ready node");
    }
    Ok(nodes)
}

async fn definitions_are_there(world: &World) -> Result<bool> {
    let name = "egresslockdowns.sallyport.dev";
    let definition = world
        .cluster
        .get("CustomResourceDefinition", "", name)
        .await?;
    Ok(definition.is_some())
}

async fn remains(world: &World) -> Result<bool> {
    for name in world.names.namespaces() {
        if world.cluster.get("Namespace", "", &name).await?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Waits for Ctrl-C or its kin, and says which.
async fn interrupted() -> Result<&'static str> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    let mut hang_up = signal(SignalKind::hangup()).context("cannot wait for signals")?;
    Ok(tokio::select! {
        _ = interrupt.recv() => "interrupted",
        _ = terminate.recv() => "terminated",
        _ = hang_up.recv() => "hung up",
    })
}
