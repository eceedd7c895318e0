//! Hook `tcp`: attempts that are unlike the usual ones: each is one attempt, with its own end.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_linger, set_socket_reuseaddr};
use rustix::net::{SendFlags, bind, connect, connect_unspec, sendto};
use tests::netns::Pod;
use tests::process::Reaped;
use tests::router::Wiring;
use tests::tcp::client::source;
use tests::tcp::scene::{CLOSED, DROPPED, OPEN, PATIENCE};
use tests::tcp::truth::{POD_CONNECTS, compare};
use tests::tcp::{Attempt, Manner, Means, Scene, Server, Tally, kernel, run};
use tests::wait::ensure;
use tests::{Family, eventually};

fn scene() -> (Scene, Pod) {
    let (scene, [client]) = Scene::new(Wiring::Routed, ["client"]);
    (scene, client)
}

/// A socket on its way to a destination that says nothing.
fn under_way(pod: &Pod, to: SocketAddr) -> OwnedFd {
    let attempt = Attempt::endless(to, Means::Polled);
    pod.netns.run(|| {
        let socket = attempt.socket();
        assert_eq!(connect(&socket, &to), Err(Errno::INPROGRESS), "to {to}");
        socket
    })
}

fn tally(counts: &[(&'static str, u64)]) -> Tally {
    let mut tally = Tally::default();
    for (result, count) in counts {
        tally.add(result, *count);
    }
    tally
}

/// Ground truth: the pod's sockets that went to SYN-SENT.
fn assert_opened(pod: &Pod, expected: u64) {
    let opened = kernel::Statistics::of(&pod.netns).active_opens;
    assert_eq!(opened, expected, "the lab failed");
}

/// One socket, connected again and again.
#[test]
fn a_socket_used_again_is_an_attempt_each_time() {
    let (scene, client) = scene();
    for family in Family::ALL {
        let [closed, silent, open] = [CLOSED, DROPPED, OPEN].map(|port| scene.port(family, port));
        client.netns.run(|| {
            let socket = Attempt::endless(closed, Means::Blocking).socket();
            for _ in 0..3 {
                assert_eq!(connect(&socket, &closed), Err(Errno::CONNREFUSED));
            }
            assert_eq!(connect(&socket, &open), Ok(()));
            connect_unspec(&socket).expect("it can be disconnected");
            assert_eq!(connect(&socket, &open), Ok(()));

            // Given up without being closed.
            let socket = Attempt::endless(silent, Means::Polled).socket();
            for _ in 0..3 {
                assert_eq!(connect(&socket, &silent), Err(Errno::INPROGRESS));
                connect_unspec(&socket).expect("it can be disconnected");
            }
        });
    }
    assert_opened(&client, 16);
    let tally = tally(&[("refused", 6), ("established", 4), ("timeout", 6)]);
    scene.settle(&[(&client, &tally)]);
}

/// The process that connects gives its socket to another and ends it for itself; the attempt ends
/// when the last of them closes it, here by its death.
#[test]
fn an_attempt_ends_with_the_last_process_that_has_it() {
    let (scene, client) = scene();
    let to = scene.port(Family::V4, DROPPED);
    let socket = under_way(&client, to);
    let mut heir = Reaped(
        Command::new("sleep")
            .arg("60")
            .stdin(Stdio::from(socket))
            .spawn()
            .expect("sleep runs"),
    );
    let refused = run(
        &client.netns,
        &[Attempt::new(
            scene.port(Family::V4, CLOSED),
            Means::Polled,
            PATIENCE,
        )],
        1,
    );
    assert_eq!(refused[0].result, "refused", "the lab failed");
    eventually(Duration::from_secs(5), || {
        compare(
            &scene.agent.metrics(),
            client.labels(),
            &tally(&[("refused", 1)]),
        )
    });
    heir.0.kill().expect("it runs");
    heir.wait(Duration::from_secs(2));
    let tally = tally(&[("refused", 1), ("timeout", 1)]);
    scene.settle(&[(&client, &tally)]);
}

/// Two ends that call each other at once: each called, and each was answered.
#[test]
fn two_that_call_each_other_are_both_established() {
    const PORT: u16 = 4000;
    let (scene, [one, two]) = Scene::new(Wiring::Bridged, ["one", "two"]);
    let mut met = 0;
    for family in Family::ALL {
        let ends = [&one, &two].map(|pod| SocketAddr::new(pod.address(family), PORT));
        // Their SYNs are to cross: the node holds the first back until both are under way.
        let rules = tests::nft::Rules::drop(
            &scene.node.router,
            "forward",
            &format!("tcp sport {PORT} tcp dport {PORT}"),
        );
        let open = |pod: &Pod, own: SocketAddr, to: SocketAddr| {
            pod.netns.run(|| {
                let socket = Attempt::endless(to, Means::Polled).socket();
                bind(&socket, &own).expect("the port is free");
                assert_eq!(connect(&socket, &to), Err(Errno::INPROGRESS));
                socket
            })
        };
        let sockets = [open(&one, ends[0], ends[1]), open(&two, ends[1], ends[0])];
        // Now they are sent again.
        drop(rules);
        for socket in &sockets {
            eventually(Duration::from_secs(5), || {
                rustix::net::getpeername(socket).map(|_| ())
            });
        }
        met += 1;
        // No good-bye that the other end would take for a reset.
        drop(sockets);
    }
    assert_opened(&one, met);
    assert_opened(&two, met);
    let tally = tally(&[("established", met)]);
    scene.settle(&[(&one, &tally), (&two, &tally)]);
}

/// A socket that calls its own port: there is nobody but itself, and the kernel lets it.
#[test]
fn a_socket_that_calls_itself_is_one_established_attempt() {
    let (scene, client) = scene();
    for own in ["127.0.0.1:4001", "[::1]:4001"] {
        let own: SocketAddr = own.parse().expect("an address");
        client.netns.run(|| {
            let socket = Attempt::endless(own, Means::Blocking).socket();
            set_socket_reuseaddr(&socket, true).expect("option can be set");
            bind(&socket, &own).expect("the port is free");
            assert_eq!(connect(&socket, &own), Ok(()));
            assert_eq!(source(&socket), own);
        });
    }
    assert_opened(&client, 2);
    let tally = tally(&[("established", 2)]);
    scene.settle(&[(&client, &tally)]);
}

/// TCP Fast Open: the first data goes with the SYN, and the call returns before the answer.
#[test]
fn a_fast_open_is_one_attempt() {
    const MSG_FASTOPEN: u32 = 0x2000_0000;
    let (scene, client) = scene();
    // Client, server, data without a cookie on either side, all listeners.
    for netns in [&client.netns, &scene.node.far.netns] {
        netns.sysctl("ipv4/tcp_fastopen", "1543");
    }
    let flags = SendFlags::from_bits_retain(MSG_FASTOPEN);
    let before = kernel::extended(&client.netns, "TCPFastOpenActive");
    let [open, closed, silent] = [4080, 4081, DROPPED].map(|port| scene.port(Family::V4, port));
    let _server = Server::start(&scene.node.far.netns, &[open], Manner::Hold);
    let send = |to: SocketAddr, means| {
        client.netns.run(|| {
            let socket = Attempt::endless(to, means).socket();
            (sendto(&socket, b"hello", flags, &to), socket)
        })
    };
    for _ in 0..3 {
        assert_eq!(send(open, Means::Blocking).0, Ok(5));
    }
    let opened = kernel::extended(&client.netns, "TCPFastOpenActive") - before;
    assert_eq!(opened, 3, "the lab failed: no fast open");
    assert_eq!(send(closed, Means::Blocking).0, Err(Errno::CONNREFUSED));
    // Sent, and closed before anything came back.
    let (answer, socket) = send(silent, Means::Polled);
    assert!(
        matches!(answer, Ok(5) | Err(Errno::INPROGRESS)),
        "{answer:?}"
    );
    drop(socket);
    assert_opened(&client, 5);
    let tally = tally(&[("established", 3), ("refused", 1), ("timeout", 1)]);
    scene.settle(&[(&client, &tally)]);
}

/// Multipath TCP is two sockets, one within the other, and one attempt to the program; the other end
/// may speak it or not.
#[test]
fn multipath_is_one_attempt() {
    let (scene, client) = scene();
    let mut ended = Vec::new();
    for family in Family::ALL {
        let destinations = [
            (scene.port(family, OPEN), PATIENCE),
            (scene.port(family, CLOSED), PATIENCE),
            (scene.port(family, DROPPED), Duration::from_millis(300)),
        ];
        for (to, patience) in destinations {
            let attempt = Attempt::new(to, Means::Multipath, patience);
            ended.extend(run(&client.netns, &[attempt], 1));
        }
        // Both ends.
        let to = scene.port(family, 4090);
        let listener = scene.node.far.netns.run(|| {
            let socket = Attempt::endless(to, Means::Multipath).socket();
            bind(&socket, &to).expect("the port is free");
            rustix::net::listen(&socket, 8).expect("it can listen");
            TcpListener::from(socket)
        });
        let attempt = Attempt::new(to, Means::Multipath, PATIENCE);
        ended.extend(run(&client.netns, &[attempt], 1));
        drop(listener);
    }
    let saw = Tally::of(&ended);
    let expected = tally(&[("established", 4), ("refused", 2), ("timeout", 2)]);
    assert_eq!(saw, expected, "the lab failed: {ended:?}");
    let capable = kernel::extended_multipath(&client.netns, "MPCapableSYNTX");
    assert!(
        capable >= 8,
        "the lab failed: {capable} asked for multipath"
    );
    scene.settle(&[(&client, &saw)]);
}

/// A listener whose queue is full drops SYNs: silence to the client.
#[test]
fn a_full_listener_is_a_timeout() {
    let (scene, client) = scene();
    let mut all = Tally::default();
    for family in Family::ALL {
        let to = scene.port(family, 4100);
        // Never accepts; room for two.
        let _listener = scene.node.far.netns.run(|| {
            let listener = TcpListener::bind(to).expect("the port is free");
            rustix::net::listen(&listener, 1).expect("it can listen");
            listener
        });
        let keep: Vec<OwnedFd> = client.netns.run(|| {
            (0..2)
                .map(|_| {
                    let socket = Attempt::endless(to, Means::Blocking).socket();
                    connect(&socket, &to).expect("there is room");
                    socket
                })
                .collect()
        });
        all.add("established", 2);
        let attempts = [Attempt::new(to, Means::Polled, Duration::from_millis(1300))].repeat(5);
        let ended = Tally::of(&run(&client.netns, &attempts, 1000));
        assert_eq!(ended.count("timeout"), 5, "the lab failed: {ended:?}");
        all.join(&ended);
        drop(keep);
    }
    let overflows = kernel::extended(&scene.node.far.netns, "ListenOverflows");
    assert!(overflows >= 10, "the lab failed: {overflows} overflows");
    scene.settle(&[(&client, &all)]);
}

/// A name under `/run/netns` goes while sockets in the namespace are under way.
#[test]
fn attempts_that_outlive_their_namespaces_name_keep_it() {
    let (scene, [client, survivor]) = Scene::new(Wiring::Routed, ["client", "survivor"]);
    let sockets = Family::ALL.map(|family| under_way(&client, scene.port(family, DROPPED)));
    // Known to the agent by what it has done.
    let first = Attempt::new(scene.port(Family::V4, OPEN), Means::Polled, PATIENCE);
    assert_eq!(run(&client.netns, &[first], 1)[0].result, "established");
    eventually(Duration::from_secs(5), || {
        let done = tally(&[("established", 1)]);
        compare(&scene.agent.metrics(), client.labels(), &done)
    });
    let name = client.netns.name().to_owned();
    let client = Arc::into_inner(client.netns).expect("nobody else has it");
    drop(client);
    drop(sockets);
    let labels = [("namespace", "(netns)"), ("pod", &*name)];
    eventually(Duration::from_secs(5), || {
        let done = tally(&[("established", 1), ("timeout", 2)]);
        compare(&scene.agent.metrics(), labels, &done)
    });
    let after = run(&survivor.netns, &[first], 1);
    scene.settle(&[(&survivor, &Tally::of(&after))]);
}

/// The server's side of each handshake, whatever becomes of it, is no attempt; nor is a listener that
/// closes with connections in its queue.
#[test]
fn to_be_called_is_no_attempt() {
    let (scene, client) = scene();
    let far = &scene.node.far;
    for family in Family::ALL {
        let to = scene.port(family, 4200);
        let listener = far
            .netns
            .run(|| TcpListener::bind(to).expect("the port is free"));
        let streams: Vec<TcpStream> = client.netns.run(|| {
            (0..6)
                .map(|_| TcpStream::connect(to).expect("it answers"))
                .collect()
        });
        let (accepted, _) = listener.accept().expect("six wait");
        // Reset by the client before it is accepted, and after.
        for stream in streams.into_iter().take(2) {
            set_socket_linger(stream.as_fd(), Some(Duration::ZERO)).expect("option can be set");
        }
        drop((accepted, listener));
    }
    assert_opened(&client, 12);
    let tally = tally(&[("established", 12)]);
    eventually(Duration::from_secs(5), || {
        compare(&scene.agent.metrics(), client.labels(), &tally)
    });
    let served = scene.agent.metrics().count(POD_CONNECTS, &far.labels());
    assert_eq!(served, 0, "the server's side");
    scene.settle(&[(&client, &tally)]);
}

/// No route in the pod itself: the call fails before anything is sent, and the kernel tells nobody.
/// Where tracer counts it, it is as what the client saw.
#[test]
fn a_call_that_fails_before_its_first_packet_is_unreachable_or_not_counted() {
    let (scene, client) = scene();
    client.netns.ip("route del default");
    client.netns.ip("-6 route del default");
    let to = [
        "192.0.2.1:80".parse().expect("an address"),
        "[2001:db8::1]:80".parse().expect("an address"),
    ];
    let attempts = to.map(|to: SocketAddr| Attempt::new(to, Means::Polled, PATIENCE));
    let ended = run(&client.netns, &attempts, 10);
    assert!(
        ended.iter().all(|one| one.result == "unreachable"),
        "the lab failed: {ended:?}"
    );
    let hub: IpAddr = client.hub(Family::V4);
    let refused = [Attempt::new(
        SocketAddr::new(hub, CLOSED),
        Means::Polled,
        PATIENCE,
    )];
    assert_eq!(run(&client.netns, &refused, 1)[0].result, "refused");
    eventually(Duration::from_secs(5), || {
        let metrics = scene.agent.metrics();
        let count = |result| {
            let labels = [&client.labels()[..], &[("result", result)]].concat();
            metrics.count(POD_CONNECTS, &labels)
        };
        let [refused, unreachable] = ["refused", "unreachable"].map(count);
        let all = metrics.count(POD_CONNECTS, &client.labels());
        ensure(
            refused == 1 && (unreachable == 0 || unreachable == 2) && all == refused + unreachable,
            || format!("{refused} refused, {unreachable} unreachable of {all}"),
        )
    });
    scene.agent.stop_cleanly();
}
