//! Maps at their capacity, and floods that fill them: counted, and nobody else is harmed.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::thread;
use std::time::Duration;

use tests::dns::load::Load;
use tests::dns::packet::{QUERY, answer, query};
use tests::dns::{A, Server};
use tests::memory::{most_resident, resident_from_now};
use tests::neigh::{FIRST_SILENT, burst, send, table_fulls};
use tests::netns::Pod;
use tests::storm::{CLOSED, FULL, LIMITS, NODE_CREATES, POD_CREATES, of_pod, refused};
use tests::wait::ensure;
use tests::{Agent, Family, Lab, Metrics, Thresholds, eventually};

const SOON: Duration = Duration::from_secs(10);
const V4: Family = Family::V4;

/// As many keys as fit, in the maps that a pod fills without any right: by the sources it claims, by the
/// ports it asks for, by its lookups.
#[test]
fn full_maps_are_counted_and_harm_nobody_else() {
    /// Room in the map of refusals by source, and of destinations.
    const ROOM: u64 = 8192;
    /// Lookups that one pod may have waiting.
    const QUARTER: u64 = 65_536 / 4;
    let mut lab = Lab::new();
    let hostile = lab.pod("hostile", 1, 1);
    let beyond = lab.pod("beyond", 2, 1);
    let other = lab.pod("other", 3, 1);
    let victim = lab.pod("victim", 4, 1);
    // Addresses that it gives itself.
    hostile.netns.ip("route add local 10.200.0.0/14 dev lo");
    hostile
        .netns
        .ip(&format!("route add default via {}", hostile.hub(V4)));
    victim
        .netns
        .ip(&format!("route add default via {}", victim.hub(V4)));
    lab.hub.sysctl("ipv4/ip_forward", "1");
    for device in ["all", &hostile.link()] {
        lab.hub
            .sysctl(&format!("ipv4/conf/{device}/rp_filter"), "0");
    }
    let _server = Server::start(&lab.hub, &[other.hub(V4)]);
    let _silent = lab
        .hub
        .run(|| UdpSocket::bind((hostile.hub(V4), 53)).expect("the port is free"));
    let agent = Agent::start(&["--dns-timeout", "2s"]);
    for pod in [&hostile, &other, &victim] {
        refused(pod, pod.hub(V4), CLOSED..=CLOSED);
    }
    let before = agent.metrics();
    let memory = resident_from_now(agent.pid());

    // 9,000 sources that it does not have, forwarded to neighbours that are not there.
    let fulls = table_fulls(V4);
    let limits = Thresholds::set(lab.lock(), LIMITS);
    hostile.netns.run(|| {
        for number in 0..9_000_u16 {
            let [high, low] = number.to_be_bytes();
            let from = Ipv4Addr::new(10, 200 + high / 64, high, low);
            let socket = UdpSocket::bind((from, 0)).expect("any address will do");
            let to = beyond.neighbour(V4, FIRST_SILENT + number);
            socket.send_to(b"x", (to, 9)).expect("there is a route");
        }
    });
    burst(&other, V4, FIRST_SILENT, 200);
    // Packets of another pod that the node forwards to the same end, once the map has no room for strangers.
    let silent: Vec<IpAddr> = (0..200)
        .map(|n| beyond.neighbour(V4, FIRST_SILENT + 9_000 + n))
        .collect();
    assert_eq!(send(&victim.netns, victim.address(V4), &silent), 0);
    drop(limits);
    let grown = table_fulls(V4) - fulls;
    assert!(grown > ROOM + 500, "the lab failed: {grown} refused");

    // Ports of one address; 18,000 are more than the maps of them hold.
    let away = refused(&hostile, hostile.hub(V4), 1000..19_000);
    assert_eq!(away, 18_000, "the lab failed");
    let others = refused(&other, other.hub(V4), (0..300).map(|_| CLOSED));

    // Lookups that nobody answers, more than one pod may have.
    let load = |name: &str, count: usize, to: IpAddr, rate| Load {
        lookups: (0..count)
            .map(|n| (format!("{name}-{n}.test"), to, None))
            .collect(),
        rate,
        timeout: Duration::from_secs(2),
    };
    let asked = thread::scope(|scope| {
        let asked = scope.spawn(|| {
            hostile.netns.run(|| {
                let sockets =
                    [0, 1].map(|_| UdpSocket::bind((hostile.address(V4), 0)).expect("bind"));
                let mut asked = 0;
                for id in 0..15_000 {
                    for socket in &sockets {
                        let query = query(id, QUERY, &format!("n{id}.test"), A);
                        asked += u64::from(socket.send_to(&query, (hostile.hub(V4), 53)).is_ok());
                    }
                }
                asked
            })
        });
        let mine = load("ok", 400, other.hub(V4), 400);
        let mine = other.netns.run(|| mine.run_here());
        assert_eq!(
            mine.tally.outcome("noerror"),
            400,
            "the lab failed: {mine:?}"
        );
        asked.join().expect("it ends")
    });
    assert_eq!(asked, 30_000, "the lab failed");

    let after = eventually(SOON, || {
        let metrics = agent.metrics();
        let node = metrics.growth(&before, NODE_CREATES, &FULL);
        ensure(node == grown, || format!("{node} of {grown} refusals"))?;
        let full = |map| metrics.count("tracer_bpf_map_full_total", &[("map", map)]);
        ensure(full("NEIGH_FORWARDED") > 0, || fullness(&metrics))?;
        // A pod may enter so many of them at a time only.
        ensure(full("DESTINATIONS") == 0, || fullness(&metrics))?;
        // The one who did it, in sum.
        let connects = |pod: &Pod| {
            of_pod(
                &metrics,
                "tracer_pod_connects_total",
                pod,
                &[("result", "refused")],
            )
        };
        let seen = (connects(&hostile), connects(&other));
        ensure(seen == (away + 1, others + 1), || {
            format!("connects {seen:?}")
        })?;
        let dns = |name: &str, pod: &Pod| of_pod(&metrics, name, pod, &[]);
        let queries = dns("tracer_pod_dns_queries_total", &hostile);
        let lookups = dns("tracer_pod_dns_lookups_total", &hostile);
        let untracked = dns("tracer_pod_dns_untracked_total", &hostile);
        ensure((queries, lookups + untracked) == (asked, asked), || {
            format!("{queries} queries of {asked}: {lookups} and {untracked}")
        })?;
        ensure(lookups >= QUARTER, || format!("{lookups} lookups"))?;
        // Nobody else has lost anything.
        let noerror = [("outcome", "noerror")];
        let mine = of_pod(&metrics, "tracer_pod_dns_lookups_total", &other, &noerror);
        let untracked = dns("tracer_pod_dns_untracked_total", &other);
        ensure((mine, untracked) == (400, 0), || {
            format!("{mine} lookups, {untracked} not followed")
        })?;
        Ok::<_, String>(metrics)
    });
    let refused_other = of_pod(&after, POD_CREATES, &other, &FULL);
    assert!(
        (136..=200).contains(&refused_other),
        "{refused_other} of 200"
    );
    let refused_victim = of_pod(&after, POD_CREATES, &victim, &FULL);
    assert!(
        (136..=200).contains(&refused_victim),
        "{refused_victim} of 200"
    );
    // All that was charged to anybody adds up, with what still waits for a name.
    eventually(SOON, || {
        let metrics = agent.metrics();
        let [node, pods] =
            [NODE_CREATES, POD_CREATES].map(|name| metrics.growth(&before, name, &FULL));
        let waiting = metrics.count("tracer_unattributed_pending", &[("hook", "neigh")]);
        ensure(pods + waiting == node, || {
            format!("{pods} of pods and {waiting} without a name, {node} of the node")
        })
    });
    let series = after.samples.len();
    let more = most_resident(agent.pid()) - memory;
    eprintln!(
        "{}; {series} series; {} kB more",
        fullness(&after),
        more >> 10
    );
    assert!(series < 3000, "{series} series");
    assert!(more < 48 << 20, "{more} bytes more");
    agent.stop_cleanly();
}

fn fullness(metrics: &Metrics) -> String {
    let entries = metrics.matching("tracer_bpf_map_entries", &[]);
    let used = entries.filter(|(_, entries)| *entries > 0.0);
    let shown: Vec<String> = used
        .map(|(labels, entries)| {
            let map = &labels["map"];
            let full = metrics.count("tracer_bpf_map_full_total", &[("map", map)]);
            format!("{map}: {entries}, full for {full}")
        })
        .collect();
    shown.join("; ")
}

/// Numbers that look random and are the same each time (Knuth's MMIX generator).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        let Self(last) = *self;
        self.0 = last
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
}

/// What a pod can send to port 53, and from it, by the hundred thousand.
#[test]
fn a_flood_of_garbage_spoofed_answers_and_random_names_harms_nobody() {
    const GARBAGE: u32 = 150_000;
    const TIMEOUT: Duration = Duration::from_secs(2);
    let lab = Lab::new();
    let hostile = lab.pod("hostile", 1, 1);
    let other = lab.pod("other", 2, 1);
    let _server = Server::start(&lab.hub, &[other.hub(V4)]);
    let to = (hostile.hub(V4), 53);
    let _silent = lab
        .hub
        .run(|| UdpSocket::bind(to).expect("the port is free"));
    let agent = Agent::start(&["--dns-timeout", "2s"]);
    let memory = resident_from_now(agent.pid());
    let load = Load {
        lookups: (0..2000)
            .map(|n| (format!("ok-{n}.test"), other.hub(V4), None))
            .collect(),
        rate: 500,
        timeout: TIMEOUT,
    };
    let (sent, spoofed, tally) = thread::scope(|scope| {
        let garbage = scope.spawn(|| {
            hostile.netns.run(|| {
                let socket = UdpSocket::bind((hostile.address(V4), 0)).expect("a port is free");
                let mut numbers = Numbers(53);
                // Bytes of any kind, and every id with another name.
                (0..GARBAGE)
                    .filter(|n| {
                        let bytes = if n % 2 == 0 {
                            let length = numbers.next() % 300;
                            (0..length).map(|_| numbers.next() as u8).collect()
                        } else {
                            let name = format!("{:x}.test", numbers.next());
                            query((n / 2) as u16, QUERY, &name, A)
                        };
                        socket.send_to(&bytes, to).is_ok()
                    })
                    .count()
            })
        });
        // Answers to nothing, towards the other pod's own sockets, as its server would send them.
        let spoofed = scope.spawn(|| {
            lab.hub.run(|| {
                let socket = UdpSocket::bind((other.hub(V4), 0)).expect("a port is free");
                let spoof = |n: u32| {
                    let query = query(n as u16, QUERY, &format!("ok-{n}.test"), A);
                    let port = 32_768 + (n % 28_000) as u16;
                    socket.send_to(&answer(&query, 3, false, false), (other.address(V4), port))
                };
                (0..50_000).filter(|n| spoof(*n).is_ok()).count()
            })
        });
        let tally = other.netns.run(|| load.run_here()).tally;
        let join = |flood: thread::ScopedJoinHandle<'_, _>| flood.join().expect("it ends");
        (join(garbage), join(spoofed), tally)
    });
    assert!(
        sent > GARBAGE as usize / 2 && spoofed > 10_000,
        "the lab failed: {sent} and {spoofed} sent"
    );
    let answered = tally.outcome("noerror");
    assert_eq!(answered, 2000, "the lab failed: {tally:?}");
    let metrics = eventually(SOON, || {
        let metrics = agent.metrics();
        let waiting = metrics.count("tracer_node_dns_pending", &[]);
        ensure(waiting == 0, || format!("{waiting} lookups wait"))?;
        let seen = ["noerror", "nxdomain", "timeout"].map(|outcome| {
            let labels = [("outcome", outcome)];
            of_pod(&metrics, "tracer_pod_dns_lookups_total", &other, &labels)
        });
        ensure(seen == [answered, 0, 0], || format!("{seen:?}"))?;
        Ok::<_, String>(metrics)
    });
    let count = |name: &str, pod: &Pod| of_pod(&metrics, name, pod, &[]);
    assert_eq!(count("tracer_pod_dns_queries_total", &other), 2000);
    assert_eq!(count("tracer_pod_dns_untracked_total", &other), 0);
    let queries = count("tracer_pod_dns_queries_total", &hostile);
    let lookups = count("tracer_pod_dns_lookups_total", &hostile);
    let untracked = count("tracer_pod_dns_untracked_total", &hostile);
    // Of the random ones, one in 32 is a query by its header; of the others, every one.
    assert!(queries >= u64::from(GARBAGE) / 2, "{queries} queries");
    assert_eq!(lookups + untracked, queries, "{lookups} and {untracked}");
    let started = metrics.count("tracer_node_dns_lookups_started_total", &[]);
    let ended = metrics.count("tracer_node_dns_lookups_total", &[]);
    assert_eq!(started, ended);
    let more = most_resident(agent.pid()) - memory;
    eprintln!(
        "{queries} queries, {untracked} not followed; {} kB more, of {}",
        more >> 10,
        memory >> 10
    );
    assert!(more < 32 << 20, "{more} bytes more");
    agent.stop_cleanly();
}
