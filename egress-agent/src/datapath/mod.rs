//! The kernel's side as the agent sees it: programs, maps, links and their pins. The only module
//! that touches aya.

mod btf;
mod bytes;
mod calls;
mod clsact;
mod comparison;
pub mod device;
mod early;
mod kernel;
pub mod layout;
pub mod links;
mod load;
pub mod maps;
pub mod observed;
pub mod pinned;
pub mod pins;
mod policies;
mod procfs;
mod sys;
mod table;
mod takeover;
mod tc;

use std::io;
use std::path::PathBuf;

pub use device::DeviceHooks;
pub use early::Early;
pub use kernel::{Adopt, FlowKeys, Kernel, monotonic_ns};
pub use links::{CgroupHook, Direction, LinkState};
pub use load::{Datapath, loader, object};
pub use maps::Maps;
pub use observed::{Damage, Observed};
pub use pins::Pins;
pub use table::{PerCpuTable, Table, TrieKey};

/// Why the kernel could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    #[error("the agent was built without the kernel programs; run `cargo xtask build`")]
    NoObject,
    #[error(
        "{} is not a BPF file system; mount one there (`mount -t bpf bpf {}`) or name another with --bpffs",
        path.display(), path.display()
    )]
    NotBpffs { path: PathBuf },
    #[error("{what}: {error}")]
    Io {
        what: String,
        #[source]
        error: io::Error,
    },
    #[error(
        "pinned map {map} is not what this agent needs: found {found}, wanted {wanted}. \
         Something else made it; run `egressctl uninstall`, then start again"
    )]
    MapLayout {
        map: String,
        found: String,
        wanted: String,
    },
    #[error("can't {action} map {map}: {error}{}", hint(error))]
    Map {
        map: &'static str,
        action: &'static str,
        #[source]
        error: io::Error,
    },
    #[error("can't {action} {link}: {error}{}", hint(error))]
    Link {
        link: String,
        action: &'static str,
        #[source]
        error: io::Error,
    },
    #[error("{0}")]
    Fence(#[from] crate::netlink::NetlinkError),
    #[error("{what} is missing in the kernel object; run `cargo xtask build`")]
    Missing { what: String },
    #[error("{what}: {error}")]
    Aya {
        what: String,
        #[source]
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(
        "this kernel has no tcx hooks, which Linux has since 6.6; leave the choice to the agent (--device-hooks auto)"
    )]
    NoTcx,
    #[error(
        "programs can't call {} of this kernel, which Linux has since 6.2 where it compiles them (sysctl net.core.bpf_jit_enable=1); leave the choice of hooks to the agent (--device-hooks auto)",
        egress_common::offload::KERNEL_CONTEXT
    )]
    NoKernelCalls,
    #[error("this kernel ({release}) lacks {missing}; Sallyport needs Linux 6.1 or newer")]
    OldKernel { release: String, missing: String },
}

/// What a user can do about an error number.
fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => "; the agent needs CAP_BPF and CAP_NET_ADMIN",
        Some(libc::E2BIG | libc::ENOSPC) => "; the map is full, fewer rules would fit",
        Some(libc::ENODEV) => "; the device is gone",
        _ => "",
    }
}
