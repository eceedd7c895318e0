//! The state folder (`--state-dir`): is it there, who holds it, what is in it.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, access},
    process::geteuid,
};
use serde::Serialize;

use crate::kernel::state::{BPFFS, Contents, holder, is_bpffs, unsafe_folder};

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
    pub pinned: Option<Contents>,
    /// All of it, in words.
    pub detail: String,
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
        Ok(folder) if found.bpffs && geteuid().is_root() && unsafe_folder(&folder).is_some() => (
            Some(false),
            unsafe_folder(&folder).unwrap_or_default().to_owned(),
        ),
        Ok(_) if found.bpffs => {
            found.holder = holder(path);
            found.pinned = Contents::of(path).ok();
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
        Some(Contents { schema: None, .. }) => "nothing is pinned in it".to_owned(),
        Some(Contents {
            schema: Some(schema),
            maps,
            links,
        }) => {
            format!("version {schema}: {maps} maps, {links} attachments")
        }
    };
    let counting = found.pinned.is_some_and(|pinned| pinned.links > 0);
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
        None if counting => (
            Some(true),
            format!(
                "held by nobody; {objects}: the kernel counts on for the next agent, or until \
                 `tracer agent --detach-all`"
            ),
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

#[cfg(test)]
mod tests {
    use super::*;

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
