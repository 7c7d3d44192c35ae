//! The `vm` verb: other kernels, booted in QEMU, and whether they hold what is promised of them.

mod debian_root;
pub mod guest;
mod initramfs;
mod kernels;
mod machine;
mod page;
mod plan;
mod report;
mod tasks;

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::cmd::say;
use crate::image::Arch;
use crate::workspace::Workspace;
use initramfs::Initramfs;
use kernels::{Kernel, Series};
use machine::{Accel, Failed, Told};
use report::{Report, Row};
use tasks::Programs;

const STEP: &str = "vm";
/// Bound of one machine's life.
const LIMIT: Duration = Duration::from_mins(15);
/// The same where another architecture is emulated.
const FOREIGN_LIMIT: Duration = Duration::from_mins(30);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Kernels and what was seen of them: see KERNELS.md. Machines are emulated unless KVM \
                        is there and works. Kernels are kept in the tools directory; remove its `kernels` to get newer ones."
)]
pub struct Args {
    /// Architecture of the machines [default: this machine's]
    #[arg(long, value_enum)]
    pub arch: Option<Arch>,

    /// Only this one (5.10, 6.1, 6.12, 6.18, newest); may be given several times
    #[arg(long = "kernel", value_name = "SERIES")]
    pub kernels: Vec<String>,

    /// Print what was seen as JSON
    #[arg(long)]
    pub json: bool,

    /// Write what was seen to KERNELS.md, as its section of the architecture
    #[arg(long)]
    pub write: bool,
}

/// Tries the kernels; whether each is as the support table says.
pub fn run(workspace: &Workspace, args: &Args) -> Result<bool> {
    let all = chosen(&args.kernels)?;
    let arch = args.arch.map_or_else(Arch::of_this_machine, Ok)?;
    let qemu = kernels::qemu(workspace, arch)?;
    let programs = Programs::build(workspace, arch)?;
    let logs = workspace.tools.join("logs");
    fs::create_dir_all(&logs).with_context(|| format!("creating {}", logs.display()))?;
    let mut accel = Accel::guess(arch);
    let mut report = Report::default();
    for series in &all {
        let kernel = kernels::ensure(workspace, series, arch)?;
        let row = loop {
            say(
                STEP,
                format_args!("booting {} ({})", kernel.release, accel.name()),
            );
            let initramfs = root(&kernel, series, &programs)?;
            let log = machine::log(&logs, &series.file_name(arch));
            let told = machine::run(
                &qemu,
                &kernel,
                initramfs.write()?,
                accel,
                if arch.is_here() { LIMIT } else { FOREIGN_LIMIT },
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
        let old = fs::read_to_string(&path).unwrap_or_default();
        fs::write(&path, page::renew(&old, arch, &report.markdown()?))
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
