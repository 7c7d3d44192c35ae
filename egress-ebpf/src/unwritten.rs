//! The checksum that a packet leaves to be written, from the kernel's own `struct sk_buff`: `__sk_buff`
//! does not tell it.

use core::ptr;

use aya_ebpf::bindings::__sk_buff;
use egress_common::offload::{SkbFields, Unwritten};

/// Set by user space before the programs are loaded, so that the verifier knows it.
#[unsafe(no_mangle)]
static SP_SKB_FIELDS: SkbFields = SkbFields::UNKNOWN;

/// Of `ip_summed`: the checksum is still to be written (`CHECKSUM_PARTIAL`).
const PARTIAL: u8 = 3;

/// What it leaves to be written, if anything.
///
/// # Errors
/// If that can't be read.
#[inline(always)]
pub fn unwritten(context: *mut __sk_buff) -> Result<Option<Unwritten>, ()> {
    // SAFETY: a static. Volatile, because what it is here is not what it is when it runs.
    let fields = unsafe { ptr::read_volatile(&raw const SP_SKB_FIELDS) };
    if fields.region == SkbFields::UNKNOWN.region {
        return Err(());
    }
    let region = read::region(context, fields.region).ok_or(())?;
    let byte = |at: u32| region.byte(at as usize);
    let short = |at: u32| u32::from(region.short(at as usize));
    if byte(fields.ip_summed) >> fields.ip_summed_shift & 3 != PARTIAL {
        return Ok(None);
    }
    // The kernel counts from where its buffer begins, and so it does the link header.
    let mac = short(fields.mac_header);
    let start = short(fields.csum_start);
    let at = start + short(fields.csum_offset);
    Ok(Some(Unwritten {
        start: start.saturating_sub(mac),
        at: at.saturating_sub(mac),
    }))
}

/// In place: the verifier knows the type, and what may be read of it.
#[cfg(not(feature = "in-parts"))]
mod read {
    use aya_ebpf::bindings::__sk_buff;
    use egress_common::offload::KERNEL_CONTEXT_CALL;

    /// Bytes of the kernel's own buffer.
    pub struct Region(*const u8);

    #[inline(always)]
    #[allow(clippy::unnecessary_wraps, reason = "the other way can fail")]
    pub fn region(context: *mut __sk_buff, at: u32) -> Option<Region> {
        // SAFETY: user space puts a function of the kernel in its place, of this type, before this is
        // loaded; and where it doesn't, the kernel refuses the program.
        let cast: extern "C" fn(*mut __sk_buff) -> *const u8 =
            unsafe { core::mem::transmute(KERNEL_CONTEXT_CALL as usize) };
        Some(Region(cast(context).wrapping_add(at as usize)))
    }

    impl Region {
        #[inline(always)]
        pub fn byte(&self, at: usize) -> u8 {
            // SAFETY: a field's place, as the verifier checks; it is a buffer for as long as the context is.
            unsafe { *self.0.wrapping_add(at) }
        }

        #[inline(always)]
        pub fn short(&self, at: usize) -> u16 {
            // SAFETY: as above, and user space admits even places only.
            unsafe { *self.0.wrapping_add(at).cast() }
        }
    }
}

/// By helper, all at once: Linux 6.1 lets no program read what a context is made of.
#[cfg(feature = "in-parts")]
mod read {
    use core::mem::MaybeUninit;

    use aya_ebpf::bindings::__sk_buff;
    use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
    use egress_common::offload::SKB_REGION;

    /// A copy of bytes of the kernel's own buffer.
    pub struct Region([u64; SKB_REGION / 8]);

    #[inline(always)]
    pub fn region(context: *mut __sk_buff, at: u32) -> Option<Region> {
        let mut region = MaybeUninit::<[u64; SKB_REGION / 8]>::uninit();
        // What the verifier takes for the context is the kernel's own buffer at run time.
        let from = context.cast::<u8>().wrapping_add(at as usize);
        // SAFETY: the helper writes so many bytes, and reads where nothing is without harm.
        let failed = unsafe {
            bpf_probe_read_kernel(region.as_mut_ptr().cast(), SKB_REGION as u32, from.cast())
        };
        // SAFETY: it was just written.
        (failed == 0).then(|| Region(unsafe { region.assume_init() }))
    }

    impl Region {
        #[inline(always)]
        pub fn byte(&self, at: usize) -> u8 {
            // SAFETY: user space has seen that it is within the region, and so does the verifier.
            unsafe { *self.0.as_ptr().cast::<u8>().wrapping_add(at) }
        }

        #[inline(always)]
        #[allow(
            clippy::cast_ptr_alignment,
            reason = "the region is aligned, and user space admits even places only"
        )]
        pub fn short(&self, at: usize) -> u16 {
            // SAFETY: as above.
            unsafe { *self.0.as_ptr().cast::<u8>().wrapping_add(at).cast() }
        }
    }
}
