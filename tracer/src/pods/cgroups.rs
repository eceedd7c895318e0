//! What the cgroups are called, by their ids: as the kernel tells when it makes one, and by walks
//! through the hierarchy, which find those that were there before.

use std::{
    collections::{HashMap, VecDeque},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{hooks::cgroups::Names, kernel::cgroup};

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

/// The cgroups, those that are gone for a while too.
pub(super) struct Cgroups {
    mount: Option<PathBuf>,
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
    /// Of the hierarchy at this mount point.
    pub(super) fn at(mount: Option<PathBuf>) -> Self {
        Self {
            mount,
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

    pub(super) fn mount(&self) -> Option<&Path> {
        self.mount.as_deref()
    }

    pub(super) fn path(&self, id: u64) -> Option<&str> {
        Some(&self.by_id.get(&id)?.path)
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
        if !self.walk_below("/", now) {
            return false;
        }
        // What a process did may be read after its cgroup is gone.
        self.by_id
            .retain(|_, cgroup| now.duration_since(cgroup.seen) < REMEMBER);
        self.walked = Some(now);
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

    /// All that are known.
    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.by_id.values().map(|cgroup| cgroup.path.as_str())
    }
}

#[cfg(test)]
impl Cgroups {
    /// These, and no hierarchy to walk through.
    pub(super) fn of(cgroups: &[(u64, &str)]) -> Self {
        let mut of = Self::at(None);
        for (id, path) in cgroups {
            of.tell(*id, (*path).to_owned(), Instant::now());
        }
        of
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
