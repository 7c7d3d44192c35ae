//! Unsafe code is where ARCHITECTURE.md lists it, with a reason, and nowhere else.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The files of the table below "Unsafe code"; a second name in a cell is beside the first.
fn listed(root: &Path) -> BTreeSet<PathBuf> {
    let text = fs::read_to_string(root.join("ARCHITECTURE.md")).expect("the file");
    let (_, text) = text.split_once("\n## Unsafe code\n").expect("the chapter");
    let (text, _) = text.split_once("\n## ").expect("another chapter");
    let mut files = BTreeSet::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let mut cells = line.trim_matches('|').split('|');
        let (names, reason) = (
            cells.next().expect("files"),
            cells.next().expect("a reason"),
        );
        assert!(reason.trim().len() > 10, "a reason is missing: {line}");
        let mut first: Option<PathBuf> = None;
        for name in names.split('`').skip(1).step_by(2) {
            let path = match &first {
                None => root.join(name),
                Some(first) => beside(first, name),
            };
            first.get_or_insert_with(|| path.clone());
            if let Some(folder) = path.to_str().and_then(|path| path.strip_suffix("/*.rs")) {
                files.extend(sources(Path::new(folder)));
            } else {
                assert!(path.is_file(), "{name} is listed and not there");
                files.insert(path);
            }
        }
    }
    files
}

/// `packet/wire.rs` beside `egress-common/src/memory.rs`: below the nearest folder that has it.
fn beside(first: &Path, name: &str) -> PathBuf {
    let mut folders = first.ancestors().skip(1);
    let found = folders.find(|folder| folder.join(name).is_file());
    found
        .unwrap_or_else(|| panic!("{name} is listed and not there"))
        .join(name)
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// Whether a line of code has the keyword in front of what it can be in front of.
fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let forms = [
        "unsafe {",
        "unsafe fn",
        "unsafe impl",
        "unsafe trait",
        "unsafe extern",
        "unsafe(",
    ];
    // Strings are no code.
    let code: String = code.split('"').step_by(2).collect();
    forms.iter().any(|form| code.contains(form))
}

#[test]
fn unsafe_code_is_only_where_it_is_listed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let root = root.canonicalize().expect("the workspace");
    let listed = listed(&root);
    let mut used = BTreeSet::new();
    for folder in [
        "egress-agent",
        "egress-battery",
        "egress-common",
        "egress-ebpf",
        "fuzz",
        "xtask",
    ] {
        for path in sources(&root.join(folder)) {
            let text = fs::read_to_string(&path).expect("a source");
            // It names what it looks for.
            if !path.ends_with(file!()) && text.lines().any(is_unsafe) {
                assert!(
                    listed.contains(&path),
                    "{}: list it in ARCHITECTURE.md, \"Unsafe code\", with what it is for",
                    path.display()
                );
                used.insert(path);
            }
        }
    }
    let ebpf = root.join("egress-ebpf");
    for path in listed.iter().filter(|path| !path.starts_with(&ebpf)) {
        assert!(
            used.contains(path),
            "{} needs no list any more",
            path.display()
        );
    }
}

#[test]
fn the_keyword_is_found_and_its_name_is_not() {
    for line in [
        "    unsafe {",
        "unsafe impl A for B {}",
        "#[unsafe(no_mangle)]",
        "Ok(unsafe { f() })",
    ] {
        assert!(is_unsafe(line), "{line}");
    }
    for line in [
        "// SAFETY: unsafe { is a word",
        "gate_unsafe: bool,",
        "let unsafely = 1;",
    ] {
        assert!(!is_unsafe(line), "{line}");
    }
}
