//! Who has which cookie, inode, cgroup, address; and who had it until lately.
//!
//! What the kernel saw may be read after the pod is gone, so what a pod had is remembered until
//! somebody else has it: a cookie is never reused, an address is.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Known, Owner};
use crate::kernel::cgroup;

/// How long what a pod had is remembered after it is gone.
const REMEMBER: Duration = Duration::from_mins(10);

/// A key of some kind, its owner, and when the owner was last known to have it.
type Claims<K> = HashMap<K, (Arc<Owner>, Instant)>;

/// The join.
#[derive(Default)]
pub(super) struct Join {
    cookies: Claims<u64>,
    inodes: HashMap<u32, Arc<Owner>>,
    cgroups: Claims<String>,
    uids: Claims<String>,
    addresses: Claims<IpAddr>,
}

impl Join {
    /// Takes over what the sources say now, the strongest first: who comes first has it.
    pub(super) fn update<'a>(
        &mut self,
        known: impl Iterator<Item = &'a Known> + Clone,
        now: Instant,
    ) {
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
        claim(
            &mut self.addresses,
            known
                .clone()
                .flat_map(|k| k.addresses.iter().map(move |address| (*address, k))),
            now,
        );
        // An inode decides only where no cookie could be had: it is reused within a second.
        self.inodes.clear();
        for k in known.filter(|k| cookie(k).is_none()) {
            if let Some(netns) = k.netns {
                self.inodes.entry(netns).or_insert_with(|| k.owner.clone());
            }
        }
    }

    /// The pod in the namespace.
    pub(super) fn namespace(&self, cookie: u64, inode: u32) -> Option<&Arc<Owner>> {
        self.cookies
            .get(&cookie)
            .map(|(owner, _)| owner)
            .or_else(|| self.inodes.get(&inode))
    }

    /// The pod that has the address.
    pub(super) fn address(&self, address: &IpAddr) -> Option<&Arc<Owner>> {
        self.addresses.get(address).map(|(owner, _)| owner)
    }

    /// The pod whose cgroup this is, or lies above it.
    pub(super) fn cgroup(&self, path: &str) -> Option<&Arc<Owner>> {
        let mut uids = cgroup::pod_uids(path);
        if let Some((owner, _)) = uids.find_map(|uid| self.uids.get(&*uid)) {
            return Some(owner);
        }
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
