//! Who has which cookie, inode, cgroup, address; and who had it until lately.
//!
//! What the kernel saw may be read after the pod is gone, so what a pod had is remembered for a
//! while. A cookie, a cgroup and a uid are never given to another; an address is, so its owners are
//! kept with their times.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Known, Owner, Tenant, When};
use crate::kernel::cgroup;

/// How long what a pod had is remembered after it is gone.
const REMEMBER: Duration = Duration::from_mins(10);
/// How many owners of one address are remembered.
const OWNERS_OF_ADDRESS: usize = 4;
/// How many addresses are remembered that nobody has: ten minutes of 25 new pods a second.
const VACANT_ADDRESSES: usize = 16_384;

/// A key of some kind, its owner, and when the owner was last known to have it.
type Claims<K> = HashMap<K, (Arc<Owner>, Instant)>;

/// The time for which somebody had an address.
#[derive(Debug)]
struct Tenure {
    owner: Arc<Owner>,
    /// `None`: since before anybody asked.
    from: Option<Instant>,
    /// `None`: still.
    until: Option<Instant>,
    /// When it was first heard of.
    noticed: Instant,
}

impl Tenure {
    fn overlaps(&self, when: When) -> bool {
        self.from.is_none_or(|from| from <= when.to)
            && self
                .until
                .is_none_or(|until| when.from.is_none_or(|from| until >= from))
    }

    fn is_of(&self, owner: &Owner) -> bool {
        // Pods of a StatefulSet differ in their uids only.
        *self.owner == *owner && self.owner.uid == owner.uid
    }
}

/// The join.
#[derive(Default)]
pub(super) struct Join {
    cookies: Claims<u64>,
    /// Who has a namespace now whose cookie is known.
    housed: HashSet<Arc<Owner>>,
    inodes: HashMap<u32, Arc<Owner>>,
    /// The same by owner.
    homes: HashMap<Arc<Owner>, Vec<u32>>,
    cgroups: Claims<String>,
    uids: Claims<String>,
    /// The latest owner last.
    addresses: HashMap<IpAddr, Vec<Tenure>>,
    /// When it last took over what the sources say.
    updated: Option<Instant>,
}

impl Join {
    /// Takes over what the sources say now, the strongest first: who comes first has it. `asked` is
    /// when they were asked for addresses the time before. True where an address has got or lost its
    /// owner.
    pub(super) fn update<'a>(
        &mut self,
        known: impl Iterator<Item = &'a Known> + Clone,
        now: Instant,
        asked: Option<Instant>,
    ) -> bool {
        // A source that has the inode only is helped by one that could ask for the cookie.
        let by_inode: HashMap<u32, u64> = known
            .clone()
            .filter_map(|k| Some((k.netns?, k.net_cookie?)))
            .collect();
        let cookie = |k: &Known| k.net_cookie.or_else(|| by_inode.get(&k.netns?).copied());
        claim(
            &mut self.cookies,
            known.clone().filter_map(|k| Some((cookie(k)?, k))),
            now,
        );
        let with_cookie = known.clone().filter(|k| cookie(k).is_some());
        self.housed = with_cookie.map(|k| k.owner.clone()).collect();
        claim(
            &mut self.cgroups,
            known.clone().filter_map(|k| Some((k.cgroup.clone()?, k))),
            now,
        );
        claim(
            &mut self.uids,
            known
                .clone()
                .flat_map(|k| k.cgroup_uids.iter().map(move |uid| (uid.clone(), k))),
            now,
        );
        // An inode decides only where no cookie could be had: it is reused within a second.
        self.inodes.clear();
        self.homes.clear();
        for k in known.clone().filter(|k| cookie(k).is_none()) {
            if let Some(netns) = k.netns {
                self.inodes.entry(netns).or_insert_with(|| k.owner.clone());
                self.homes.entry(k.owner.clone()).or_default().push(netns);
            }
        }
        self.updated = Some(now);
        self.update_addresses(known, now, asked)
    }

    fn update_addresses<'a>(
        &mut self,
        known: impl Iterator<Item = &'a Known>,
        now: Instant,
        asked: Option<Instant>,
    ) -> bool {
        let mut held = HashSet::new();
        let mut moved = false;
        for (address, k) in known.flat_map(|k| k.addresses.iter().map(move |a| (*a, k))) {
            if !held.insert(address) {
                continue;
            }
            let tenures = self.addresses.entry(address).or_default();
            let last = tenures.last_mut();
            if last
                .as_ref()
                .is_some_and(|last| last.until.is_none() && last.is_of(&k.owner))
            {
                continue;
            }
            moved = true;
            let begun = k.since.map(|since| since.min(now));
            let from = match last {
                None => begun,
                // Nobody had it meanwhile.
                Some(Tenure {
                    until: Some(until), ..
                }) => {
                    let from = begun.unwrap_or(*until);
                    *until = from.min(*until);
                    Some(from)
                }
                // It moved after the last time that the sources were asked for addresses.
                Some(last) => {
                    let from = begun.or(asked);
                    last.until = Some(from.unwrap_or(now));
                    from
                }
            };
            tenures.push(Tenure {
                owner: k.owner.clone(),
                from,
                until: None,
                noticed: now,
            });
            if tenures.len() > OWNERS_OF_ADDRESS {
                tenures.remove(0);
            }
        }
        for (address, tenures) in &mut self.addresses {
            if !held.contains(address)
                && let Some(last) = tenures.last_mut()
                && last.until.is_none()
            {
                last.until = Some(now);
                moved = true;
            }
        }
        self.addresses.retain(|_, tenures| {
            tenures.retain(|t| t.until.is_none_or(|u| now.duration_since(u) < REMEMBER));
            !tenures.is_empty()
        });
        if self.addresses.len() > held.len() + VACANT_ADDRESSES {
            self.forget_oldest(held.len() + VACANT_ADDRESSES / 2);
        }
        moved
    }

    /// Leaves so many addresses, those that were held last.
    fn forget_oldest(&mut self, leave: usize) {
        let mut ends: Vec<(Option<Instant>, IpAddr)> = self
            .addresses
            .iter()
            .map(|(address, tenures)| (tenures.last().and_then(|t| t.until), *address))
            .collect();
        // Those that are held come first, then the latest.
        ends.sort_unstable_by_key(|(until, _)| (until.is_some(), std::cmp::Reverse(*until)));
        for (_, address) in ends.iter().skip(leave) {
            self.addresses.remove(address);
        }
    }

    /// The pod in the namespace.
    pub(super) fn namespace(&self, cookie: u64, inode: u32) -> Option<&Arc<Owner>> {
        self.cookies
            .get(&cookie)
            .map(|(owner, _)| owner)
            .or_else(|| self.inodes.get(&inode))
    }

    /// Was that namespace somebody's until lately, and is nobody's now? Of a time before this agent, and where no
    /// cookie can be had, only what it is told of is known: that the namespace was `owner`'s, and its inode.
    pub(super) fn has_left(&self, cookie: u64, owner: Option<(&Owner, Option<u32>)>) -> bool {
        match self.cookies.get(&cookie) {
            Some((_, at)) => Some(*at) != self.updated,
            // A pod has one namespace: not this one, then.
            None => owner.is_some_and(|(owner, inode)| {
                let homes = self.homes.get(owner).zip(inode);
                self.housed.contains(owner)
                    || homes.is_some_and(|(homes, inode)| !homes.contains(&inode))
            }),
        }
    }

    /// The pod that had the address then; the last of several.
    pub(super) fn address(&self, address: &IpAddr, when: When) -> Option<&Arc<Owner>> {
        let tenures = self.addresses.get(address)?;
        let tenure = tenures.iter().rev().find(|t| t.overlaps(when))?;
        Some(&tenure.owner)
    }

    /// Who had the address last, or has it; lately at least.
    pub(super) fn tenant(&self, address: &IpAddr) -> Tenant {
        let Some(last) = self.addresses.get(address).and_then(|all| all.last()) else {
            return Tenant::default();
        };
        Tenant {
            owner: Some(last.owner.clone()),
            noticed: Some(last.noticed),
            until: last.until,
        }
    }

    /// The pod whose cgroup this is, or lies above it: by its path, else by the uid in it. The outermost that is known:
    /// a pod that may make cgroups below its own calls them what it likes, by another pod's uid too.
    pub(super) fn cgroup(&self, path: &str) -> Option<&Arc<Owner>> {
        self.cgroup_by_path(path).or_else(|| {
            cgroup::pod_uids(path)
                .filter_map(|uid| self.uids.get(uid.as_ref()))
                .last()
                .map(|(owner, _)| owner)
        })
    }

    fn cgroup_by_path(&self, path: &str) -> Option<&Arc<Owner>> {
        if self.cgroups.is_empty() {
            return None;
        }
        let mut path = path;
        loop {
            if let Some((owner, _)) = self.cgroups.get(path) {
                return Some(owner);
            }
            path = &path[..path.rfind('/')?];
        }
    }
}

fn claim<'a, K: Eq + Hash + Clone>(
    claims: &mut Claims<K>,
    now_claimed: impl Iterator<Item = (K, &'a Known)>,
    now: Instant,
) {
    let mut taken = HashSet::new();
    for (key, known) in now_claimed {
        if taken.insert(key.clone()) {
            claims.insert(key, (known.owner.clone(), now));
        }
    }
    claims.retain(|_, (_, at)| now.duration_since(*at) < REMEMBER);
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn known(name: &str) -> Known {
        Known::of(Owner::new("shop", name))
    }

    fn holder(name: &str, since: Option<Instant>) -> Known {
        Known {
            addresses: vec![ADDRESS],
            since,
            ..known(name)
        }
    }

    fn at(join: &Join, moment: Instant) -> Option<&str> {
        let owner = join.address(&ADDRESS, When::at(moment))?;
        Some(&owner.pod)
    }

    #[test]
    fn a_cookie_outlives_its_pod_and_an_inode_does_not() {
        let of = |name, cookie| Known {
            net_cookie: Some(cookie),
            netns: Some(50),
            ..known(name)
        };
        let mut join = Join::default();
        let now = Instant::now();
        join.update([&of("first", 5)].into_iter(), now, None);
        join.update([&of("second", 6)].into_iter(), now, None);
        assert_eq!(join.namespace(5, 50).unwrap().pod, "first");
        assert_eq!(join.namespace(6, 50).unwrap().pod, "second");
        assert!(join.namespace(7, 50).is_none());
        join.update([].into_iter(), now + REMEMBER, None);
        assert!(join.namespace(5, 50).is_none());
    }

    #[test]
    fn an_address_belongs_to_who_had_it_at_the_time() {
        let mut join = Join::default();
        let start = Instant::now();
        let second = |n| start + Duration::from_secs(n);
        let first = holder("first", None);
        assert!(join.update([&first].into_iter(), second(1), None));
        assert!(!join.update([&first].into_iter(), second(2), None));
        assert!(
            join.update([].into_iter(), second(3), None),
            "its owner is gone"
        );
        assert_eq!(at(&join, second(2)), Some("first"));
        assert_eq!(at(&join, start), Some("first"), "from before it was asked");
        assert_eq!(at(&join, second(4)), None, "nobody has it");
        // Noticed at 6, when it was there already at 5.
        let next = holder("second", Some(second(5)));
        assert!(join.update([&next].into_iter(), second(6), None));
        assert_eq!(at(&join, second(2)), Some("first"));
        assert_eq!(at(&join, second(4)), None);
        assert_eq!(at(&join, second(5)), Some("second"));
        let span = |from: Option<u64>, to| {
            let when = When {
                from: from.map(second),
                to: second(to),
            };
            join.address(&ADDRESS, when).unwrap().pod.as_str()
        };
        assert_eq!((span(None, 4), span(Some(2), 4)), ("first", "first"));
        assert_eq!(span(Some(2), 6), "second", "the last of both");
    }

    #[test]
    fn an_end_that_was_noticed_late_is_put_right() {
        let mut join = Join::default();
        let start = Instant::now();
        let second = |n| start + Duration::from_secs(n);
        join.update([&holder("first", None)].into_iter(), start, None);
        // In one look: the first is gone, the second was made two seconds ago.
        join.update(
            [&holder("second", Some(second(3)))].into_iter(),
            second(5),
            None,
        );
        assert_eq!(at(&join, second(2)), Some("first"));
        assert_eq!(at(&join, second(4)), Some("second"));
    }

    /// As sources have it that do not say since when.
    #[test]
    fn an_address_moved_when_it_was_last_asked_for() {
        let mut join = Join::default();
        let start = Instant::now();
        let second = |n| start + Duration::from_secs(n);
        join.update([&holder("first", None)].into_iter(), start, None);
        let asked = Some(second(2));
        join.update([&holder("second", None)].into_iter(), second(5), asked);
        assert_eq!(at(&join, second(1)), Some("first"));
        assert_eq!(at(&join, second(3)), Some("second"));
    }

    #[test]
    fn a_pod_of_the_same_name_is_another() {
        let named = |uid: &str| Known {
            owner: Arc::new(Owner {
                namespace: "shop".to_owned(),
                pod: "db-0".to_owned(),
                uid: Some(uid.to_owned()),
            }),
            addresses: vec![ADDRESS],
            ..known("db-0")
        };
        let mut join = Join::default();
        let start = Instant::now();
        join.update([&named("a")].into_iter(), start, None);
        let later = start + Duration::from_secs(1);
        assert!(join.update([&named("b")].into_iter(), later, None));
        let owner = join.address(&ADDRESS, When::at(later)).unwrap();
        assert_eq!(owner.uid.as_deref(), Some("b"));
    }

    #[test]
    fn history_is_bounded() {
        let mut join = Join::default();
        let start = Instant::now();
        for n in 0..2 * OWNERS_OF_ADDRESS {
            join.update([&holder(&n.to_string(), None)].into_iter(), start, None);
        }
        assert_eq!(join.addresses[&ADDRESS].len(), OWNERS_OF_ADDRESS);
        let of = |n: u32| Known {
            addresses: vec![IpAddr::V4(n.into())],
            ..known("many")
        };
        for n in 1..=4 {
            let each = VACANT_ADDRESSES as u32 / 2;
            let some: Vec<Known> = (n * each..(n + 1) * each).map(of).collect();
            join.update(some.iter(), start + Duration::from_secs(n.into()), None);
            assert!(join.addresses.len() <= VACANT_ADDRESSES + some.len());
        }
        let end = start + Duration::from_secs(9);
        join.update([].into_iter(), end, None);
        join.update([].into_iter(), end + REMEMBER, None);
        assert!(join.addresses.is_empty());
    }

    /// Paths as the runtimes make them; each is of the pod with this uid.
    #[test]
    fn the_uid_in_a_cgroup_path_names_the_pod() {
        const UID: &str = "1f8c3f6e-5a3b-4d4e-9c43-0a1b2c3d4e5f";
        const HASH: &str = "4f6e0c9d8b7a69584736251403f2e1d0";
        let pod = Known {
            cgroup_uids: vec![UID.to_owned(), HASH.to_owned()],
            ..known("a")
        };
        let mut join = Join::default();
        join.update([&pod].into_iter(), Instant::now(), None);
        let slice = "kubepods-besteffort-pod1f8c3f6e_5a3b_4d4e_9c43_0a1b2c3d4e5f.slice";
        for path in [
            // containerd, cgroupfs: besteffort, then guaranteed; cri-dockerd looks the same.
            format!("/kubepods/besteffort/pod{UID}/0123abcd"),
            format!("/kubepods/pod{UID}/0123abcd"),
            format!("/kubepods/pod{UID}"),
            // containerd with the systemd driver, as k3s and most distributions have it.
            format!("/kubepods.slice/kubepods-besteffort.slice/{slice}/cri-containerd-01ab.scope"),
            // CRI-O: container and conmon; with a cgroup of the container's own systemd.
            format!("/kubepods.slice/kubepods-besteffort.slice/{slice}/crio-01ab.scope/container"),
            format!("/kubepods.slice/kubepods-besteffort.slice/{slice}/crio-conmon-01ab.scope"),
            format!("/kubepods/burstable/pod{UID}/crio-01ab"),
            // cri-dockerd with the systemd driver.
            format!("/kubepods.slice/kubepods-besteffort.slice/{slice}/docker-01ab.scope"),
            // A node in a container (kind): below the container's cgroup and the kubelet's own.
            format!(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-{slice}/cri-containerd-01.scope"
            ),
            format!("/docker/9f8e/kubelet/kubepods/burstable/pod{UID}/01ab"),
            // From inside a cgroup namespace.
            format!("/../../besteffort/pod{UID}/01ab"),
            // A static pod.
            format!("/kubepods/burstable/pod{HASH}/01ab"),
            format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{HASH}.slice"),
            // A pod of a cluster in the pod, which this node does not know.
            format!("/kubepods/pod{UID}/01ab/kubepods/pod0-1-2/34cd"),
        ] {
            let owner = join.cgroup(&path);
            assert_eq!(owner.map(|o| o.pod.as_str()), Some("a"), "{path}");
        }
        let other = Known {
            cgroup_uids: vec!["7d0e".to_owned()],
            ..known("b")
        };
        join.update([&pod, &other].into_iter(), Instant::now(), None);
        let forged = format!("/kubepods/pod{UID}/01ab/pod7d0e");
        let owner = join.cgroup(&forged);
        assert_eq!(owner.map(|o| o.pod.as_str()), Some("a"), "{forged}");
        for path in [
            "/",
            "/system.slice/podman.service",
            "/kubepods/besteffort",
            "/kubepods/podother/01ab",
            "/kubepods.slice/kubepods-pod.slice",
        ] {
            assert!(join.cgroup(path).is_none(), "{path}");
        }
    }
}
