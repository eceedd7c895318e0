//! Which keys leave the kernel's maps, and which figures end: those of what is gone, and where room is short
//! those of what is idle.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use tracer_common::{
    AF_INET, AF_INET6,
    drops::{self, ReceiverKey, ReceiverValue},
    family_index, neigh,
};

use super::{
    Aggregate, NeighCounts, dead, is_fixed, is_rest, is_unknown,
    ledger::{self, Tally as _},
    without_reason,
};
use crate::{
    kernel::{
        self,
        maps::{Leave, Left},
    },
    pods::{Owner, Resolver},
};

/// Keys of a map of 8,192 from which on it is short of room.
const CROWDED: usize = 6_000;

/// The same of `ATTEMPTS`, which has 16,384.
const CROWDED_ATTEMPTS: usize = 8_192;

impl Aggregate {
    /// Are there so many attempts that others may find no room? A destination that fails and answers in turn makes a key
    /// each time.
    pub fn is_crowded_by_attempts(&self) -> bool {
        self.picture.reading.attempts.len() >= CROWDED_ATTEMPTS
    }

    /// What may leave the maps `ATTEMPTS` and `DESTINATIONS`, whoever's it is.
    pub fn retire_attempts(&mut self) -> dead::Over {
        self.dead.over(&self.picture.reading, kernel::monotonic())
    }

    /// Keys leave the kernel's maps: those of pods that are gone, of namespaces that pods had who
    /// have others now, and of cgroups and namespaces of nobody that have been idle for long. Units of the host
    /// end as pods do, once there is none of that name; figures of what is neither stay.
    pub fn retire(&mut self, resolver: &Resolver, now: Instant, maps: &mut impl Leave) {
        if !resolver.has_heard_all() {
            return;
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
        self.neigh.retire(
            now,
            ledger::GRACE,
            |&cookie, owner| {
                let whose = Some((owner, inode(cookie)));
                let is_idle = || is_unknown(owner) || resolver.has_left(cookie, whose);
                cookie != 0 && (ended(owner) || !in_use.contains(&cookie) && is_idle())
            },
            ended,
            |&cookie| leave_neigh(cookie, maps),
        );
        self.forwarded.retire(
            now,
            idle(forwarded),
            |_, owner| forwarded || ended(owner) || is_unknown(owner),
            ended,
            |key| {
                maps.forwarded(key)
                    .map(|value| by_family(key.family, &value))
            },
        );
        self.dns.retire(
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
            |key| maps.dns(key).map(|value| value.counts),
        );
        let mut portless = HashMap::new();
        let receivers_left = self.receivers.retire(
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
            |key| {
                maps.receiver(key).map(|value: ReceiverValue| {
                    portless.insert(*key, value.portless);
                    value.dropped
                })
            },
        );
        let mut with_reasons: HashMap<drops::Key, Vec<drops::Key>> = HashMap::new();
        for (key, _) in &reading.drops {
            with_reasons
                .entry(without_reason(key))
                .or_default()
                .push(*key);
        }
        let mut reasons_left = Vec::new();
        let drops_left = self.drops.retire(
            now,
            idle(drops),
            |key, owner| {
                // Else it is a socket's, or the one that the packet crossed from an address of the owner's.
                let in_it =
                    (key.family == 0 && key.cgroup_id == 0).then(|| (owner, inode(key.net_cookie)));
                !is_rest(key)
                    && (drops
                        || ended(owner)
                        || is_unknown(owner)
                        || resolver.has_left(key.net_cookie, in_it)
                        || (key.cgroup_id != 0 && !resolver.has_cgroup(key.cgroup_id)))
            },
            ended,
            |key| {
                let keys = with_reasons.get(key).map_or(&[][..], Vec::as_slice);
                leave_drops(keys, &mut reasons_left, maps)
            },
        );
        self.tcp.retire(
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
            |key| maps.tcp(key).map(|value| value.counts),
        );
        let receivers_left: HashMap<ReceiverKey, Arc<Owner>> = receivers_left.into_iter().collect();
        for (key, owner) in &receivers_left {
            if let Some(last) = portless.get(key) {
                self.ports.take(*key, *last, owner, None);
            }
            self.ports.forget_key(key);
        }
        for (key, _) in &reading.receive_ports {
            let Some(owner) = receivers_left.get(&ReceiverKey { port: 0, ..*key }) else {
                continue;
            };
            match maps.receiver(key) {
                Left::With(last) => self.ports.take(*key, last.dropped, owner, Some(key.port)),
                Left::Before => {}
                Left::Stays => continue,
            }
            self.ports.forget_key(key);
        }
        let drops_left: HashMap<drops::Key, Arc<Owner>> = drops_left.into_iter().collect();
        for (key, last) in reasons_left {
            if let Some(owner) = drops_left.get(&without_reason(&key)) {
                self.reasons.take(key, last, owner, Some(key.reason.into()));
            }
            self.reasons.forget_key(&key);
        }
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
    }
}

fn by_family(family: u32, value: &neigh::Value) -> NeighCounts {
    let mut counts = NeighCounts::default();
    if let Some(family) = family_index(family as u16) {
        counts[family as usize] = value.counts;
    }
    counts
}

/// A namespace may have used one family only.
fn leave_neigh(net_cookie: u64, maps: &mut impl Leave) -> Left<NeighCounts> {
    let mut sum = Left::Before;
    for family in [AF_INET, AF_INET6] {
        let key = neigh::Key {
            net_cookie,
            ..neigh::Key::rest(family)
        };
        sum = both(
            sum,
            maps.neigh(&key).map(|value| by_family(key.family, &value)),
            NeighCounts::plus,
        );
    }
    sum
}

/// Notes what was counted for each reason.
fn leave_drops(
    keys: &[drops::Key],
    last: &mut Vec<(drops::Key, u64)>,
    maps: &mut impl Leave,
) -> Left<u64> {
    let mut sum = Left::Before;
    for key in keys {
        let left = maps.drops(key).map(|value| value.dropped);
        if let Left::With(dropped) = left {
            last.push((*key, dropped));
        }
        sum = both(sum, left, |a, b| *a += b);
    }
    sum
}

/// Of several keys that stand for one.
fn both<C>(sum: Left<C>, left: Left<C>, add: impl FnOnce(&mut C, &C)) -> Left<C> {
    match (sum, left) {
        (Left::Stays, _) | (_, Left::Stays) => Left::Stays,
        (Left::With(mut sum), Left::With(left)) => {
            add(&mut sum, &left);
            Left::With(sum)
        }
        (Left::With(sum), Left::Before) => Left::With(sum),
        (Left::Before, left) => left,
    }
}

#[cfg(test)]
mod tests;
