//! Fence and gate, as far as this kernel has what it takes.

use crate::fence::{Fence, Part};

/// None where the kernel has no `nf_tables`: the hooks hold without it, but for what the kernel itself hands on
/// past them, and what leaves by a new device before its hook stands.
pub fn open(part: Part) -> Option<Fence> {
    let table = part.table();
    match Fence::open(part) {
        Ok((fence, missing)) => {
            for (family, error) in missing {
                tracing::warn!(
                    event = "fence_incomplete", table, family = family.name(), %error,
                    "what goes past the hooks is not stopped in this family"
                );
            }
            Some(fence)
        }
        Err(error) => {
            tracing::warn!(
                event = "no_fence", table, %error,
                "this kernel has no packet filter (nf_tables): what goes past the hooks is not stopped"
            );
            None
        }
    }
}
