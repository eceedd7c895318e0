//! What stands in for what older kernels lack: agents with and without it look at the same lab, and their figures are
//! the same, or differ by what they say that they do not see.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use tests::dns::truth::{check_node, compare};
use tests::dns::{A, Lookup, Server};
use tests::mechanisms::{CLIENT, agent_without, hook, live, sees_sends, send};
use tests::neigh::{FIRST_SILENT, burst};
use tests::netns::Pod;
use tests::point::within;
use tests::router::Wiring;
use tests::tcp::client::RESULTS;
use tests::tcp::scene::prepare;
use tests::tcp::truth::POD_CONNECTS;
use tests::tcp::{self, Manner, every_way};
use tests::unseen::has_tracepoint;
use tests::wait::ensure;
use tests::{Agent, Family, Lab, eventually};

/// What came after 5.10 and has a stand-in that is as exact.
const OLD: &str = "TRACER_WITHOUT=bpf_loop,bpf_for_each_map_elem";
/// What kernels from 5.13 to 5.16 lack, as Ubuntu 22.04's 5.15. They have the rest of what came after 5.10: one program
/// ages by itself there, and another goes in rounds.
const BETWEEN: &str = "TRACER_WITHOUT=bpf_loop,drop_reasons";

/// A pod's lookups of several kinds of end, and entries in its namespace and its hub's.
fn mixed(pod: &Pod) -> Vec<Lookup> {
    let mut all = Vec::new();
    for family in Family::ALL {
        for script in ["ok", "nx", "servfail", "drop"] {
            for n in 0..5 {
                let name = format!("{script}-{n}.test");
                all.push(Lookup::new(name, A, pod.hub(family)));
            }
        }
    }
    all
}

#[test]
fn old_and_new_mechanisms_count_the_same() {
    let lab = Lab::new();
    let [one, two] = [("one", 1), ("two", 2)].map(|(name, index)| lab.pod(name, index, 2));
    let addresses: Vec<IpAddr> = [&one, &two]
        .into_iter()
        .flat_map(|pod| Family::ALL.map(|family| pod.hub(family)))
        .collect();
    let _server = Server::start(&lab.hub, &addresses);
    let new = Agent::start(&["--dns-timeout", "1s"]);
    // Without the instruction lookups have no places, and wait in hash maps.
    let others = [OLD, BETWEEN, "TRACER_WITHOUT=cmpxchg"].map(|one| (one, agent_without(one, &[])));
    let agents = || {
        let others = others.iter().map(|(name, agent)| (*name, agent));
        std::iter::once(("new", &new)).chain(others)
    };
    let tallies = [&one, &two].map(|pod| {
        let tally = CLIENT.run(pod, mixed(pod));
        assert_eq!(tally.outcome("timeout"), 10, "the lab failed: {tally:?}");
        tally
    });
    for (pod, many) in [(&one, 700), (&two, 35)] {
        for family in Family::ALL {
            // More than the table's buckets, so that it grows.
            burst(pod, family, FIRST_SILENT, many);
        }
    }
    for (name, agent) in agents() {
        eventually(Duration::from_secs(5), || {
            let metrics = agent.metrics();
            for (pod, tally) in [&one, &two].into_iter().zip(&tallies) {
                compare(&metrics, pod, tally, &[("server", 10), ("no_answer", 10)])
                    .map_err(|why| format!("{name}: {why}"))?;
            }
            check_node(&metrics)
        });
    }
    let namespaces = [&*one.netns, &two.netns, &lab.hub];
    eventually(Duration::from_secs(5), || {
        let truth = |family| namespaces.map(|netns| tests::entries::entries(netns, family).len());
        let before = Family::ALL.map(truth);
        let shown: Vec<_> = agents()
            .map(|(name, agent)| {
                let metrics = agent.metrics();
                let all = |family| namespaces.map(|n| live(&metrics, &n.labels(), family));
                (name, Family::ALL.map(all))
            })
            .collect();
        ensure(before == Family::ALL.map(truth), || {
            "entries come and go".to_owned()
        })?;
        ensure(shown.iter().all(|(_, shown)| *shown == before), || {
            format!("{shown:?}, not {before:?}")
        })
    });
    for (_, agent) in others {
        agent.stop_cleanly();
    }
    new.stop_cleanly();
}

#[test]
fn connections_are_counted_the_same_by_rounds() {
    count_connections_alike(OLD);
}

#[test]
fn connections_are_counted_the_same_without_what_came_after_5_16() {
    count_connections_alike(BETWEEN);
}

/// Requests whose ends only time tells are found by the walk in one go and by rounds; and attempts are the same.
fn count_connections_alike(without: &str) {
    const PORT: u16 = 7946;
    const EACH: usize = 4;
    let (node, [caller, patient]) = prepare(Wiring::Routed, ["caller", "patient"]);
    let silent = ["--silent-port", "7946", "--silent-after", "1s"];
    let new = Agent::start(&silent);
    let mut scene = tcp::Scene::around(node, || agent_without(without, &silent));
    let to = Family::ALL.map(|family| scene.port(family, PORT));
    let server = tcp::Server::start(&scene.node.far.netns, &to, Manner::Hold);
    let mut streams: Vec<TcpStream> = patient.netns.run(|| {
        let connect = |to: &SocketAddr| TcpStream::connect(to).expect("it listens");
        to.iter()
            .flat_map(|to| (0..2 * EACH).map(move |_| connect(to)))
            .collect()
    });
    eventually(Duration::from_secs(5), || {
        let held = server.accepted();
        ensure(held == streams.len() as u64, || format!("{held} accepted"))
    });
    // It takes longer than the second behind a handshake, in which what is sent is let pass.
    let attempts = every_way(&mut scene, &caller);
    for stream in &mut streams {
        stream.write_all(&[1; 100]).expect("it is open");
    }
    // Every other one is answered.
    let mut ends = server.take();
    ends.sort_by_key(|end| end.peer_addr().expect("it has a peer"));
    for end in ends.iter_mut().step_by(2) {
        end.write_all(b"pong").expect("it is open");
    }
    let name = "tracer_pod_silent_connections_total";
    eventually(Duration::from_secs(10), || {
        for agent in [&new, &scene.agent] {
            let metrics = agent.metrics();
            let silent = metrics.count(name, &patient.labels());
            ensure(silent == 2 * EACH as u64, || format!("{silent} silent"))?;
        }
        let [new, old] = [&new, &scene.agent].map(Agent::metrics);
        let unseen = scene.unseen();
        if has_tracepoint("sock/inet_sk_error_report") {
            for metrics in [&new, &old] {
                tcp::truth::compare_seen(metrics, caller.labels(), &attempts, unseen)?;
            }
        }
        for result in RESULTS {
            let labels = [&caller.labels()[..], &[("result", result)]].concat();
            let [new, old] = [&new, &old].map(|m| m.count(POD_CONNECTS, &labels));
            ensure(old.abs_diff(new) <= unseen, || {
                format!("{result}: {new} and {old}, {unseen} unseen")
            })?;
        }
        let all = new.count(POD_CONNECTS, &caller.labels());
        within(all, attempts.attempts(), || unseen)
    });
    drop((streams, ends));
    new.stop_cleanly();
    // Without the kernel's errors attempts have other results than their clients saw; what was shown to no program has
    // no event.
    let (faults, unseen) = (scene.faults(), scene.unseen());
    let told = has_tracepoint("sock/inet_sk_error_report");
    assert!(
        !told || faults <= unseen,
        "{faults} faults are told above, {unseen} events were shown to no program"
    );
    scene.agent.stop_cleanly();
}

/// Where no tracepoint tells of the network's errors, an attempt that one ends early has another result; none is lost,
/// and what needs no error is told as ever.
#[test]
fn without_the_networks_errors_attempts_are_counted_all_the_same() {
    let (node, [caller]) = prepare(Wiring::Routed, ["caller"]);
    let without = || agent_without("TRACER_WITHOUT=inet_sk_error_report", &[]);
    let mut scene = tcp::Scene::around(node, without);
    let (state, reason) = hook(&scene.agent, "tcp");
    assert_eq!(state, "degraded", "{reason}");
    assert!(
        reason.contains("inet_sk_error_report") && reason.contains("ICMP error"),
        "{reason}"
    );
    let attempts = every_way(&mut scene, &caller);
    eventually(Duration::from_secs(5), || {
        let metrics = scene.agent.metrics();
        let shown = |result| {
            let labels = [&caller.labels()[..], &[("result", result)]].concat();
            metrics.count(POD_CONNECTS, &labels)
        };
        let unseen = scene.unseen() + tcp::Scene::in_between();
        for result in ["established", "refused"] {
            within(shown(result), attempts.count(result), || unseen)
                .map_err(|why| format!("{result}: {why}"))?;
        }
        let [unreachable, timeout] =
            ["unreachable", "timeout"].map(|result| attempts.count(result));
        ensure(shown("unreachable") <= unreachable, || {
            format!("{} unreachable of {unreachable}", shown("unreachable"))
        })?;
        ensure(shown("timeout") + unseen >= timeout, || {
            format!("{} timeouts of {timeout}", shown("timeout"))
        })?;
        let all = metrics.count(POD_CONNECTS, &caller.labels());
        within(all, attempts.attempts(), || unseen)?;
        tcp::truth::check_node(&metrics)
    });
    // Who was told at once has taken the error when the socket is closed: the event has another result, too.
    let (faults, unreachable) = (scene.faults(), attempts.count("unreachable"));
    assert!(
        faults <= unreachable + scene.unseen() + tcp::Scene::in_between(),
        "{faults} faults are told above, of {unreachable} errors"
    );
    scene.agent.stop_cleanly();
}

/// Queries that become packets are counted once, whether or not the ends of sends are seen too; and those that do not
/// are seen by the one alone. Where the kernel takes no fexit both agents are alike, and that is all that is shown.
#[test]
fn with_and_without_fexit_what_is_sent_counts_the_same() {
    let sees = sees_sends(&[]);
    assert!(!sees_sends(&["env", "TRACER_WITHOUT=fexit"]));
    let lab = Lab::new();
    let pod = lab.pod("pod", 1, 2);
    let hubs = Family::ALL.map(|family| pod.hub(family));
    let _server = Server::start(&lab.hub, &hubs);
    let with = Agent::start(&["--dns-timeout", "1s"]);
    let without = agent_without("TRACER_WITHOUT=fexit", &[]);
    let mut tally = CLIENT.run(&pod, mixed(&pod));
    assert_eq!(tally.outcome("timeout"), 10, "the lab failed: {tally:?}");
    // Resolvers connect their sockets: sends have no address then.
    let connected = mixed(&pod).into_iter().map(|mut lookup| {
        lookup.connected = true;
        lookup
    });
    tally.add(&CLIENT.run(&pod, connected.collect()));
    // An IPv6 socket that speaks IPv4 goes through both families' functions.
    let IpAddr::V4(plain) = hubs[0] else {
        panic!("an IPv4 address")
    };
    pod.netns.run(|| {
        let dual = UdpSocket::bind("[::]:0").expect("a port is free");
        let to = SocketAddr::new(plain.to_ipv6_mapped().into(), 53);
        for id in [7101, 7101, 7102] {
            assert_eq!(send(&dual, id, Some(to)), None, "the lab failed");
        }
    });
    tally.queries += 3;
    *tally.outcomes.entry("timeout").or_default() += 2;
    // Each alike while nothing fails before there is a packet.
    let causes = [("server", 20), ("no_answer", 22)];
    for (name, agent) in [("with", &with), ("without", &without)] {
        eventually(Duration::from_secs(5), || {
            let metrics = agent.metrics();
            compare(&metrics, &pod, &tally, &causes).map_err(|why| format!("{name}: {why}"))?;
            check_node(&metrics)
        });
    }
    let mut failed = Vec::new();
    for (family, length) in Family::ALL.into_iter().zip([32, 128]) {
        let nowhere = pod.neighbour(family, 77);
        let route = format!("unreachable {nowhere}/{length}");
        pod.netns.ip(&format!("route add {route}"));
        failed.extend((0..3).map(|n| Lookup::new(format!("ok-nowhere-{n}.test"), A, nowhere)));
    }
    let lost = CLIENT.run(&pod, failed);
    assert_eq!(lost.outcome("timeout"), 6, "the lab failed: {lost:?}");
    let mut all = tally.clone();
    all.add(&lost);
    let more = [&causes[..], &[("no_route", 6)]].concat();
    let whole = if sees {
        (&all, &more[..])
    } else {
        (&tally, &causes[..])
    };
    for (agent, (tally, causes)) in [(&with, whole), (&without, (&tally, &causes[..]))] {
        eventually(Duration::from_secs(5), || {
            let metrics = agent.metrics();
            compare(&metrics, &pod, tally, causes)?;
            check_node(&metrics)
        });
    }
    let said = if sees {
        "fexit: both ways were counted, and 6 sends that never became packets by the one alone"
    } else {
        "fexit: NOT TRIED, the running kernel takes none"
    };
    // Past the harness, which keeps what a test that passes says.
    writeln!(std::io::stderr(), "{said}").expect("stderr can be written");
    without.stop_cleanly();
    with.stop_cleanly();
}
