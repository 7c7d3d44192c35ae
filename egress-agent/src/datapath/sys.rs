//! The calls of `bpf(2)` that aya has no safe face for: links that outlive their maker, queries
//! of tcx, maps in batches. Layouts are those of `union bpf_attr` in `linux/bpf.h` (6.6).

mod batch;
mod bytes;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;
use aya_obj::generated::{
    BPF_F_BEFORE, bpf_attach_type, bpf_cmd, bpf_link_info, bpf_link_type, bpf_prog_info,
};

use super::procfs::describe;

pub use batch::{Walk, update_batch};
pub use bytes::{lookup_bytes, next_key_bytes, update_bytes};

/// Room for all programs that one tcx hook takes (`BPF_MPROG_MAX`).
const TCX_MAX: usize = 64;

/// Calls `bpf(2)`.
///
/// # Safety
/// Pointers within `attr` must be valid for what the command does with them.
unsafe fn bpf<T>(cmd: bpf_cmd, attr: &mut T) -> io::Result<i64> {
    // SAFETY: `attr` is a live value of the size given; what it points to is the caller's promise.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            cmd as libc::c_long,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn owned(fd: i64) -> OwnedFd {
    let fd = RawFd::try_from(fd).expect("the kernel returns file descriptors as int");
    // SAFETY: the kernel just made it, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).expect("open file descriptors are not negative")
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

fn pointer<T>(of: *const T) -> u64 {
    of as u64
}

#[repr(C)]
struct ElemAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn elem<K>(map: BorrowedFd<'_>, key: Option<&K>, value: u64) -> ElemAttr {
    ElemAttr {
        map_fd: raw(map),
        pad: 0,
        key: key.map_or(0, |key| pointer(key)),
        value,
        flags: 0,
    }
}

/// Reads the value of `key` into `value`, which must be as long as the kernel writes: for a
/// per-CPU map one value, rounded up to 8 bytes, a possible CPU.
///
/// # Safety
/// `K` and the length of `value` must be those of the map.
pub unsafe fn lookup<K: Pod>(map: BorrowedFd<'_>, key: &K, value: &mut [u8]) -> io::Result<bool> {
    let mut attr = elem(map, Some(key), pointer(value.as_mut_ptr()));
    // SAFETY: the caller vouches for the sizes.
    match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) } {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes the value of `key`, whole.
///
/// # Safety
/// As [`lookup`].
pub unsafe fn update<K: Pod>(map: BorrowedFd<'_>, key: &K, value: &[u8]) -> io::Result<()> {
    let mut attr = elem(map, Some(key), pointer(value.as_ptr()));
    // SAFETY: the caller vouches for the sizes.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Whether there was one to remove.
///
/// # Safety
/// `K` must be the key of the map.
pub unsafe fn delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    let mut attr = elem(map, Some(key), 0);
    // SAFETY: the caller vouches for the key's size.
    match unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) } {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The key after this one, the first without one; none at the end.
///
/// # Safety
/// `K` must be the key of the map.
pub unsafe fn next_key<K: Pod>(map: BorrowedFd<'_>, key: Option<&K>) -> io::Result<Option<K>> {
    let mut next = std::mem::MaybeUninit::<K>::zeroed();
    let mut attr = elem(map, key, pointer(next.as_mut_ptr()));
    // SAFETY: the caller vouches for the key's size.
    match unsafe { bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) } {
        // SAFETY: written by the kernel, and any bits are a `Pod`.
        Ok(_) => Ok(Some(unsafe { next.assume_init() })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct ObjAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Pins a link or program.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjAttr {
        path: pointer(path.as_ptr()),
        fd: raw(object),
        flags: 0,
    };
    // SAFETY: the path is a live C string.
    unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// Opens what is pinned at `path`.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjAttr {
        path: pointer(path.as_ptr()),
        fd: 0,
        flags: 0,
    };
    // SAFETY: the path is a live C string.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attr) }.map(owned)
}

#[repr(C)]
struct LinkCreateAttr {
    prog_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    pad: u32,
    expected_revision: u64,
}

/// Attaches before all other programs of the device; needs Linux 6.6.
pub fn link_tcx(
    program: BorrowedFd<'_>,
    ifindex: u32,
    attach_type: bpf_attach_type,
) -> io::Result<OwnedFd> {
    link_create(program, ifindex, attach_type, BPF_F_BEFORE)
}

/// Attaches beside all other programs of the cgroup.
pub fn link_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: bpf_attach_type,
) -> io::Result<OwnedFd> {
    link_create(program, raw(cgroup), attach_type, 0)
}

fn link_create(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: bpf_attach_type,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        prog_fd: raw(program),
        target,
        attach_type: attach_type as u32,
        flags,
        relative_fd: 0,
        pad: 0,
        expected_revision: 0,
    };
    // SAFETY: no pointers.
    unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr) }.map(owned)
}

#[repr(C)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Swaps the program of a link that stands; no packet goes without one.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr {
        link_fd: raw(link),
        new_prog_fd: raw(program),
        flags: 0,
        old_prog_fd: 0,
    };
    // SAFETY: no pointers.
    unsafe { bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

#[repr(C)]
struct LinkDetachAttr {
    link_fd: u32,
}

/// Ends a link now. When its last reference goes the kernel ends it too, but some time later.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkDetachAttr { link_fd: raw(link) };
    // SAFETY: no pointers.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr) }.map(drop)
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// # Safety
/// `T` must be the kernel's info type for the kind of object, any bits of which are valid.
unsafe fn info<T>(object: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = std::mem::MaybeUninit::<T>::zeroed();
    let mut attr = InfoAttr {
        fd: raw(object),
        len: u32::try_from(size_of::<T>()).expect("info structures are small"),
        info: pointer(info.as_mut_ptr()),
    };
    // SAFETY: the length goes along.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    // SAFETY: zeroed before, and filled by the kernel.
    Ok(unsafe { info.assume_init() })
}

/// Id and tag of a program.
pub fn program_info(program: BorrowedFd<'_>) -> io::Result<(u32, [u8; 8])> {
    // SAFETY: the right type for a program, all integers.
    let info = unsafe { info::<bpf_prog_info>(program) }?;
    Ok((info.id, info.tag))
}

/// What the kernel tells of a link, or of a program that is pinned in its stead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    pub id: u32,
    pub program: u32,
    /// Tag of the program.
    pub tag: [u8; 8],
    pub target: Target,
}

/// Where a link is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Interface index (0 once the device is gone) and attach type.
    Tcx(u32, u32),
    /// Cgroup id (0 once the cgroup is gone) and attach type.
    Cgroup(u64, u32),
    /// It is a program, which is attached without a link; then there is no link's id either.
    Program,
    /// A link of no kind that we make.
    Other(u32),
}

/// Whether what is open is a program. The kernel tells of either in the form of its kind, and not
/// which that is; procfs does.
pub fn is_program(object: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(describe(object)?.contains_key("prog_type"))
}

/// Asks the kernel about a link, or a program that is pinned in its stead.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    if is_program(link)? {
        let (program, tag) = program_info(link)?;
        return Ok(LinkInfo {
            id: 0,
            program,
            tag,
            target: Target::Program,
        });
    }
    // SAFETY: the right type for a link, all integers.
    let info = unsafe { info::<bpf_link_info>(link) }?;
    let target = if info.type_ == bpf_link_type::BPF_LINK_TYPE_TCX as u32 {
        // SAFETY: the kernel filled the part that the type names; integers, and zeroed before.
        let tcx = unsafe { info.__bindgen_anon_1.tcx };
        Target::Tcx(tcx.ifindex, tcx.attach_type)
    } else if info.type_ == bpf_link_type::BPF_LINK_TYPE_CGROUP as u32 {
        // SAFETY: as above.
        let cgroup = unsafe { info.__bindgen_anon_1.cgroup };
        Target::Cgroup(cgroup.cgroup_id, cgroup.attach_type)
    } else {
        Target::Other(info.type_)
    };
    Ok(LinkInfo {
        id: info.id,
        program: info.prog_id,
        tag: link_tag(link)?,
        target,
    })
}

/// Tag of a link's program, from procfs: to open a program by its id takes `CAP_SYS_ADMIN`.
fn link_tag(link: BorrowedFd<'_>) -> io::Result<[u8; 8]> {
    let facts = describe(link)?;
    let tag = facts
        .get("prog_tag")
        .and_then(|hex| u64::from_str_radix(hex, 16).ok())
        .ok_or_else(|| io::Error::other(format!("no prog_tag in {facts:?}")))?;
    Ok(tag.to_be_bytes())
}

#[repr(C)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Ids of the links of one tcx hook, in the order they run; 0 for a program without a link.
pub fn query_tcx(ifindex: u32, attach_type: bpf_attach_type) -> io::Result<Vec<u32>> {
    Ok(query(ifindex, attach_type)?.links)
}

/// Ids of the programs of one tcx hook, in the order they run. Only ids: to open a program by its id
/// takes `CAP_SYS_ADMIN`.
pub fn query_tcx_programs(ifindex: u32, attach_type: bpf_attach_type) -> io::Result<Vec<u32>> {
    Ok(query(ifindex, attach_type)?.programs)
}

struct Attached {
    programs: Vec<u32>,
    links: Vec<u32>,
}

fn query(ifindex: u32, attach_type: bpf_attach_type) -> io::Result<Attached> {
    let mut programs = [0_u32; TCX_MAX];
    let mut links = [0_u32; TCX_MAX];
    let mut attr = QueryAttr {
        target: ifindex,
        attach_type: attach_type as u32,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: pointer(programs.as_mut_ptr()),
        count: u32::try_from(TCX_MAX).expect("64"),
        pad: 0,
        prog_attach_flags: 0,
        link_ids: pointer(links.as_mut_ptr()),
        link_attach_flags: 0,
        revision: 0,
    };
    // SAFETY: both arrays have `count` elements.
    unsafe { bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr) }?;
    let count = (attr.count as usize).min(TCX_MAX);
    Ok(Attached {
        programs: programs[..count].to_vec(),
        links: links[..count].to_vec(),
    })
}

/// The file system at `path` is a bpffs.
pub fn is_bpffs(path: &Path) -> io::Result<bool> {
    let stat = nix::sys::statfs::statfs(path)?;
    Ok(stat.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC)
}

/// Opens a directory, for attaching to a cgroup.
pub fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let file = std::fs::File::open(path)?;
    file.as_fd().try_clone_to_owned()
}
