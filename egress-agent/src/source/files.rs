//! The files of a directory, each with its last good content. Pure: it is told what the files
//! hold.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::decode::{Located, decode};
use super::error::SourceError;
use crate::index::{Object, ObjectId};

/// All that the files say now.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Objects of the last good content of each file.
    pub objects: Vec<Object>,
    /// What could not be taken, sorted by file.
    pub problems: Vec<SourceError>,
}

/// What reading a file gave: its text, or why it could not be read.
pub type Reading = Result<String, String>;

/// Files by path.
#[derive(Debug, Default)]
pub struct Files {
    by_path: BTreeMap<PathBuf, File>,
    /// Why the directory itself can't be read.
    unreadable: Option<SourceError>,
    /// Which file each object was last taken from: it keeps the object when another claims it.
    owners: BTreeMap<ObjectId, PathBuf>,
}

#[derive(Debug)]
struct File {
    reading: Reading,
    good: Vec<Located>,
    error: Option<SourceError>,
}

impl Files {
    /// Takes what the directory holds now. Whether anything is different.
    pub fn update(&mut self, readings: BTreeMap<PathBuf, Reading>) -> bool {
        let before = self.by_path.len();
        self.by_path.retain(|path, _| readings.contains_key(path));
        let mut changed = self.by_path.len() < before || self.unreadable.take().is_some();
        for (path, reading) in readings {
            match self.by_path.get_mut(&path) {
                Some(file) if file.reading == reading => {}
                Some(file) => {
                    changed = true;
                    file.take(&path, reading);
                }
                None => {
                    changed = true;
                    let mut file = File {
                        reading: Ok(String::new()),
                        good: vec![],
                        error: None,
                    };
                    file.take(&path, reading);
                    self.by_path.insert(path, file);
                }
            }
        }
        changed
    }

    /// The directory can't be read: all that was in it still stands. Whether that is news.
    pub fn lost(&mut self, directory: &Path, reason: String) -> bool {
        let error = Some(SourceError {
            file: directory.to_owned(),
            reason,
            ..SourceError::default()
        });
        let news = self.unreadable != error;
        self.unreadable = error;
        news
    }

    /// All objects and problems. An object that two files hold is taken from the one that had it
    /// first; the other is reported.
    pub fn snapshot(&mut self) -> Snapshot {
        let mut claims: BTreeMap<ObjectId, Vec<(&Path, &Located)>> = BTreeMap::new();
        let mut problems: BTreeSet<SourceError> = self.unreadable.iter().cloned().collect();
        for (path, file) in &self.by_path {
            problems.extend(file.error.clone());
            for located in &file.good {
                claims
                    .entry(located.object.id())
                    .or_default()
                    .push((path, located));
            }
        }
        let mut objects = Vec::with_capacity(claims.len());
        let mut owners = BTreeMap::new();
        for (id, claims) in claims {
            let owner = self.owners.get(&id);
            let kept = claims
                .iter()
                .position(|(path, _)| Some(*path) == owner.map(PathBuf::as_path));
            let (path, located) = claims[kept.unwrap_or(0)];
            for (other, claim) in claims.iter().filter(|(other, _)| *other != path) {
                problems.insert(SourceError {
                    file: other.to_path_buf(),
                    line: Some(claim.line),
                    object: id.to_string(),
                    reason: format!(
                        "is in {} (line {}) too, and is taken from there; remove one of the two",
                        path.display(),
                        located.line
                    ),
                    ..SourceError::default()
                });
            }
            owners.insert(id, path.to_owned());
            objects.push(located.object.clone());
        }
        self.owners = owners;
        Snapshot {
            objects,
            problems: problems.into_iter().collect(),
        }
    }
}

impl File {
    fn take(&mut self, path: &Path, reading: Reading) {
        let result = match &reading {
            Err(reason) => Err(SourceError {
                reason: reason.clone(),
                ..SourceError::default()
            }),
            // Truncated and not written yet, or a slip: either way no reason to open everything.
            Ok(text) if text.trim().is_empty() && !self.good.is_empty() => Err(SourceError {
                reason: "is empty; to remove its objects, delete the file".to_owned(),
                ..SourceError::default()
            }),
            Ok(text) => decode(text).and_then(unique),
        };
        match result {
            Ok(good) => {
                self.good = good;
                self.error = None;
            }
            Err(error) => {
                self.error = Some(SourceError {
                    file: path.to_owned(),
                    ..error
                });
            }
        }
        self.reading = reading;
    }
}

fn unique(objects: Vec<Located>) -> Result<Vec<Located>, SourceError> {
    let mut lines: BTreeMap<ObjectId, u32> = BTreeMap::new();
    for located in &objects {
        let id = located.object.id();
        if let Some(first) = lines.get(&id) {
            return Err(SourceError {
                line: Some(located.line),
                object: id.to_string(),
                reason: format!("stands at line {first} already; remove one of the two"),
                ..SourceError::default()
            });
        }
        lines.insert(id, located.line);
    }
    Ok(objects)
}
