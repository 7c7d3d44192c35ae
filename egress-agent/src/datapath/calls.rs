//! The call of a function of the kernel (a kfunc) in the kernel object: what loads it knows of none.
#![forbid(unsafe_code)]

use std::fs;

use egress_common::offload::{KERNEL_CONTEXT, KERNEL_CONTEXT_CALL};

use super::{DatapathError, btf};

/// As strict as any reader of an object may want it.
const ALIGNMENT: usize = 32;
/// `BPF_JMP | BPF_CALL`, and what makes its number that of a function in the kernel's BTF
/// (`BPF_PSEUDO_KFUNC_CALL`, in the half of the byte that names the source).
const CALL: u8 = 0x85;
const OF_KERNEL: u8 = if cfg!(target_endian = "little") {
    0x20
} else {
    0x02
};

/// Whether programs may call functions of this kernel: it has the one they need, and compiles them.
pub fn are_possible() -> bool {
    let compiles = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable");
    let compiles = compiles.map_or(true, |state| state.trim() != "0");
    // Who can't read the description is told so when it is needed.
    compiles && btf::description().map_or(true, |kernel| kernel.kernel_context.is_some())
}

/// The object with the function's number in this kernel.
///
/// # Errors
/// If the kernel has none, or the object calls it nowhere.
pub fn filled_in(object: &[u8]) -> Result<&'static [u8], DatapathError> {
    let number = btf::description()?.kernel_context;
    let number = number.ok_or(DatapathError::NoKernelCalls)?;
    let space = vec![0; object.len() + ALIGNMENT];
    let begin = space.as_ptr().align_offset(ALIGNMENT);
    let filled_in = &mut space.leak()[begin..begin + object.len()];
    filled_in.copy_from_slice(object);
    if fill_in(filled_in, number) == 0 {
        return Err(DatapathError::Missing {
            what: format!("the call of {KERNEL_CONTEXT}"),
        });
    }
    Ok(filled_in)
}

/// Returns how many calls there are.
fn fill_in(object: &mut [u8], number: u32) -> usize {
    let [a, b, c, d] = KERNEL_CONTEXT_CALL.to_ne_bytes();
    let wanted = [CALL, 0, 0, 0, a, b, c, d];
    let mut calls = 0;
    // Sections of instructions begin at multiples of their length.
    for instruction in object.as_chunks_mut::<8>().0 {
        if *instruction == wanted {
            instruction[1] = OF_KERNEL;
            instruction[4..].copy_from_slice(&number.to_ne_bytes());
            calls += 1;
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_call_is_filled_in() {
        let [a, b, c, d] = KERNEL_CONTEXT_CALL.to_ne_bytes();
        let call = [CALL, 0, 0, 0, a, b, c, d];
        let others = [
            [CALL, OF_KERNEL, 0, 0, a, b, c, d],
            [CALL, 0, 1, 0, a, b, c, d],
            [CALL, 0, 0, 0, a, b, c, d ^ 1],
        ];
        let mut object = [others[0], call, others[1], others[2], call].concat();
        object.extend(&call[..7]);
        assert_eq!(fill_in(&mut object, 0x0102_0304), 2);
        let [a, b, c, d] = 0x0102_0304_u32.to_ne_bytes();
        let filled_in = [CALL, OF_KERNEL, 0, 0, a, b, c, d];
        let expected = [others[0], filled_in, others[1], others[2], filled_in].concat();
        assert_eq!(object[..40], expected);
        assert_eq!(object[40..], call[..7]);
    }
}
