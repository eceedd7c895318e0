//! Hook `dns` with bytes that nobody should send: the counts stay consistent, the agent stays up, and
//! what it shows is one line each, without control characters.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use rustix::net::sockopt::set_socket_recv_buffer_size;
use tests::dns::scene::{CLIENT, pod};
use tests::dns::truth::{check_node, compare};
use tests::dns::{A, Lookup, Scene, Tally, packet};
use tests::netns::Pod;
use tests::process::{on_one_cpu, run, tracer};
use tests::router::Wiring;
use tests::snmp::receive_buffer_errors;
use tests::wait::ensure;
use tests::{Family, eventually};

const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Numbers that look random and are the same each time (Knuth's MMIX generator).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// A header of a query or an answer with one question.
fn header(id: u16, flags: u16) -> Vec<u8> {
    [id, flags, 1, 0, 0, 0]
        .iter()
        .flat_map(|word| word.to_be_bytes())
        .collect()
}

/// Messages that a decoder has to survive.
fn hostile() -> Vec<Vec<u8>> {
    let mut numbers = Numbers(53);
    let mut all = Vec::new();
    for n in 0..200 {
        let length = (numbers.next() % 600) as usize;
        all.push(numbers.bytes(length));
        // Random behind a good header: a query and an answer.
        for flags in [0x0100, 0x8180] {
            let mut bytes = header(n, flags);
            let length = (numbers.next() % 300) as usize;
            bytes.extend(numbers.bytes(length));
            all.push(bytes);
        }
    }
    let questions: Vec<Vec<u8>> = vec![
        // Pointers: to itself, forward, in a circle, out of the packet.
        vec![0xc0, 12, 0, 1, 0, 1],
        vec![0xc0, 0xff, 0, 1, 0, 1],
        vec![1, b'a', 0xc0, 12, 0, 1, 0, 1],
        vec![0xff, 0xff, 0, 1, 0, 1],
        // Labels of reserved kinds, and one longer than the packet.
        [vec![0x80], vec![b'x'; 40]].concat(),
        [vec![0x40], vec![b'x'; 40]].concat(),
        [vec![63], vec![b'x'; 10]].concat(),
        // 255 bytes after a length of 255, and a name that never ends.
        [vec![255], vec![b'y'; 255], vec![0, 0, 1, 0, 1]].concat(),
        [1, b'z'].repeat(250),
        // A name of 255 bytes, and control characters and broken UTF-8 in labels.
        [
            [vec![63], vec![b'n'; 63]].concat().repeat(4),
            vec![0, 0, 1, 0, 1],
        ]
        .concat(),
        [
            vec![12],
            b"\r\n\x1b[31m\0\x07\t\xff\xfe\x7f".to_vec(),
            vec![0, 0, 1, 0, 1],
        ]
        .concat(),
        [vec![9], b"\"},{\"a\":\"".to_vec(), vec![0, 0, 1, 0, 1]].concat(),
        vec![0],
        vec![],
    ];
    for (n, question) in questions.iter().enumerate() {
        for flags in [0x0100, 0x8180, 0x8183] {
            all.push([header(0x4000 + n as u16, flags), question.clone()].concat());
        }
        for cut in 0..question.len().min(20) {
            all.push([header(0x5000 + n as u16, 0x0100), question[..cut].to_vec()].concat());
        }
    }
    for length in 0..14 {
        all.push(vec![0; length]);
    }
    all
}

/// Sends all of them, in a namespace, from a socket of this port to that address.
fn send_all(pod: &tests::netns::Pod, family: Family, port: u16, to: (IpAddr, u16)) -> usize {
    let from = (pod.address(family), port);
    pod.netns.run(|| {
        let socket = UdpSocket::bind(from).expect("the port is free");
        // Empty ones too; what the network does not take is not sent.
        hostile()
            .iter()
            .filter(|bytes| socket.send_to(bytes, to).is_ok())
            .count()
    })
}

fn no_controls(text: &str) -> Result<(), String> {
    let found = text.chars().find(|c| c.is_control() && *c != '\n');
    ensure(found.is_none(), || format!("{found:?} in {text:?}"))
}

#[test]
fn hostile_bytes_break_nothing() {
    let (lab, mut scene) = Scene::with(Wiring::Routed, &["--event-rate", "100000"]);
    let attacker = pod(&lab, "attacker", 9);
    let mut sent = 0;
    for family in Family::ALL {
        // To a server, and as a server: to a port at which somebody listens.
        sent += send_all(&attacker, family, 0, (scene.address(family), 53));
        let address = scene.client.address(family);
        let listener = scene
            .client
            .netns
            .run(|| UdpSocket::bind((address, 4444)).expect("the port is free"));
        sent += send_all(&attacker, family, 53, (address, 4444));
        drop(listener);
    }
    assert!(sent > 2000, "the lab failed: {sent} sent");
    // And from the client's own socket to a server that says nothing, so that events tell the names.
    let family = Family::V4;
    send_all(
        &scene.client,
        family,
        0,
        (scene.far.neighbour(family, 5), 53),
    );

    // Life goes on meanwhile.
    let asked: Vec<Lookup> = (0..20)
        .map(|n| Lookup::new(format!("ok-{n}.test"), A, scene.address(Family::ALL[n % 2])))
        .collect();
    let tally = CLIENT.run(&scene.client, asked);
    assert_eq!(tally.outcome("noerror"), 20, "the lab failed: {tally:?}");
    eventually(Duration::from_secs(8), || {
        let metrics = scene.agent.metrics();
        check_node(&metrics)?;
        for pod in [&attacker, &scene.client] {
            let count = |name: &str| metrics.count(name, &pod.labels());
            let queries = count("tracer_pod_dns_queries_total");
            let followed = count("tracer_pod_dns_lookups_total");
            let untracked = count("tracer_pod_dns_untracked_total");
            ensure(queries > 100 && queries >= followed + untracked, || {
                format!("{queries} queries, {followed} followed, {untracked} not")
            })?;
        }
        Ok::<(), String>(())
    });

    // The reader of `events --output json` panics on a line that is no JSON.
    let timeouts = |scene: &Scene| {
        let labels = [("outcome", "timeout")];
        scene
            .agent
            .metrics()
            .count("tracer_node_dns_lookups_total", &labels)
    };
    let expected = timeouts(&scene);
    assert!(
        expected > 100,
        "the lab failed: {expected} lookups timed out"
    );
    eventually(Duration::from_secs(5), || {
        scene.events.listen(Duration::from_millis(100));
        let seen = scene.events.seen.iter();
        let told = seen
            .filter(|event| event.text("outcome") == "timeout")
            .count() as u64;
        ensure(told == expected, || {
            format!("{told} events of {expected} timeouts")
        })
    });
    for event in &scene.events.seen {
        no_controls(event.text("qname")).unwrap_or_else(|why| panic!("{why}: {}", event.json));
        assert!(event.text("qname").len() < 1100, "{}", event.json);
    }
    let address = scene.agent.address();
    let mut text: Command = tracer();
    text.args([
        "events", "--since", "10m", "--for", "1s", "--output", "text", "--agent", &address,
    ]);
    let shown = run(&mut text, Duration::from_secs(10));
    assert!(shown.status.success(), "{shown:#?}");
    no_controls(&shown.stdout).unwrap_or_else(|why| panic!("{why}"));
    let lines = shown.stdout.lines().count();
    assert!(
        lines >= scene.events.seen.len(),
        "{lines} lines of {}",
        scene.events.seen.len()
    );
    let response = scene.agent.http("GET", "/metrics");
    no_controls(&response.body).unwrap_or_else(|why| panic!("{why}"));
    scene.agent.stop_cleanly();
}

/// An answer that was read leaves memory that the next packet on that CPU takes. A process that knows the ids loses
/// packets of its own in it, which look like that answer: they take nobody's answer back, and are nobody's cause.
#[test]
fn what_a_process_loses_on_purpose_takes_no_answer_back() {
    const LOOKUPS: u16 = 300;
    /// For each lookup: as many as may take the memory.
    const LOST: u64 = 8;
    let (lab, scene) = Scene::new(Wiring::Routed);
    let [victim, attacker] = [("victim", 11), ("attacker", 12)].map(|(n, i)| pod(&lab, n, i));
    let bind = |pod: &Pod, port: u16| {
        let bound = pod.netns.run(|| UdpSocket::bind((LOOPBACK, port)));
        bound.expect("the port is free")
    };
    let [server, client, deaf, loser] = [
        bind(&victim, 53),
        bind(&victim, 0),
        bind(&attacker, 5000),
        bind(&attacker, 0),
    ];
    client.connect((LOOPBACK, 53)).expect("it is there");
    loser.connect((LOOPBACK, 5000)).expect("it is there");
    set_socket_recv_buffer_size(&deaf, 1).expect("a buffer can be small");
    let lost = || receive_buffer_errors(&attacker.netns, Family::V4);
    let before = lost();
    on_one_cpu(|| {
        let mut message = [0; 512];
        for id in 0..LOOKUPS {
            let query = packet::query(id, packet::QUERY, "ok.test", A);
            client.send(&query).expect("it goes");
            let (length, from) = server.recv_from(&mut message).expect("it comes");
            let answer = packet::answer(&message[..length], 0, false, true);
            server.send_to(&answer, from).expect("it goes");
            client.recv(&mut message).expect("it comes");
            for _ in 0..LOST {
                loser.send(&header(id, 0x8180)).expect("it goes");
            }
        }
    });
    let lost = lost() - before;
    let sent = u64::from(LOOKUPS) * LOST;
    assert!(lost > sent / 2, "the lab failed: {lost} of {sent} lost");
    let tally = Tally {
        queries: LOOKUPS.into(),
        outcomes: [("noerror", LOOKUPS.into())].into(),
        ..Tally::default()
    };
    eventually(Duration::from_secs(5), || {
        let metrics = scene.agent.metrics();
        compare(&metrics, &victim, &tally, &[]).and_then(|()| check_node(&metrics))
    });
    scene.settle();
}
