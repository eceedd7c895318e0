//! What one pod may take of the maps that all pods share: the rest is the others'.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::connect;
use rustix::process::{Resource, getrlimit, setrlimit};
use tests::netns::Pod;
use tests::storm::{CLOSED, of_pod, refused};
use tests::tcp::{Attempt, Means};
use tests::wait::ensure;
use tests::{Agent, Family, Lab, Metrics, eventually};

const SOON: Duration = Duration::from_secs(10);
const V4: Family = Family::V4;
const CONNECTS: &str = "tracer_pod_connects_total";
const PEERS: &str = "tracer_node_peer_failures_total";

fn entries(metrics: &Metrics, map: &str) -> u64 {
    metrics.count("tracer_bpf_map_entries", &[("map", map)])
}

fn full(metrics: &Metrics, map: &str) -> u64 {
    metrics.count("tracer_bpf_map_full_total", &[("map", map)])
}

/// Room for that many sockets in this process.
fn have_room(sockets: u64) {
    let mut room = getrlimit(Resource::Nofile);
    let wanted = sockets + 1_000;
    if room.current.is_some_and(|current| current < wanted) {
        room.current = Some(wanted);
        room.maximum = room.maximum.map(|most| most.max(wanted));
        setrlimit(Resource::Nofile, room).expect("root has room for the sockets");
    }
}

/// Attempts that nobody answers.
fn under_way(pod: &Pod, to: SocketAddr, count: usize) -> Vec<OwnedFd> {
    let attempt = Attempt::endless(to, Means::Polled);
    pod.netns.run(|| {
        let begin = |_| {
            let socket = attempt.socket();
            assert_eq!(connect(&socket, &to), Err(Errno::INPROGRESS), "to {to}");
            socket
        };
        (0..count).map(begin).collect()
    })
}

#[test]
fn attempts_of_one_pod_leave_room_for_those_of_others() {
    /// What one pod may have under way (`CONNECTING_PER_CLIENT`).
    const MAY: usize = 16_384;
    const BEYOND: usize = 600;
    have_room((MAY + BEYOND) as u64);
    let lab = Lab::new();
    let [hostile, other] = [("hostile", 1), ("other", 2)].map(|(name, n)| lab.pod(name, n, 1));
    // The hub forwards nothing, and says nothing.
    hostile
        .netns
        .ip(&format!("route add 192.0.2.0/24 via {}", hostile.hub(V4)));
    let to = SocketAddr::new(Ipv4Addr::new(192, 0, 2, 1).into(), 80);
    let agent = Agent::start(&[]);
    let mut events = agent.events();
    let before = agent.metrics();

    let sockets = under_way(&hostile, to, MAY + BEYOND);
    eventually(SOON, || {
        let metrics = agent.metrics();
        let seen = (
            entries(&metrics, "CONNECTING"),
            full(&metrics, "CONNECTING"),
        );
        ensure(seen == (MAY as u64, BEYOND as u64), || format!("{seen:?}"))
    });
    assert_eq!(refused(&other, other.hub(V4), (0..20).map(|_| CLOSED)), 20);
    let event = events.wait(SOON, |e| e.is("connect_failure", other.netns.name()));
    // What the map keeps: who asked, and since when.
    assert_ne!(event.text("comm"), "", "{event:?}");
    assert!(
        event.json["waited_seconds"].as_f64() > Some(0.0),
        "{event:?}"
    );

    // All are counted, and give back what they had.
    drop(sockets);
    eventually(SOON, || {
        let metrics = agent.metrics();
        let of = |pod: &Pod, result| of_pod(&metrics, CONNECTS, pod, &[("result", result)]);
        let seen = (of(&hostile, "timeout"), of(&other, "refused"));
        ensure(seen == ((MAY + BEYOND) as u64, 20), || format!("{seen:?}"))?;
        ensure(entries(&metrics, "CONNECTING") == 0, || {
            format!("{} under way", entries(&metrics, "CONNECTING"))
        })
    });
    let again = under_way(&hostile, to, 100);
    eventually(SOON, || {
        let metrics = agent.metrics();
        let seen = (
            entries(&metrics, "CONNECTING"),
            full(&metrics, "CONNECTING"),
        );
        ensure(seen == (100, BEYOND as u64), || format!("{seen:?}"))
    });
    drop(again);
    assert_eq!(full(&before, "CONNECTING"), 0);
    agent.stop_cleanly();
}

#[test]
fn connections_of_one_pod_to_silent_ports_leave_room_for_those_of_others() {
    /// What one pod may have followed (`TALKING_PER_CLIENT`).
    const MAY: usize = 8_192;
    const BEYOND: usize = 50;
    const PORT: u16 = 7946;
    have_room(2 * (MAY + BEYOND) as u64);
    let lab = Lab::new();
    let [hostile, other] = [("hostile", 1), ("other", 2)].map(|(name, n)| lab.pod(name, n, 1));
    let agent = Agent::start(&["--silent-port", "7946", "--silent-after", "1s"]);

    // Both ends are its own.
    let local = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT);
    let connect_many = |count: usize| {
        hostile.netns.run(|| {
            let listener = TcpListener::bind(local).expect("the port is free");
            let open = |_| {
                let own = TcpStream::connect(local).expect("somebody listens");
                let (far, _) = listener.accept().expect("it is there");
                (own, far)
            };
            (0..count).map(open).collect::<Vec<_>>()
        })
    };
    let many = connect_many(MAY + BEYOND);
    eventually(SOON, || {
        let metrics = agent.metrics();
        let seen = (entries(&metrics, "TALKING"), full(&metrics, "TALKING"));
        ensure(seen == (MAY as u64, BEYOND as u64), || format!("{seen:?}"))
    });
    // Whoever falls silent towards another is found all the same.
    let to = SocketAddr::new(other.hub(V4), PORT);
    let _server = lab
        .hub
        .run(|| TcpListener::bind(to).expect("the port is free"));
    let mut stream = other
        .netns
        .run(|| TcpStream::connect(to).expect("the kernel accepts"));
    stream.write_all(&[1; 200]).expect("it is open");
    eventually(SOON, || {
        let silent = of_pod(
            &agent.metrics(),
            "tracer_pod_silent_connections_total",
            &other,
            &[],
        );
        ensure(silent == 1, || format!("{silent} told"))
    });

    drop(stream);
    drop(many);
    let left = || entries(&agent.metrics(), "TALKING");
    eventually(SOON, || {
        ensure(left() == 0, || format!("{} are left", left()))
    });
    let again = connect_many(20);
    eventually(SOON, || {
        let metrics = agent.metrics();
        let seen = (entries(&metrics, "TALKING"), full(&metrics, "TALKING"));
        ensure(seen == (20, BEYOND as u64), || format!("{seen:?}"))
    });
    drop(again);
    agent.stop_cleanly();
}

#[test]
fn failures_of_one_pod_towards_many_peers_leave_names_for_those_of_others() {
    /// Peers that one pod may enter in a minute (`NEW_PEERS`).
    const MAY: u64 = 256;
    /// Keys that are always there, by kind.
    const RESTS: u64 = 4;
    const TRIED: u16 = 600;
    let lab = Lab::new();
    let [hostile, other] = [("hostile", 1), ("other", 2)].map(|(name, n)| lab.pod(name, n, 1));
    let agent = Agent::start(&[]);
    // Each address of the loopback device refuses.
    let tried = hostile.netns.run(|| {
        (0..TRIED)
            .filter(|n| {
                let [high, low] = n.to_be_bytes();
                let to = SocketAddr::new(Ipv4Addr::new(127, 9, high, low).into(), CLOSED);
                let ended = TcpStream::connect(to);
                ended.is_err_and(|why| why.kind() == std::io::ErrorKind::ConnectionRefused)
            })
            .count()
    });
    assert_eq!(tried, usize::from(TRIED), "the lab failed");
    assert_eq!(refused(&other, other.hub(V4), (0..50).map(|_| CLOSED)), 50);
    eventually(SOON, || {
        let metrics = agent.metrics();
        let there = entries(&metrics, "PEERS");
        ensure(there == RESTS + MAY + 1, || format!("{there} peers"))?;
        let peer = other.hub(V4).to_string();
        let kind = ("kind", "connect");
        let seen = [
            metrics.count(PEERS, &[("peer", &peer), kind]),
            metrics.count(PEERS, &[kind]),
            full(&metrics, "PEERS"),
        ];
        let all = u64::from(TRIED) + 50;
        ensure(seen == [50, all, 0], || format!("{seen:?}"))
    });
    agent.stop_cleanly();
}
