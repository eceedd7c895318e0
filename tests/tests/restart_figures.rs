//! Restart: what each hook has counted goes on, to the last series.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::bpffs::BpfFs;
use tests::dns::Server;
use tests::dns::scene::{CLIENT, lookups};
use tests::entries::add;
use tests::neigh::{FIRST_SILENT, burst};
use tests::netns::Pod;
use tests::nft::Rules;
use tests::router::Wiring;
use tests::snmp::receive_buffer_errors;
use tests::tcp::scene::{CLOSED, DROPPED, OPEN};
use tests::tcp::server::reset;
use tests::tcp::truth::PEERS;
use tests::tcp::{Attempt, Manner, Means, Scene};
use tests::wait::ensure;
use tests::{Agent, Family, Metrics, Thresholds, eventually};

const SOON: Duration = Duration::from_secs(8);
/// Limits that a burst overflows.
const LIMITS: [u64; 3] = [32, 64, 64];
/// Only what has not changed for so long is thrown out by a forced collection.
const OLD: Duration = Duration::from_millis(5200);

/// What is told of some pods, and of them as peers: counters by name and labels, in sum over the labels whose
/// busiest values alone have names. Other peers are others' affair: the test itself calls an agent that starts.
fn totals(metrics: &Metrics, pods: &[&Pod]) -> BTreeMap<String, f64> {
    const BOUNDED: [&str; 3] = ["destination", "port", "peer"];
    let mut totals = BTreeMap::new();
    for ((name, labels), value) in &metrics.samples {
        let is = |pod: &&Pod| {
            let own = pod.labels();
            own.iter()
                .all(|(label, value)| labels.get(*label).is_some_and(|has| has == value))
        };
        let is_peer = |pod: &&Pod| {
            let address = |family: &Family| pod.address(*family).to_string();
            name == PEERS && Family::ALL.iter().any(|f| labels["peer"] == address(f))
        };
        let of_pods = pods.iter().any(is) || pods.iter().any(is_peer);
        let counts = name.ends_with("_total") && of_pods;
        if counts && *value > 0.0 {
            let labels: Vec<String> = labels
                .iter()
                .filter(|(label, _)| !BOUNDED.contains(&label.as_str()))
                .map(|(label, value)| format!("{label}={value}"))
                .collect();
            *totals
                .entry(format!("{name} {}", labels.join(" ")))
                .or_default() += value;
        }
    }
    totals
}

/// Makes something of every hook; gives what must be told of it, by name.
fn every_hook(scene: &mut Scene, [client, greedy, old]: [&Pod; 3]) -> Vec<&'static str> {
    const STALE: u16 = 40;
    let far = scene.node.far.clone();
    add(old, Family::V4, 1000..1000 + STALE, "stale");
    let made = Instant::now();

    // Attempts that end in every way, some often enough to call the other end dead, and lookups likewise.
    let attempts: Vec<Attempt> = Family::ALL
        .into_iter()
        .flat_map(|family| [OPEN, CLOSED, DROPPED].map(|port| scene.port(family, port)))
        .flat_map(|to| [Attempt::new(to, Means::Polled, Duration::from_secs(2)); 4])
        .collect();
    let ended = tests::tcp::run(&client.netns, &attempts, 1000);
    let failed = ended.iter().filter(|one| one.result != "established");
    assert_eq!(failed.count(), 16, "the lab failed: {ended:?}");
    let servers = Family::ALL.map(|family| far.address(family));
    let server = Server::start(&far.netns, &servers);
    let tally = CLIENT.run(client, lookups(&["ok", "nx", "servfail", "drop"], &servers));
    assert_eq!(tally.outcome("timeout"), 4, "the lab failed: {tally:?}");
    drop(server);

    // Connections that the server resets, and segments that are lost.
    let to = scene.port(Family::V4, 4000);
    let holding = tests::tcp::Server::start(&far.netns, &[to], Manner::Hold);
    let mut streams = client
        .netns
        .run(|| [0; 3].map(|_| TcpStream::connect(to).expect("it listens")));
    let ends = eventually(SOON, || {
        ensure(holding.accepted() == 3, || "not accepted".to_owned()).map(|()| holding.take())
    });
    let rules = Rules::drop(&scene.node.router, "forward", "tcp dport 4000");
    for stream in &mut streams {
        stream.write_all(b"hello?").expect("it is open");
    }
    eventually(SOON, || {
        let lost = rules.hits();
        ensure(lost >= 6, || format!("{lost} lost"))
    });
    drop(rules);
    for mut end in ends {
        end.read_exact(&mut [0; 6]).expect("it comes at last");
        reset(end);
    }

    // Datagrams to a closed port, and to one that nobody reads.
    let deaf = far.netns.run(|| {
        let socket = UdpSocket::bind((far.address(Family::V4), 6000)).expect("the port is free");
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 1).expect("buffer is set");
        socket
    });
    client.netns.run(|| {
        let socket = UdpSocket::bind((client.address(Family::V4), 0)).expect("a port is free");
        for to in [6000, CLOSED] {
            for _ in 0..50 {
                // The sender hears of a closed port.
                let _ = socket.send_to(&[0; 100], (far.address(Family::V4), to));
            }
        }
    });
    let lost = receive_buffer_errors(&far.netns, Family::V4);
    assert!(lost >= 30, "the lab failed: {lost} lost");
    drop(deaf);

    // The table overflows, and what is old is thrown out.
    eventually(OLD * 2, || {
        ensure(made.elapsed() >= OLD, || "too young".to_owned())
    });
    let limits = Thresholds::set(scene.node.lab.lock(), LIMITS);
    burst(greedy, Family::V4, FIRST_SILENT, 200);
    drop(limits);

    let has_reasons = scene.agent.hook("drops")["state"] == "attached";
    let mut told = vec![
        "tracer_pod_connects_total",
        "tracer_pod_resets_total",
        "tracer_pod_retransmits_total",
        "tracer_pod_dead_endpoint_attempts_total",
        "tracer_pod_dns_lookups_total",
        "tracer_pod_dns_failures_total",
        "tracer_pod_dns_served_total",
        "tracer_pod_udp_receive_drops_total",
        "tracer_pod_neighbour_creates_total",
        "tracer_pod_neighbour_evictions_total",
        PEERS,
    ];
    told.extend(has_reasons.then_some("tracer_pod_drops_total"));
    told
}

#[test]
fn figures_of_every_hook_go_on() {
    let bpffs = BpfFs::mount();
    let state = bpffs.join("tracer");
    let state = state.to_str().expect("path is text");
    let flags = ["--dns-timeout", "1s", "--state-dir", state];
    let names = ["client", "greedy", "old"];
    let (mut scene, pods) = Scene::with(Wiring::Routed, names, &flags);
    let told = every_hook(&mut scene, pods.each_ref());
    let far = scene.node.far.clone();
    let pods = [&pods[0], &pods[1], &pods[2], &far];

    // Nothing is under way any more: two scrapes that are no reading of the same moment agree.
    let mut last = BTreeMap::new();
    let before = eventually(SOON * 3, || {
        thread::sleep(Duration::from_millis(1500));
        let metrics = scene.agent.metrics();
        let now = totals(&metrics, &pods);
        let still = std::mem::replace(&mut last, now.clone()) == now;
        let pending = metrics.count("tracer_unattributed_pending", &[])
            + metrics.count("tracer_node_dns_pending", &[]);
        ensure(still && pending == 0, || {
            format!("{pending} pending, still: {still}")
        })
        .map(|()| now)
    });
    for name in told {
        let there = before.keys().any(|key| key.starts_with(name));
        assert!(there, "nothing is told by {name}: {before:?}");
    }

    let goes_on = |agent: &Agent, how: &str| {
        eventually(SOON, || {
            let metrics = agent.metrics();
            let now = totals(&metrics, &pods);
            for (key, was) in &before {
                let is = now.get(key).copied().unwrap_or(0.0);
                // The kernel asks for neighbours and throws them out at any time, by itself.
                let moves = key.contains("neighbour_evictions") || key.contains("result=created");
                ensure(is >= *was && (moves || is <= *was), || {
                    format!("{how}: {key} is {is}, and was {was}")
                })?;
            }
            ensure(metrics.sum("tracer_state_resets_total", &[]) == 0.0, || {
                "it began anew".to_owned()
            })
        });
    };
    scene.agent.stop(Signal::KILL);
    let second = Agent::start(&flags);
    goes_on(&second, "killed");
    second.stop_cleanly();
    let third = Agent::start(&flags);
    goes_on(&third, "stopped");
    third.stop_cleanly();
}
