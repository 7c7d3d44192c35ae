//! `KERNELS.md`: a section for each architecture, of which one is written at a time.

use std::fmt::Write as _;

use crate::image::Arch;

const HEAD: &str = "# Kernels\n\n\
    Debian's kernels, booted in QEMU. `cargo xtask vm` tries them, `cargo xtask vm --write` writes its \
    architecture's section of this page anew from what it sees (`--arch` chooses another than the machine's).\n";
const FOOT: &str = "## What is tried\n\n\
    *held by*: tcx, or filters of clsact with the programs in parts (ARCHITECTURE.md, \"Hooks\"). \
    *programs*: every program passes the verifier. *frames*: the kernel decides random frames as \
    `decide()` does natively, reason by reason. *hooks*: they are attached, found again, \
    replaced and taken down, and follow the desired state. *packets*: a pod of a node in \
    miniature sends every kind of packet that has a reason of its own, with the real agent and `egressctl`. \
    *battery*: ways around that such kernels differ in (BATTERY.md), with those sockets and devices that Debian builds as modules. \
    *clock*: it is set forward and back under traffic, while an agent runs and while none does.\n";

/// The page with a new section for one architecture; those of others stay as they are in `old`.
pub fn renew(old: &str, arch: Arch, section: &str) -> String {
    let mut page = HEAD.to_owned();
    for each in Arch::ALL {
        let kept = if each == arch {
            Some(section)
        } else {
            section_of(old, each)
        };
        if let Some(text) = kept {
            let _ = write!(page, "\n## {}\n\n{}\n", title(each), text.trim());
        }
    }
    page.push('\n');
    page.push_str(FOOT);
    page
}

fn title(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "x86-64",
        Arch::Arm64 => "arm64",
    }
}

fn section_of(page: &str, arch: Arch) -> Option<&str> {
    let heading = format!("\n## {}\n", title(arch));
    let (_, rest) = page.split_once(&heading)?;
    Some(rest.split_once("\n## ").map_or(rest, |(text, _)| text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_architectures_section_stays() {
        let first = renew("# Kernels\n\nof old\n", Arch::Arm64, "a\n");
        assert!(!first.contains("of old"));
        let both = renew(&first, Arch::Amd64, "x\n\n- y\n");
        assert!(both.contains("## x86-64\n\nx\n\n- y\n\n## arm64\n\na\n\n## What"));
        let again = renew(&both, Arch::Arm64, "b\n");
        assert_eq!(again, both.replace("\na\n", "\nb\n"));
    }
}
