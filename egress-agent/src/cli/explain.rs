//! `explain`: may this pod reach that, who decides, and what to change.

use std::collections::BTreeMap;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args as ClapArgs;
use egress_common::maps::{Endpoint, FLAG_HOST_NETWORK};

use super::output::{Part, Table, View, values};
use super::pods::{self, Coverage};
use super::snapshot::Snapshot;
use super::{Globals, print};
use crate::datapath::pinned::Pinned;
use crate::explain::kernel::PodView;
use crate::explain::{self, Answer, Evidence, Step, Target};
use crate::policy_server::query::{self, Question};

/// Exit statuses of the verb.
const DENIED: u8 = 3;
const UNKNOWN: u8 = 4;

#[derive(Clone, Debug, ClapArgs)]
pub(super) struct Args {
    /// The pod that asks
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pod: String,
    /// What it wants: `https://host/path`, `http://host:port/path`, `tcp://host:port`,
    /// `udp://host:port` or `icmp://host`
    #[arg(long, value_name = "URL")]
    to: Target,
    /// Method of the request
    #[arg(long, default_value = "GET")]
    method: String,
    /// A header of the request; may be given several times
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// Address of the host, in place of asking this node's DNS; may be given several times
    #[arg(long = "resolve", value_name = "HOST=ADDRESS", value_parser = resolved)]
    resolve: Vec<(String, IpAddr)>,
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_ascii_lowercase(), value.to_owned()))
}

fn resolved(text: &str) -> Result<(String, IpAddr), String> {
    let (host, address) = text.split_once('=').ok_or("expected HOST=ADDRESS")?;
    let address = address
        .parse()
        .map_err(|_| "expected an IP address after `=`")?;
    Ok((host.to_owned(), address))
}

pub(super) fn run(globals: &Globals, args: &Args) -> Result<ExitCode> {
    let Some((namespace, name)) = args.pod.split_once('/') else {
        bail!("--pod {}: expected NAMESPACE/NAME", args.pod);
    };
    let snapshot = Snapshot::read(globals)?;
    let all = pods::pods(&snapshot);
    let pod = all
        .iter()
        .find(|pod| pod.namespace == namespace && pod.name == name && pod.slot != 0);
    let view = match pod.and_then(|pod| endpoint(&snapshot, pod)) {
        Some(endpoint) => {
            let host_network = endpoint.flags & FLAG_HOST_NETWORK != 0;
            let pinned = Pinned::open(&globals.bpffs)?;
            Some(PodView::read(&pinned, endpoint, host_network)?)
        }
        None => None,
    };
    let question = Question {
        namespace: namespace.to_owned(),
        pod: name.to_owned(),
        scheme: args.to.scheme.clone(),
        host: args.to.host.clone(),
        port: args.to.port,
        method: args.method.clone(),
        path: args.to.path.clone(),
        headers: args.headers.clone(),
    };
    let policy = query::ask(&globals.run_dir, &question).ok();
    let addresses = addresses(args);
    let policy_number = view.as_ref().map_or(0, |view| view.endpoint.policy);
    let rules: BTreeMap<u16, String> = snapshot
        .rules
        .iter()
        .filter(|((policy, _), _)| *policy == policy_number)
        .map(|((_, rule), text)| (*rule, text.clone()))
        .collect();
    let uncovered = pod
        .filter(|pod| pod.coverage == Coverage::Uncovered)
        .map(|pod| pod.problem.as_deref().unwrap_or("no hook stands"));
    let answer = explain::explain(&Evidence {
        pod: &args.pod,
        target: &args.to,
        addresses: &addresses,
        view: view.as_ref(),
        uncovered,
        rules: &rules,
        policy: policy.as_ref(),
    });
    print(globals, &view_of(&answer))?;
    Ok(match answer.result {
        explain::Result::Allowed => ExitCode::SUCCESS,
        explain::Result::Denied => ExitCode::from(DENIED),
        explain::Result::Unknown => ExitCode::from(UNKNOWN),
    })
}

/// What decides about the pod's packets.
fn endpoint(snapshot: &Snapshot, pod: &pods::Pod) -> Option<Endpoint> {
    let of_slot = |endpoint: &&Endpoint| endpoint.slot == pod.slot;
    let device = snapshot.devices.values().find(of_slot);
    device
        .or_else(|| snapshot.cgroups.values().find(of_slot))
        .copied()
}

fn addresses(args: &Args) -> Vec<IpAddr> {
    let host = &args.to.host;
    let given: Vec<IpAddr> = args
        .resolve
        .iter()
        .filter(|(name, _)| name == host)
        .map(|(_, address)| *address)
        .collect();
    if !given.is_empty() {
        return given;
    }
    let found = (host.as_str(), args.to.port)
        .to_socket_addrs()
        .context("no address");
    let mut addresses: Vec<IpAddr> = found.into_iter().flatten().map(|it| it.ip()).collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

/// The answer for people and programs.
pub(super) fn view_of(answer: &Answer) -> View {
    let mut page = vec![Part::Text(format!("{}\n", answer.summary))];
    let mut kernel = Table::new(&["LAYER", "DESTINATION", "VERDICT", "REASON", "RULE"]);
    let mut row = |layer: &str, step: &Step| {
        kernel.row(vec![
            layer.to_owned(),
            step.destination.clone(),
            step.verdict.to_owned(),
            step.reason.to_owned(),
            step.rule.clone().unwrap_or_default(),
        ]);
    };
    for step in &answer.kernel.direct {
        row("kernel, straight", step);
    }
    for step in &answer.kernel.to_gateways {
        row("kernel, to the gateway", step);
    }
    page.push(Part::Table(kernel));
    if answer.gateway.asked {
        page.push(Part::Table(gateway_table(answer)));
        for rejected in &answer.gateway.rejected {
            page.push(Part::Text(format!(
                "A gateway has refused its latest configuration and runs on older: {rejected}\n"
            )));
        }
    }
    if !answer.change.is_empty() {
        let lines: Vec<String> = answer
            .change
            .iter()
            .map(|line| format!("  - {line}\n"))
            .collect();
        page.push(Part::Text(format!("What to change:\n{}", lines.concat())));
    }
    View {
        kind: "Explanation",
        items: values(std::slice::from_ref(answer)),
        page,
    }
}

fn gateway_table(answer: &Answer) -> Table {
    let mut table = Table::new(&[
        "GATEWAY",
        "+LISTENER",
        "ASKED AS",
        "VERDICT",
        "REASON",
        "DECIDED BY",
        "DRY-RUN",
    ]);
    for way in &answer.gateway.ways {
        let word = |allowed| if allowed { "allowed" } else { "denied" };
        let by = way.object.clone().or_else(|| way.service.clone());
        table.row(vec![
            way.gateway.clone(),
            way.listener.to_string(),
            way.ask.clone(),
            word(way.allowed).to_owned(),
            way.reason.clone(),
            by.unwrap_or_default(),
            way.dry_run.map(word).unwrap_or_default().to_owned(),
        ]);
    }
    table
}
