//! One machine, from power on to power off.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::kernels::Kernel;
use super::plan::{Done, MARK, Word};
use crate::image::Arch;

/// From power on until the first process is up; emulated it takes about ten seconds.
const BOOT: Duration = Duration::from_mins(2);
/// With hardware's help it takes two.
const BOOT_FAST: Duration = Duration::from_secs(20);
/// Memory of a machine: the initramfs is in it.
const MEMORY: &str = "2048";

/// What executes a machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    Kvm,
    /// QEMU itself.
    Tcg,
}

impl Accel {
    /// KVM where it can be opened and runs such machines; whether it works shows at the first boot.
    pub fn guess(arch: Arch) -> Self {
        if !arch.is_here() {
            return Self::Tcg;
        }
        let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        if kvm.is_ok() { Self::Kvm } else { Self::Tcg }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// What a machine told before it went off.
#[derive(Debug)]
pub struct Told {
    pub release: String,
    pub done: Vec<Done>,
}

/// Why a machine told nothing.
#[derive(Debug)]
pub enum Failed {
    /// It did not come up.
    Boot(anyhow::Error),
    /// It came up, and then went wrong.
    Work(anyhow::Error),
}

/// A running QEMU; killed when dropped, and when this process ends in any way.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots, hands each finished task to `each`, and waits for the end; everything on the console goes
/// to `log` too.
pub fn run(
    qemu: &Path,
    kernel: &Kernel,
    initramfs: File,
    accel: Accel,
    limit: Duration,
    log: &Path,
    mut each: impl FnMut(&Done),
) -> Result<Told, Failed> {
    let started = Instant::now();
    let (mut machine, lines) = start(qemu, kernel, initramfs, accel, log).map_err(Failed::Boot)?;
    let boot = match accel {
        Accel::Kvm => BOOT_FAST,
        Accel::Tcg => BOOT,
    };
    let mut release = None;
    let mut done = Vec::new();
    loop {
        let most = if release.is_some() { limit } else { boot };
        let left = most.saturating_sub(started.elapsed());
        let error = match lines.recv_timeout(left) {
            Ok(Line::Word(Word::Up { release: it })) => {
                release = Some(it);
                continue;
            }
            Ok(Line::Word(Word::Done(it))) => {
                each(&it);
                done.push(it);
                continue;
            }
            Ok(Line::Word(Word::Broken { why })) => {
                anyhow::anyhow!("the machine could not be set up: {why}")
            }
            // KVM may be there and not able to run a machine.
            Ok(Line::Error(text)) => anyhow::anyhow!("QEMU says: {text}"),
            Err(RecvTimeoutError::Timeout) => anyhow::anyhow!(
                "it was not {} after {} s; its console is in {}",
                if release.is_some() { "done" } else { "up" },
                most.as_secs(),
                log.display()
            ),
            Err(RecvTimeoutError::Disconnected) => {
                let status = machine.0.wait().map(|status| status.success());
                match (release, status) {
                    (Some(release), Ok(true)) => return Ok(Told { release, done }),
                    (release, _) => {
                        let error = anyhow::anyhow!("it died; its console is in {}", log.display());
                        return Err(failed(release.as_ref(), error));
                    }
                }
            }
        };
        return Err(failed(release.as_ref(), error));
    }
}

fn failed(release: Option<&String>, error: anyhow::Error) -> Failed {
    match release {
        Some(_) => Failed::Work(error),
        None => Failed::Boot(error),
    }
}

/// What comes out of QEMU.
enum Line {
    Word(Word),
    Error(String),
}

fn start(
    qemu: &Path,
    kernel: &Kernel,
    initramfs: File,
    accel: Accel,
    log: &Path,
) -> Result<(Qemu, Receiver<Line>)> {
    let (board, console) = match kernel.arch {
        Arch::Amd64 => ("q35", "ttyS0"),
        Arch::Arm64 => ("virt", "ttyAMA0"),
    };
    let cpu = match (kernel.arch, accel) {
        // Signing pointers as real processors do is slow when emulated.
        (Arch::Arm64, Accel::Tcg) => "max,pauth-impdef=on",
        _ => "max",
    };
    let append = format!("console={console} quiet panic=-1 -- node machine");
    let mut command = Command::new(qemu);
    command
        .args(["-machine", board, "-cpu", cpu, "-smp", "2", "-m", MEMORY])
        .args(["-accel", accel.name()])
        .args(["-nodefaults", "-display", "none", "-no-reboot"])
        // Not "stdio": the console would read the initramfs.
        .args(["-chardev", "file,id=console,path=/dev/stdout"])
        .args(["-serial", "chardev:console"])
        .arg("-kernel")
        .arg(&kernel.image)
        .args(["-initrd", "/dev/stdin"])
        .args(["-append", &append])
        .stdin(initramfs)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // SAFETY: between fork and exec only this system call, which takes plain numbers.
    unsafe {
        command.pre_exec(|| {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            Ok(())
        });
    }
    let mut child = command.spawn().context("cannot start QEMU")?;
    let (Some(console), Some(errors)) = (child.stdout.take(), child.stderr.take()) else {
        bail!("QEMU has no output");
    };
    let machine = Qemu(child);
    let mut copy = File::create(log).with_context(|| format!("creating {}", log.display()))?;
    let (sender, lines) = channel();
    let other = sender.clone();
    thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            let _ = writeln!(copy, "{}", line.trim_end());
            let word = line.split_once(MARK).and_then(|(_, text)| {
                // A kernel message in its midst makes it unreadable, and the task count as missing.
                serde_json::from_str(text.trim()).ok()
            });
            if let Some(word) = word {
                let _ = sender.send(Line::Word(word));
            }
        }
    });
    thread::spawn(move || {
        for line in BufReader::new(errors).lines().map_while(Result::ok) {
            if line.contains("KVM internal error") || line.contains("error:") {
                let _ = other.send(Line::Error(line));
            }
        }
    });
    Ok((machine, lines))
}

/// Where the console of a machine is kept.
pub fn log(directory: &Path, kernel: &str) -> PathBuf {
    directory.join(format!("vm-{kernel}.log"))
}
