//! A pod's cgroup and network namespace, for sources that know no more of it than its uid: the
//! kubelet names the cgroup after the uid, and the processes in it are in the namespace.
//!
//! To see another's namespace takes CAP_SYS_PTRACE, its cookie CAP_SYS_ADMIN too, and both the
//! host's process ids.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs,
    net::IpAddr,
    os::unix::fs::DirEntryExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{Known, local};
use crate::kernel::cgroup;

/// Its cgroups are made within a second or two, mostly: so often it is tried until a pod is that
/// old, and then less and less.
const STEPS: [(Duration, Duration); 3] = [
    (Duration::from_secs(5), Duration::from_millis(100)),
    (Duration::from_mins(1), Duration::from_secs(1)),
    (Duration::MAX, Duration::from_secs(30)),
];
/// Pods tried at a time: each costs some reading of files, and a node may start with hundreds.
const BATCH: usize = 32;

/// Processes of a cgroup that are looked at.
const PROCESSES: usize = 16;

/// What is known of the pods, by the first of their uids.
#[derive(Default)]
pub(super) struct Namespaces {
    pods: HashMap<String, Entry>,
    /// Folders that hold pods' cgroups, such as `/kubepods/besteffort`.
    parents: BTreeSet<String>,
}

struct Entry {
    first: Instant,
    tried: Option<Instant>,
    /// From the mount point, beginning with `/`.
    cgroup: Option<String>,
    /// When that was found.
    found: Option<Instant>,
    namespace: Option<Namespace>,
    /// With other addresses it has another namespace: its sandbox was made anew.
    addresses: Vec<IpAddr>,
    /// Has it ever had any? Its first ones tell nothing of the kind.
    had_addresses: bool,
    /// As [`Known::own_namespace`]; without, the cgroup will do.
    own_namespace: bool,
}

#[derive(Clone, Copy)]
struct Namespace {
    inode: u32,
    cookie: Option<u64>,
}

impl Entry {
    fn is_due(&self, now: Instant) -> bool {
        if self.cgroup.is_some() && (!self.own_namespace || self.namespace.is_some()) {
            return false;
        }
        let age = now.duration_since(self.first);
        let step = STEPS.iter().find(|(until, _)| age < *until);
        let pause = step.map_or(Duration::MAX, |(_, pause)| *pause);
        self.tried.is_none_or(|at| now.duration_since(at) >= pause)
    }
}

impl Namespaces {
    /// Is there a pod to try?
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.pods.values().any(|entry| entry.is_due(now))
    }

    /// Is there a young pod whose cgroup could not be found where pods' cgroups were until now?
    pub(super) fn wants_walk(&self, now: Instant) -> bool {
        let young = STEPS[1].0;
        self.pods
            .values()
            .any(|e| e.cgroup.is_none() && now.duration_since(e.first) < young)
    }

    /// When the pod's cgroup was found.
    pub(super) fn found(&self, pod: &Known) -> Option<Instant> {
        self.pods.get(pod.cgroup_uids.first()?)?.found
    }

    /// Takes over where a walk has found pods' cgroups.
    pub(super) fn learn<'a>(&mut self, paths: impl Iterator<Item = &'a str>) {
        self.parents = paths
            .filter_map(|path| path.rsplit_once('/'))
            .filter(|(_, name)| cgroup::pod_uids(name).next().is_some())
            .map(|(parent, _)| parent.to_owned())
            .collect();
    }

    /// Completes what a source knows of its pods by what is known here, after a look at those that
    /// are due.
    pub(super) fn complete(&mut self, known: &mut Vec<&mut Known>, mount: &Path, now: Instant) {
        let mut there = HashSet::new();
        // One whose source knows its cgroup is looked after by that.
        known.retain(|pod| pod.cgroup.is_none() && !pod.cgroup_uids.is_empty());
        for pod in known.iter() {
            let uid = &pod.cgroup_uids[0];
            // Who comes first knows best: of a pod's sandboxes the one that has not ended.
            if !there.insert(uid.clone()) {
                continue;
            }
            let entry = self.pods.entry(uid.clone()).or_insert_with(|| Entry {
                first: now,
                tried: None,
                cgroup: None,
                found: None,
                namespace: None,
                addresses: Vec::new(),
                had_addresses: false,
                own_namespace: pod.own_namespace,
            });
            // A runtime tells it with the details, which come later than the name.
            entry.own_namespace = pod.own_namespace;
            if entry.addresses != pod.addresses {
                if entry.had_addresses {
                    entry.namespace = None;
                    // One that has lost them may be over: then there is nothing to be found soon.
                    if !pod.addresses.is_empty() {
                        entry.first = now;
                        entry.tried = None;
                    }
                }
                entry.had_addresses = true;
                entry.addresses.clone_from(&pod.addresses);
            }
        }
        self.pods.retain(|uid, _| there.contains(uid));
        self.look(known, mount, now);
        for pod in known {
            let Some(entry) = pod.cgroup_uids.first().and_then(|uid| self.pods.get(uid)) else {
                continue;
            };
            pod.cgroup.clone_from(&entry.cgroup);
            if let Some(namespace) = entry.namespace {
                pod.netns = Some(namespace.inode);
                pod.net_cookie = namespace.cookie;
            }
        }
    }

    fn look(&mut self, known: &[&mut Known], mount: &Path, now: Instant) {
        let mut due: Vec<(Option<Instant>, &[String])> = known
            .iter()
            .filter_map(|pod| {
                let entry = self.pods.get(pod.cgroup_uids.first()?)?;
                let tried = entry.is_due(now).then_some(entry.tried)?;
                Some((tried, pod.cgroup_uids.as_slice()))
            })
            .collect();
        // Who was never tried, then who waits longest: else those first in the source's order, whose cgroups may not
        // come for long, would keep all others waiting.
        due.sort_by_key(|(tried, _)| *tried);
        due.truncate(BATCH);
        if due.is_empty() {
            return;
        }
        let cgroups = self.cgroups(mount);
        for (_, uids) in due {
            let Some(entry) = self.pods.get_mut(&uids[0]) else {
                continue;
            };
            entry.tried = Some(now);
            if entry.cgroup.is_none() {
                entry.cgroup = uids.iter().find_map(|uid| cgroups.get(uid)).cloned();
                entry.found = entry.cgroup.is_some().then_some(now);
            }
            if let (Some(path), true) = (&entry.cgroup, entry.own_namespace) {
                entry.namespace = namespace_of(&mount.join(path.trim_start_matches('/')));
            }
        }
    }

    /// The pods' cgroups by uid, where they were until now.
    fn cgroups(&self, mount: &Path) -> HashMap<String, String> {
        let mut found = HashMap::new();
        for parent in &self.parents {
            let Ok(entries) = fs::read_dir(mount.join(parent.trim_start_matches('/'))) else {
                continue;
            };
            for name in entries.flatten().map(|entry| entry.file_name()) {
                let Some(name) = name.to_str() else {
                    continue;
                };
                if let Some(uid) = cgroup::pod_uids(name).next() {
                    found.insert(uid.into_owned(), format!("{parent}/{name}"));
                }
            }
        }
        found
    }
}

/// The namespace of the processes in a pod's cgroup. The oldest cgroup below is the sandbox's, which
/// has the pod's namespace whatever its containers do.
fn namespace_of(cgroup: &Path) -> Option<Namespace> {
    let mut below: Vec<(u64, PathBuf)> = fs::read_dir(cgroup)
        .ok()?
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
        .map(|entry| (entry.ino(), entry.path()))
        .collect();
    below.sort_unstable();
    let below = below.into_iter().map(|(_, path)| path);
    below.chain([cgroup.to_owned()]).find_map(|cgroup| {
        let processes = processes(&cgroup);
        let found = processes.iter().find_map(|pid| {
            let namespace = own_namespace(*pid)?;
            Some((*pid, namespace))
        });
        let (pid, namespace) = found?;
        // Still in there: it was not another's, who has the number now.
        self::processes(&cgroup).contains(&pid).then_some(namespace)
    })
}

/// The namespace of a process, if it is not its parent's too: the runtime puts a process into the
/// cgroup before it moves it into the namespace.
fn own_namespace(pid: u32) -> Option<Namespace> {
    let path = |pid: u32| PathBuf::from(format!("/proc/{pid}/ns/net"));
    let inode_of = |pid| inode(&path(pid));
    let inode = inode_of(pid)?;
    let parent = parent(pid)?;
    if inode_of(parent) == Some(inode) {
        return None;
    }
    let inside = local::ask(&path(pid)).ok();
    let cookie = inside.and_then(|inside| inside.cookie);
    Some(Namespace { inode, cookie })
}

fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let parent = status.lines().find_map(|l| l.strip_prefix("PPid:"))?;
    parent.trim().parse().ok()
}

/// Some of the processes in a cgroup. 0 stands for one outside of our own process namespace.
fn processes(cgroup: &Path) -> Vec<u32> {
    fs::read_to_string(cgroup.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter(|pid| *pid != 0)
        .take(PROCESSES)
        .collect()
}

fn inode(namespace: &Path) -> Option<u32> {
    let (inode, _, _) = local::namespace_inode(namespace)?;
    u32::try_from(inode).ok()
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;
    use crate::pods::Owner;

    fn known(uid: &str, own_namespace: bool) -> Known {
        Known {
            cgroup_uids: vec![uid.to_owned()],
            own_namespace,
            ..Known::of(Owner::new("shop", uid))
        }
    }

    fn complete(namespaces: &mut Namespaces, pod: &mut Known, mount: &Path, now: Instant) {
        // As a source gives it out.
        (pod.cgroup, pod.netns, pod.net_cookie) = (None, None, None);
        namespaces.complete(&mut vec![pod], mount, now);
    }

    #[test]
    fn a_pod_is_found_where_pods_are_once_its_cgroup_is_there() {
        let mount = tempfile::tempdir().unwrap();
        let mut namespaces = Namespaces::default();
        namespaces.learn(["/kubepods/besteffort/poda", "/kubepods", "/"].into_iter());
        assert_eq!(namespaces.parents.len(), 1);
        let start = Instant::now();
        let mut pod = known("b-1", false);
        complete(&mut namespaces, &mut pod, mount.path(), start);
        assert_eq!(pod.cgroup, None);
        assert!(namespaces.wants_walk(start) && !namespaces.is_due(start));
        fs::create_dir_all(mount.path().join("kubepods/besteffort/podb-1")).unwrap();
        let later = start + Duration::from_millis(100);
        assert!(namespaces.is_due(later));
        complete(&mut namespaces, &mut pod, mount.path(), later);
        assert_eq!(pod.cgroup.as_deref(), Some("/kubepods/besteffort/podb-1"));
        assert!(!namespaces.is_due(later + Duration::from_mins(1)));
    }

    /// As a runtime tells of a pod that says no more of its sandboxes than their addresses.
    #[test]
    fn a_namespace_is_looked_for_once_it_is_known_to_be_the_pods_own() {
        let mount = tempfile::tempdir().unwrap();
        fs::create_dir_all(mount.path().join("kubepods/poda")).unwrap();
        let mut namespaces = Namespaces::default();
        namespaces.learn(["/kubepods/poda"].into_iter());
        let start = Instant::now();
        let listed = known("a", false);
        complete(&mut namespaces, &mut listed.clone(), mount.path(), start);
        let later = start + Duration::from_secs(1);
        assert!(!namespaces.is_due(later), "its cgroup is found");
        let mut detailed = Known {
            addresses: vec![[10, 0, 0, 2].into()],
            ..known("a", true)
        };
        // The one before it has ended, and is told of for a while.
        let mut ended = listed;
        for n in 1..=3 {
            let now = start + n * STEPS[0].1;
            assert_eq!(namespaces.is_due(now), n > 1, "{n}");
            (detailed.cgroup, ended.cgroup) = (None, None);
            namespaces.complete(&mut vec![&mut detailed, &mut ended], mount.path(), now);
        }
        assert_eq!(namespaces.pods["a"].addresses, detailed.addresses);
    }

    #[test]
    fn a_sandbox_that_was_made_anew_has_another_namespace() {
        let mount = tempfile::tempdir().unwrap();
        fs::create_dir_all(mount.path().join("kubepods/poda")).unwrap();
        let mut namespaces = Namespaces::default();
        namespaces.learn(["/kubepods/poda"].into_iter());
        let mut pod = known("a", true);
        let start = Instant::now();
        let [old, new] = [1, 2].map(|last| vec![IpAddr::from([10, 0, 0, last])]);
        // Its namespace may be known before its address, which is that namespace's then.
        complete(&mut namespaces, &mut pod, mount.path(), start);
        let found = |namespaces: &mut Namespaces| {
            let entry = namespaces.pods.get_mut("a").unwrap();
            entry.namespace = Some(Namespace {
                inode: 50,
                cookie: Some(5),
            });
        };
        found(&mut namespaces);
        let mut hour = start + Duration::from_hours(1);
        pod.addresses.clone_from(&old);
        complete(&mut namespaces, &mut pod, mount.path(), hour);
        assert_eq!((pod.netns, pod.net_cookie), (Some(50), Some(5)));
        // All that a watch may see of it, or not.
        for steps in [vec![vec![], new.clone()], vec![old.clone()], vec![vec![]]] {
            found(&mut namespaces);
            hour += Duration::from_hours(1);
            for addresses in steps {
                pod.addresses = addresses;
                complete(&mut namespaces, &mut pod, mount.path(), hour);
                assert_eq!(pod.netns, None, "{:?}", pod.addresses);
                // It is looked for at once, and often where there is anything to be found.
                let soon = hour + STEPS[0].1;
                assert_eq!(namespaces.is_due(soon), !pod.addresses.is_empty());
            }
        }
    }

    /// Those of a node whose runtime is stuck, say.
    #[test]
    fn pods_whose_cgroups_do_not_come_keep_no_other_waiting() {
        let mount = tempfile::tempdir().unwrap();
        fs::create_dir_all(mount.path().join("kubepods/podlast")).unwrap();
        let mut namespaces = Namespaces::default();
        namespaces.learn(["/kubepods/podlast"].into_iter());
        let stuck = (0..3 * BATCH).map(|n| known(&format!("stuck-{n}"), false));
        let mut pods: Vec<Known> = stuck.chain([known("last", false)]).collect();
        let start = Instant::now();
        for look in 0..4 {
            // By the next look, all that have been tried are due again.
            let now = start + look * STEPS[0].1;
            namespaces.complete(&mut pods.iter_mut().collect(), mount.path(), now);
        }
        let last = pods.last().unwrap();
        assert_eq!(last.cgroup.as_deref(), Some("/kubepods/podlast"));
    }

    #[test]
    fn a_process_in_its_parents_namespace_tells_nothing() {
        let mount = tempfile::tempdir().unwrap();
        let sandbox = mount.path().join("kubepods/poda/sandbox");
        fs::create_dir_all(&sandbox).unwrap();
        let mut namespaces = Namespaces::default();
        namespaces.learn(["/kubepods/poda"].into_iter());
        let mut pod = known("a", true);
        let start = Instant::now();
        complete(&mut namespaces, &mut pod, mount.path(), start);
        assert_eq!(pod.netns, None, "no process yet");
        fs::write(sandbox.join("cgroup.procs"), format!("{}\n", process::id())).unwrap();
        let later = start + Duration::from_secs(1);
        complete(&mut namespaces, &mut pod, mount.path(), later);
        assert_eq!(pod.netns, None, "its parent's too: not moved yet");
    }

    #[test]
    fn a_pod_without_anything_is_tried_ever_less() {
        let mut namespaces = Namespaces::default();
        let start = Instant::now();
        let nowhere = Path::new("/nonexistent");
        let mut pod = known("a", true);
        let mut tries = 0;
        for tenth in 0..3_000 {
            let now = start + Duration::from_millis(100) * tenth;
            tries += usize::from(namespaces.is_due(now) || tenth == 0);
            complete(&mut namespaces, &mut pod, nowhere, now);
        }
        assert!((100..130).contains(&tries), "{tries}");
        namespaces.complete(&mut Vec::new(), nowhere, start);
        assert!(namespaces.pods.is_empty());
    }
}
