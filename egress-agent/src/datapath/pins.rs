//! The versioned directory that outlives the agent.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use aya::maps::{MapData, MapInfo};
use aya_obj::Object;
use aya_obj::generated::{BPF_F_RDONLY_PROG, bpf_map_type};
use egress_common::maps;

use super::links::{CgroupHook, Direction};
use super::{DatapathError, layout, links, sys};

/// Links whose targets are the layouts of the maps, in words: see [`layout::write`].
const SCHEMAS: &str = "schemas";

/// Paths below `<bpffs>/sallyport/<layout>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Names the directory; touches nothing.
    ///
    /// # Errors
    /// If `bpffs` is no BPF file system.
    pub fn at(bpffs: &Path) -> Result<Self, DatapathError> {
        let is = sys::is_bpffs(bpffs).map_err(|error| DatapathError::Io {
            what: format!(
                "can't look at {}; mount a BPF file system there or name another with --bpffs",
                bpffs.display()
            ),
            error,
        })?;
        if is {
            Ok(Self {
                root: bpffs.join(layout::DIRECTORY).join(layout::OWN.as_str()),
            })
        } else {
            Err(DatapathError::NotBpffs {
                path: bpffs.to_owned(),
            })
        }
    }

    /// Makes the directories, and writes down the layouts.
    pub fn create(&self) -> Result<(), DatapathError> {
        let schemas = self.root.join(SCHEMAS);
        for directory in [self.maps(), self.links(), schemas.clone()] {
            std::fs::create_dir_all(&directory).map_err(|error| DatapathError::Io {
                what: format!("can't make {}", directory.display()),
                error,
            })?;
        }
        for schema in maps::schema::SCHEMAS {
            let path = schemas.join(schema.name);
            match std::os::unix::fs::symlink(layout::write(schema), &path) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    return Err(DatapathError::Io {
                        what: format!("can't make {}", path.display()),
                        error,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The layout of a map in words; none if it was not written down.
    pub fn schema(&self, map: &str) -> Option<String> {
        let target = std::fs::read_link(self.root.join(SCHEMAS).join(map)).ok()?;
        Some(target.to_string_lossy().into_owned())
    }

    /// Directories of other layouts; those with most hooks first.
    pub fn others(&self) -> Result<Vec<Self>, DatapathError> {
        let Some(parent) = self.root.parent() else {
            return Ok(Vec::new());
        };
        let mut others = Vec::new();
        for name in Self::list(parent)? {
            let other = Self {
                root: parent.join(name),
            };
            let is_layout = std::fs::symlink_metadata(&other.root).is_ok_and(|it| it.is_dir());
            if is_layout && other.root != self.root {
                others.push((other.links_pinned()?, other));
            }
        }
        others.sort_by(|(a, _), (b, _)| b.cmp(a));
        Ok(others.into_iter().map(|(_, other)| other).collect())
    }

    /// Links that are pinned here.
    pub fn links_pinned(&self) -> Result<usize, DatapathError> {
        Ok(Self::list(&self.links())?.len())
    }

    /// Whether the agent before this one was of this layout.
    pub(super) fn was_last(&self) -> bool {
        let last = std::fs::read_link(self.owner());
        last.is_ok_and(|last| last.as_os_str() == self.name().as_str())
    }

    /// Says that from now on an agent of this layout writes.
    pub(super) fn set_last(&self) -> Result<(), DatapathError> {
        let (draft, path) = (self.root.with_file_name("owner-new"), self.owner());
        let _ = std::fs::remove_file(&draft);
        std::os::unix::fs::symlink(self.name(), &draft)
            .and_then(|()| std::fs::rename(&draft, &path))
            .map_err(|error| DatapathError::Io {
                what: format!("can't make {}", path.display()),
                error,
            })
    }

    fn owner(&self) -> PathBuf {
        self.root.with_file_name(layout::OWNER)
    }

    /// The directory's name, which tells the layout.
    pub fn name(&self) -> String {
        let name = self.root.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    pub fn device_link(&self, ifindex: u32, direction: Direction) -> PathBuf {
        self.links()
            .join(format!("dev-{ifindex}-{}", direction.name()))
    }

    pub fn cgroup_link(&self, hook: CgroupHook) -> PathBuf {
        self.links().join(format!("cg-{}", hook.name()))
    }

    /// Opens a pinned map by its name.
    pub fn open_map(&self, name: &str) -> Result<MapData, DatapathError> {
        MapData::from_pin(self.map(name)).map_err(|error| DatapathError::Aya {
            what: format!(
                "can't open the pinned map {}; has the agent run on this node?",
                self.map(name).display()
            ),
            error: Box::new(error),
        })
    }

    /// Names of what is pinned in `directory`; none if there is no such directory.
    pub fn list(directory: &Path) -> Result<Vec<String>, DatapathError> {
        let listed = |error| DatapathError::Io {
            what: format!("can't list {}", directory.display()),
            error,
        };
        let entries = match std::fs::read_dir(directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(listed)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(listed)?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Takes down whatever is pinned: links first, so that nothing looks into maps that go.
    /// Enforcement ends. Returns how many pins there were.
    pub fn remove(&self) -> Result<usize, DatapathError> {
        let mut removed = 0;
        for directory in [self.links(), self.maps()] {
            for name in Self::list(&directory)? {
                let path = directory.join(name);
                if directory == self.links() {
                    removed += usize::from(links::unpin(&path)?);
                    continue;
                }
                std::fs::remove_file(&path).map_err(|error| DatapathError::Io {
                    what: format!("can't unpin {}", path.display()),
                    error,
                })?;
                removed += 1;
            }
            remove_directory(&directory)?;
        }
        let schemas = self.root.join(SCHEMAS);
        for name in Self::list(&schemas)? {
            let path = schemas.join(name);
            std::fs::remove_file(&path).map_err(|error| DatapathError::Io {
                what: format!("can't remove {}", path.display()),
                error,
            })?;
        }
        remove_directory(&schemas)?;
        remove_directory(&self.root)?;
        if let Some(parent) = self.root.parent()
            && self.others()?.is_empty()
        {
            for name in Self::list(parent)? {
                // Who was last; a layout stays.
                let _ = std::fs::remove_file(parent.join(name));
            }
            let _ = std::fs::remove_dir(parent);
        }
        Ok(removed)
    }

    /// Compares each pinned map with what the object declares; aya would take any.
    pub(super) fn check_maps(&self, object: &Object) -> Result<(), DatapathError> {
        for name in Self::list(&self.maps())? {
            let Some(declared) = object.maps.get(&name) else {
                continue;
            };
            let info = MapInfo::from_pin(self.map(&name)).map_err(|error| DatapathError::Aya {
                what: format!("can't look at pinned map {name}"),
                error: Box::new(error),
            })?;
            let kind = info.map_type().map_or(0, |kind| kind as u32);
            let of_kind = if kind == bpf_map_type::BPF_MAP_TYPE_DEVMAP as u32 {
                BPF_F_RDONLY_PROG
            } else {
                0
            };
            let found = Layout {
                kind,
                key: info.key_size(),
                value: info.value_size(),
                entries: info.max_entries(),
                flags: info.map_flags() & !of_kind,
            };
            let wanted = Layout {
                kind: declared.map_type(),
                key: declared.key_size(),
                value: declared.value_size(),
                entries: declared.max_entries(),
                flags: declared.map_flags(),
            };
            if found != wanted {
                return Err(DatapathError::MapLayout {
                    map: name,
                    found: found.to_string(),
                    wanted: wanted.to_string(),
                });
            }
        }
        Ok(())
    }
}

fn remove_directory(path: &Path) -> Result<(), DatapathError> {
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(DatapathError::Io {
            what: format!("can't remove {}", path.display()),
            error,
        }),
        _ => Ok(()),
    }
}

/// All that two maps of one name must have in common.
#[derive(PartialEq, Eq)]
struct Layout {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "type {} key {} B value {} B max_entries {} flags {:#x}",
            self.kind, self.key, self.value, self.entries, self.flags
        )
    }
}
