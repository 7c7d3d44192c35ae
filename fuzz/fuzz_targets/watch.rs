#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| egress_agent::fuzz::run("watch", data));

#[cfg(not(fuzzing))]
fn main() {
    eprintln!("this is a fuzz target: start it by `cargo xtask fuzz watch`");
    std::process::exit(2);
}
