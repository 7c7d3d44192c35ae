//! Bytes of the container runtime and of the kernel; the first chooses whose they are.

pub fn run(data: &[u8]) {
    match data.split_first() {
        Some((choice, bytes)) if choice % 2 == 0 => crate::nri::fuzz(bytes),
        Some((_, bytes)) => crate::node::fuzz(bytes),
        None => {}
    }
}
