use std::{sync::Mutex, time::Duration};

use tracer_common::{AF_INET, dns, tcp};

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

/// What left; nothing was counted since the last reading.
#[derive(Default)]
struct Out {
    neigh: Vec<u64>,
    receivers: Vec<ReceiverKey>,
}

impl Leave for Out {
    fn neigh(&mut self, key: &neigh::Key) -> Left<neigh::Value> {
        if key.family == u32::from(AF_INET) {
            self.neigh.push(key.net_cookie);
        }
        Left::Before
    }

    fn forwarded(&mut self, _: &neigh::ForwardedKey) -> Left<neigh::Value> {
        Left::Before
    }

    fn dns(&mut self, _: &dns::Key) -> Left<dns::Value> {
        Left::Before
    }

    fn receiver(&mut self, key: &ReceiverKey) -> Left<ReceiverValue> {
        self.receivers.push(*key);
        Left::Before
    }

    fn drops(&mut self, _: &drops::Key) -> Left<drops::Value> {
        Left::Before
    }

    fn tcp(&mut self, _: &tcp::Key) -> Left<tcp::Value> {
        Left::Before
    }
}

fn retire(aggregate: &mut Aggregate, resolver: &Resolver, now: Instant) -> Out {
    let mut out = Out::default();
    aggregate.retire(resolver, now, &mut out);
    out
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
    retire(&mut aggregate, &resolver, start);
    let over = aggregate.retire_attempts();
    assert_eq!(over.attempts.len(), CROWDED_ATTEMPTS);
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
    assert!(
        retire(&mut aggregate, &resolver, start)
            .receivers
            .is_empty()
    );
    let idle = start + ledger::CROWDED_GRACE;
    aggregate.update(reading, &resolver, idle, 120);
    assert_eq!(
        retire(&mut aggregate, &resolver, idle).receivers.len(),
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
        assert!(retire(&mut aggregate, &resolver, later).neigh.is_empty());
    }
    aggregate.update(reading(4), &resolver, start, 0);
    assert_eq!(retire(&mut aggregate, &resolver, later).neigh, [5]);
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
    assert_eq!(retire(&mut next, &resolver, idle).neigh, [5]);
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
    assert!(retire(&mut aggregate, &resolver, idle).neigh.is_empty());
    aggregate.update(reading(9), &resolver, idle, 2);
    assert_eq!(retire(&mut aggregate, &resolver, idle).neigh, [5]);
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
        let left = retire(&mut aggregate, &resolver, minute(n)).neigh;
        assert_eq!(left, if n == 6 { vec![6] } else { vec![] }, "{n}");
        busy.neigh
            .retain(|(key, _)| !left.contains(&key.net_cookie));
    }
    aggregate.update(busy, &resolver, minute(24), 20);
    assert_eq!(retire(&mut aggregate, &resolver, minute(24)).neigh, [5]);
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
        retire(&mut aggregate, &resolver, now);
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
    assert_eq!(retire(&mut aggregate, &resolver, idle).receivers.len(), 1);
    aggregate.update(lost(8), &resolver, idle, 1);
    let owners = &aggregate.picture().owners;
    let web = &owners[&Owner::new("shop", "web-0")];
    assert_eq!(web.receive_drops, [(None, 13)].into_iter().collect());
}
