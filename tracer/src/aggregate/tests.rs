//! What becomes of a reading: whose each of its counters is.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
};

use anyhow::Result;
use tracer_common::{AF_INET, AF_INET6, event::RingStats};

use super::*;
use crate::pods::{Ask, Known, Source};

/// A source whose pods the test changes.
pub struct Changing(pub Arc<Mutex<Vec<Known>>>);

impl Source for Changing {
    fn name(&self) -> &'static str {
        "changing"
    }
    fn pods(&mut self, _addresses: bool) -> Result<Vec<Known>> {
        Ok(self.0.lock().unwrap().clone())
    }
}

const SPAN: Duration = Duration::from_mins(1);
/// The pod that has it is `shop/web`; its only address is [`WEBS`].
const WEB: u64 = 5;
const WEBS: [u8; 4] = [10, 0, 0, 5];
/// Likewise of `shop/api`.
const API: u64 = 6;
const APIS: [u8; 4] = [10, 0, 0, 6];
/// Nobody's that is known.
const STRANGER: u64 = 7;
const STRANGERS: [u8; 4] = [10, 0, 0, 7];

fn web() -> Arc<Owner> {
    Owner::new("shop", "web")
}

fn api() -> Arc<Owner> {
    Owner::new("shop", "api")
}

fn resolver() -> Resolver {
    let pod = |owner, net_cookie, address: [u8; 4]| Known {
        net_cookie: Some(net_cookie),
        addresses: vec![IpAddr::from(address)],
        ..Known::of(owner)
    };
    let pods = vec![pod(web(), WEB, WEBS), pod(api(), API, APIS)];
    let mut resolver = Resolver::with(vec![Box::new(Changing(Arc::new(Mutex::new(pods))))]);
    resolver.refresh(Ask::Addresses);
    resolver
}

fn words(address: [u8; 4]) -> [u32; 4] {
    [u32::from_ne_bytes(address), 0, 0, 0]
}

/// One of everything that is counted under a namespace and an address: all the counts are told apart by `n`.
fn counted(net_cookie: u64, source: [u8; 4], n: u64) -> Reading {
    let creations = |created| neigh::Value {
        counts: neigh::Counts {
            created,
            table_full: created + 1,
            ..neigh::Counts::default()
        },
        ..neigh::Value::default()
    };
    let refused = neigh::Value {
        counts: neigh::Counts {
            table_full: n + 3,
            ..neigh::Counts::default()
        },
        ..neigh::Value::default()
    };
    let of_family = |family: u16| neigh::Key {
        net_cookie,
        ..neigh::Key::rest(family)
    };
    let mut lookups = dns::Value::default();
    lookups.counts.queries = n + 4;
    let mut connections = tcp::Value::default();
    connections.counts.results[0] = n + 5;
    let receiver = |port| ReceiverKey {
        cgroup_id: 1,
        net_cookie,
        port,
        ..ReceiverKey::default()
    };
    let lost = |dropped, portless| tracer_common::drops::ReceiverValue {
        dropped,
        portless,
        ..tracer_common::drops::ReceiverValue::default()
    };
    let dropped = |key: drops::Key, reason, dropped| {
        let value = drops::Value {
            dropped,
            ..drops::Value::default()
        };
        (drops::Key { reason, ..key }, value)
    };
    let of_socket = drops::Key {
        cgroup_id: 1,
        net_cookie,
        ..drops::Key::default()
    };
    let of_address = drops::Key {
        net_cookie: 1,
        address: words(source),
        family: AF_INET,
        ..drops::Key::default()
    };
    Reading {
        neigh: vec![
            (of_family(AF_INET), creations(n)),
            (of_family(AF_INET6), creations(n + 1)),
        ],
        forwarded: vec![(
            neigh::ForwardedKey {
                source: words(source),
                net_cookie: 0,
                family: AF_INET.into(),
                source_family: AF_INET.into(),
            },
            refused,
        )],
        dns: vec![(
            dns::Key {
                cgroup_id: 1,
                net_cookie,
            },
            lookups,
        )],
        tcp: vec![(
            tcp::Key {
                cgroup_id: 1,
                net_cookie,
            },
            connections,
        )],
        receive_drops: vec![(receiver(0), lost(n + 6, n))],
        receive_ports: vec![(receiver(53), lost(6, 0))],
        drops: vec![
            dropped(of_socket, 2, n + 7),
            dropped(of_socket, 3, n + 8),
            dropped(of_address, 2, n + 9),
        ],
        ..Reading::default()
    }
}

/// Both readings' keys.
fn both(one: Reading, other: Reading) -> Reading {
    Reading {
        neigh: [one.neigh, other.neigh].concat(),
        forwarded: [one.forwarded, other.forwarded].concat(),
        dns: [one.dns, other.dns].concat(),
        tcp: [one.tcp, other.tcp].concat(),
        receive_drops: [one.receive_drops, other.receive_drops].concat(),
        receive_ports: [one.receive_ports, other.receive_ports].concat(),
        drops: [one.drops, other.drops].concat(),
        ..one
    }
}

/// What [`counted`] comes to.
fn assert_is(figures: &Figures, n: u64) {
    let [v4, v6] = &figures.neigh;
    assert_eq!((v4.created, v4.table_full), (n, n + 1 + n + 3));
    assert_eq!((v6.created, v6.table_full), (n + 1, n + 2));
    assert_eq!(figures.dns.queries, n + 4);
    assert_eq!(figures.tcp.results[0], n + 5);
    assert_eq!(
        figures.receive_drops,
        [(None, n), (Some(53), 6)].into_iter().collect()
    );
    let by_reason = [(2, n + 7 + n + 9), (3, n + 8)];
    assert_eq!(figures.drops, by_reason.into_iter().collect());
}

#[test]
fn every_counter_is_its_owners() {
    let mut aggregate = Aggregate::new(SPAN, 10);
    let reading = both(counted(WEB, WEBS, 100), counted(API, APIS, 3000));
    aggregate.update(reading, &resolver(), Instant::now(), 0);
    let picture = aggregate.picture();
    let owners: Vec<_> = picture.owners.keys().cloned().collect();
    assert_eq!(owners, [api(), web()]);
    assert_is(&picture.owners[&web()], 100);
    assert_is(&picture.owners[&api()], 3000);
    assert_eq!(picture.pending, [0; crate::kernel::maps::HOOKS]);
    // Two of each ledger, but drops: by socket and by address.
    assert_eq!(aggregate.decisions(), 2 * 5 + 4);
}

#[test]
fn the_same_reading_again_counts_nothing() {
    let mut aggregate = Aggregate::new(SPAN, 10);
    let now = Instant::now();
    for second in 0..3 {
        aggregate.update(counted(WEB, WEBS, 100), &resolver(), now, second);
    }
    aggregate.update(counted(WEB, WEBS, 200), &resolver(), now, 3);
    assert_is(&aggregate.picture().owners[&web()], 200);
}

#[test]
fn what_is_nobodys_waits_and_then_is_unknown() {
    let mut aggregate = Aggregate::new(SPAN, 10);
    let now = Instant::now();
    let reading = counted(STRANGER, STRANGERS, 100);
    aggregate.update(reading.clone(), &resolver(), now, 0);
    let picture = aggregate.picture();
    assert!(picture.owners.is_empty(), "{:?}", picture.owners.keys());
    let of = |hook: Hook| picture.pending[hook as usize];
    // Creations and refusals of both families, and the forwarded packets'.
    assert_eq!(of(Hook::Neigh), (100 + 101) + (101 + 102) + 103);
    assert_eq!(of(Hook::Dns), 104);
    assert_eq!(of(Hook::Tcp), 105);
    assert_eq!(of(Hook::Drops), 106 + 107 + 108 + 109);
    assert_eq!(aggregate.decisions(), 0);

    aggregate.update(reading.clone(), &resolver(), now + ledger::HOLD, 30);
    // Those whose keys may be another's next time are given up one reading after.
    aggregate.update(reading, &resolver(), now + 2 * ledger::HOLD, 60);
    let picture = aggregate.picture();
    assert_eq!(picture.pending, [0; crate::kernel::maps::HOOKS]);
    let owners: Vec<_> = picture.owners.keys().cloned().collect();
    assert_eq!(owners, [Owner::unknown()]);
    assert_is(&picture.owners[&Owner::unknown()], 100);
}

#[test]
fn one_pod_more_than_there_is_room_for_is_other() {
    let mut aggregate = Aggregate::new(SPAN, 1);
    let mut resolver = resolver();
    resolver.set_host(1);
    let now = Instant::now();
    aggregate.update(counted(WEB, WEBS, 100), &resolver, now, 0);
    // Entries of the host's devices are the kernel's, which needs no room, nor does what nobody owns.
    let mut host = counted(1, STRANGERS, 0);
    host.neigh.truncate(1);
    let (key, value) = host.neigh[0];
    let mut reading = both(counted(WEB, WEBS, 100), counted(API, APIS, 3000));
    reading.neigh.push((key, value));
    aggregate.update(reading.clone(), &resolver, now, 1);
    let owners = aggregate.picture().owners.clone();
    let kernel = Owner::new("(host)", "(kernel)");
    let names: Vec<_> = owners.keys().cloned().collect();
    assert_eq!(names, [kernel.clone(), Owner::other(), web()]);
    assert_is(&owners[&web()], 100);
    assert_is(&owners[&Owner::other()], 3000);
    assert_eq!(owners[&kernel].neigh[0].table_full, 1);

    // With more room at the next start what was other's stays other's, and the next pod has a name.
    let bytes = rmp_serde::to_vec_named(&aggregate).unwrap();
    let written: Aggregate = rmp_serde::from_slice(&bytes).unwrap();
    let mut next = written.restored(SPAN, 2);
    reading.dns.push((
        dns::Key {
            cgroup_id: 2,
            net_cookie: API,
        },
        reading.dns[0].1,
    ));
    next.update(reading, &resolver, now, 0);
    let owners = &next.picture().owners;
    assert_is(&owners[&web()], 100);
    assert_is(&owners[&Owner::other()], 3000);
    assert_eq!(owners[&api()].dns.queries, 104);
}

/// What another agent has counted is of no window: nobody knows when it was.
#[test]
fn ratios_are_of_what_came_after_the_start() {
    let of = |lookups: u64, failed| {
        let mut reading = counted(WEB, WEBS, 0);
        for counts in [&mut reading.dns[0].1.counts, &mut reading.dns_node] {
            counts.outcomes[dns::Outcome::NoError as usize] = lookups - failed;
            counts.outcomes[dns::Outcome::Timeout as usize] = failed;
        }
        reading
    };
    let mut aggregate = Aggregate::new(SPAN, 10);
    let now = Instant::now();
    aggregate.update(of(0, 0), &resolver(), now, 0);
    aggregate.update(of(1000, 900), &resolver(), now, 1);
    let ratios = |aggregate: &Aggregate| {
        let picture = aggregate.picture();
        let web = &picture.owners[&web()];
        assert_eq!(web.neigh[0].table_full, 4);
        [picture.node.dns_ratio, web.dns_ratio, web.neigh_ratio]
    };
    assert_eq!(ratios(&aggregate), [Some(0.9), Some(0.9), None]);
    let bytes = rmp_serde::to_vec_named(&aggregate).unwrap();
    let written: Aggregate = rmp_serde::from_slice(&bytes).unwrap();
    let mut next = written.restored(SPAN, 10);
    next.update(of(1000, 900), &resolver(), now, 2);
    assert_eq!(ratios(&next), [None; 3]);
    next.update(of(1010, 905), &resolver(), now, 3);
    assert_eq!(ratios(&next), [Some(0.5), Some(0.5), None]);
}

/// However late a pod gets its name: what was there when the agent began was nobody's for a while.
#[test]
fn who_is_named_late_failed_nothing_just_now() {
    let pods = Arc::new(Mutex::new(Vec::new()));
    let mut resolver = Resolver::with(vec![Box::new(Changing(pods.clone()))]);
    resolver.refresh(Ask::Regularly);
    let of = |timeouts| {
        let mut reading = counted(WEB, WEBS, 0);
        reading.dns[0].1.counts.outcomes[dns::Outcome::Timeout as usize] = timeouts;
        reading.dns[0].1.counts.outcomes[dns::Outcome::NoError as usize] = 900;
        reading
    };
    let mut aggregate = Aggregate::new(SPAN, 10);
    let now = Instant::now();
    aggregate.update(of(100), &resolver, now, 0);
    assert!(aggregate.picture().owners.is_empty());
    let known = Known {
        net_cookie: Some(WEB),
        ..Known::of(web())
    };
    pods.lock().unwrap().push(known);
    resolver.refresh(Ask::Changed);
    aggregate.update(of(103), &resolver, now, 1);
    let picture = aggregate.picture();
    let figures = &picture.owners[&web()];
    assert_eq!(figures.dns.outcomes[dns::Outcome::Timeout as usize], 103);
    assert_eq!(figures.dns_ratio, Some(1.0), "three of three");
    // The same for a key that comes to a pod which others have been counted for.
    let mut more = of(103);
    let key = dns::Key {
        cgroup_id: 9,
        net_cookie: API,
    };
    more.dns.push((key, of(50).dns[0].1));
    aggregate.update(more.clone(), &resolver, now, 2);
    assert_eq!(aggregate.picture().owners[&web()].dns_ratio, Some(1.0));
    // And one that leaves takes nothing of it along.
    more.dns.pop();
    aggregate.update(more, &resolver, now, 3);
    assert_eq!(aggregate.picture().owners[&web()].dns_ratio, Some(1.0));
}

/// What is held for a name, and what tells a key that was counted anew.
#[test]
fn all_that_happens_is_an_event() {
    let mut connections = tcp::Counts::default();
    connections.results[0] = 1;
    (connections.retransmits, connections.resets) = (10, 100);
    assert_eq!(connections.events(), 111);
    let lookups = dns::Counts {
        queries: 1,
        received: 10,
        ..dns::Counts::default()
    };
    assert_eq!(lookups.events(), 11);
}

#[test]
fn the_nodes_connections_have_a_window_and_its_lookups_wait() {
    let mut aggregate = Aggregate::new(SPAN, 10);
    let mut reading = Reading::default();
    reading.tcp_node.results[tcp::Outcome::Timeout as usize] = 9;
    reading.dns_node.started = 5;
    reading.dns_node.outcomes[dns::Outcome::NoError as usize] = 2;
    aggregate.update(reading.clone(), &resolver(), Instant::now(), 0);
    let picture = aggregate.picture();
    assert_eq!(
        (picture.node.connect_ratio, picture.dns_pending()),
        (None, 3)
    );
    reading.tcp_node.results[tcp::Outcome::Established as usize] += 3;
    reading.tcp_node.results[tcp::Outcome::Timeout as usize] += 1;
    aggregate.update(reading, &resolver(), Instant::now(), 1);
    assert_eq!(aggregate.picture().node.connect_ratio, Some(0.25));
}

#[test]
fn the_rest_keys_show_once_something_is_charged_to_them() {
    let mut aggregate = Aggregate::new(SPAN, 10);
    let now = Instant::now();
    let none = Reading {
        neigh: vec![(neigh::Key::rest(AF_INET), neigh::Value::default())],
        dns: vec![(dns::Key::default(), dns::Value::default())],
        tcp: vec![(tcp::Key::default(), tcp::Value::default())],
        ..Reading::default()
    };
    aggregate.update(none.clone(), &resolver(), now, 0);
    assert!(aggregate.picture().owners.is_empty());
    let mut some = none;
    some.neigh[0].1.counts.created = 1;
    some.dns[0].1.counts.queries = 2;
    some.tcp[0].1.counts.results[0] = 3;
    let lost = tracer_common::drops::ReceiverValue {
        dropped: 4,
        ..tracer_common::drops::ReceiverValue::default()
    };
    some.receive_drops.push((ReceiverKey::default(), lost));
    let key = drops::Key {
        reason: 2,
        ..drops::Key::default()
    };
    let dropped = drops::Value {
        dropped: 5,
        ..drops::Value::default()
    };
    some.drops.push((key, dropped));
    aggregate.update(some, &resolver(), now, 1);
    let owners = &aggregate.picture().owners;
    assert_eq!(owners.len(), 1);
    let other = &owners[&Owner::other()];
    assert_eq!(other.neigh[0].created, 1);
    assert_eq!(other.dns.queries, 2);
    assert_eq!(other.tcp.results[0], 3);
    assert_eq!(other.receive_drops, [(None, 4)].into_iter().collect());
    assert_eq!(other.drops, [(2, 5)].into_iter().collect());
}

#[test]
fn entries_are_those_that_the_last_walk_found() {
    let mut aggregate = Aggregate::new(SPAN, 10);
    let mut reading = counted(WEB, WEBS, 100);
    reading.walks[0].generation = 3;
    reading.walks[1].generation = 8;
    for ((_, value), (live, generation)) in reading.neigh.iter_mut().zip([(11, 3), (12, 7)]) {
        (value.live, value.live_generation) = (live, generation);
    }
    aggregate.update(reading.clone(), &resolver(), Instant::now(), 0);
    assert_eq!(aggregate.picture().owners[&web()].entries, [11, 0]);
    reading.neigh[1].1.live_generation = 8;
    aggregate.update(reading, &resolver(), Instant::now(), 1);
    assert_eq!(aggregate.picture().owners[&web()].entries, [11, 12]);
}

#[test]
fn the_node_has_what_the_kernel_counts_of_it() {
    let mut aggregate = Aggregate::new(SPAN, 10);
    let mut reading = Reading {
        drops_node: vec![(2, 9), (77, 8)],
        ..Reading::default()
    };
    reading.neigh_node[1].table_full = 1;
    reading.neigh_node[1].created = 3;
    reading.dns_node.queries = 5;
    reading.tcp_node.results[0] = 7;
    reading.ring[1] = RingStats {
        sent: 6,
        ..RingStats::default()
    };
    aggregate.update(Reading::default(), &resolver(), Instant::now(), 0);
    aggregate.update(reading, &resolver(), Instant::now(), 1);
    let picture = aggregate.picture();
    assert_eq!(picture.node.neigh[1].table_full, 1);
    assert_eq!(picture.node.neigh_ratio, Some(0.25));
    assert_eq!(picture.node.dns.queries, 5);
    assert_eq!(picture.node.tcp.results[0], 7);
    assert_eq!(picture.drops, [(2, 9), (77, 8)]);
    assert_eq!(picture.ring[1].sent, 6);
    // What has failed since it was first looked at has an episode, what had failed before has none.
    assert_eq!(picture.node.episodes.len(), 1);
}
