//! What is left of Sallyport on a node: programs, pins, devices of the suite itself.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// Commands of `bpf(2)`.
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_PROG_GET_NEXT_ID: libc::c_int = 11;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
/// Where the number of the program is in `struct bpf_link_info`, after type and number of the link.
const PROGRAM_AT: usize = 8;
/// Where the name is in `struct bpf_prog_info`, and its length.
const NAME_AT: usize = 64;
const NAME_LENGTH: usize = 16;
/// What the names of our programs begin with.
const OURS: &str = "sp_";

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The node's BPF file system
    #[arg(long, default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
}

/// All empty: nothing is left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Loaded programs, by their number in the kernel.
    pub programs: BTreeMap<u32, String>,
    /// Files below the pin directory.
    pub pins: Vec<String>,
    /// Programs that pinned links hold: those are this node's, while others in the kernel may be of
    /// another node on the same machine.
    pub pinned: BTreeSet<u32>,
}

impl Left {
    pub fn nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl Args {
    pub fn run(&self) -> Result<Left> {
        let root = self.bpffs.join("sallyport");
        let pins = match fs::read_dir(&root) {
            Ok(entries) => entries
                .map(|entry| Ok(entry?.path().display().to_string()))
                .collect::<io::Result<Vec<_>>>()
                .map(|mut below| {
                    below.push(root.display().to_string());
                    below
                }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        };
        let pins = pins.with_context(|| format!("cannot look into {}", root.display()))?;
        let mut programs = programs()?;
        programs.retain(|_, name| name.starts_with(OURS));
        let mut pinned = BTreeSet::new();
        links(&root, &mut pinned)?;
        Ok(Left {
            programs,
            pins,
            pinned,
        })
    }
}

/// Adds the programs of all links that are pinned below a directory, if it is there.
fn links(directory: &Path, programs: &mut BTreeSet<u32>) -> Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("cannot look into {}", directory.display()))?,
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            links(&path, programs)?;
        } else if directory.ends_with("links") {
            match pinned(&path) {
                Ok(link) => {
                    let info = info(&link)?;
                    let number = info[PROGRAM_AT..PROGRAM_AT + 4].try_into();
                    programs.insert(u32::from_ne_bytes(number.expect("four bytes")));
                }
                // Its device went, and the agent has taken the pin away.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot open {}", path.display()));
                }
            }
        }
    }
    Ok(())
}

fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let halves = halves(path.as_ptr().expose_provenance());
    let fd = bpf(BPF_OBJ_GET, &mut [halves[0], halves[1], 0, 0])?;
    // SAFETY: the kernel opened it for us just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An address as two numbers of an attribute: it is 64 bits there on every machine.
fn halves(address: usize) -> [u32; 2] {
    let bytes = (address as u64).to_ne_bytes();
    let half =
        |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four of eight bytes"));
    [half(0), half(4)]
}

/// All programs in the kernel, which nodes on the same machine share.
fn programs() -> Result<BTreeMap<u32, String>> {
    let mut names = BTreeMap::new();
    let mut id = 0u32;
    loop {
        let mut next = [id, 0, 0];
        match bpf(BPF_PROG_GET_NEXT_ID, &mut next) {
            Ok(_) => id = next[1],
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(names),
            Err(error) => return Err(error).context("cannot list BPF programs"),
        }
        match bpf(BPF_PROG_GET_FD_BY_ID, &mut [id, 0, 0]) {
            Ok(fd) => {
                // SAFETY: the kernel opened it for us just now.
                let name = name(&unsafe { OwnedFd::from_raw_fd(fd) })?;
                names.insert(id, name);
            }
            // It went away meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error).context("cannot open a BPF program"),
        }
    }
}

fn name(program: &OwnedFd) -> Result<String> {
    let info = info(program)?;
    let name = &info[NAME_AT..NAME_AT + NAME_LENGTH];
    let end = name.iter().position(|byte| *byte == 0);
    Ok(String::from_utf8_lossy(&name[..end.unwrap_or(NAME_LENGTH)]).into_owned())
}

/// The beginning of what the kernel tells of a program or link.
fn info(object: &OwnedFd) -> Result<[u8; 256]> {
    let mut info = [0u8; 256];
    let fd = u32::try_from(object.as_raw_fd()).context("a file descriptor")?;
    let length = u32::try_from(info.len()).expect("a small buffer");
    let halves = halves(info.as_mut_ptr().expose_provenance());
    let mut question = [fd, length, halves[0], halves[1]];
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut question).context("cannot ask about a BPF object")?;
    Ok(info)
}

/// `bpf(2)` with as much of its union as the command reads; the kernel takes the rest as zeroes.
fn bpf<const N: usize>(command: libc::c_int, attributes: &mut [u32; N]) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes no more than the size that is said, and what an attribute
    // points to lives in the caller's frame with the length that it says.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_mut_ptr(),
            size_of_val(attributes),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))
}
