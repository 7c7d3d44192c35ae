//! What every target begins from, and inputs that once broke one, hold in each test run.

use std::fs;
use std::path::Path;

use super::TARGETS;

#[test]
fn the_seeds_of_every_target_hold() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    for (name, target) in TARGETS {
        assert!(
            fuzz.join(format!("fuzz_targets/{name}.rs")).is_file(),
            "{name} has no file in fuzz/fuzz_targets"
        );
        let seeds = fs::read_dir(fuzz.join("seeds").join(name)).expect("a folder of seeds");
        let mut count = 0;
        for seed in seeds {
            let path = seed.expect("an entry").path();
            // Where the target panics, this line is the last.
            println!("{}", path.display());
            target(&fs::read(&path).expect("a seed"));
            count += 1;
        }
        assert!(count > 0, "{name} has no seeds");
    }
}
