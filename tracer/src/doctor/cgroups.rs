//! The cgroup layout, and what it costs in attribution.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use serde::Serialize;

use crate::kernel::{
    btf::Btf,
    cgroup::{MountedCgroups, ROOT_INODE},
};

/// How cgroups are mounted here.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Cgroups {
    /// `v2`, `hybrid` (version 1 with cgroup2 beside it), `v1`, or `none`.
    pub layout: &'static str,
    /// Is every process's cgroup known, and its pod by it?
    pub ok: bool,
    /// What the layout costs; empty where it costs nothing.
    pub costs: Vec<String>,
}

/// Looks at the mounts.
pub fn examine(btf: Option<&Btf>) -> Cgroups {
    let mounted = MountedCgroups::find().unwrap_or_default();
    let seen = Seen {
        inode: mounted
            .v2
            .as_ref()
            .and_then(|root| fs::metadata(root).ok())
            .map(|root| root.ino()),
        pods_in_v2: mounted.v2.as_deref().is_some_and(has_pods),
        pods_in_v1: mounted.v1.iter().any(|(path, _)| has_pods(path)),
        // Until 5.15 a socket had room for its cgroup or for its class, and whoever made a cgroup of
        // net_cls or net_prio took it from all (commit 8520e224f547). No version number tells, but
        // the structure does.
        room_for_both: btf.is_none_or(|btf| btf.offset("sock_cgroup_data", "cgroup").is_ok()),
    };
    judge(&mounted, &seen)
}

/// What else was looked at.
struct Seen {
    inode: Option<u64>,
    pods_in_v2: bool,
    pods_in_v1: bool,
    room_for_both: bool,
}

fn has_pods(root: &Path) -> bool {
    fs::read_dir(root).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(b"kubepods")
        })
    })
}

fn judge(mounted: &MountedCgroups, seen: &Seen) -> Cgroups {
    let layout = match (&mounted.v2, mounted.v1.is_empty()) {
        (Some(_), true) => "v2",
        (Some(_), false) => "hybrid",
        (None, false) => "v1",
        (None, true) => "none",
    };
    let mut costs = Vec::new();
    if mounted.v2.is_none() {
        costs.push(
            "hook dns has nothing to attach to, and no pod is known by its cgroup: pods on the \
             host's network and the host's services cannot be told apart"
                .to_owned(),
        );
    }
    if let Some(inode) = seen.inode
        && inode != ROOT_INODE
    {
        costs.push(
            "what is mounted is not the root of the hierarchy but a cgroup below it, as in a cgroup \
             namespace: lookups of processes outside are not seen. Mount the host's /sys/fs/cgroup"
                .to_owned(),
        );
    }
    if layout == "hybrid" && seen.pods_in_v1 && !seen.pods_in_v2 {
        costs.push(
            "the pods' cgroups are in version 1 only: pods are told apart by network namespace and \
             address, and those on the host's network not at all"
                .to_owned(),
        );
    }
    let class = mounted
        .v1
        .iter()
        .find(|(_, options)| options.iter().any(|o| o == "net_cls" || o == "net_prio"));
    if layout == "hybrid"
        && !seen.room_for_both
        && let Some((path, _)) = class
    {
        costs.push(format!(
            "on this kernel (as all before 5.15) the first cgroup made below {} takes the cgroup2 from \
             all sockets: they are then told apart by network namespace only",
            path.display()
        ));
    }
    Cgroups {
        layout,
        ok: costs.is_empty(),
        costs,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const FINE: Seen = Seen {
        inode: Some(ROOT_INODE),
        pods_in_v2: true,
        pods_in_v1: false,
        room_for_both: true,
    };

    fn mounted(v2: bool, v1: &[&str]) -> MountedCgroups {
        MountedCgroups {
            v2: v2.then(|| PathBuf::from("/cgroup2")),
            v1: v1
                .iter()
                .map(|name| (Path::new("/v1").join(name), vec![(*name).to_owned()]))
                .collect(),
        }
    }

    fn costs(mounted: &MountedCgroups, seen: &Seen) -> String {
        judge(mounted, seen).costs.join("; ")
    }

    #[test]
    fn cgroup2_alone_costs_nothing() {
        let found = judge(&mounted(true, &[]), &FINE);
        assert_eq!((found.layout, found.ok), ("v2", true));
        let hybrid = judge(&mounted(true, &["cpu", "net_cls"]), &FINE);
        assert_eq!((hybrid.layout, hybrid.ok), ("hybrid", true), "{hybrid:?}");
    }

    #[test]
    fn what_a_layout_costs_is_said() {
        let none = Seen {
            inode: None,
            pods_in_v2: false,
            ..FINE
        };
        let old = judge(&mounted(false, &["cpu"]), &none);
        assert_eq!((old.layout, old.ok), ("v1", false));
        assert!(old.costs[0].contains("hook dns"), "{old:?}");
        assert_eq!(judge(&mounted(false, &[]), &none).layout, "none");

        let below = Seen {
            inode: Some(4711),
            ..FINE
        };
        assert!(costs(&mounted(true, &[]), &below).contains("not the root"));

        let apart = Seen {
            pods_in_v1: true,
            pods_in_v2: false,
            ..FINE
        };
        assert!(costs(&mounted(true, &["cpu"]), &apart).contains("version 1 only"));
        let narrow = Seen {
            room_for_both: false,
            ..FINE
        };
        assert!(costs(&mounted(true, &["net_cls"]), &narrow).contains("/v1/net_cls"));
        assert_eq!(costs(&mounted(true, &["cpu"]), &narrow), "");
        assert_eq!(costs(&mounted(true, &[]), &narrow), "");
    }
}
