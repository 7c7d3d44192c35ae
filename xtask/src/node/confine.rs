//! Starts a program with the rights of its container and no others: what a container runtime does
//! between fork and exec.
//!
//! The seccomp filter is what `RuntimeDefault` means with containerd, CRI-O and Docker, whose profiles
//! agree on what they keep from a container: calls that reach beyond it, unless a capability says that
//! it may. It is written as the list of those; what is newer than the list is not there.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};

/// `xtask node confine`.
#[derive(Clone, Debug, clap::Args)]
pub struct Confine {
    /// Capabilities that it keeps, as Kubernetes writes them
    #[arg(long = "capability", value_name = "NAME")]
    pub capabilities: Vec<Capability>,
    /// Directories that it may write to; everything else is read-only
    #[arg(long = "writable", value_name = "DIR")]
    pub writable: Vec<PathBuf>,
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// A number of `linux/capability.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability(u8);

const SYS_ADMIN: Capability = Capability(21);
const PERFMON: Capability = Capability(38);
const BPF: Capability = Capability(39);
/// In the order of their numbers.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

impl FromStr for Capability {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let at = CAPABILITIES.iter().position(|known| *known == name);
        let at = at.ok_or_else(|| format!("`{name}` is no capability"))?;
        u8::try_from(at)
            .map(Self)
            .map_err(|error| error.to_string())
    }
}

impl Capability {
    /// Its bit in the masks of `/proc/<pid>/status`.
    pub fn bit(self) -> u64 {
        1 << self.0
    }
}

/// Becomes the program; returns only with an error.
pub fn run(args: &Confine) -> Result<()> {
    // The mounts of this process alone.
    call(|| {
        // SAFETY: takes no pointer.
        unsafe { libc::unshare(libc::CLONE_NEWNS).into() }
    })
    .context("a mount namespace")?;
    let root = CString::from(c"/");
    mount(None, &root, libc::MS_REC | libc::MS_PRIVATE).context("mounts of its own")?;
    let writable = args.writable.iter().map(|path| c_path(path));
    let writable: Vec<CString> = writable.collect::<Result<_>>()?;
    for path in &writable {
        mount(Some(path), path, libc::MS_BIND).with_context(|| format!("{path:?}"))?;
    }
    set_read_only(&root, true).context("a read-only root")?;
    for path in &writable {
        set_read_only(path, false).with_context(|| format!("{path:?}"))?;
    }
    // Root gets from exec what its bounding set has.
    for number in 0..u8::try_from(CAPABILITIES.len())? {
        if !args.capabilities.contains(&Capability(number)) {
            call(|| {
                // SAFETY: takes no pointer.
                unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number)).into() }
            })
            .with_context(|| format!("drop {}", CAPABILITIES[usize::from(number)]))?;
        }
    }
    call(|| {
        // SAFETY: takes no pointer.
        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into() }
    })
    .context("no_new_privs")?;
    filter_calls(&args.capabilities).context("seccomp")?;
    let (program, rest) = args.command.split_first().context("no command")?;
    let error = Command::new(program).args(rest).exec();
    bail!("{program}: {error}")
}

fn call(it: impl FnOnce() -> libc::c_long) -> io::Result<()> {
    match it() {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).context("a path with a zero byte")
}

fn mount(from: Option<&CString>, to: &CString, flags: libc::c_ulong) -> io::Result<()> {
    let from = from.map_or(std::ptr::null(), |from| from.as_ptr());
    let none = std::ptr::null();
    // SAFETY: both strings end with zero and outlive the call; the other pointers may be null.
    call(|| unsafe { libc::mount(from, to.as_ptr(), none, flags, none.cast()).into() })
}

/// The mount at `path`; of the root all that is mounted below it.
fn set_read_only(path: &CString, read_only: bool) -> io::Result<()> {
    let bit = libc::MOUNT_ATTR_RDONLY;
    let attributes = libc::mount_attr {
        attr_set: if read_only { bit } else { 0 },
        attr_clr: if read_only { 0 } else { bit },
        propagation: 0,
        userns_fd: 0,
    };
    let flags = if read_only { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path ends with zero, the attributes have the size that is told, and both outlive
    // the call.
    call(|| unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })
}

/// What reaches beyond a container, whoever calls.
const FORBIDDEN: [libc::c_long; 44] = [
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    KEXEC_FILE_LOAD,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    libc::SYS_lookup_dcookie,
    libc::SYS_get_mempolicy,
    libc::SYS_mbind,
    libc::SYS_set_mempolicy,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_settimeofday,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_userfaultfd,
];
/// The last call that the profiles of today name; what is newer is answered as by an older kernel.
const NEWEST: libc::c_long = 462;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

#[cfg(target_arch = "x86_64")]
const KEXEC_FILE_LOAD: libc::c_long = libc::SYS_kexec_file_load;
/// Of `asm-generic/unistd.h`: the crate has none for musl.
#[cfg(target_arch = "aarch64")]
const KEXEC_FILE_LOAD: libc::c_long = 294;

/// Flags of clone that make a namespace.
const NAMESPACES: u32 = 0x7e02_0000;

fn filter_calls(capabilities: &[Capability]) -> Result<()> {
    let may = |wanted: &[Capability]| wanted.iter().any(|one| capabilities.contains(one));
    if may(&[SYS_ADMIN]) {
        bail!("with SYS_ADMIN the profile is another, which is not written here");
    }
    let mut forbidden = FORBIDDEN.to_vec();
    if !may(&[BPF]) {
        forbidden.push(libc::SYS_bpf);
    }
    if !may(&[PERFMON]) {
        forbidden.push(libc::SYS_perf_event_open);
    }
    let mut filter = Filter::default();
    // `struct seccomp_data`: the call's number, the architecture.
    filter.load(4);
    filter.unless_equal(ARCHITECTURE, libc::SECCOMP_RET_KILL_PROCESS);
    filter.load(0);
    for number in forbidden {
        filter.if_equal(u32::try_from(number)?, errno(libc::EPERM)?);
    }
    // Its flags can't be looked at, so who makes namespaces must fall back on clone.
    filter.if_equal(u32::try_from(libc::SYS_clone3)?, errno(libc::ENOSYS)?);
    filter.if_greater(u32::try_from(NEWEST)?, errno(libc::ENOSYS)?);
    filter.clone_without_namespaces(u32::try_from(libc::SYS_clone)?, errno(libc::EPERM)?);
    filter.finish(libc::SECCOMP_RET_ALLOW);
    filter.set().context("set the filter")
}

fn errno(number: i32) -> Result<u32> {
    Ok(libc::SECCOMP_RET_ERRNO | u32::try_from(number)?)
}

/// A program of classic BPF.
#[derive(Debug, Default)]
struct Filter(Vec<libc::sock_filter>);

impl Filter {
    fn push(&mut self, code: u32, jt: u8, jf: u8, k: u32) {
        let code = u16::try_from(code).expect("codes are short");
        self.0.push(libc::sock_filter { code, jt, jf, k });
    }

    /// A word of `struct seccomp_data`.
    fn load(&mut self, offset: u32) {
        self.push(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    }

    fn jump(&mut self, how: u32, jt: u8, jf: u8, k: u32) {
        self.push(libc::BPF_JMP | how | libc::BPF_K, jt, jf, k);
    }

    fn finish(&mut self, result: u32) {
        self.push(libc::BPF_RET | libc::BPF_K, 0, 0, result);
    }

    fn if_equal(&mut self, k: u32, result: u32) {
        self.jump(libc::BPF_JEQ, 0, 1, k);
        self.finish(result);
    }

    fn unless_equal(&mut self, k: u32, result: u32) {
        self.jump(libc::BPF_JEQ, 1, 0, k);
        self.finish(result);
    }

    fn if_greater(&mut self, k: u32, result: u32) {
        self.jump(libc::BPF_JGT, 0, 1, k);
        self.finish(result);
    }

    /// The low half of the first argument is at 16.
    fn clone_without_namespaces(&mut self, clone: u32, result: u32) {
        self.jump(libc::BPF_JEQ, 0, 3, clone);
        self.load(16);
        self.jump(libc::BPF_JSET, 0, 1, NAMESPACES);
        self.finish(result);
    }

    fn set(mut self) -> io::Result<()> {
        let program = libc::sock_fprog {
            len: u16::try_from(self.0.len()).expect("a short program"),
            filter: self.0.as_mut_ptr(),
        };
        // SAFETY: the program and its instructions outlive the call, which copies them.
        call(|| unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &raw const program,
            )
        })
    }
}
