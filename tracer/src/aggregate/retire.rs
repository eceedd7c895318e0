//! Which keys leave the kernel's maps, and which figures end: those of what is gone, and where room is short
//! those of what is idle.

use std::{collections::HashSet, time::Instant};

use tracer_common::{
    dns,
    drops::{self, ReceiverKey},
    neigh, tcp,
};

use super::{Aggregate, dead, is_rest, is_unknown, ledger, without_reason};
use crate::{
    kernel,
    pods::{Owner, Resolver},
};

/// Keys of a map of 8,192 from which on it is short of room.
const CROWDED: usize = 6_000;

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
    /// Which keys may leave the kernel's maps: those of pods that are gone, of namespaces that pods had who
    /// have others now, and of cgroups and namespaces of nobody that have been idle for long. Figures of what
    /// is no pod stay.
    pub fn retire(&mut self, resolver: &Resolver, now: Instant) -> Leaving {
        if !resolver.has_heard_all() {
            return Leaving::default();
        }
        let reading = &self.picture.reading;
        let gone = &mut self.gone;
        for owner in &self.admitted {
            if resolver.is_alive(owner) || is_lasting(owner) {
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
            crowded(reading.receive_drops.len()),
        );
        let (drops, tcp) = (crowded(reading.drops.len()), crowded(reading.tcp.len()));
        let in_use: HashSet<u64> = reading
            .neigh
            .iter()
            .filter(|(_, value)| value.live > 0)
            .map(|(key, _)| key.net_cookie)
            .collect();
        let mut leaving = Leaving {
            neigh: self.neigh.retire(
                now,
                ledger::GRACE,
                |&cookie, owner| {
                    let has_left =
                        || resolver.has_left(cookie, Some(owner)) && !in_use.contains(&cookie);
                    cookie != 0 && (ended(owner) || is_unknown(owner) || has_left())
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
                            || resolver.has_left(key.net_cookie, Some(owner))
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
                            || resolver.has_left(key.net_cookie, Some(owner))
                            || !resolver.has_cgroup(key.cgroup_id))
                },
                ended,
            ),
            drops: self.drops.retire(
                now,
                idle(drops),
                |key, owner| {
                    // Else it is the one that the packet crossed, on its way from an address of the owner's.
                    let in_it = (key.family == 0).then_some(owner);
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
                            || resolver.has_left(key.net_cookie, Some(owner))
                            || !resolver.has_cgroup(key.cgroup_id))
                },
                ended,
            ),
            dead: self.dead.over(reading, kernel::monotonic()),
        };
        self.ports.retain_owners(|owner| !ended(owner));
        self.reasons.retain_owners(|owner| !ended(owner));
        self.dead.retain_owners(|owner| !ended(owner));
        // With each owner go its ports and its reasons.
        let over: HashSet<ReceiverKey> = leaving.receivers.iter().copied().collect();
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
        let admitted = &mut self.admitted;
        gone.retain(|owner, since| {
            let over = now.duration_since(*since) >= 2 * ledger::GRACE;
            if over {
                admitted.remove(owner);
            }
            !over
        });
        leaving
    }
}

/// What is no pod keeps its figures: host units, the unknown, the rest.
fn is_lasting(owner: &Owner) -> bool {
    is_unknown(owner) || owner.namespace == "(host)"
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracer_common::AF_INET;

    use super::*;
    use crate::{
        aggregate::tests::Changing,
        kernel::maps::Reading,
        pods::{Ask, Known},
    };

    /// A pod of a StatefulSet, in this namespace.
    fn web(net_cookie: u64) -> Known {
        Known {
            net_cookie: Some(net_cookie),
            ..Known::of(Owner::new("shop", "web-0"))
        }
    }

    fn reading(live: u32) -> Reading {
        let key = |net_cookie| neigh::Key {
            net_cookie,
            ..neigh::Key::rest(AF_INET)
        };
        let value = |live| neigh::Value {
            counts: neigh::Counts {
                created: 3,
                ..neigh::Counts::default()
            },
            live,
            ..neigh::Value::default()
        };
        Reading {
            neigh: vec![(key(5), value(live)), (key(6), value(1))],
            ..Reading::default()
        }
    }

    #[test]
    fn a_pod_made_anew_under_its_name_keeps_its_sum_and_not_its_keys() {
        let pods = Arc::new(Mutex::new(vec![web(5)]));
        let mut resolver = Resolver::with(vec![Box::new(Changing(pods.clone()))]);
        resolver.refresh(Ask::Regularly);
        let mut aggregate = Aggregate::new(ledger::GRACE, 10);
        let start = Instant::now();
        aggregate.update(reading(1), &resolver, start, 0);
        *pods.lock().unwrap() = vec![web(6)];
        assert!(resolver.refresh(Ask::Changed).is_some());
        let later = start + ledger::GRACE;
        // As long as it has entries in the table, they are counted under the key.
        aggregate.update(reading(1), &resolver, start, 0);
        assert!(aggregate.retire(&resolver, later).neigh.is_empty());
        aggregate.update(reading(0), &resolver, start, 0);
        assert_eq!(aggregate.retire(&resolver, later).neigh, [5]);
        let mut after = reading(0);
        after.neigh.remove(0);
        aggregate.update(after, &resolver, start, 1);
        let owners = &aggregate.picture().owners;
        let web = &owners[&Owner::new("shop", "web-0")];
        assert_eq!(web.neigh[0].created, 6);
    }

    #[test]
    fn what_was_made_anew_while_no_agent_ran_keeps_its_sum_and_not_its_keys() {
        let pods = Arc::new(Mutex::new(vec![web(5)]));
        let resolver = || {
            let mut resolver = Resolver::with(vec![Box::new(Changing(pods.clone()))]);
            resolver.refresh(Ask::Regularly);
            resolver
        };
        let mut aggregate = Aggregate::new(ledger::GRACE, 10);
        let start = Instant::now();
        aggregate.update(reading(0), &resolver(), start, 0);
        let bytes = rmp_serde::to_vec_named(&aggregate).unwrap();
        *pods.lock().unwrap() = vec![web(6)];

        let next: Aggregate = rmp_serde::from_slice(&bytes).unwrap();
        let mut next = next.restored(ledger::GRACE, 10);
        let resolver = resolver();
        next.update(reading(0), &resolver, start, 0);
        let idle = start + 2 * ledger::GRACE;
        assert_eq!(next.retire(&resolver, idle).neigh, [5]);
        let mut after = reading(0);
        after.neigh.remove(0);
        next.update(after, &resolver, idle, 1);
        let owners = &next.picture().owners;
        assert_eq!(owners[&Owner::new("shop", "web-0")].neigh[0].created, 6);
    }
}
