//! The root file system of a machine: programs with their libraries, modules, and a plan.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::kernels::Kernel;
use crate::cmd::{Cmd, find_program};

/// What the tests need of what Debian builds as modules, then what attempts of the battery are made by.
const MODULES: [&str; 46] = [
    "veth",
    "cls_bpf",
    "sch_ingress",
    "act_gact",
    "cls_matchall",
    "bridge",
    "dummy",
    "tun",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_tables",
    "nft_chain_nat",
    "nft_nat",
    "nft_redir",
    "nft_masq",
    "nft_ct",
    "nft_numgen",
    "nft_counter",
    "nft_objref",
    "sctp",
    "dccp_ipv4",
    "dccp_ipv6",
    "smc",
    "8021q",
    "macvlan",
    "ifb",
    "vxlan",
    "geneve",
    "ipip",
    "ip6_tunnel",
    "ip_gre",
    "ip6_gre",
    "mpls_iptunnel",
    "act_mirred",
    "cls_u32",
    "nft_dup_netdev",
    "nft_fwd_netdev",
    "sch_tbf",
    "macsec",
    "gcm",
    "ghash_generic",
    "xfrm_user",
    "esp4",
    "esp6",
    "authenc",
    "crypto_null",
];

/// Files by their path below the root, with their mode.
#[derive(Debug, Default)]
pub struct Initramfs {
    files: BTreeMap<PathBuf, (u32, Vec<u8>)>,
}

impl Initramfs {
    pub fn file(&mut self, path: impl AsRef<Path>, content: Vec<u8>) {
        self.files
            .insert(relative(path.as_ref()), (0o100_644, content));
    }

    pub fn executable(&mut self, path: impl AsRef<Path>, content: Vec<u8>) {
        self.files
            .insert(relative(path.as_ref()), (0o100_755, content));
    }

    /// A program at the same place as here, or at `to`, without what only debuggers read, and the
    /// libraries that it is linked with.
    pub fn program(&mut self, path: &Path, to: &Path) -> Result<()> {
        let stripped = tempfile::NamedTempFile::new()?;
        let strip = find_program("strip").is_some_and(|strip| {
            let strip = Cmd::new(strip).arg("-o").arg(stripped.path()).arg(path);
            strip.output().is_ok()
        });
        let from = if strip { stripped.path() } else { path };
        let content = fs::read(from).with_context(|| format!("reading {}", path.display()))?;
        self.executable(to, content);
        // A static program has none, which `ldd` calls a failure.
        let libraries = Cmd::new("ldd").arg(path).output().unwrap_or_default();
        for library in libraries.split_whitespace().filter(|w| w.starts_with('/')) {
            let place = relative(Path::new(library));
            if let Entry::Vacant(vacant) = self.files.entry(place) {
                let content = fs::read(library).with_context(|| format!("reading {library}"))?;
                vacant.insert((0o100_755, content));
            }
        }
        Ok(())
    }

    /// The modules in `/modules`, named in the order in which they can be loaded in `/modules.list`.
    pub fn modules(&mut self, kernel: &Kernel) -> Result<()> {
        let mut found = BTreeMap::new();
        walk(&kernel.modules, &mut found)?;
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in MODULES {
            self.module(name, &found, &mut seen, &mut order)?;
        }
        self.file("modules.list", order.join("\n").into_bytes());
        Ok(())
    }

    /// One module, after those that it depends on. One that isn't there is built in, or of a later
    /// kernel; what lacks it will say so.
    fn module(
        &mut self,
        name: &str,
        found: &BTreeMap<String, PathBuf>,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<String>,
    ) -> Result<()> {
        let Some(path) = found.get(name) else {
            return Ok(());
        };
        if !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let content = uncompressed(path)?;
        for needed in depends(&content) {
            self.module(&needed, found, seen, order)?;
        }
        self.file(format!("modules/{name}.ko"), content);
        order.push(name.to_owned());
        Ok(())
    }

    /// Writes it as the kernel reads it (cpio, "newc"), into a file that has no name.
    pub fn write(&self) -> Result<File> {
        let mut out = BufWriter::new(tempfile::tempfile().context("making a file")?);
        let mut directories = BTreeSet::new();
        for path in self.files.keys() {
            directories.extend(path.ancestors().skip(1).map(Path::to_owned));
        }
        for name in ["proc", "sys", "dev", "tmp", "run", "etc", "root"] {
            directories.insert(name.into());
        }
        let mut number = 0;
        for directory in directories.iter().filter(|path| *path != Path::new("")) {
            entry(&mut out, &mut number, directory, 0o040_755, (0, 0), &[])?;
        }
        // Before anything is mounted the first program has no other output.
        let console = Path::new("dev/console");
        entry(&mut out, &mut number, console, 0o020_600, (5, 1), &[])?;
        for (path, (mode, content)) in &self.files {
            entry(&mut out, &mut number, path, *mode, (0, 0), content)?;
        }
        let trailer = Path::new("TRAILER!!!");
        entry(&mut out, &mut number, trailer, 0, (0, 0), &[])?;
        let mut file = out.into_inner().context("writing the initramfs")?;
        file.rewind()?;
        Ok(file)
    }
}

fn relative(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}

/// One member; the format is in the kernel's `early-userspace/buffer-format.rst`.
fn entry(
    out: &mut impl io::Write,
    number: &mut u32,
    path: &Path,
    mode: u32,
    device: (u32, u32),
    content: &[u8],
) -> Result<()> {
    *number += 1;
    let name = path.to_str().context("a path that is no UTF-8")?;
    let size = u32::try_from(content.len()).context("a file beyond 4 GiB")?;
    let name_size = u32::try_from(name.len() + 1)?;
    write!(out, "070701")?;
    for field in [
        *number, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0,
    ] {
        write!(out, "{field:08x}")?;
    }
    // The header is 110 bytes; name and content are padded so that what follows is aligned to 4.
    out.write_all(name.as_bytes())?;
    let pad = |length: usize| &[0; 4][..length.next_multiple_of(4) - length];
    out.write_all(&[0])?;
    out.write_all(pad(110 + name.len() + 1))?;
    out.write_all(content)?;
    out.write_all(pad(content.len()))?;
    Ok(())
}

/// Modules below `dir` by name, which is written with `_`.
fn walk(dir: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            walk(&path, found)?;
        } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            found.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn uncompressed(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|ext| ext.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).with_context(|| format!("reading {}", path.display())),
    };
    let output = std::process::Command::new(program)
        .arg("-dc")
        .arg(path)
        .output()
        .with_context(|| format!("starting {program}, which unpacks modules"))?;
    if !output.status.success() {
        bail!("{program} cannot unpack {}", path.display());
    }
    Ok(output.stdout)
}

/// Names in the `depends=` of a module's information.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|bytes| bytes == KEY) else {
        return Vec::new();
    };
    let rest = &module[at + KEY.len()..];
    let end = rest
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(rest.len());
    String::from_utf8_lossy(&rest[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_padded_and_the_end_is_marked() {
        let mut root = Initramfs::default();
        root.file("/a/b", b"hello".to_vec());
        let mut file = root.write().expect("a file");
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut file, &mut bytes).expect("its content");
        assert_eq!(bytes.len() % 4, 0);
        let mut names = Vec::new();
        let mut rest = bytes.as_slice();
        loop {
            let field = |index: usize| {
                let at = 6 + 8 * index;
                let text = std::str::from_utf8(&rest[at..at + 8]).expect("text");
                usize::from_str_radix(text, 16).expect("a number")
            };
            assert_eq!(&rest[..6], b"070701");
            let (size, name_size) = (field(6), field(11));
            let name = String::from_utf8(rest[110..110 + name_size - 1].to_vec()).expect("text");
            let content = (110 + name_size).next_multiple_of(4);
            if name == "a/b" {
                assert_eq!(&rest[content..content + size], b"hello");
            }
            rest = &rest[(content + size).next_multiple_of(4)..];
            if name == "TRAILER!!!" {
                break;
            }
            names.push(name);
        }
        for name in ["a", "a/b", "dev/console", "proc"] {
            assert!(names.iter().any(|found| found == name), "{names:?}");
        }
    }

    #[test]
    fn what_a_module_depends_on_is_read() {
        let module = b"x\0license=GPL\0depends=nf-nat,nf_tables\0name=nft_nat\0";
        assert_eq!(depends(module), ["nf_nat", "nf_tables"]);
        assert_eq!(depends(b"\0depends=\0"), Vec::<String>::new());
    }
}
