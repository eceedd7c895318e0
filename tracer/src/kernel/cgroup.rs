//! The cgroup2 hierarchy: where it is mounted, and what its cgroups are called.

use std::{
    borrow::Cow,
    fs,
    os::unix::fs::{DirEntryExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};

/// Where cgroup2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on hybrid hosts.
pub fn mount_point() -> Result<PathBuf> {
    let mounts =
        fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    find_mount(&mounts).ok_or_else(|| {
        anyhow!(
            "no cgroup2 file system is mounted: mount one with \
             `mount -t cgroup2 none /sys/fs/cgroup/unified`, or boot with \
             systemd.unified_cgroup_hierarchy=1"
        )
    })
}

fn find_mount(mounts: &str) -> Option<PathBuf> {
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter(|fields| fields.get(2) == Some(&"cgroup2"))
        .filter_map(|fields| fields.get(1).map(|path| PathBuf::from(unescape(path))))
        // A mount that another one hides is listed too.
        .find(|path| path.join("cgroup.procs").exists())
}

/// `/proc/mounts` writes space, tab, newline and backslash as octal.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

/// Calls back with id and path (from the mount point, beginning with `/`) of the cgroup `top` and
/// every one below. The id is the inode of its directory, which is what `bpf_skb_cgroup_id` returns.
pub fn walk(mount: &Path, top: &str, mut found: impl FnMut(u64, &str)) {
    let start = mount.join(top.trim_start_matches('/'));
    let Ok(root) = fs::metadata(&start) else {
        return;
    };
    found(root.ino(), top);
    let mut directories = vec![start];
    while let Some(directory) = directories.pop() {
        // A cgroup may go away under our feet.
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                let path = entry.path();
                if let Ok(below) = path.strip_prefix(mount) {
                    found(entry.ino(), &format!("/{}", below.display()));
                }
                directories.push(path);
            }
        }
    }
}

/// The uids of pods that a path holds, the innermost first: `…/pod<uid>/…`, or with systemd
/// `…-pod<uid>.slice/…`, where the uid's hyphens are underscores, for a hyphen parts a slice's name.
pub fn pod_uids(path: &str) -> impl Iterator<Item = Cow<'_, str>> {
    path.rsplit('/').filter_map(|part| {
        let uid = match part.strip_suffix(".slice") {
            Some(slice) => {
                let (_, last) = slice.rsplit_once('-')?;
                Cow::Owned(last.strip_prefix("pod")?.replace('_', "-"))
            }
            None => Cow::Borrowed(part.strip_prefix("pod")?),
        };
        (!uid.is_empty()).then_some(uid)
    })
}

/// What a host process's cgroup is called: its systemd unit, else the last part of the path.
/// Numbered scopes (`session-7.scope`) are folded, for a label must not grow with logins.
pub fn unit(path: &str) -> String {
    let parts = || path.split('/').filter(|part| !part.is_empty());
    // The innermost unit that runs something; slices only group.
    let name = parts()
        .rev()
        .find(|part| {
            [".service", ".scope", ".socket", ".mount", ".swap"]
                .iter()
                .any(|suffix| part.ends_with(suffix))
        })
        .or_else(|| parts().next_back());
    let Some(name) = name else {
        return "(root)".to_owned();
    };
    if let Some(stem) = name.strip_suffix(".scope")
        && let Some((prefix, number)) = stem.rsplit_once('-')
        && !number.is_empty()
        && number.bytes().all(|b| b.is_ascii_digit())
    {
        return format!("{prefix}-*.scope");
    }
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_named_as_systemd_names_them() {
        assert_eq!(unit("/system.slice/sshd.service"), "sshd.service");
        assert_eq!(
            unit("/user.slice/user-0.slice/session-7.scope"),
            "session-*.scope"
        );
        assert_eq!(unit("/system.slice/docker.service/inner"), "docker.service");
        assert_eq!(unit("/init.scope"), "init.scope");
        assert_eq!(unit("/mine/yours"), "yours");
        assert_eq!(unit("/"), "(root)");
    }

    #[test]
    fn mount_paths_are_unescaped() {
        assert_eq!(unescape(r"/a\040b"), "/a b");
    }

    #[test]
    fn the_walk_finds_the_root() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("a")).unwrap();
        let mut found = Vec::new();
        fs::create_dir(directory.path().join("a/b")).unwrap();
        walk(directory.path(), "/", |_, path| found.push(path.to_owned()));
        assert_eq!(found, ["/", "/a", "/a/b"]);
        found.clear();
        walk(directory.path(), "/a", |_, path| {
            found.push(path.to_owned());
        });
        assert_eq!(found, ["/a", "/a/b"]);
    }
}
