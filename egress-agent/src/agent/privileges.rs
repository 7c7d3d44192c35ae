//! What the kernel lets this process do, for who has to find out why it was refused.

use std::fs;

/// Bit in the masks of `/proc/<pid>/status`, name, and what it is for.
const NEEDED: [(u32, &str, &str); 3] = [
    (12, "CAP_NET_ADMIN", "attaches to devices and cgroups"),
    (
        38,
        "CAP_PERFMON",
        "the verifier follows pointers only for who has it",
    ),
    (39, "CAP_BPF", "loads programs and makes maps"),
];
/// Stands for all of them but `CAP_NET_ADMIN`.
const SYS_ADMIN: u32 = 21;

/// The error, with what is lacking before it: the kernel's own words hardly tell.
pub fn explain(error: impl std::error::Error + Send + Sync + 'static) -> anyhow::Error {
    let error = anyhow::Error::new(error);
    match lacking() {
        Some(lacking) => error.context(lacking),
        None => error,
    }
}

/// Says which of the capabilities that the agent needs it does not have; none if it has all.
fn lacking() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    said(effective(&status)?)
}

fn effective(status: &str) -> Option<u64> {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

fn said(effective: u64) -> Option<String> {
    let has = |bit: u32| effective >> bit & 1 == 1;
    let lacking: Vec<String> = NEEDED
        .iter()
        .filter(|(bit, ..)| !has(*bit) && (*bit == 12 || !has(SYS_ADMIN)))
        .map(|(_, name, purpose)| format!("{name} ({purpose})"))
        .collect();
    (!lacking.is_empty()).then(|| format!("the agent lacks {}", lacking.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_named_with_what_it_is_for() {
        let status = "Name:\ta\nCapPrm:\tffffffffffffffff\nCapEff:\t0000008000001000\n";
        let text = said(effective(status).expect("a mask")).expect("one is lacking");
        assert!(text.contains("CAP_PERFMON (the verifier"), "{text}");
        assert!(
            !text.contains("CAP_BPF") && !text.contains("NET_ADMIN"),
            "{text}"
        );
        assert_eq!(said(0x0000_00c0_0000_1000), None);
        assert_eq!(said(1 << 12 | 1 << 21), None, "an older kernel's way");
        assert_eq!(said(0).expect("all").matches("CAP_").count(), 3);
    }
}
