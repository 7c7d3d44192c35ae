//! Who runs where: what is measured has a CPU to itself, and whatever loads it has the others.

use std::fs;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// CPUs of this machine that we may use, in two parts.
#[derive(Clone, Debug)]
pub struct Cpus {
    /// For what is measured.
    pub measured: usize,
    /// For clients, outside servers, and everything else.
    rest: Vec<usize>,
}

impl Cpus {
    /// None where there is only one: then all share it, and figures say so.
    pub fn split() -> Option<Self> {
        let all = sched_getaffinity(THIS).ok()?;
        let mut usable = (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu) == Ok(true));
        let measured = usable.next()?;
        let rest: Vec<_> = usable.collect();
        (!rest.is_empty()).then_some(Self { measured, rest })
    }

    /// Keeps this thread, and all that it begins from now on, away from what is measured.
    pub fn stay_aside(&self) {
        pin(THIS, &self.rest);
    }

    /// Gives a process of ours, with all its threads, the CPU for what is measured.
    pub fn measure(&self, process: u32) {
        let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
        for task in tasks.flatten() {
            let thread = task.file_name().to_str().and_then(|id| id.parse().ok());
            pin(
                Pid::from_raw(thread.expect("a thread's number")),
                &[self.measured],
            );
        }
    }
}

/// The calling thread.
const THIS: Pid = Pid::from_raw(0);

/// Keeps this thread, and all that it begins from now on, on one CPU.
pub fn pin_to(cpu: usize) {
    pin(THIS, &[cpu]);
}

fn pin(thread: Pid, cpus: &[usize]) {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu).expect("a CPU of this machine");
    }
    sched_setaffinity(thread, &set).expect("our own thread");
}
