//! The one layer of an image: files as a tar archive, the same bytes for the same files.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use flate2::{Compression, GzBuilder};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

/// A file of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it is in the image, without a slash at its beginning.
    pub path: String,
    /// Where it is here; what a link leads to counts.
    pub from: PathBuf,
    /// Permissions.
    pub mode: u32,
}

/// A layer, compressed.
#[derive(Debug)]
pub struct Layer {
    pub gzip: Vec<u8>,
    /// Digest of the archive before compression.
    pub diff_id: String,
}

/// `sha256:` and the digest in hexadecimal digits.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

impl Layer {
    /// Packs the files, of root, with the time `epoch` (seconds since 1970), in the order of their
    /// paths.
    pub fn of(entries: &[Entry], epoch: u64) -> Result<Self> {
        let mut entries: Vec<_> = entries.iter().collect();
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        let mut archive = tar::Builder::new(Vec::new());
        let mut directories = BTreeSet::new();
        let mut paths = BTreeSet::new();
        for entry in entries {
            let plain = Path::new(&entry.path)
                .components()
                .all(|part| matches!(part, std::path::Component::Normal(_)));
            ensure!(
                plain && !entry.path.is_empty(),
                "{} is no path within an image",
                entry.path
            );
            ensure!(paths.insert(&entry.path), "{} is there twice", entry.path);
            for (at, _) in entry.path.match_indices('/') {
                let directory = &entry.path[..at];
                if directories.insert(directory.to_owned()) {
                    let mut header = header(EntryType::Directory, 0o755, 0, epoch);
                    archive.append_data(&mut header, format!("{directory}/"), &[][..])?;
                }
            }
            let content = fs::read(&entry.from)
                .with_context(|| format!("reading {}", entry.from.display()))?;
            let size = content.len() as u64;
            let mut header = header(EntryType::Regular, entry.mode, size, epoch);
            archive.append_data(&mut header, &entry.path, content.as_slice())?;
        }
        let tar = archive.into_inner()?;
        // No name and no time in the header.
        let mut gzip = GzBuilder::new()
            .operating_system(255)
            .write(Vec::new(), Compression::best());
        gzip.write_all(&tar)?;
        Ok(Self {
            gzip: gzip.finish()?,
            diff_id: digest(&tar),
        })
    }
}

fn header(kind: EntryType, mode: u32, size: u64, epoch: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    header.set_mtime(epoch);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, from: &Path) -> Entry {
        Entry {
            path: path.to_owned(),
            from: from.to_owned(),
            mode: 0o755,
        }
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let dir = tempfile::tempdir().expect("a directory");
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, "one").expect("writable");
        fs::write(&b, "two").expect("writable");
        let entries = [entry("usr/bin/a", &a), entry("b", &b)];
        let first = Layer::of(&entries, 7).expect("a layer");
        // Another time on disk, another order.
        fs::write(&a, "one").expect("writable");
        let again = Layer::of(&[entries[1].clone(), entries[0].clone()], 7).expect("a layer");
        assert_eq!(first.gzip, again.gzip);
        let later = Layer::of(&entries, 8).expect("a layer");
        assert_ne!(first.diff_id, later.diff_id);
    }

    #[test]
    fn files_come_with_their_directories() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("file");
        fs::write(&file, "content").expect("writable");
        let layer = Layer::of(&[entry("usr/bin/a", &file), entry("usr/b", &file)], 0);
        let gzip = layer.expect("a layer").gzip;
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(gzip.as_slice()));
        let seen: Vec<_> = archive
            .entries()
            .expect("an archive")
            .map(|entry| {
                let entry = entry.expect("an entry");
                let header = entry.header();
                let path = entry.path().expect("a path").display().to_string();
                (
                    path,
                    header.mode().expect("a mode"),
                    header.mtime().expect("a time"),
                )
            })
            .collect();
        let of = |path: &str| (path.to_owned(), 0o755, 0);
        assert_eq!(
            seen,
            [of("usr/"), of("usr/b"), of("usr/bin/"), of("usr/bin/a")]
        );
    }

    #[test]
    fn paths_stay_within_the_image() {
        let here = Path::new("Cargo.toml");
        for path in ["", "/etc/passwd", "../x", "a/../../x"] {
            assert!(Layer::of(&[entry(path, here)], 0).is_err(), "{path}");
        }
        let twice = [entry("a", here), entry("a", here)];
        assert!(Layer::of(&twice, 0).is_err());
    }
}
