//! What the cgroups are called, by their ids: as the kernel tells when it makes one, and by walks
//! through the hierarchy, which find those that were there before.

use std::{
    collections::{HashMap, VecDeque},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    hooks::cgroups::Names,
    kernel::cgroup::{self, MountedCgroups},
};

/// How often the cgroups are walked: milliseconds of work on a large node.
const WALK: Duration = Duration::from_secs(30);
/// How often they may be walked on demand.
const WALK_ON_DEMAND: Duration = Duration::from_secs(1);
/// How often the cgroups of young pods are walked where the kernel does not tell of new ones, for a
/// cgroup's name is lost with it.
const WALK_YOUNG: Duration = Duration::from_millis(100);

/// How long a cgroup that is gone is remembered; its id is not reused.
const REMEMBER: Duration = Duration::from_mins(10);
/// How many are remembered that no walk has seen: 16 s of a thousand a second, some 5 MB.
const UNSEEN: usize = 16_384;

/// Of version 1, hierarchies that have a cgroup of each pod, by their mounts' options.
const V1: [&str; 3] = ["pids", "memory", "name=systemd"];

/// The cgroups, those that are gone for a while too.
pub(super) struct Cgroups {
    mount: Option<PathBuf>,
    /// Of version 1, one each of [`V1`].
    v1: Vec<PathBuf>,
    /// Mount point of the one with the pods, and their paths there: where cgroup2 has none.
    v1_pods: Option<(PathBuf, Vec<String>)>,
    by_id: HashMap<u64, Cgroup>,
    /// Where the kernel tells of new ones.
    names: Option<Names>,
    /// Those it told of lately, the latest last.
    told: VecDeque<u64>,
    walked: Option<Instant>,
    walked_young: Option<Instant>,
}

struct Cgroup {
    /// From the mount point, beginning with `/`.
    path: String,
    /// When it was last known to be there.
    seen: Instant,
    /// Has a walk seen it?
    walked: bool,
}

impl Cgroups {
    /// Of these hierarchies.
    pub(super) fn of(mounted: MountedCgroups) -> Self {
        let v1 = V1.iter().filter_map(|wanted| {
            let has = |options: &[String]| options.iter().any(|option| option == wanted);
            let (path, _) = mounted.v1.iter().find(|(_, options)| has(options))?;
            Some(path.clone())
        });
        Self {
            v1: v1.collect(),
            ..Self::at(mounted.v2)
        }
    }

    /// Of cgroup2 at this mount point.
    fn at(mount: Option<PathBuf>) -> Self {
        Self {
            mount,
            v1: Vec::new(),
            v1_pods: None,
            by_id: HashMap::new(),
            names: None,
            told: VecDeque::new(),
            walked: None,
            walked_young: None,
        }
    }

    /// From now on the kernel tells of new ones.
    pub(super) fn follow(&mut self, names: Names) {
        self.names = Some(names);
        // What was made since the last walk, and before the kernel told of it.
        self.walked = None;
    }

    /// Mount point of the hierarchy with the pods' cgroups, as of the last walk: version 1's where cgroup2 has none, as
    /// with a kubelet that makes them itself on a hybrid host. Sockets tell cgroup2's only, but processes are in both.
    pub(super) fn mount(&self) -> Option<&Path> {
        let v1 = self.v1_pods.as_ref().map(|(mount, _)| mount.as_path());
        v1.or(self.mount.as_deref())
    }

    pub(super) fn path(&self, id: u64) -> Option<&str> {
        match self.by_id.get(&id) {
            Some(cgroup) => Some(&cgroup.path),
            // Also where cgroup2 is not mounted, or only what is below a container's cgroup.
            None => (id == cgroup::ROOT_INODE).then_some("/"),
        }
    }

    /// Is there (still) such a cgroup, as of the last walk?
    pub(super) fn is_there(&self, id: u64) -> bool {
        self.by_id
            .get(&id)
            .is_some_and(|cgroup| Some(cgroup.seen) >= self.walked)
    }

    /// What those that are there are called, as of the last walk.
    pub(super) fn present(&self) -> impl Iterator<Item = &str> {
        let there = self.by_id.values().filter(|c| Some(c.seen) >= self.walked);
        there.map(|cgroup| &*cgroup.path)
    }

    /// Takes over what the kernel has told. Costs nothing where that is nothing.
    pub(super) fn listen(&mut self) {
        if let Some(mut names) = self.names.take() {
            let now = Instant::now();
            names.take(|id, path| self.tell(id, path, now));
            self.names = Some(names);
        }
    }

    fn tell(&mut self, id: u64, path: String, now: Instant) {
        let cgroup = Cgroup {
            path,
            seen: now,
            walked: false,
        };
        // A walk may have been quicker; its path is from the mount point for sure.
        self.by_id.entry(id).or_insert(cgroup);
        self.told.push_back(id);
        if self.told.len() > UNSEEN
            && let Some(oldest) = self.told.pop_front()
            && self.by_id.get(&oldest).is_some_and(|c| !c.walked)
        {
            self.by_id.remove(&oldest);
        }
    }

    /// Learns all names anew, if the last walk is old enough. True if it has.
    pub(super) fn walk(&mut self, on_demand: bool) -> bool {
        let interval = if on_demand { WALK_ON_DEMAND } else { WALK };
        if self.walked.is_some_and(|at| at.elapsed() < interval) {
            return false;
        }
        let now = Instant::now();
        if !self.walk_below("/", now) && self.v1.is_empty() {
            return false;
        }
        // What a process did may be read after its cgroup is gone.
        self.by_id
            .retain(|_, cgroup| now.duration_since(cgroup.seen) < REMEMBER);
        self.walked = Some(now);
        self.v1_pods = if self.present().any(cgroup::is_pods) {
            None
        } else {
            self.v1.iter().find_map(|mount| pods_below(mount))
        };
        true
    }

    fn walk_below(&mut self, top: &str, now: Instant) -> bool {
        let Some(mount) = &self.mount else {
            return false;
        };
        cgroup::walk(mount, top, |id, path| {
            let cgroup = Cgroup {
                path: path.to_owned(),
                seen: now,
                walked: true,
            };
            self.by_id.insert(id, cgroup);
        });
        true
    }

    /// Where pods that have just begun are to be looked after, by walks: they may be gone before
    /// all are walked again.
    pub(super) fn wants_young(&self, now: Instant) -> bool {
        self.names.is_none()
            && self
                .walked_young
                .is_none_or(|at| now.duration_since(at) >= WALK_YOUNG)
    }

    /// Learns the names in these parts of the hierarchy.
    pub(super) fn walk_young(&mut self, tops: &[String], now: Instant) {
        for top in tops {
            self.walk_below(top, now);
        }
        self.walked_young = Some(now);
    }

    /// All that are known at [`Self::mount`].
    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        let v1 = self.v1_pods.iter().flat_map(|(_, paths)| paths);
        let v2 = self.by_id.values().map(|cgroup| &cgroup.path);
        let v2 = v2.filter(|_| self.v1_pods.is_none());
        v1.chain(v2).map(String::as_str)
    }
}

/// A hierarchy's mount point and the paths of its pods; `None` where it has no pod.
fn pods_below(mount: &Path) -> Option<(PathBuf, Vec<String>)> {
    let mut pods = Vec::new();
    cgroup::walk(mount, "/", |_, path| {
        if cgroup::is_pods(path) {
            pods.push(path.to_owned());
        }
    });
    (!pods.is_empty()).then(|| (mount.to_owned(), pods))
}

#[cfg(test)]
impl Cgroups {
    /// These, and no hierarchy to walk through.
    pub(super) fn known(cgroups: &[(u64, &str)]) -> Self {
        let mut known = Self::at(None);
        for (id, path) in cgroups {
            known.tell(*id, (*path).to_owned(), Instant::now());
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt as _};

    use super::*;

    #[test]
    fn one_that_is_gone_keeps_its_name() {
        let mount = tempfile::tempdir().unwrap();
        let mut cgroups = Cgroups::at(Some(mount.path().to_owned()));
        assert!(cgroups.walk(false) && !cgroups.walk(false) && !cgroups.walk(true));
        cgroups.tell(7, "/poda/c1".to_owned(), Instant::now());
        assert!(cgroups.is_there(7) && !cgroups.is_there(8));
        cgroups.walked = None;
        assert!(cgroups.walk(false));
        assert!(!cgroups.is_there(7));
        assert_eq!(cgroups.path(7), Some("/poda/c1"));
        assert_eq!(cgroups.path(8), None);
    }

    #[test]
    fn pods_are_found_in_version_1_where_cgroup2_has_none() {
        const POD: &str = "kubepods/besteffort/pod01234567-89ab-cdef-0123-456789abcdef";
        let [v2, systemd, pids] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let at = |folder: &tempfile::TempDir| folder.path().to_owned();
        let option = |name: &str| vec!["rw".to_owned(), name.to_owned()];
        let mounted = |v2: Option<PathBuf>| MountedCgroups {
            v2,
            v1: vec![
                (at(&systemd), option("name=systemd")),
                (at(&pids), option("pids")),
            ],
        };
        fs::create_dir_all(systemd.path().join(POD)).unwrap();
        for mount in [None, Some(at(&v2))] {
            let mut cgroups = Cgroups::of(mounted(mount));
            assert!(cgroups.walk(false));
            assert_eq!(cgroups.mount(), Some(systemd.path()));
            assert_eq!(cgroups.paths().collect::<Vec<_>>(), [format!("/{POD}")]);
        }
        fs::create_dir_all(v2.path().join(POD)).unwrap();
        let mut cgroups = Cgroups::of(mounted(Some(at(&v2))));
        assert!(cgroups.walk(false));
        assert_eq!(cgroups.mount(), Some(v2.path()));
    }

    #[test]
    fn those_that_no_walk_has_seen_are_bounded() {
        let mount = tempfile::tempdir().unwrap();
        fs::create_dir(mount.path().join("lasting")).unwrap();
        let lasting = fs::metadata(mount.path().join("lasting")).unwrap().ino();
        let mut cgroups = Cgroups::at(Some(mount.path().to_owned()));
        cgroups.tell(lasting, "/lasting".to_owned(), Instant::now());
        cgroups.walk(false);
        let known = cgroups.by_id.len();
        let ids = u64::MAX - 2 * UNSEEN as u64..u64::MAX;
        for id in ids.clone() {
            cgroups.tell(id, format!("/{id}"), Instant::now());
        }
        assert_eq!(cgroups.by_id.len(), known + UNSEEN);
        assert_eq!(cgroups.path(ids.start), None);
        assert!(cgroups.path(ids.end - 1).is_some() && cgroups.path(lasting).is_some());
    }

    #[test]
    fn the_young_are_walked_where_the_kernel_does_not_tell() {
        let mount = tempfile::tempdir().unwrap();
        fs::create_dir_all(mount.path().join("poda/c1")).unwrap();
        let mut cgroups = Cgroups::at(Some(mount.path().to_owned()));
        let now = Instant::now();
        assert!(cgroups.wants_young(now));
        cgroups.walk_young(&["/poda".to_owned()], now);
        assert!(!cgroups.wants_young(now) && cgroups.wants_young(now + WALK_YOUNG));
        let id = fs::metadata(mount.path().join("poda/c1")).unwrap().ino();
        assert_eq!(cgroups.path(id), Some("/poda/c1"));
    }
}
