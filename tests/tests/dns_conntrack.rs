//! Conntrack: packets lost to its full table or to a race for a place in it are told from those that
//! a rule drops, and its own figures are the kernel's.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tests::dns::packet::{QUERY, query};
use tests::dns::scene::{lookups, pod};
use tests::dns::truth::{check_node, compare};
use tests::dns::{A, Lookup, Scene, Tally};
use tests::host::{HostLock, Settings};
use tests::netns::{Netns, Pod};
use tests::nft::Rules;
use tests::router::Wiring;
use tests::snmp::conntrack;
use tests::wait::ensure;
use tests::{Agent, Family, eventually};

const LIMIT: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

fn number(path: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("cannot read {path}: {e}"));
    text.trim().parse().expect("the kernel writes a number")
}

fn entries(netns: &Netns) -> u64 {
    netns.run(|| number(COUNT))
}

#[test]
fn a_full_table_is_told_from_a_rule() {
    let (mut lab, mut scene) = Scene::new(Wiring::Routed);
    let router = Arc::clone(&scene.router);
    let closed = Family::ALL.map(|family| scene.nth(family, 3));
    let open = Family::ALL.map(|family| scene.address(family));
    // The node follows connections from here on, and a rule refuses those to one server.
    let chains = format!(
        " chain follow {{ type filter hook forward priority 0; ct state invalid counter; \
         ip daddr {} udp dport 53 counter name hit drop; \
         ip6 daddr {} udp dport 53 counter name hit drop; }}\n",
        closed[0], closed[1]
    );
    let rules = Rules::load(&router, &chains);
    scene.fail(
        "a rule",
        &lookups(&["ok-a"], &closed),
        "netfilter",
        &["netfilter_drop"],
    );
    assert_eq!(rules.hits(), 4, "the lab failed");
    assert_eq!(scene.answered(&["ok-followed"]), 4, "the lab failed");

    let before = conntrack(Some(&router)).drop;
    let full = entries(&router);
    let limit = Settings::set(lab.lock(), &[(LIMIT.to_owned(), full.to_string())]);
    let asked: Vec<Lookup> = (0..40)
        .map(|n| Lookup::new(format!("ok-{n}.test"), A, open[n % 2]))
        .collect();
    let tally = thread::scope(|scope| {
        let client = scope.spawn(|| scene.ask(&asked));
        // For as short as can be: the limit is the whole host's.
        let start = Instant::now();
        while conntrack(Some(&router)).drop - before < 38
            && start.elapsed() < Duration::from_millis(500)
        {}
        drop(limit);
        client.join().expect("the client ends")
    });
    let lost = tally.outcome("timeout");
    let dropped = conntrack(Some(&router)).drop - before;
    assert!(
        lost >= 30 && dropped == lost,
        "the lab failed: {lost} lost, {dropped} dropped"
    );
    *scene.causes.entry("netfilter").or_default() += lost;
    // The rule's, and those that found no place.
    let client = scene.client.clone();
    let told = scene.told(&client, 4 + lost);
    let expected = [("conntrack_table_full", lost), ("netfilter_drop", 4)]
        .map(|(reason, n)| (("netfilter".to_owned(), reason.to_owned()), n));
    if told != BTreeMap::from(expected) {
        scene.fault(&format!(
            "told {told:?}, {lost} lost to the full table and 4 to the rule"
        ));
    }
    scene.settle();
}

/// What both clients of a race have done so far.
static ARRIVED: AtomicUsize = AtomicUsize::new(0);

/// Sends one query from each of these ports, each at the same moment as the other client; gives what
/// it saw.
fn race(pod: &Pod, to: IpAddr, ports: std::ops::Range<u16>) -> Tally {
    let from = pod.address(Family::V4);
    pod.netns.run(|| {
        let bind = |port| {
            let socket = UdpSocket::bind((from, port)).expect("the port is free");
            socket.set_nonblocking(true).expect("sockets can be set");
            socket
        };
        let sockets: Vec<UdpSocket> = ports.map(bind).collect();
        for (round, socket) in sockets.iter().enumerate() {
            let bytes = query(round as u16, QUERY, "ok.race.test", A);
            ARRIVED.fetch_add(1, Ordering::SeqCst);
            while ARRIVED.load(Ordering::SeqCst) < 2 * (round + 1) {
                std::hint::spin_loop();
            }
            socket.send_to(&bytes, (to, 53)).expect("query is sent");
        }
        let asked = sockets.len() as u64;
        let end = Instant::now() + Duration::from_secs(1);
        let mut answered = 0;
        while Instant::now() < end && answered < asked {
            let got = sockets.iter().filter(|s| s.recv(&mut [0; 512]).is_ok());
            answered += got.count() as u64;
            thread::yield_now();
        }
        Tally {
            queries: asked,
            outcomes: [("noerror", answered), ("timeout", asked - answered)].into(),
            ..Tally::default()
        }
    })
}

/// Two pods ask from the same port at the same time and are masqueraded: both are given the same
/// port, for neither connection is in the table yet, and the second to come there is dropped.
#[test]
fn a_race_for_a_place_is_told_too() {
    let (lab, mut scene) = Scene::new(Wiring::Routed);
    let other = pod(&lab, "other", 7);
    let router = Arc::clone(&scene.router);
    // Rules that match nothing keep each packet for a while between the choice of a port and the
    // table.
    let idle = " ip daddr 192.0.2.1 udp dport 1;".repeat(4000);
    let chains = format!(
        " chain outward {{ type nat hook postrouting priority 100; oifname \"{}\" masquerade; }}\n \
         chain slow {{ type filter hook postrouting priority 200; {idle} }}\n",
        scene.far.link()
    );
    let _rules = Rules::load(&router, &chains);
    let to = scene.address(Family::V4);
    // All neighbours are known, on this way too.
    let mut others = Tally::default();
    let before = conntrack(Some(&router)).insert_failed;
    let mut failed = 0;
    for round in 0..5u16 {
        ARRIVED.store(0, Ordering::SeqCst);
        let ports = 20_000 + 100 * round..20_100 + 100 * round;
        let client = scene.client.clone();
        let (one, two) = thread::scope(|scope| {
            let one = scope.spawn(|| race(&client, to, ports.clone()));
            let two = race(&other, to, ports.clone());
            (one.join().expect("the client ends"), two)
        });
        scene.tally.add(&one);
        others.add(&two);
        failed = conntrack(Some(&router)).insert_failed - before;
        if failed >= 5 {
            break;
        }
    }
    let lost = [scene.tally.outcome("timeout"), others.outcome("timeout")];
    eprintln!("insert_failed grew by {failed}, {lost:?} lost");
    assert!(
        failed > 0 && failed == lost[0] + lost[1],
        "the lab failed: insert_failed grew by {failed}, {lost:?} lost"
    );
    scene.causes.insert("netfilter", lost[0]);
    for (pod, lost) in [(scene.client.clone(), lost[0]), (other.clone(), lost[1])] {
        let told = scene.told(&pod, lost);
        let key = ("netfilter".to_owned(), "conntrack_insert_failed".to_owned());
        if told.get(&key).copied().unwrap_or(0) != lost {
            scene.fault(&format!("told {told:?}, {lost} lost"));
        }
    }
    eventually(Duration::from_secs(5), || {
        let metrics = scene.agent.metrics();
        compare(&metrics, &other, &others, &[("netfilter", lost[1])])?;
        check_node(&metrics)
    });
    scene.settle();
}

#[test]
fn the_hosts_own_figures_are_the_kernels() {
    let lock = HostLock::take();
    let _rules = Rules::host(
        &lock,
        " chain follow { type filter hook output priority 0; ct state new counter name hit; }\n",
    );
    let server = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
    let to = server.local_addr().expect("it is bound");
    let clients: Vec<UdpSocket> = (0..20)
        .map(|_| {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
            socket.send_to(b"x", to).expect("datagram is sent");
            socket
        })
        .collect();
    assert!(number(COUNT) >= 20, "the lab failed: {}", number(COUNT));
    let agent = Agent::start(&[]);
    eventually(Duration::from_secs(10), || {
        // Asking is a connection too, so there are more of them by the end.
        let (entries, stats) = (number(COUNT), conntrack(None));
        let metrics = agent.metrics();
        let shown = metrics.get("tracer_node_conntrack_entries", &[]);
        let entries = entries..=number(COUNT);
        let right = shown.is_some_and(|n| entries.contains(&(n as u64)));
        ensure(right, || {
            format!("{shown:?} entries, the kernel's {entries:?}")
        })?;
        for (name, expected) in [
            ("tracer_node_conntrack_entries_limit", number(LIMIT)),
            (
                "tracer_node_conntrack_insert_failed_total",
                stats.insert_failed,
            ),
            ("tracer_node_conntrack_drops_total", stats.drop),
        ] {
            let value = metrics.get(name, &[]);
            ensure(value == Some(expected as f64), || {
                format!("{name} is {value:?}, the kernel's {expected}")
            })?;
        }
        Ok::<(), String>(())
    });
    drop(clients);
    agent.stop_cleanly();
}
