//! Inside the machine: the first process.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

use super::plan::{Done, MARK, PLAN, TAIL, Task, Word};

/// Carries out the plan and powers the machine off.
pub fn run() -> Result<()> {
    if std::process::id() != 1 {
        bail!("this is the first process of a machine, and nothing else");
    }
    if let Err(error) = work() {
        tell(&Word::Broken {
            why: format!("{error:#}"),
        });
    }
    let _ = std::io::stdout().flush();
    nix::unistd::sync();
    reboot(RebootMode::RB_POWER_OFF).context("cannot power off")?;
    unreachable!("the machine is off")
}

fn work() -> Result<()> {
    set_up()?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    tell(&Word::Up {
        release: release.trim().to_owned(),
    });
    let plan: Vec<Task> = serde_json::from_slice(&fs::read(PLAN).context("no plan")?)?;
    for task in &plan {
        tell(&Word::Done(carry_out(task)?));
    }
    Ok(())
}

fn tell(word: &Word) {
    let text = serde_json::to_string(word).expect("plain data");
    // In one piece: the kernel's messages share the console.
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(format!("\n{MARK}{text}\n").as_bytes());
    let _ = out.flush();
}

fn set_up() -> Result<()> {
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("bpf", "/sys/fs/bpf"),
    ] {
        mount(
            Some(kind),
            target,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("cannot mount {kind} at {target}"))?;
    }
    // What an agent looks for: a kubelet's cgroup, and a directory of objects.
    for directory in ["/sys/fs/cgroup/kubepods", "/tmp/state"] {
        fs::create_dir(directory).with_context(|| format!("cannot make {directory}"))?;
    }
    for name in fs::read_to_string("/modules.list")?.lines() {
        load(Path::new(&format!("/modules/{name}.ko")))
            .with_context(|| format!("cannot load module {name}"))?;
    }
    // As a service manager starts a container runtime.
    nix::sys::resource::setrlimit(
        nix::sys::resource::Resource::RLIMIT_MEMLOCK,
        nix::sys::resource::RLIM_INFINITY,
        nix::sys::resource::RLIM_INFINITY,
    )?;
    let status = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .env("PATH", SEARCH)
        .status()?;
    if !status.success() {
        bail!("cannot bring up the loopback device");
    }
    Ok(())
}

pub const SEARCH: &str = "/usr/bin:/usr/sbin:/bin:/sbin";

fn load(module: &Path) -> Result<()> {
    let file = OwnedFd::from(File::open(module)?);
    nix::kmod::finit_module(
        file,
        &CString::default(),
        nix::kmod::ModuleInitFlags::empty(),
    )?;
    Ok(())
}

fn carry_out(task: &Task) -> Result<Done> {
    let started = Instant::now();
    let log = format!("/tmp/{}.log", task.name);
    let output = File::create(&log)?;
    let mut child = Command::new(&task.program)
        .args(&task.args)
        .envs(&task.env)
        .env("PATH", SEARCH)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .with_context(|| format!("cannot start {}", task.program))?;
    let limit = Duration::from_secs(task.limit_s);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if started.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            break None;
        }
        thread::sleep(Duration::from_millis(50));
    };
    let mut output = Vec::new();
    for line in BufReader::new(File::open(&log)?).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{}| {line}", task.name);
        output.push(line);
    }
    output.drain(..output.len().saturating_sub(TAIL));
    Ok(Done {
        name: task.name.clone(),
        exit: status.and_then(|status| status.code()),
        seconds: started.elapsed().as_secs(),
        output,
    })
}
