//! The state folder (`--state-dir`): is it there, who holds it, what is in it.

use std::{
    fs::{self, Metadata},
    io::ErrorKind,
    os::linux::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{Access, access, major, minor};
use serde::Serialize;

use crate::kernel::state::{BPFFS, is_bpffs};

const LOCKS: &str = "/proc/locks";

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct StateFolder {
    /// The folder; `None` where the state is turned off.
    pub path: Option<PathBuf>,
    /// Can an agent use it? `None`: there is none to use, or nobody may look.
    pub ok: Option<bool>,
    /// Is a bpf file system there, or where the folder would be made?
    pub bpffs: bool,
    /// Process id of the agent that holds it.
    pub holder: Option<u32>,
    /// What is pinned in it; `None` where there is no folder or nobody may look.
    pub pinned: Option<Pinned>,
    /// All of it, in words.
    pub detail: String,
}

/// What is pinned in the folder.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Pinned {
    /// Its version; `None` where nothing is pinned, as in this version of tracer.
    pub version: Option<String>,
    /// How many maps and links.
    pub objects: usize,
}

/// Looks at the folder, and changes nothing.
pub fn examine(path: Option<&Path>) -> StateFolder {
    let Some(path) = path else {
        return StateFolder {
            detail: "turned off: counters begin with the agent".to_owned(),
            ..StateFolder::default()
        };
    };
    let mut found = StateFolder {
        path: Some(path.to_owned()),
        bpffs: path.ancestors().find(|p| p.exists()).is_some_and(is_bpffs),
        ..StateFolder::default()
    };
    (found.ok, found.detail) = match fs::metadata(path) {
        Ok(folder) if found.bpffs => {
            found.holder = holder(&folder);
            found.pinned = pinned(path);
            existing(&found, path)
        }
        Ok(_) => (
            Some(false),
            format!("not on a bpf file system: use a folder below {BPFFS}"),
        ),
        Err(error) if error.kind() == ErrorKind::NotFound => missing(path, found.bpffs),
        Err(error) => (None, format!("cannot be looked at: {error}")),
    };
    found
}

fn existing(found: &StateFolder, path: &Path) -> (Option<bool>, String) {
    let objects = match &found.pinned {
        None => "what is pinned in it is not for this user to see".to_owned(),
        Some(Pinned { objects: 0, .. }) => "nothing is pinned in it".to_owned(),
        Some(Pinned { objects, version }) => format!(
            "{objects} objects are pinned in it, version {}",
            version.as_deref().unwrap_or("unknown")
        ),
    };
    match found.holder {
        Some(pid) => {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            (
                Some(true),
                format!("held by process {pid} {}; {objects}", name.trim()),
            )
        }
        None if access(path, Access::WRITE_OK).is_err() => (
            Some(false),
            format!("cannot be written by this user; {objects}"),
        ),
        None => (Some(true), format!("held by nobody; {objects}")),
    }
}

fn missing(path: &Path, bpffs: bool) -> (Option<bool>, String) {
    let below = path.ancestors().find(|p| p.exists());
    if bpffs && below.is_some_and(|p| access(p, Access::WRITE_OK).is_ok()) {
        (
            Some(true),
            "not there yet: the agent makes it when it starts".to_owned(),
        )
    } else if bpffs {
        (
            Some(false),
            "not there, and this user cannot make it".to_owned(),
        )
    } else if path.starts_with(BPFFS) {
        (
            Some(false),
            format!(
                "no bpf file system is mounted at {BPFFS}: the agent mounts one if it has \
                 CAP_SYS_ADMIN, else goes on without, and counters begin with it"
            ),
        )
    } else {
        (
            Some(false),
            format!("not there, and no bpf file system is: use a folder below {BPFFS}"),
        )
    }
}

/// What is in the folder.
fn pinned(path: &Path) -> Option<Pinned> {
    let mut objects = 0;
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).ok()?.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            } else {
                objects += 1;
            }
        }
    }
    Some(Pinned {
        version: None,
        objects,
    })
}

/// Process id of who holds the folder's lock, where it is of this pid namespace.
fn holder(folder: &Metadata) -> Option<u32> {
    let device = folder.st_dev();
    let (major, minor) = (major(device), minor(device));
    find_holder(
        &fs::read_to_string(LOCKS).ok()?,
        &format!("{major:02x}:{minor:02x}:{}", folder.st_ino()),
    )
}

/// `1: FLOCK  ADVISORY  WRITE 4711 00:1f:12345 0 EOF`; who waits for it has `->` behind the number.
fn find_holder(locks: &str, file: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, "FLOCK", _, _, pid, on, ..] = fields.as_slice() else {
            return None;
        };
        (*on == file).then(|| pid.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_who_has_the_lock_and_not_who_waits() {
        let locks = "1: POSIX  ADVISORY  WRITE 10 00:1f:7 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 11 00:1f:8 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 12 00:1f:7 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 13 00:1f:7 0 EOF\n";
        assert_eq!(find_holder(locks, "00:1f:7"), Some(12));
        assert_eq!(find_holder(locks, "00:1f:9"), None);
    }

    #[test]
    fn a_folder_elsewhere_is_no_state_folder() {
        let folder = tempfile::tempdir().unwrap();
        let there = examine(Some(folder.path()));
        assert_eq!((there.ok, there.bpffs), (Some(false), false), "{there:?}");
        let absent = examine(Some(&folder.path().join("none")));
        assert_eq!(absent.ok, Some(false), "{absent:?}");
        assert_eq!(examine(None).ok, None);
    }
}
