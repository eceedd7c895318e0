//! Hook `tcp`: established connections whose peer resets, is silent, or is behind a network that
//! loses.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::{JoinHandle, scope};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{set_tcp_nodelay, set_tcp_user_timeout};
use tests::netns::{Netns, Pod};
use tests::nft::Rules;
use tests::point::within;
use tests::router::Wiring;
use tests::tcp::client::Means;
use tests::tcp::scene::OPEN;
use tests::tcp::server::reset;
use tests::tcp::truth::{PEERS, RESETS, RETRANSMITS, compare};
use tests::tcp::{Attempt, Manner, Scene, Server, Tally, kernel};
use tests::unseen::{Unseen, has_field};
use tests::wait::ensure;
use tests::{Agent, Family, eventually};

const SOON: Duration = Duration::from_secs(5);

/// Connections of a pod to a server that holds them, and the server's ends.
fn connected(
    scene: &Scene,
    pod: &Pod,
    to: SocketAddr,
    means: Means,
    count: usize,
) -> (Vec<TcpStream>, Vec<TcpStream>) {
    let server = Server::start(&scene.node.far.netns, &[to], Manner::Hold);
    let attempt = Attempt::endless(to, means);
    let streams: Vec<TcpStream> = pod.netns.run(|| {
        (0..count)
            .map(|_| {
                let socket = attempt.socket();
                // What does not block is under way then, and waited for below.
                let _ = rustix::net::connect(&socket, &attempt.destination());
                TcpStream::from(socket)
            })
            .collect()
    });
    for stream in &streams {
        stream.set_nonblocking(false).expect("sockets can be set");
        eventually(SOON, || stream.peer_addr().map(|_| ()));
    }
    eventually(SOON, || {
        let accepted = server.accepted();
        ensure(accepted == count as u64, || format!("{accepted} accepted"))
    });
    let ends = server.take();
    (streams, ends)
}

fn count(agent: &Agent, name: &str, pod: &Pod) -> u64 {
    agent.metrics().count(name, &pod.labels())
}

fn await_count(agent: &Agent, name: &str, pod: &Pod, expected: u64) {
    eventually(SOON, || {
        let shown = count(agent, name, pod);
        ensure(shown == expected, || {
            format!("{name} of {} is {shown}, not {expected}", pod.netns.name())
        })
    });
}

fn resets(netns: &Netns) -> u64 {
    kernel::Statistics::of(netns).established_resets
}

#[test]
fn connections_that_the_peer_resets_are_its_victims() {
    let (mut scene, [client]) = Scene::new(Wiring::Routed, ["client"]);
    let far = scene.node.far.clone();
    let mut opened = 0;
    for (family, means, port) in [
        (Family::V4, Means::Polled, 4000),
        (Family::V6, Means::Polled, 4000),
        (Family::V4, Means::Mapped, 4001),
    ] {
        let to = scene.port(family, port);
        let before = (resets(&client.netns), resets(&far.netns));
        let counted = [&client, &far].map(|pod| count(&scene.agent, RESETS, pod));

        // By the server: in the middle, and behind a good-bye.
        let (streams, ends) = connected(&scene, &client, to, means, 6);
        let source = streams[0].local_addr().expect("it has an address");
        let source = SocketAddr::new(source.ip().to_canonical(), source.port());
        for end in ends {
            let from = end.peer_addr().expect("it has a peer");
            if from.port() % 2 == 1 {
                end.shutdown(std::net::Shutdown::Write).expect("it is open");
            }
            reset(end);
        }
        eventually(SOON, || {
            let lost = resets(&client.netns) - before.0;
            ensure(lost == 6, || format!("the lab failed: {lost} resets"))
        });
        await_count(&scene.agent, RESETS, &client, counted[0] + 6);
        assert_eq!(count(&scene.agent, RESETS, &far), counted[1], "who resets");
        let event = scene.events.find(Duration::from_secs(2), |event| {
            event.is("connect_failure", client.netns.name())
                && event.text("result") == "reset"
                && event.text("source") == source.to_string()
                && event.text("destination") == to.to_string()
        });
        assert!(event.is_some(), "no event of {source} to {to}");
        drop(streams);

        // By the client.
        let (streams, ends) = connected(&scene, &client, to, means, 4);
        streams.into_iter().for_each(reset);
        await_count(&scene.agent, RESETS, &far, counted[1] + 4);
        assert_eq!(
            count(&scene.agent, RESETS, &client),
            counted[0] + 6,
            "who resets"
        );
        drop(ends);
        opened += 10;
    }
    // To be reset is no new attempt.
    let mut tally = Tally::default();
    tally.add("established", opened);
    scene.settle(&[(&client, &tally)]);
}

/// One side's segments of data are lost on the node for a while.
#[test]
fn segments_sent_again_are_counted_as_the_kernel_does() {
    // The timers of several connections may interrupt who is not traced, at once.
    let unseen = Unseen::watch(&[("tcp/tcp_retransmit_skb", "0")]);
    let (scene, [client, other]) = Scene::new(Wiring::Routed, ["client", "other"]);
    let far = scene.node.far.clone();
    for family in Family::ALL {
        let to = scene.port(family, 4000);
        let (mut writers, mut readers) = connected(&scene, &client, to, Means::Polled, 3);
        let (mut quiet, mut quiet_ends) =
            connected(&scene, &other, scene.port(family, 4001), Means::Polled, 3);
        let address = far.address(family);
        let ip = if family == Family::V4 { "ip" } else { "ip6" };
        for direction in ["daddr", "saddr"] {
            let port = if direction == "daddr" {
                "dport"
            } else {
                "sport"
            };
            let rules = Rules::drop(
                &scene.node.router,
                "forward",
                &format!("{ip} {direction} {address} tcp {port} 4000"),
            );
            for stream in &mut writers {
                stream.write_all(&[1; 100]).expect("it is open");
            }
            let lost = eventually(SOON, || {
                let lost = rules.hits();
                ensure(lost >= 9, || format!("{lost} lost")).map(|()| lost)
            });
            drop(rules);
            for stream in &mut readers {
                stream.read_exact(&mut [0; 100]).expect("it comes at last");
            }
            assert!(lost >= 9, "the lab failed");
            std::mem::swap(&mut writers, &mut readers);
        }
        // As much, and nothing is lost.
        for stream in &mut quiet {
            stream.write_all(&[1; 100]).expect("it is open");
        }
        for stream in &mut quiet_ends {
            stream.read_exact(&mut [0; 100]).expect("it comes");
        }
    }
    for pod in [&client, &other, &far] {
        let sent = kernel::Statistics::of(&pod.netns).data_retransmitted();
        eventually(SOON, || {
            let shown = count(&scene.agent, RETRANSMITS, pod);
            within(shown, sent, || unseen.count())
                .map_err(|why| format!("{RETRANSMITS} of {}: {why}", pod.netns.name()))
        });
        let expected = if pod.netns.name() == other.netns.name() {
            sent == 0
        } else {
            sent >= 12
        };
        assert!(expected, "the lab failed: {sent} by {}", pod.netns.name());
    }
    // Towards whom.
    let metrics = scene.agent.metrics();
    let mut told = 0;
    for family in Family::ALL {
        let peer = far.address(family).to_string();
        told += metrics.count(PEERS, &[("peer", &peer), ("kind", "retransmit")]);
    }
    let sent = kernel::Statistics::of(&client.netns).data_retransmitted();
    within(told, sent, || unseen.count())
        .unwrap_or_else(|why| panic!("retransmissions towards the far pod: {why}"));
    assert_eq!(scene.dead(), [], "it answered");
    scene.agent.stop_cleanly();
}

/// SYNs sent again are no segments of established connections.
#[test]
fn a_syn_sent_again_is_no_retransmission() {
    let (scene, [client]) = Scene::new(Wiring::Bridged, ["client"]);
    let to = Family::ALL.map(|family| scene.port(family, tests::tcp::scene::DROPPED));
    let attempts = to.map(|to| Attempt::new(to, Means::Polled, Duration::from_millis(2500)));
    let tally = Tally::of(&tests::tcp::run(&client.netns, &attempts, 10));
    let sent = kernel::Statistics::of(&client.netns);
    assert!(
        sent.syns_retransmitted >= 4 && sent.data_retransmitted() == 0,
        "the lab failed: {sent:?}"
    );
    eventually(SOON, || {
        compare(&scene.agent.metrics(), client.labels(), &tally)
    });
    assert_eq!(count(&scene.agent, RETRANSMITS, &client), 0);
    scene.settle(&[(&client, &tally)]);
}

/// Answers each message of so many bytes with as many.
fn echo(listener: TcpListener, bytes: usize) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || serve(stream, bytes));
        }
    })
}

fn serve(mut stream: TcpStream, bytes: usize) {
    let mut message = vec![0; bytes];
    while stream.read_exact(&mut message).is_ok() {
        if message[0] == b'q' || stream.write_all(&message).is_err() {
            return;
        }
    }
}

/// Says so many bytes and hears them back, again and again until this moment; gives how often.
fn talk(pod: &Pod, to: SocketAddr, bytes: usize, end: Instant) -> u64 {
    let mut stream = pod
        .netns
        .run(|| TcpStream::connect(to).expect("it answers"));
    set_tcp_nodelay(&stream, true).expect("option can be set");
    let mut message = vec![1; bytes];
    let mut calls = 0;
    while Instant::now() < end {
        stream.write_all(&message).expect("it lives");
        stream.read_exact(&mut message).expect("it lives");
        calls += 1;
    }
    calls
}

/// One packet in a hundred is lost each way, and calls go on: small and large ones on connections
/// that stay, and new connections.
#[test]
fn connections_that_live_with_loss_are_not_dead() {
    let (mut scene, [client]) = Scene::new(Wiring::Routed, ["client"]);
    let far = Arc::clone(&scene.node.far.netns);
    let unseen = Unseen::watch(&[("tcp/tcp_retransmit_skb", "0")]);
    let rules = Rules::load(
        &scene.node.router,
        " chain lossy { type filter hook forward priority 0; \
         meta l4proto tcp numgen random mod 100 < 1 counter name hit drop; }\n",
    );
    let end = Instant::now() + Duration::from_secs(15);
    let mut streams = Vec::new();
    for (family, port, bytes) in [
        (Family::V4, 4000, 100),
        (Family::V6, 4000, 100),
        (Family::V4, 4001, 200_000),
        (Family::V6, 4001, 200_000),
    ] {
        let to = scene.port(family, port);
        let listener = far.run(|| TcpListener::bind(to).expect("the port is free"));
        let _ends_with_the_process = echo(listener, bytes);
        for _ in 0..2 {
            streams.push((to, bytes));
        }
    }
    let open = Family::ALL.map(|family| scene.port(family, OPEN));
    let mut tally = Tally::default();
    tally.add("established", streams.len() as u64);
    let calls: u64 = scope(|threads| {
        let talking: Vec<_> = streams
            .iter()
            .map(|(to, bytes)| threads.spawn(|| talk(&client, *to, *bytes, end)))
            .collect();
        while Instant::now() < end {
            // The kernel sends lost SYNs again.
            let attempts = open.map(|to| Attempt::endless(to, Means::Polled));
            tally.join(&Tally::of(&tests::tcp::run(&client.netns, &attempts, 100)));
            assert_eq!(scene.dead(), [], "it lives");
        }
        let calls = talking.into_iter().map(|t| t.join().expect("it talks"));
        calls.sum()
    });
    let lost = rules.hits();
    drop(rules);
    eprintln!("{calls} calls, {tally:?}, {lost} packets lost");
    assert!(lost >= 20, "the lab failed: {lost} lost");
    assert_eq!(tally.failed(), 0, "the lab failed: {tally:?}");
    for pod in [&client, &scene.node.far] {
        // What was lost last may be sent again for a moment more.
        eventually(SOON, || {
            let sent = kernel::Statistics::of(&pod.netns).data_retransmitted();
            let shown = count(&scene.agent, RETRANSMITS, pod);
            let metrics = scene.agent.metrics();
            let missed = metrics.sum("tracer_program_misses_total", &[("hook", "tcp")]);
            // A row of segments (GSO) is sent again at once.
            let unseen = 64 * unseen.count();
            let short = sent.checked_sub(shown);
            // One that nobody saw must not excuse a hook that sees little.
            let most = 10 * shown >= 9 * sent;
            ensure(
                sent > 0 && most && short.is_some_and(|n| n <= unseen),
                || {
                    let name = pod.netns.name();
                    let failed = kernel::extended(&pod.netns, "TCPRetransFail");
                    format!(
                        "{RETRANSMITS} of {name} is {shown}, the kernel sent {sent} again and {failed} \
                     times could not; at most {unseen} were shown to no program, {missed} runs missed"
                    )
                },
            )
        });
    }
    let metrics = scene.agent.metrics();
    assert_eq!(scene.dead(), [], "it lives");
    assert_eq!(metrics.count(RESETS, &client.labels()), 0);
    scene.events.listen(Duration::from_millis(500));
    let told: Vec<_> = scene
        .events
        .seen
        .iter()
        .filter(|event| event.is("connect_failure", client.netns.name()))
        .collect();
    assert!(told.is_empty(), "nothing failed: {told:?}");
    scene.settle(&[(&client, &tally)]);
}

/// Panics unless an event tells that this connection fell silent.
fn assert_told_silent(scene: &mut Scene, client: &Pod, source: SocketAddr, to: SocketAddr) {
    let event = scene.events.find(SOON, |event| {
        event.is("connect_failure", client.netns.name())
            && event.text("result") == "silent"
            && event.text("source") == source.to_string()
            && event.text("destination") == to.to_string()
    });
    assert!(event.is_some(), "no event of {source} to {to}");
}

/// The peer is gone without a word: the connection dies of it, and the attempt it once was stays
/// established.
#[test]
fn a_connection_whose_peer_vanishes_is_silent() {
    let (mut scene, [client]) = Scene::new(Wiring::Routed, ["client"]);
    for family in Family::ALL {
        let to = scene.port(family, 4000);
        let (mut streams, ends) = connected(&scene, &client, to, Means::Polled, 2);
        let source = streams[0].local_addr().expect("it has an address");
        let rules = Rules::drop(&scene.node.router, "forward", "tcp dport 4000");
        for stream in &mut streams {
            set_tcp_user_timeout(stream.as_fd(), 1500).expect("option can be set");
            stream.write_all(b"are you there?").expect("it is open");
        }
        for stream in &mut streams {
            let error = stream.read(&mut [0; 9]).expect_err("nobody answers");
            assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "the lab failed");
        }
        assert_told_silent(&mut scene, &client, source, to);
        drop((rules, streams, ends));
    }
    assert_eq!(count(&scene.agent, RESETS, &client), 0, "nobody reset");
    let mut tally = Tally::default();
    tally.add("established", 4);
    scene.settle(&[(&client, &tally)]);
}

/// What a full neighbour table does to a connection, or a rule of the pod's own: nothing is sent again, and nothing
/// comes.
#[test]
fn a_connection_that_can_send_nothing_again_is_silent_too() {
    if !has_field("tcp/tcp_retransmit_skb", "err") {
        eprintln!(
            "nothing checked: before 6.17 the kernel does not tell of what it could not send again"
        );
        return;
    }
    let (mut scene, [client]) = Scene::new(Wiring::Routed, ["client"]);
    for family in Family::ALL {
        let to = scene.port(family, 4000);
        let (mut streams, ends) = connected(&scene, &client, to, Means::Polled, 1);
        let source = streams[0].local_addr().expect("it has an address");
        set_tcp_user_timeout(streams[0].as_fd(), 3000).expect("option can be set");
        // It is sent, and lost; from then on nothing leaves.
        let lost = Rules::drop(&scene.node.router, "forward", "tcp dport 4000");
        streams[0].write_all(b"are you there?").expect("it is open");
        let rules = (lost, Rules::drop(&client.netns, "output", "tcp dport 4000"));
        let error = streams[0].read(&mut [0; 9]).expect_err("nobody answers");
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "the lab failed");
        assert_told_silent(&mut scene, &client, source, to);
        assert!(
            rules.1.hits() >= 3,
            "the lab failed: {} refused",
            rules.1.hits()
        );
        drop((rules, streams, ends));
    }
    let mut tally = Tally::default();
    tally.add("established", 2);
    scene.settle(&[(&client, &tally)]);
}

/// An API server that hangs: it takes requests and answers none, and the connection is healthy.
#[test]
fn a_request_that_nobody_answers_is_silent() {
    let (mut scene, [client, served]) = Scene::new(Wiring::Routed, ["client", "served"]);
    let hangs = scene.port(Family::V4, 6443);
    let answers = scene.port(Family::V6, 6443);
    let listener = scene
        .node
        .far
        .netns
        .run(|| TcpListener::bind(answers).expect("the port is free"));
    let _ends_with_the_process = echo(listener, 100);
    let (mut streams, _ends) = connected(&scene, &client, hangs, Means::Polled, 1);
    let source = streams[0].local_addr().expect("it has an address");
    streams[0].write_all(&[1; 100]).expect("it is open");
    let mut stream = served
        .netns
        .run(|| TcpStream::connect(answers).expect("it answers"));
    let end = Instant::now() + Duration::from_secs(90);
    let told = loop {
        // Who is answered is not told, however often it asks.
        stream.write_all(&[1; 100]).expect("it is open");
        stream.read_exact(&mut [0; 100]).expect("it is answered");
        let found = scene.events.find(Duration::from_millis(500), |event| {
            // The sockets of a test before may live on for a while.
            let pod = event.json["pod"]["name"].as_str().unwrap_or_default();
            event.text("kind") == "connect_failure"
                && event.text("result") == "silent"
                && [client.netns.name(), served.netns.name()].contains(&pod)
        });
        if let Some(event) = found {
            break event;
        }
        assert!(Instant::now() < end, "no event in 90 s");
    };
    let shown = &told.json;
    assert_eq!(shown["pod"]["name"], client.netns.name(), "{shown}");
    assert_eq!(told.text("source"), source.to_string(), "{shown}");
    assert_eq!(told.text("destination"), hangs.to_string(), "{shown}");
    let again = scene.events.find(Duration::from_secs(1), |event| {
        event.is("connect_failure", served.netns.name())
    });
    assert!(again.is_none(), "{again:?}");
    scene.agent.stop_cleanly();
}

/// The last segments of a connection, when the program has closed it already.
#[test]
fn a_good_bye_that_is_lost_is_sent_again_and_counted() {
    let unseen = Unseen::watch(&[("tcp/tcp_retransmit_skb", "0")]);
    let (scene, [client]) = Scene::new(Wiring::Routed, ["client"]);
    for (family, server_first) in [
        (Family::V4, true),
        (Family::V4, false),
        (Family::V6, true),
        (Family::V6, false),
    ] {
        let port = 4000 + u16::from(server_first);
        let to = scene.port(family, port);
        let (streams, ends) = connected(&scene, &client, to, Means::Polled, 3);
        let rules = Rules::drop(
            &scene.node.router,
            "forward",
            &format!("tcp dport {port} tcp flags & fin == fin"),
        );
        if server_first {
            drop(ends);
            for mut stream in streams {
                assert_eq!(stream.read(&mut [0]).expect("a good-bye"), 0);
            }
        } else {
            drop(streams);
        }
        eventually(SOON, || {
            let lost = rules.hits();
            ensure(lost >= 9, || format!("{lost} lost"))
        });
        drop(rules);
    }
    eventually(SOON, || {
        let before = kernel::Statistics::of(&client.netns).data_retransmitted();
        let shown = count(&scene.agent, RETRANSMITS, &client);
        let sent = kernel::Statistics::of(&client.netns).data_retransmitted();
        // The timers of one round may all end in a softirq that the kernel hides.
        let unseen = unseen.count().min(sent / 6);
        let may = before.saturating_sub(unseen)..=sent;
        ensure(sent >= 24 && may.contains(&shown), || {
            format!("{RETRANSMITS} is {shown}, the kernel sent {sent} again, {unseen} unseen")
        })
    });
    scene.agent.stop_cleanly();
}
