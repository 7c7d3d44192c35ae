//! Puts rendered configuration where Envoy watches it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::envoy::{File, Rendered, empty};

/// A file or directory that could not be read or written.
#[derive(Debug, Error)]
#[error("can't {action} {}: {error}; the gateway there keeps its last configuration", path.display())]
pub struct WriteError {
    pub action: &'static str,
    pub path: PathBuf,
    #[source]
    pub error: io::Error,
}

/// Writes the directories of gateways below one directory. It must be the only writer there.
#[derive(Clone, Debug)]
pub struct Writer {
    root: PathBuf,
}

impl Writer {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Writes what differs; returns the files it wrote. Each file is replaced at once. Of a gateway
    /// that is gone the listeners are emptied first, then the clusters; its directory stays, since
    /// an Envoy may still watch it.
    pub fn write(&self, rendered: &Rendered) -> Result<Vec<PathBuf>, WriteError> {
        let mut written = Vec::new();
        for (name, files) in &rendered.gateways {
            let directory = self.root.join(name);
            fs::create_dir_all(&directory).map_err(at("create", &directory))?;
            write_files(&directory, files, &mut written)?;
            remove_stale(&directory, files)?;
        }
        for directory in self.gone(rendered)? {
            let files = empty();
            write_files(&directory, &files, &mut written)?;
            remove_stale(&directory, &files)?;
        }
        Ok(written)
    }

    /// Directories of gateways that are no more.
    fn gone(&self, rendered: &Rendered) -> Result<Vec<PathBuf>, WriteError> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(at("list", &self.root)(error)),
        };
        let mut gone = Vec::new();
        for entry in entries {
            let entry = entry.map_err(at("list", &self.root))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let ours = entry.path().join(super::envoy::LISTENERS_FILE).is_file();
            if ours && !rendered.gateways.contains_key(&name) {
                gone.push(entry.path());
            }
        }
        gone.sort();
        Ok(gone)
    }
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WriteError {
    let path = path.to_owned();
    move |error| WriteError {
        action,
        path,
        error,
    }
}

fn write_files(
    directory: &Path,
    files: &[File],
    written: &mut Vec<PathBuf>,
) -> Result<(), WriteError> {
    for file in files {
        let path = directory.join(&file.name);
        match fs::read(&path) {
            Ok(content) if content == file.content.as_bytes() => continue,
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(at("read", &path)(error));
            }
            _ => {}
        }
        replace(directory, &path, file)?;
        written.push(path);
    }
    Ok(())
}

/// A rename into place: Envoy watches for just that, and never sees half a file.
fn replace(directory: &Path, path: &Path, file: &File) -> Result<(), WriteError> {
    let draft = directory.join(format!(".{}.new", file.name));
    let write = || -> io::Result<()> {
        let mut out = fs::File::create(&draft)?;
        out.write_all(file.content.as_bytes())?;
        out.sync_all()
    };
    write().map_err(at("write", &draft))?;
    fs::rename(&draft, path).map_err(at("replace", path))
}

/// Removes routes and secrets that no listener names any more.
fn remove_stale(directory: &Path, files: &[File]) -> Result<(), WriteError> {
    let wanted: BTreeSet<&str> = files.iter().map(|file| file.name.as_str()).collect();
    for entry in fs::read_dir(directory).map_err(at("list", directory))? {
        let entry = entry.map_err(at("list", directory))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = ["rds-", "sds-"]
            .iter()
            .any(|prefix| name.starts_with(prefix));
        if ours && !wanted.contains(name.as_str()) {
            fs::remove_file(entry.path()).map_err(at("remove", &entry.path()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn rendered(gateways: &[(&str, &[(&str, &str)])]) -> Rendered {
        let files = |files: &[(&str, &str)]| -> Vec<File> {
            let file = |(name, content): &(&str, &str)| File {
                name: (*name).to_owned(),
                content: (*content).to_owned(),
            };
            files.iter().map(file).collect()
        };
        let gateways: BTreeMap<String, Vec<File>> = gateways
            .iter()
            .map(|(name, list)| ((*name).to_owned(), files(list)))
            .collect();
        Rendered { gateways }
    }

    fn names(root: &Path, paths: &[PathBuf]) -> Vec<String> {
        let name = |path: &PathBuf| path.strip_prefix(root).unwrap().display().to_string();
        paths.iter().map(name).collect()
    }

    #[test]
    fn only_what_differs_is_written_and_in_order() {
        let root = tempfile::tempdir().unwrap();
        let writer = Writer::new(root.path());
        let first = rendered(&[(
            "a.b",
            &[("cds.json", "1"), ("rds-1.json", "1"), ("lds.json", "1")],
        )]);
        let written = writer.write(&first).unwrap();
        assert_eq!(
            names(root.path(), &written),
            ["a.b/cds.json", "a.b/rds-1.json", "a.b/lds.json"]
        );
        assert_eq!(writer.write(&first).unwrap(), Vec::<PathBuf>::new());
        let second = rendered(&[(
            "a.b",
            &[("cds.json", "1"), ("rds-2.json", "2"), ("lds.json", "2")],
        )]);
        let written = writer.write(&second).unwrap();
        assert_eq!(
            names(root.path(), &written),
            ["a.b/rds-2.json", "a.b/lds.json"]
        );
        let mut left: Vec<_> = fs::read_dir(root.path().join("a.b"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["cds.json", "lds.json", "rds-2.json"]);
    }

    #[test]
    fn a_gateway_that_is_gone_is_emptied_once() {
        let root = tempfile::tempdir().unwrap();
        let writer = Writer::new(root.path());
        writer
            .write(&rendered(&[(
                "a.b",
                &[("cds.json", "1"), ("lds.json", "1")],
            )]))
            .unwrap();
        fs::create_dir(root.path().join("not-ours")).unwrap();
        let written = writer.write(&Rendered::default()).unwrap();
        assert_eq!(
            names(root.path(), &written),
            ["a.b/lds.json", "a.b/cds.json"]
        );
        let lds = fs::read_to_string(root.path().join("a.b/lds.json")).unwrap();
        let lds: serde_json::Value = serde_json::from_str(&lds).unwrap();
        assert_eq!(lds["resources"], serde_json::json!([]));
        assert_eq!(
            writer.write(&Rendered::default()).unwrap(),
            Vec::<PathBuf>::new()
        );
    }

    #[test]
    fn an_error_names_the_path() {
        let root = tempfile::tempdir().unwrap();
        let blocked = root.path().join("file");
        fs::write(&blocked, "").unwrap();
        fs::set_permissions(&blocked, fs::Permissions::from_mode(0o600)).unwrap();
        let error = Writer::new(&blocked)
            .write(&rendered(&[("a.b", &[])]))
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&blocked.join("a.b").display().to_string()),
            "{error}"
        );
    }
}
