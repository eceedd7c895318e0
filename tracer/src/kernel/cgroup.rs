//! The cgroup2 hierarchy: where it is mounted, and what its cgroups are called.

use std::{
    borrow::Cow,
    fs,
    os::unix::fs::{DirEntryExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};

/// Where they are mounted, of whichever version.
const FOLDER: &str = "/sys/fs/cgroup";

/// Where cgroups are mounted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct MountedCgroups {
    /// cgroup2.
    pub v2: Option<PathBuf>,
    /// Hierarchies of version 1, each with the options of its mount, the controllers among them.
    pub v1: Vec<(PathBuf, Vec<String>)>,
}

impl MountedCgroups {
    /// As this process sees them.
    pub fn find() -> Result<Self> {
        let mounts =
            fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
        // A mount that another one hides is listed too.
        Ok(Self::parse(&mounts, |path| {
            path.join("cgroup.procs").exists()
        }))
    }

    pub(crate) fn parse(mounts: &str, is_there: impl Fn(&Path) -> bool) -> Self {
        let mut found = Self::default();
        for line in mounts.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let [_, path, kind @ ("cgroup" | "cgroup2"), options, ..] = fields.as_slice() else {
                continue;
            };
            let path = PathBuf::from(unescape(path));
            if !is_there(&path) {
                continue;
            }
            if *kind == "cgroup2" {
                found.v2.get_or_insert(path);
            } else {
                let options = options.split(',').map(str::to_owned).collect();
                found.v1.push((path, options));
            }
        }
        found
    }

    /// The command that mounts cgroup2 where there is none: in the folder of the hierarchies of version 1, if there are
    /// any. systemd leaves that read-only.
    fn how_to_mount(&self) -> &'static str {
        if self.v1.iter().any(|(path, _)| path.starts_with(FOLDER)) {
            "mount -o remount,rw /sys/fs/cgroup && mkdir -p /sys/fs/cgroup/unified && \
             mount -t cgroup2 none /sys/fs/cgroup/unified"
        } else {
            "mount -t cgroup2 none /sys/fs/cgroup"
        }
    }
}

/// Where cgroup2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on hybrid hosts.
pub fn mount_point() -> Result<PathBuf> {
    let mounted = MountedCgroups::find()?;
    let command = mounted.how_to_mount();
    mounted.v2.ok_or_else(|| {
        anyhow!("no cgroup2 file system is mounted: {command} on the node, or boot with systemd.unified_cgroup_hierarchy=1")
    })
}

/// The root of every cgroup hierarchy is the first inode of its file system, and that is its id (fs/kernfs).
pub const ROOT_INODE: u64 = 1;

/// The command that mounts cgroup2 on this node.
pub fn how_to_mount() -> &'static str {
    MountedCgroups::find().unwrap_or_default().how_to_mount()
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

/// Does a path hold what looks like the uid that an API server or a kubelet makes? Services of the host have names that
/// begin with `pod` too: `podman.service`, Talos' `/podruntime`.
pub fn is_pods(path: &str) -> bool {
    pod_uids(path).any(|uid| is_uuid(&uid.replace('_', "-")) || is_hash(&uid))
}

/// A static pod's stands in for its uid: 32 hexadecimal digits.
fn is_hash(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// What a host process's cgroup is called: its systemd unit, else the last part of the path. What is made under a name
/// of its own each time is folded (`session-7.scope`, `docker-4f1c….scope`, `sshd@5-….service`), for a label must not
/// grow with logins.
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
    if let Some(stem) = name.strip_suffix(".scope") {
        return format!("{}.scope", folded(stem, true));
    }
    match name.strip_suffix(".service") {
        Some(stem) => format!("{}.service", folded(stem, false)),
        None => folded(name, false),
    }
}

/// With a star for what is not two times the same.
fn folded(stem: &str, is_scope: bool) -> String {
    // systemd-run: `run-u12`, `run-r` and 32 digits, `run-p12-i34`, and plain numbers of old.
    if stem.starts_with("run-") && stem.bytes().any(|b| b.is_ascii_digit()) {
        return "run-*".to_owned();
    }
    // A socket's instance for each connection: `5-10.0.0.1:22-10.0.0.2:40000`, `5-1234-1000`.
    if let Some((template, instance)) = stem.split_once('@')
        && (is_id(instance) || is_connection(instance))
    {
        return format!("{template}@*");
    }
    if let Some((prefix, uuid)) = stem.split_at_checked(stem.len().wrapping_sub(36))
        && is_uuid(uuid)
    {
        return format!("{prefix}*");
    }
    let Some((prefix, last)) = stem.rsplit_once('-') else {
        return if is_id(stem) { "*" } else { stem }.to_owned();
    };
    if is_id(prefix) && is_id(last) {
        return "*".to_owned();
    }
    // logind: `session-7`, `session-c1`.
    let number = match prefix {
        "session" => last.strip_prefix('c').unwrap_or(last),
        _ => last,
    };
    let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    if is_id(last) || is_scope && is_number {
        return format!("{prefix}-*");
    }
    stem.to_owned()
}

/// What a container's id or a hash looks like.
fn is_id(text: &str) -> bool {
    text.len() >= 12
        && text.bytes().all(|b| b.is_ascii_hexdigit())
        && text.bytes().any(|b| b.is_ascii_digit())
}

fn is_uuid(text: &str) -> bool {
    let parts = text.split('-');
    parts.clone().map(str::len).eq([8, 4, 4, 4, 12])
        && parts.flat_map(str::bytes).all(|b| b.is_ascii_hexdigit())
}

fn is_connection(instance: &str) -> bool {
    let mut parts = instance.splitn(3, '-');
    let number = parts.next().unwrap_or_default();
    !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) && parts.count() == 2
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
    fn what_has_a_new_name_each_time_is_folded() {
        let id = "4f1c0a9b8d7e6f5a4b3c2d1e0f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c4d3e2f1a";
        for (name, folded) in [
            ("session-c1.scope", "session-*.scope"),
            ("run-r4f1c0a9b8d7e6f5a4b3c2d1e0f9a8b7c.scope", "run-*.scope"),
            ("run-u12.service", "run-*.service"),
            ("run-p1234-i5678.scope", "run-*.scope"),
            (
                "sshd@5-10.0.0.1:22-10.0.0.2:40000.service",
                "sshd@*.service",
            ),
            ("varlink@5-1234-1000.service", "varlink@*.service"),
            ("app-gnome-firefox-1234.scope", "app-gnome-firefox-*.scope"),
            (&format!("docker-{id}.scope"), "docker-*.scope"),
            (
                &format!("cri-containerd-{id}.scope"),
                "cri-containerd-*.scope",
            ),
            (id, "*"),
            (
                "snap.microk8s.microk8s-5a2b6c3e-1111-2222-3333-abcdef012345.scope",
                "snap.microk8s.microk8s-*.scope",
            ),
            (&format!("{id}-4f1c0a9b8d7e6f5a.service"), "*.service"),
            // Names that people give.
            ("user@1000.service", "user@1000.service"),
            ("postgresql@16-main.service", "postgresql@16-main.service"),
            ("getty@tty1.service", "getty@tty1.service"),
            ("redis-6379.service", "redis-6379.service"),
            (
                "openvpn-decadefacade.service",
                "openvpn-decadefacade.service",
            ),
            ("machine-web-c1.scope", "machine-web-c1.scope"),
            ("run-once.service", "run-once.service"),
        ] {
            assert_eq!(unit(&format!("/system.slice/{name}")), folded);
        }
    }

    #[test]
    fn a_service_whose_name_begins_with_pod_is_no_pod() {
        let uid = "1f8c3f6e-5a3b-4d4e-9c43-0a1b2c3d4e5f";
        let slice = uid.replace('-', "_");
        for path in [
            format!("/kubepods/besteffort/pod{uid}"),
            format!("/kubepods/besteffort/pod{uid}/0123abcd"),
            format!("/kubepods.slice/kubepods-pod{slice}.slice/cri-containerd-01ab.scope"),
            format!("/kubepods/burstable/pod{slice}/01ab"),
            "/kubepods/burstable/pod4f6e0c9d8b7a69584736251403f2e1d0/01ab".to_owned(),
        ] {
            assert!(is_pods(&path), "{path}");
        }
        for path in [
            "/",
            "/podruntime/kubelet",
            "/podruntime/runtime",
            "/system.slice/podman.service",
            "/system.slice/system-podman.slice/podman.service",
            "/machine.slice/machine-pods.slice/libpod-01ab.scope",
            "/kubepods/besteffort",
            "/kubepods/pod",
        ] {
            assert!(!is_pods(path), "{path}");
        }
    }

    #[test]
    fn mounts_of_both_versions_are_found_where_nothing_hides_them() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup2 /hidden cgroup2 rw 0 0\n\
                      cgroup /sys/fs/cgroup/net_cls cgroup rw,relatime,net_cls,net_prio 0 0\n\
                      cgroup2 /sys/fs/cgroup/uni\\040fied cgroup2 rw 0 0\n\
                      cgroup2 /second cgroup2 rw 0 0\n";
        let found = MountedCgroups::parse(mounts, |path| path != Path::new("/hidden"));
        assert_eq!(found.v2, Some("/sys/fs/cgroup/uni fied".into()));
        let options = ["rw", "relatime", "net_cls", "net_prio"].map(str::to_owned);
        assert_eq!(
            found.v1,
            [("/sys/fs/cgroup/net_cls".into(), options.to_vec())]
        );
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
