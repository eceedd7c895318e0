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
mod tests {
    use std::{sync::Mutex, time::Duration};

    use tracer_common::AF_INET;

    use super::*;
    use crate::{
        aggregate::tests::Changing,
        kernel::maps::Reading,
        pods::{Ask, Known, Source},
    };

    /// A pod of a StatefulSet, in this namespace.
    fn web(net_cookie: u64) -> Known {
        Known {
            net_cookie: Some(net_cookie),
            ..Known::of(Owner::new("shop", "web-0"))
        }
    }

    /// With the walks that there were; those up to the second found entries of the first namespace.
    fn reading(walks: u32) -> Reading {
        let key = |net_cookie| neigh::Key {
            net_cookie,
            ..neigh::Key::rest(AF_INET)
        };
        let value = |netns, generation: u32| neigh::Value {
            counts: neigh::Counts {
                created: 3,
                ..neigh::Counts::default()
            },
            live: 1,
            live_generation: generation,
            netns,
            ..neigh::Value::default()
        };
        let mut reading = Reading {
            neigh: vec![
                (key(5), value(50, walks.min(2))),
                (key(6), value(60, walks)),
            ],
            ..Reading::default()
        };
        reading.walks[0].generation = walks;
        reading
    }

    #[test]
    fn attempts_before_an_answer_leave_whoever_is_not_known_yet() {
        let destination = tcp::Destination {
            address: [1, 0, 0, 0],
            net_cookie: 0,
            family: AF_INET,
            port: 80,
            _pad: 0,
        };
        let attempt = |answered| {
            let key = tcp::AttemptsKey {
                client: tcp::Key::default(),
                destination,
                answered,
            };
            let first = tcp::AttemptsValue {
                failed: 1,
                first_ns: 1,
            };
            (key, first)
        };
        let many = CROWDED_ATTEMPTS as u64;
        let now_ns = u64::try_from(kernel::monotonic().as_nanos()).unwrap();
        let value = tcp::DestinationValue {
            answered: many,
            last_failed_ns: now_ns,
            ..tcp::DestinationValue::default()
        };
        let reading = Reading {
            attempts: (0..many).map(attempt).collect(),
            destinations: vec![(destination, value)],
            ..Reading::default()
        };
        let resolver = Resolver::with(vec![Box::new(Unheard)]);
        let mut aggregate = Aggregate::new(ledger::GRACE, 10);
        let start = Instant::now();
        aggregate.update(reading, &resolver, start, 0);
        assert!(aggregate.is_crowded_by_attempts());
        let leaving = aggregate.retire(&resolver, start);
        assert_eq!(leaving.dead.attempts.len(), CROWDED_ATTEMPTS);
    }

    /// It has not answered yet.
    struct Unheard;

    impl Source for Unheard {
        fn name(&self) -> &'static str {
            "unheard"
        }

        fn pods(&mut self, _addresses: bool) -> anyhow::Result<Vec<Known>> {
            anyhow::bail!("not yet")
        }
    }

    #[test]
    fn ports_leave_where_one_pod_has_them_all() {
        let owner = ReceiverKey {
            net_cookie: 5,
            cgroup_id: 9,
            ..ReceiverKey::default()
        };
        let lost = drops::ReceiverValue {
            dropped: 1,
            ..drops::ReceiverValue::default()
        };
        let port = |port| (ReceiverKey { port, ..owner }, lost);
        let reading = Reading {
            receive_drops: vec![(owner, lost)],
            receive_ports: (1..=CROWDED as u16).map(port).collect(),
            ..Reading::default()
        };
        let pods = Arc::new(Mutex::new(vec![web(5)]));
        let mut resolver = Resolver::with(vec![Box::new(Changing(pods))]);
        resolver.refresh(Ask::Regularly);
        let mut aggregate = Aggregate::new(ledger::GRACE, 10);
        let start = Instant::now();
        aggregate.update(reading.clone(), &resolver, start, 0);
        assert!(aggregate.retire(&resolver, start).receivers.is_empty());
        let idle = start + ledger::CROWDED_GRACE;
        aggregate.update(reading, &resolver, idle, 120);
        assert_eq!(
            aggregate.retire(&resolver, idle).receivers.len(),
            CROWDED + 1
        );
    }

    #[test]
    fn a_pod_made_anew_under_its_name_keeps_its_sum_and_not_its_keys() {
        made_anew(web);
    }

    /// Where no cookie can be had: without CAP_SYS_ADMIN.
    #[test]
    fn a_pod_made_anew_of_which_only_the_inode_is_known_keeps_its_sum_and_not_its_keys() {
        made_anew(|net_cookie| Known {
            net_cookie: None,
            netns: Some(10 * net_cookie as u32),
            ..web(net_cookie)
        });
    }

    fn made_anew(web: impl Fn(u64) -> Known) {
        let pods = Arc::new(Mutex::new(vec![web(5)]));
        let mut resolver = Resolver::with(vec![Box::new(Changing(pods.clone()))]);
        resolver.refresh(Ask::Regularly);
        let mut aggregate = Aggregate::new(ledger::GRACE, 10);
        let start = Instant::now();
        aggregate.update(reading(2), &resolver, start, 0);
        *pods.lock().unwrap() = vec![web(6)];
        assert!(resolver.refresh(Ask::Changed).is_some());
        let later = start + ledger::GRACE;
        // As long as it has entries in the table, they are counted under the key.
        for walks in [2, 3] {
            aggregate.update(reading(walks), &resolver, start, 0);
            assert!(aggregate.retire(&resolver, later).neigh.is_empty());
        }
        aggregate.update(reading(4), &resolver, start, 0);
        assert_eq!(aggregate.retire(&resolver, later).neigh, [5]);
        let mut after = reading(4);
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
        aggregate.update(reading(2), &resolver(), start, 0);
        let bytes = rmp_serde::to_vec_named(&aggregate).unwrap();
        *pods.lock().unwrap() = vec![web(6)];

        let next: Aggregate = rmp_serde::from_slice(&bytes).unwrap();
        let mut next = next.restored(ledger::GRACE, 10);
        let resolver = resolver();
        next.update(reading(4), &resolver, start, 0);
        let idle = start + 2 * ledger::GRACE;
        assert_eq!(next.retire(&resolver, idle).neigh, [5]);
        let mut after = reading(4);
        after.neigh.remove(0);
        next.update(after, &resolver, idle, 1);
        let owners = &next.picture().owners;
        assert_eq!(owners[&Owner::new("shop", "web-0")].neigh[0].created, 6);
    }

    #[test]
    fn entries_of_nobody_are_counted_as_long_as_there_are_any() {
        let resolver = Resolver::with(Vec::new());
        let mut aggregate = Aggregate::new(ledger::GRACE, 10);
        let start = Instant::now();
        aggregate.update(reading(2), &resolver, start, 0);
        aggregate.update(reading(2), &resolver, start + ledger::HOLD, 1);
        let idle = start + 2 * ledger::GRACE;
        assert!(aggregate.retire(&resolver, idle).neigh.is_empty());
        aggregate.update(reading(9), &resolver, idle, 2);
        assert_eq!(aggregate.retire(&resolver, idle).neigh, [5]);
    }

    #[test]
    fn a_pod_that_is_gone_ends_however_long_something_of_it_goes_on() {
        let pods = Arc::new(Mutex::new(vec![web(5), web(6)]));
        let mut resolver = Resolver::with(vec![Box::new(Changing(pods.clone()))]);
        resolver.refresh(Ask::Regularly);
        let mut aggregate = Aggregate::new(ledger::GRACE, 10);
        let start = Instant::now();
        let minute = |n: u32| start + Duration::from_mins(n.into());
        let mut busy = reading(2);
        aggregate.update(busy.clone(), &resolver, start, 0);
        pods.lock().unwrap().clear();
        resolver.refresh(Ask::Changed);
        let created = |aggregate: &Aggregate| {
            let owners = &aggregate.picture().owners;
            let web = owners.get(&Owner::new("shop", "web-0"));
            web.map(|web| web.neigh[0].created)
        };
        for n in 1..20 {
            busy.neigh[0].1.counts.created += 1;
            aggregate.update(busy.clone(), &resolver, minute(n), n.into());
            assert_eq!(created(&aggregate), Some(6 + u64::from(n)), "{n}");
            let left = aggregate.retire(&resolver, minute(n)).neigh;
            assert_eq!(left, if n == 6 { vec![6] } else { vec![] }, "{n}");
            busy.neigh
                .retain(|(key, _)| !left.contains(&key.net_cookie));
        }
        aggregate.update(busy, &resolver, minute(24), 20);
        assert_eq!(aggregate.retire(&resolver, minute(24)).neigh, [5]);
        aggregate.update(Reading::default(), &resolver, minute(24), 21);
        assert_eq!(created(&aggregate), None);
    }

    /// Else units that are made under a name of their own each time would take the room of all pods.
    #[test]
    fn a_unit_of_the_host_that_is_no_more_ends_as_a_pod_does() {
        let of = |unit, net_cookie| Known {
            net_cookie: Some(net_cookie),
            ..Known::of(Owner::new("(host)", unit))
        };
        let pods = Arc::new(Mutex::new(vec![of("job-17", 5), of("(kernel)", 6)]));
        let mut resolver = Resolver::with(vec![Box::new(Changing(pods.clone()))]);
        resolver.refresh(Ask::Regularly);
        let mut aggregate = Aggregate::new(ledger::GRACE, 1);
        let start = Instant::now();
        aggregate.update(reading(2), &resolver, start, 0);
        pods.lock().unwrap().clear();
        resolver.refresh(Ask::Changed);
        let none = Reading::default;
        let units = |aggregate: &Aggregate| {
            let owners = aggregate.picture().owners.clone();
            owners.keys().map(|o| o.pod.clone()).collect::<Vec<_>>()
        };
        for (after, there) in [(0, 2), (1, 2), (2, 1)] {
            let now = start + after * ledger::GRACE;
            aggregate.update(none(), &resolver, now, after.into());
            assert_eq!(units(&aggregate).len(), there, "{after}");
            aggregate.retire(&resolver, now);
        }
        assert_eq!(units(&aggregate), ["(kernel)"]);
        assert!(aggregate.admitted.is_empty());
    }

    #[test]
    fn datagrams_lost_without_a_port_are_counted_anew_when_their_key_comes_back() {
        let pods = Arc::new(Mutex::new(vec![web(5)]));
        let mut resolver = Resolver::with(vec![Box::new(Changing(pods))]);
        resolver.refresh(Ask::Regularly);
        let mut aggregate = Aggregate::new(ledger::GRACE, 10);
        let start = Instant::now();
        let lost = |portless| {
            let key = ReceiverKey {
                cgroup_id: u64::MAX, // there is none
                net_cookie: 5,
                ..ReceiverKey::default()
            };
            let value = drops::ReceiverValue {
                dropped: portless,
                portless,
                ..drops::ReceiverValue::default()
            };
            Reading {
                receive_drops: vec![(key, value)],
                ..Reading::default()
            }
        };
        aggregate.update(lost(5), &resolver, start, 0);
        let idle = start + ledger::GRACE;
        assert_eq!(aggregate.retire(&resolver, idle).receivers.len(), 1);
        aggregate.update(lost(8), &resolver, idle, 1);
        let owners = &aggregate.picture().owners;
        let web = &owners[&Owner::new("shop", "web-0")];
        assert_eq!(web.receive_drops, [(None, 13)].into_iter().collect());
    }
}
