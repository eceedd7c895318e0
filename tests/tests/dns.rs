//! Hook `dns`: lookups of several clients, and tracer's outcomes and causes are what they saw.

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use tests::dns::packet::{QUERY, STATUS, parse, query};
use tests::dns::truth::{check_node, compare};
use tests::dns::{A, AAAA, Client, Lookup, Server, Tally};
use tests::neigh::FIRST_SILENT;
use tests::netns::Pod;
use tests::wait::{ensure, is_emulated};
use tests::{Agent, Family, Lab, eventually};

/// As long as the agent's, so that both judge alike; answers come at once or half a second late.
const CLIENT: Client = Client {
    timeout: Duration::from_secs(1),
    linger: Duration::from_secs(1),
};

fn start_agent() -> Agent {
    Agent::start(&["--dns-timeout", "1s"])
}

/// Clients of each pod. All they ask for is under way at once, and what is answered must be so within
/// their second: an emulated processor does the sixth part of it.
fn clients_of_a_pod() -> usize {
    if is_emulated() { 1 } else { 2 }
}

/// Types that are asked for, and in which round: sockets of the second are connected.
fn types() -> &'static [(u16, u32)] {
    if is_emulated() {
        &[(AAAA, 0), (A, 1)]
    } else {
        &[(A, 0), (AAAA, 0), (A, 1)]
    }
}

/// Every script of the server, for both families, two types, from sockets of both kinds.
fn every_script(pod: &Pod, client: usize) -> Vec<Lookup> {
    const SCRIPTS: &str = "ok case nodata tc formerr servfail nx notimp refused other drop \
                           late-1500 second dup wrongid wrongq wrongaddr";
    let mut lookups = Vec::new();
    for family in Family::ALL {
        for script in SCRIPTS.split(' ') {
            for (qtype, round) in types().iter().copied() {
                let name = format!("{script}-{client}-{round}.{}.test", family.label());
                let mut lookup = Lookup::new(name, qtype, pod.hub(family));
                // A connected socket never gets what another address sends.
                lookup.connected = round == 1 && script != "wrongaddr";
                if script == "second" {
                    lookup.again_after = Some(Duration::from_millis(300));
                }
                lookups.push(lookup);
            }
        }
    }
    lookups
}

/// Packets to the server that are no lookups: too short, another opcode, answers.
fn send_noise(pod: &Pod, family: Family) {
    let (from, to) = (pod.address(family), (pod.hub(family), 53));
    pod.netns.run(|| {
        let socket = UdpSocket::bind((from, 0)).expect("pod has its address");
        let mut answer = query(7, QUERY, "ok.test", A);
        answer[2] |= 0x80;
        let status = query(7, STATUS, "ok.test", A);
        for bytes in [b"short".as_slice(), &[0; 11], &status, &answer] {
            socket.send_to(bytes, to).expect("datagram is sent");
        }
    });
}

#[test]
fn outcomes_are_what_the_clients_saw() {
    let lab = Lab::new();
    let pods = [("one", 1), ("two", 2)].map(|(label, index)| lab.pod(label, index, 2));
    let addresses: Vec<IpAddr> = pods
        .iter()
        .flat_map(|pod| Family::ALL.map(|family| [pod.hub(family), pod.neighbour(family, 3)]))
        .flatten()
        .collect();
    // Neighbours in `addresses` take over for one another in `wrongaddr`, so those of one subnet
    // stand side by side.
    let _server = Server::start(&lab.hub, &addresses);
    let agent = start_agent();
    let mut events = agent.events();
    for (pod, family) in pods.iter().zip(Family::ALL) {
        send_noise(pod, family);
    }

    let asked: Vec<(usize, Vec<Lookup>)> = (0..2 * clients_of_a_pod())
        .map(|client| (client % 2, every_script(&pods[client % 2], client)))
        .collect();
    let clients: Vec<_> = asked
        .iter()
        .map(|(pod, lookups)| (*pod, CLIENT.spawn(&pods[*pod], lookups.clone())))
        .collect();
    let mut tallies = [Tally::default(), Tally::default()];
    for (pod, client) in clients {
        tallies[pod].add(&client.join().expect("the client ends"));
    }
    // Of each script in each pod.
    let each = (clients_of_a_pod() * Family::ALL.len() * types().len()) as u64;
    for tally in &tallies {
        // The lab did what it should.
        assert_eq!(tally.lookups(), each * 17, "{tally:?}");
        assert_eq!(tally.outcome("noerror"), each * 5, "{tally:?}");
        assert_eq!(tally.outcome("timeout"), each * 5, "{tally:?}");
        assert_eq!((tally.late, tally.errors()), (each, each * 5), "{tally:?}");
    }

    let metrics = eventually(Duration::from_secs(5), || {
        let metrics = agent.metrics();
        for (pod, tally) in pods.iter().zip(&tallies) {
            let causes = [
                ("server", tally.errors()),
                ("no_answer", tally.outcome("timeout")),
            ];
            compare(&metrics, pod, tally, &causes)?;
        }
        check_node(&metrics).map(|()| metrics)
    });
    for (pod, tally) in pods.iter().zip(&tallies) {
        let [namespace, name] = pod.labels();
        let sum = "tracer_pod_dns_lookup_duration_seconds_sum";
        let seconds = metrics.sum(sum, &[namespace, name]);
        // `second` alone waits for 0.3 s each time.
        assert!(
            seconds > 0.3 * each as f64 && seconds < tally.answered() as f64,
            "{seconds} s"
        );
        let labels = [namespace, name, ("signal", "dns")];
        let failed = tally.errors() + tally.outcome("timeout");
        let expected = failed as f64 / tally.lookups() as f64;
        eventually(Duration::from_secs(3), || {
            let ratio = agent.metrics().get("tracer_pod_failure_ratio", &labels);
            ensure(ratio.is_some_and(|r| (r - expected).abs() < 1e-6), || {
                format!("failure ratio of {name:?} is {ratio:?}, not {expected}")
            })
        });
    }
    // The hub only served.
    let hub = [("pod", lab.hub.name())];
    assert_eq!(metrics.count("tracer_pod_dns_lookups_total", &hub), 0);

    for lookup in asked.iter().flat_map(|(_, lookups)| lookups) {
        let (outcome, cause) = match lookup.name.split('-').next() {
            Some("formerr") => ("formerr", "server"),
            Some("servfail") => ("servfail", "server"),
            Some("notimp") => ("notimp", "server"),
            Some("refused") => ("refused", "server"),
            Some("other") => ("other", "server"),
            Some("drop" | "late" | "wrongid" | "wrongq" | "wrongaddr") => ("timeout", "no_answer"),
            _ => continue,
        };
        let client = asked
            .iter()
            .find(|(_, all)| all.iter().any(|l| l.id == lookup.id));
        let pod = &pods[client.expect("it was asked").0];
        let event = events.wait(Duration::from_secs(2), |event| {
            event.text("kind") == "dns_failure" && event.json["id"] == lookup.id
        });
        let shown = &event.json;
        assert_eq!(shown["pod"]["name"], pod.netns.name(), "{shown}");
        assert_eq!(shown["pod"]["namespace"], "(netns)", "{shown}");
        assert_eq!(
            event.text("qname").trim_end_matches('.'),
            lookup.name,
            "{shown}"
        );
        let qtype = if lookup.qtype == A { "A" } else { "AAAA" };
        assert_eq!(shown["qtype"], qtype, "{shown}");
        let server = std::net::SocketAddr::new(lookup.server, 53).to_string();
        assert_eq!(shown["server"], server, "{shown}");
        assert_eq!(
            (&shown["outcome"], &shown["cause"]),
            (&outcome.into(), &cause.into()),
            "{shown}"
        );
        assert_eq!(shown["drop_reason"], serde_json::Value::Null, "{shown}");
        assert_eq!(shown["netns"], pod.netns.inode(), "{shown}");
        assert_eq!(shown["pid"], std::process::id(), "{shown}");
        assert_eq!(shown["comm"], "lab", "{shown}");
        let waited = shown["waited_seconds"]
            .as_f64()
            .expect("waited_seconds is a number");
        let expected = if outcome == "timeout" {
            1.0..2.0
        } else {
            0.0..1.0
        };
        assert!(expected.contains(&waited), "{shown}");
    }
    let failures = events
        .seen
        .iter()
        .filter(|event| event.text("kind") == "dns_failure");
    let failures = failures.filter(|event| event.json["pod"]["namespace"] == "(netns)");
    assert_eq!(
        failures.count() as u64,
        2 * each * 10,
        "one event for each failure"
    );
    agent.stop_cleanly();
}

/// Sends these queries from one socket under one id, then counts the answers that come in `listen`.
fn dialogue(
    pod: &Pod,
    id: u16,
    queries: &[(Duration, &str, IpAddr)],
    listen: Duration,
) -> Vec<String> {
    let family = if queries[0].2.is_ipv4() {
        Family::V4
    } else {
        Family::V6
    };
    let from = pod.address(family);
    pod.netns.run(|| {
        let socket = UdpSocket::bind((from, 0)).expect("pod has its address");
        let started = Instant::now();
        let mut names = Vec::new();
        let mut receive_until = |end: Duration| {
            while let Some(left) = end.checked_sub(started.elapsed()).filter(|d| !d.is_zero()) {
                socket.set_read_timeout(Some(left)).expect("timeout is set");
                let mut buffer = [0; 1500];
                if let Ok(length) = socket.recv(&mut buffer) {
                    names.push(parse(&buffer[..length]).expect("the server sends DNS").name);
                }
            }
        };
        for (at, name, server) in queries {
            receive_until(*at);
            let bytes = query(id, QUERY, name, A);
            socket
                .send_to(&bytes, (*server, 53))
                .expect("query is sent");
        }
        receive_until(queries.last().expect("there are queries").0 + listen);
        names
    })
}

#[test]
fn a_socket_and_id_used_again_make_the_lookups_that_they_should() {
    let lab = Lab::new();
    let pods = [
        "retry", "after", "other", "all", "quick", "closed", "thrice",
    ];
    let mut index = 0;
    let pods = pods.map(|label| {
        index += 1;
        lab.pod(label, index, 2)
    });
    let servers = pods.each_ref().map(|pod| {
        let addresses = [pod.hub(Family::V4), pod.neighbour(Family::V4, 3)];
        Server::start(&lab.hub, &addresses)
    });
    let agent = start_agent();
    let at = Duration::from_millis;
    let [retry, after, other, all, quick, closed, thrice] = &pods;
    let server = |pod: &Pod| pod.hub(Family::V4);
    let ended = |queries, outcomes: &[(&'static str, u64)], unmatched| Tally {
        queries,
        outcomes: outcomes.iter().copied().collect(),
        late: 0,
        unmatched,
    };

    let (mut tallies, listen) = (Vec::new(), Duration::from_millis(300));
    // Sent again before the deadline: one lookup, two queries.
    let queries = [
        (at(0), "second.test", server(retry)),
        (at(400), "second.test", server(retry)),
    ];
    assert_eq!(dialogue(retry, 1, &queries, listen), ["second.test"]);
    tallies.push((retry, ended(2, &[("noerror", 1)], 0)));
    // Sent again after it: the first has timed out, the second is a lookup of its own.
    let queries = [
        (at(0), "second.test", server(after)),
        (at(1300), "second.test", server(after)),
    ];
    assert_eq!(dialogue(after, 1, &queries, listen), ["second.test"]);
    tallies.push((after, ended(2, &[("noerror", 1), ("timeout", 1)], 0)));
    // As glibc with three attempts: each just after the one before is over, the last is answered.
    let queries = [0, 1010, 2020].map(|ms| (at(ms), "third.test", server(thrice)));
    assert_eq!(dialogue(thrice, 1, &queries, listen), ["third.test"]);
    tallies.push((thrice, ended(3, &[("noerror", 1), ("timeout", 2)], 0)));
    // Another question under the same id: the first is given up.
    let queries = [
        (at(0), "drop.test", server(other)),
        (at(100), "ok.test", server(other)),
    ];
    assert_eq!(dialogue(other, 1, &queries, listen), ["ok.test"]);
    tallies.push((other, ended(2, &[("noerror", 1), ("timeout", 1)], 0)));
    // All servers asked at once, as musl does: the first answer ends it, the second is one too many.
    let second = all.neighbour(Family::V4, 3);
    let queries = [
        (at(0), "late-100.test", server(all)),
        (at(0), "late-100.test", second),
    ];
    assert_eq!(dialogue(all, 1, &queries, listen).len(), 2);
    tallies.push((all, ended(2, &[("noerror", 1)], 1)));
    // The first has answered before the second is asked, as a server nearby does: still one lookup.
    let second = quick.neighbour(Family::V4, 3);
    let queries = [
        (at(0), "ok.test", server(quick)),
        (at(50), "ok.test", second),
    ];
    assert_eq!(dialogue(quick, 1, &queries, listen).len(), 2);
    tallies.push((quick, ended(2, &[("noerror", 1)], 1)));
    // The second never answers, or too late for a socket that is closed by then: no failure.
    let queries = [
        (at(0), "ok.test", server(closed)),
        (
            at(50),
            "ok.test",
            closed.neighbour(Family::V4, FIRST_SILENT),
        ),
    ];
    assert_eq!(dialogue(closed, 1, &queries, listen), ["ok.test"]);
    tallies.push((closed, ended(2, &[("noerror", 1)], 0)));

    eventually(Duration::from_secs(5), || {
        let metrics = agent.metrics();
        for (pod, tally) in &tallies {
            compare(
                &metrics,
                pod,
                tally,
                &[("no_answer", tally.outcome("timeout"))],
            )?;
        }
        check_node(&metrics)
    });
    drop(servers);
    agent.stop_cleanly();
}
