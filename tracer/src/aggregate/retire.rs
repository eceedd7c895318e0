//! Which keys leave the kernel's maps, and which figures end: those of what is gone, and where room is short
//! those of what is idle.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use tracer_common::{
    dns,
    drops::{self, ReceiverKey},
    family_index, neigh, tcp,
};

use super::{Aggregate, dead, is_fixed, is_rest, is_unknown, ledger, without_reason};
use crate::{
    kernel,
    pods::{Owner, Resolver},
};

/// Keys of a map of 8,192 from which on it is short of room.
const CROWDED: usize = 6_000;

/// The same of `ATTEMPTS`, which has 16,384.
const CROWDED_ATTEMPTS: usize = 8_192;

/// Keys that may leave the kernel's maps.
#[derive(Debug, Default)]
pub struct Leaving {
    /// Of the map `NEIGH`.
    pub neigh: Vec<u64>,
    /// Of the map `NEIGH_FORWARDED`.
    pub forwarded: Vec<neigh::ForwardedKey>,
    /// Of the map `DNS`.
    pub dns: Vec<dns::Key>,
    /// Of the maps `RECEIVE_DROPS` and `RECEIVE_PORTS`.
    pub receivers: Vec<ReceiverKey>,
    /// Of the map `DROPS`.
    pub drops: Vec<drops::Key>,
    /// Of the map `TCP`.
    pub tcp: Vec<tcp::Key>,
    /// Of the maps `ATTEMPTS` and `DESTINATIONS`.
    pub dead: dead::Over,
}

impl Aggregate {
    /// Are there so many attempts that others may find no room? A destination that fails and answers in turn makes a key
    /// each time.
    pub fn is_crowded_by_attempts(&self) -> bool {
        self.picture.reading.attempts.len() >= CROWDED_ATTEMPTS
    }

    /// Those alone that may leave whoever's they are.
    pub fn retire_attempts(&mut self) -> Leaving {
        Leaving {
            dead: self.dead.over(&self.picture.reading, kernel::monotonic()),
            ..Leaving::default()
        }
    }

    /// Which keys may leave the kernel's maps: those of pods that are gone, of namespaces that pods had who
    /// have others now, and of cgroups and namespaces of nobody that have been idle for long. Units of the host
    /// end as pods do, once there is none of that name; figures of what is neither stay.
    pub fn retire(&mut self, resolver: &Resolver, now: Instant) -> Leaving {
        if !resolver.has_heard_all() {
            return self.retire_attempts();
        }
        let reading = &self.picture.reading;
        let gone = &mut self.gone;
        let units = resolver.units();
        for owner in &self.admitted {
            if resolver.is_alive(owner) || is_fixed(owner) || units.contains(owner) {
                gone.remove(owner);
            } else {
                gone.entry(owner.clone()).or_insert(now);
            }
        }
        let ended = |owner: &Owner| {
            gone.iter()
                .any(|(o, since)| **o == *owner && now.duration_since(*since) >= ledger::GRACE)
        };
        let crowded = |keys: usize| keys >= CROWDED;
        let idle = |crowded| {
            if crowded {
                ledger::CROWDED_GRACE
            } else {
                ledger::GRACE
            }
        };
        // Those of a live pod too, where there are so many that others may find no room. Not those of
        // neighbours: under them its live entries are counted, used or not.
        let forwarded = crowded(reading.forwarded.len());
        let (dns, receivers) = (
            crowded(reading.dns.len()),
            // With an owner go its ports, of which one may have lost datagrams on thousands.
            crowded(reading.receive_drops.len()) || crowded(reading.receive_ports.len()),
        );
        let (drops, tcp) = (crowded(reading.drops.len()), crowded(reading.tcp.len()));
        // What a walk does not find keeps what an earlier one had counted; the last may be under way.
        let is_live = |key: &neigh::Key, value: &neigh::Value| {
            family_index(key.family as u16).is_some_and(|family| {
                let last = reading.walks[family as usize].generation;
                value.live > 0 && last.wrapping_sub(value.live_generation) <= 1
            })
        };
        let in_use: HashSet<u64> = reading
            .neigh
            .iter()
            .filter(|(key, value)| is_live(key, value))
            .map(|(key, _)| key.net_cookie)
            .collect();
        let inodes: HashMap<u64, u32> = (reading.neigh.iter())
            .map(|(key, value)| (key.net_cookie, value.netns))
            .chain((reading.drops.iter()).map(|(key, value)| (key.net_cookie, value.netns)))
            .collect();
        let inode = |cookie| inodes.get(&cookie).copied().filter(|inode| *inode != 0);
        let mut leaving = Leaving {
            neigh: self.neigh.retire(
                now,
                ledger::GRACE,
                |&cookie, owner| {
                    let whose = Some((owner, inode(cookie)));
                    let is_idle = || is_unknown(owner) || resolver.has_left(cookie, whose);
                    cookie != 0 && (ended(owner) || !in_use.contains(&cookie) && is_idle())
                },
                ended,
            ),
            forwarded: self.forwarded.retire(
                now,
                idle(forwarded),
                |_, owner| forwarded || ended(owner) || is_unknown(owner),
                ended,
            ),
            dns: self.dns.retire(
                now,
                idle(dns),
                |key, owner| {
                    key.net_cookie != 0
                        && (dns
                            || ended(owner)
                            || is_unknown(owner)
                            || resolver.has_left(key.net_cookie, None)
                            || !resolver.has_cgroup(key.cgroup_id))
                },
                ended,
            ),
            receivers: self.receivers.retire(
                now,
                idle(receivers),
                |key, owner| {
                    key.net_cookie != 0
                        && (receivers
                            || ended(owner)
                            || is_unknown(owner)
                            || resolver.has_left(key.net_cookie, None)
                            || !resolver.has_cgroup(key.cgroup_id))
                },
                ended,
            ),
            drops: self.drops.retire(
                now,
                idle(drops),
                |key, owner| {
                    // Else it is a socket's, or the one that the packet crossed from an address of the owner's.
                    let in_it = (key.family == 0 && key.cgroup_id == 0)
                        .then(|| (owner, inode(key.net_cookie)));
                    !is_rest(key)
                        && (drops
                            || ended(owner)
                            || is_unknown(owner)
                            || resolver.has_left(key.net_cookie, in_it)
                            || (key.cgroup_id != 0 && !resolver.has_cgroup(key.cgroup_id)))
                },
                ended,
            ),
            tcp: self.tcp.retire(
                now,
                idle(tcp),
                |key, owner| {
                    key.net_cookie != 0
                        && (tcp
                            || ended(owner)
                            || is_unknown(owner)
                            || resolver.has_left(key.net_cookie, None)
                            || !resolver.has_cgroup(key.cgroup_id))
                },
                ended,
            ),
            dead: self.dead.over(reading, kernel::monotonic()),
        };
        // They end as the figures in the ledgers do: with the last key.
        let ends_without = |holders: HashSet<Arc<Owner>>| {
            let ended = &ended;
            move |owner: &Arc<Owner>| !ended(owner) || holders.contains(owner)
        };
        let receivers = self.receivers.holders().cloned().collect();
        self.ports.retain_owners(ends_without(receivers));
        let dropped = self.drops.holders().cloned().collect();
        self.reasons.retain_owners(ends_without(dropped));
        let clients = self.tcp.holders().cloned().collect();
        self.dead.retain_owners(ends_without(clients));
        // With each owner go its ports and its reasons.
        let over: HashSet<ReceiverKey> = leaving.receivers.iter().copied().collect();
        for key in &over {
            self.ports.forget_key(key); // what had no port
        }
        for (key, _) in &reading.receive_ports {
            if over.contains(&ReceiverKey { port: 0, ..*key }) {
                self.ports.forget_key(key);
                leaving.receivers.push(*key);
            }
        }
        let over: HashSet<drops::Key> = leaving.drops.drain(..).collect();
        for (key, _) in &reading.drops {
            if over.contains(&without_reason(key)) {
                self.reasons.forget_key(key);
                leaving.drops.push(*key);
            }
        }
        // Who is forgotten could not end any more.
        let is_over = |since: &Instant| now.duration_since(*since) >= 2 * ledger::GRACE;
        if gone.values().any(is_over) {
            let holders: HashSet<&Arc<Owner>> = (self.neigh.holders())
                .chain(self.forwarded.holders())
                .chain(self.dns.holders())
                .chain(self.receivers.holders())
                .chain(self.drops.holders())
                .chain(self.tcp.holders())
                .collect();
            let admitted = &mut self.admitted;
            gone.retain(|owner, since| {
                let over = is_over(since) && !holders.contains(owner);
                if over {
                    admitted.remove(owner);
                }
                !over
            });
        }
        leaving
    }
}

#[cfg(test)]
mod tests;
