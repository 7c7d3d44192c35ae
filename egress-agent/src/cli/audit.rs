//! `audit`: what weakens the promise.

use std::process::ExitCode;

use anyhow::Result;
use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;

use super::input::{Input, Mesh};
use super::output::{Part, Table, View};
use super::{Globals, print};
use crate::compile::Settings;
use crate::gateway::compile;
use crate::index::Key;
use crate::risk::{Risk, Standing, assess};

/// Something weakens the promise, and the kernel layer does not make up for it.
const OPEN: u8 = 5;

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    input: Input,
    /// Range of pods beside those that Node objects name
    #[arg(long = "pod-cidr", value_name = "CIDR")]
    pod_cidrs: Vec<IpNet>,
    #[command(flatten)]
    mesh: Mesh,
    /// Leave out what the kernel layer makes up for
    #[arg(long)]
    open: bool,
}

pub(super) fn run(globals: &Globals, args: &Args) -> Result<ExitCode> {
    let (objects, index) = args.input.read()?;
    let settings = Settings {
        pod_cidrs: args.pod_cidrs.clone(),
        cluster_name: args.mesh.cluster_name.clone(),
        allow_any: args.mesh.allows_any(),
        ..Settings::default()
    };
    let declared = args.mesh.objects(&index);
    let (policy, _) = compile(&declared);
    let admits = |account: &Key| policy.admits(&account.namespace, &account.name);
    let mut risks = assess(&objects, &index, &settings, &admits, Timestamp::now());
    let open = risks
        .iter()
        .any(|risk| risk.standing != Standing::Neutralized);
    if args.open {
        risks.retain(|risk| risk.standing != Standing::Neutralized);
    }
    print(globals, &view(&risks)?)?;
    Ok(if open {
        ExitCode::from(OPEN)
    } else {
        ExitCode::SUCCESS
    })
}

fn view(risks: &[Risk]) -> Result<View> {
    let mut table = Table::new(&["STANDING", "RISK", "OBJECT", "+AT", "WHAT", "+ADVICE"]);
    for risk in risks {
        table.row(vec![
            risk.standing.to_string(),
            risk.kind.as_str().to_owned(),
            risk.object.clone(),
            risk.at.clone(),
            risk.text.clone(),
            risk.advice.clone(),
        ]);
    }
    let items = risks.iter().map(serde_json::to_value);
    let page = if risks.is_empty() {
        vec![Part::Text("nothing weakens the promise\n".to_owned())]
    } else {
        vec![Part::Table(table)]
    };
    Ok(View {
        kind: "RiskList",
        items: items.collect::<Result<_, _>>()?,
        page,
    })
}
