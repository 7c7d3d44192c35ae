//! The `vm` verb: other kernels, booted in QEMU, and whether they hold what is promised of them.

pub mod guest;
mod initramfs;
mod kernels;
mod machine;
mod plan;
mod report;
mod tasks;

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::cmd::say;
use crate::workspace::Workspace;
use initramfs::Initramfs;
use kernels::{Kernel, Series};
use machine::{Accel, Failed, Told};
use report::{Report, Row};
use tasks::Programs;

const STEP: &str = "vm";
/// Bound of one machine's life.
const LIMIT: Duration = Duration::from_mins(15);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Kernels and what was seen of them: see KERNELS.md. Machines are emulated unless KVM \
                        is there and works. Kernels are kept in the tools directory; remove its `kernels` to get newer ones."
)]
pub struct Args {
    /// Only this one (5.10, 6.1, 6.12, 6.18, newest); may be given several times
    #[arg(long = "kernel", value_name = "SERIES")]
    pub kernels: Vec<String>,

    /// Print what was seen as JSON
    #[arg(long)]
    pub json: bool,

    /// Write the support table to KERNELS.md; of all kernels only
    #[arg(long, conflicts_with = "kernels")]
    pub write: bool,
}

/// Tries the kernels; whether each is as the support table says.
pub fn run(workspace: &Workspace, args: &Args) -> Result<bool> {
    let all = chosen(&args.kernels)?;
    if std::env::consts::ARCH != "x86_64" {
        bail!("the kernels that are tried are those of x86-64");
    }
    let qemu = kernels::qemu(workspace)?;
    let programs = Programs::build(workspace)?;
    let logs = workspace.tools.join("logs");
    fs::create_dir_all(&logs).with_context(|| format!("creating {}", logs.display()))?;
    let mut accel = Accel::guess();
    let mut report = Report::default();
    for series in &all {
        let kernel = kernels::ensure(workspace, series)?;
        let row = loop {
            say(
                STEP,
                format_args!("booting {} ({})", kernel.release, accel.name()),
            );
            let initramfs = root(&kernel, series, &programs)?;
            let log = machine::log(&logs, series.name);
            let told = machine::run(
                &qemu,
                &kernel,
                initramfs.write()?,
                accel,
                LIMIT,
                &log,
                |it| {
                    say(STEP, format_args!("{}: {} s", it.name, it.seconds));
                },
            );
            match told {
                Err(Failed::Boot(error)) if accel == Accel::Kvm => {
                    say(
                        STEP,
                        format_args!("KVM does not work here ({error:#}): emulating"),
                    );
                    accel = Accel::Tcg;
                }
                told => break row(series, &kernel, told),
            }
        };
        report.rows.push(row);
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    if args.write {
        let path = workspace.root.join("KERNELS.md");
        fs::write(&path, report.markdown()?)
            .with_context(|| format!("writing {}", path.display()))?;
        say(STEP, format_args!("wrote {}", workspace.display(&path)));
    }
    Ok(report.ok())
}

fn chosen(names: &[String]) -> Result<Vec<Series>> {
    if names.is_empty() {
        return Ok(Series::ALL.into());
    }
    let named = |name: &String| {
        Series::named(name).with_context(|| {
            let known: Vec<&str> = Series::ALL.iter().map(|series| series.name).collect();
            format!("no kernel {name}; there are {}", known.join(", "))
        })
    };
    names.iter().map(named).collect()
}

fn root(kernel: &Kernel, series: &Series, programs: &Programs) -> Result<Initramfs> {
    let mut root = Initramfs::default();
    programs.put(&mut root)?;
    root.modules(kernel)?;
    let plan = serde_json::to_vec(&programs.tasks(series.support))?;
    root.file(plan::PLAN, plan);
    Ok(root)
}

fn row(series: &Series, kernel: &Kernel, told: Result<Told, Failed>) -> Row {
    match told {
        Ok(told) => report::judge(series, &told),
        Err(Failed::Boot(error) | Failed::Work(error)) => Row {
            kernel: series.name.to_owned(),
            release: kernel.release.clone(),
            expected: series.support.to_string(),
            cells: Vec::new(),
            remark: format!("{error:#}"),
            ok: false,
        },
    }
}
