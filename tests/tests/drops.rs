//! Hook `drops`: packets dropped for a reason that means failure, and whose they were.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::time::Duration;

use tests::netns::Pod;
use tests::nft::Rules;
use tests::router::Wiring;
use tests::snmp::receive_buffer_errors;
use tests::tcp::scene::CLOSED;
use tests::tcp::{Attempt, Means, Scene, run};
use tests::unseen::{Unseen, has_field};
use tests::wait::ensure;
use tests::{Agent, Family, Metrics, eventually};

const SOON: Duration = Duration::from_secs(5);
const POD: &str = "tracer_pod_drops_total";
const NODE: &str = "tracer_node_drops_total";
const RECEIVE: &str = "tracer_pod_udp_receive_drops_total";

fn dropped(metrics: &Metrics, pod: &Pod, reason: &str) -> u64 {
    let labels = [&pod.labels()[..], &[("reason", reason)]].concat();
    metrics.count(POD, &labels)
}

/// Datagrams from one socket of the pod, one to each.
fn send(pod: &Pod, to: &[SocketAddr]) {
    pod.netns.run(|| {
        for to in to {
            let any: IpAddr = if to.is_ipv4() {
                [0; 4].into()
            } else {
                [0; 16].into()
            };
            let socket = UdpSocket::bind((any, 0)).expect("a port is free");
            socket
                .send_to(b"anybody there?", to)
                .expect("it can be sent");
        }
    });
}

/// Waits until each pod has so many drops for a reason, and the node is the sum of all pods.
fn await_drops(agent: &Agent, expected: &[(&Pod, &str, u64)]) {
    eventually(SOON, || {
        let metrics = agent.metrics();
        for (pod, reason, count) in expected {
            let shown = dropped(&metrics, pod, reason);
            ensure(shown == *count, || {
                let name = pod.netns.name();
                format!("{name} has {shown} {reason}, not {count}")
            })?;
        }
        let held = metrics.count("tracer_unattributed_pending", &[("hook", "drops")]);
        let mut more = 0;
        for (labels, _) in metrics.matching(NODE, &[]) {
            let reason = [("reason", labels["reason"].as_str())];
            let [node, pods] = [NODE, POD].map(|name| metrics.count(name, &reason));
            ensure(node >= pods, || {
                format!("{reason:?}: node {node}, pods {pods}")
            })?;
            more += node - pods;
        }
        ensure(more <= held, || {
            format!("the node has {more} drops more than its pods, {held} held back")
        })
    });
}

/// UDP to where nobody is, on the pod's own segment and behind the node: the application hears
/// nothing, and the drops are its pod's.
fn nobody_there(wiring: Wiring) {
    let (mut scene, [few, many]) = Scene::new(wiring, ["few", "many"]);
    for pod in [&few, &many] {
        pod.netns.sysctl("ipv4/neigh/eth0/retrans_time_ms", "100");
    }
    // The neighbour's queue has room for all.
    let beyond = |n: u16| SocketAddr::new(scene.nobody(Family::V4, n).ip(), 9);
    let own = |pod: &Pod, n: u16| SocketAddr::new(pod.neighbour(Family::V4, 2000 + n), 9);
    let mut sent = Vec::new();
    for (pod, from, count) in [(&few, 0, 5), (&many, 100, 30)] {
        let there: Vec<SocketAddr> = (from..from + count).map(beyond).collect();
        send(pod, &there);
        let here: Vec<SocketAddr> = (0..count / 5).map(|n| own(pod, n)).collect();
        send(pod, &here);
        sent.push((pod, "neigh_failed", u64::from(count + count / 5)));
    }
    await_drops(&scene.agent, &sent);
    let to = beyond(3).to_string();
    let event = scene.events.wait(SOON, |event| {
        event.is("drop", few.netns.name()) && event.text("destination") == to
    });
    let shown = &event.json;
    let source: SocketAddr = event.text("source").parse().expect("an address and a port");
    assert_eq!(shown["reason"], "neigh_failed", "{shown}");
    assert_eq!(source.ip(), few.address(Family::V4), "{shown}");
    assert!(source.port() >= 1024, "{shown}");
    let protocol = event.text("protocol").to_lowercase();
    assert_eq!(protocol, "udp", "{shown}");
    assert_eq!(shown["device"], scene.node.far.link(), "{shown}");
    scene.agent.stop_cleanly();
}

#[test]
fn datagrams_of_a_routed_pod_to_nobody_are_its_drops() {
    nobody_there(Wiring::Routed);
}

#[test]
fn datagrams_of_a_bridged_pod_to_nobody_are_its_drops() {
    nobody_there(Wiring::Bridged);
}

/// Wherever a rule drops a packet, the pod that it came from has the drop; ground truth is the rule's
/// counter.
#[test]
fn what_netfilter_drops_is_the_senders() {
    let (scene, [one, two]) = Scene::new(Wiring::Bridged, ["one", "two"]);
    let (router, far) = (&scene.node.router, &scene.node.far);
    let _listeners = Family::ALL.map(|family| {
        let at = (far.address(family), 9);
        far.netns
            .run(|| UdpSocket::bind(at).expect("the port is free"))
    });
    let mut hits = [0, 0];
    for (index, (pod, count)) in [(&one, 4), (&two, 7)].into_iter().enumerate() {
        for (netns, hook) in [
            (router, "forward"),
            (router, "prerouting"),
            (router, "postrouting"),
            (&far.netns, "input"),
        ] {
            let rules = Rules::drop(netns, hook, "udp dport 9");
            for family in Family::ALL {
                send(pod, &vec![SocketAddr::new(far.address(family), 9); count]);
            }
            let hit = eventually(SOON, || {
                let hit = rules.hits();
                ensure(hit == 2 * count as u64, || {
                    format!("the lab failed, {hook}: {hit} of {}", 2 * count)
                })
                .map(|()| hit)
            });
            hits[index] += hit;
        }
    }
    await_drops(
        &scene.agent,
        &[
            (&one, "netfilter_drop", hits[0]),
            (&two, "netfilter_drop", hits[1]),
            (far, "netfilter_drop", 0),
        ],
    );
    scene.agent.stop_cleanly();
}

/// An answer that is dropped on its way is the drop of who asked.
#[test]
fn answers_that_netfilter_drops_are_those_of_the_pod_they_were_for() {
    let (scene, [client]) = Scene::new(Wiring::Routed, ["client"]);
    // The answers to SYNs.
    let rules = Rules::drop(
        &scene.node.router,
        "forward",
        "tcp sport 80 tcp flags syn,ack / syn,ack",
    );
    let attempts = Family::ALL.map(|family| {
        let to = scene.port(family, tests::tcp::scene::OPEN);
        Attempt::new(to, Means::Polled, Duration::from_millis(1500))
    });
    let ended = run(&client.netns, &attempts, 100);
    assert!(
        ended.iter().all(|one| one.result == "timeout"),
        "the lab failed: {ended:?}"
    );
    eventually(SOON, || {
        let before = rules.hits();
        let shown = dropped(&scene.agent.metrics(), &client, "netfilter_drop");
        let after = rules.hits();
        ensure(before >= 4 && (before..=after).contains(&shown), || {
            format!("{shown} of {before} to {after}")
        })
    });
    let served = dropped(&scene.agent.metrics(), &scene.node.far, "netfilter_drop");
    assert_eq!(served, 0, "the server's");
    scene.agent.stop_cleanly();
}

/// So are the fragments of one, of which only the first says its ports.
#[test]
fn lost_fragments_of_an_answer_are_those_of_the_pod_it_was_for() {
    let (scene, [client]) = Scene::new(Wiring::Routed, ["client"]);
    // A node that tracks connections puts fragments together, and takes the whole apart again at its end.
    let router = &scene.node.router;
    let _tracking = Rules::load(
        router,
        " chain track { type filter hook forward priority 0; ct state invalid drop; }",
    );
    let later = ["ip frag-off & 0x1fff != 0", "frag frag-off != 0"];
    let rules = Rules::drop_at(router, &client.link(), &later);
    let far = &scene.node.far;
    for family in Family::ALL {
        let listen = |pod: &Pod| {
            let at = (pod.address(family), 0);
            pod.netns
                .run(|| UdpSocket::bind(at).expect("a port is free"))
        };
        let [asks, answers] = [&client, far].map(listen);
        answers.set_read_timeout(Some(SOON)).expect("a time is set");
        let to = answers.local_addr().expect("it is bound");
        asks.send_to(b"how much?", to).expect("it can be sent");
        let (_, from) = answers.recv_from(&mut [0; 16]).expect("it is asked");
        answers.send_to(&[0; 4000], from).expect("it can be sent");
    }
    // Of each answer the second of three: a kernel that cannot send one does not try the next.
    eventually(SOON, || {
        ensure(rules.hits() == 2, || {
            format!("the lab failed: {} fragments", rules.hits())
        })
    });
    await_drops(
        &scene.agent,
        &[(&client, "netfilter_drop", 2), (far, "netfilter_drop", 0)],
    );
    scene.agent.stop_cleanly();
}

/// The node puts it together before it drops it.
#[test]
fn a_datagram_in_fragments_is_one_drop() {
    const PORT: u16 = 4444;
    let (scene, [client]) = Scene::new(Wiring::Routed, ["client"]);
    let rules = Rules::load(
        &scene.node.router,
        " chain refuse { type filter hook forward priority 0; ct state invalid drop; \
         udp dport 4444 counter name hit drop; }",
    );
    for family in Family::ALL {
        let from = (client.address(family), 0);
        let to = (scene.node.far.address(family), PORT);
        client.netns.run(|| {
            let socket = UdpSocket::bind(from).expect("a port is free");
            socket.send_to(&[0; 4000], to).expect("it can be sent");
        });
    }
    eventually(SOON, || {
        let hits = rules.hits();
        ensure(hits == 2, || format!("the lab failed: {hits} datagrams"))
    });
    await_drops(
        &scene.agent,
        &[
            (&client, "netfilter_drop", 2),
            (&scene.node.far, "netfilter_drop", 0),
        ],
    );
    let metrics = scene.agent.metrics();
    let node = metrics.count("tracer_node_drops_total", &[("reason", "netfilter_drop")]);
    assert_eq!(node, 2);
    scene.agent.stop_cleanly();
}

/// What comes to a port where nobody listens is a drop of who sent it.
#[test]
fn what_comes_to_a_closed_port_is_the_senders_drop() {
    let (scene, [client, idle]) = Scene::new(Wiring::Routed, ["client", "idle"]);
    let mut expected = 0;
    for family in Family::ALL {
        let to = scene.port(family, CLOSED);
        send(&client, &[to; 6]);
        let attempts = [Attempt::new(to, Means::Polled, SOON)].repeat(3);
        let ended = run(&client.netns, &attempts, 100);
        assert!(
            ended.iter().all(|one| one.result == "refused"),
            "the lab failed: {ended:?}"
        );
        expected += 9;
    }
    await_drops(
        &scene.agent,
        &[
            (&client, "no_socket", expected),
            (&idle, "no_socket", 0),
            (&scene.node.far, "no_socket", 0),
        ],
    );
    scene.agent.stop_cleanly();
}

/// Sockets that are bound and never read, with the smallest buffer there is.
fn deaf(pod: &Pod, family: Family, ports: Range<u16>) -> Vec<UdpSocket> {
    pod.netns.run(|| {
        ports
            .map(|port| {
                let at = (pod.address(family), port);
                let socket = UdpSocket::bind(at).expect("the port is free");
                rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 1)
                    .expect("buffer is set");
                socket
            })
            .collect()
    })
}

/// Thirty ports, the last the busiest: twenty have names, the rest is one, and nothing is lost.
#[test]
fn datagrams_lost_in_full_sockets_are_counted_for_each_port() {
    const PORTS: u16 = 30;
    let (mut scene, [sender, reader]) = Scene::new(Wiring::Routed, ["sender", "reader"]);
    let far = scene.node.far.clone();
    let trace = Unseen::watch(&[("udp/udp_fail_queue_rcv_skb", "0")]);
    let mut lost = [0, 0];
    let mut told = Vec::new();
    for family in Family::ALL {
        let before = trace.all().len();
        let _sockets = deaf(&far, family, 6000..6000 + PORTS);
        let _reader = deaf(&reader, family, 6000..6001);
        let mut to = Vec::new();
        for n in 0..PORTS {
            let times = if n == PORTS - 1 { 300 } else { 20 };
            to.extend(vec![SocketAddr::new(far.address(family), 6000 + n); times]);
        }
        to.extend([SocketAddr::new(reader.address(family), 6000); 50]);
        send(&sender, &to);
        // Before 6.5 the kernel tells of IPv4's only.
        if trace.all().len() > before {
            told.push(family);
        }
    }
    assert!(
        told.contains(&Family::V4),
        "the lab failed: nothing is told"
    );
    let of = |pod: &Pod, families: &[Family]| -> u64 {
        let errors = |family: &Family| receive_buffer_errors(&pod.netns, *family);
        families.iter().map(errors).sum()
    };
    for (at, pod) in [&far, &reader].into_iter().enumerate() {
        lost[at] = of(pod, &Family::ALL);
    }
    assert!(lost[0] >= 600 && lost[1] >= 60, "the lab failed: {lost:?}");
    // Since 6.11 the kernel tells the socket that has no room; before, whose packet it is.
    let is_receivers = has_field("skb/kfree_skb", "rx_sk");
    let expected = if is_receivers {
        [lost[0], lost[1], 0]
    } else {
        [0, 0, lost[0] + lost[1]]
    };
    eventually(SOON, || {
        let metrics = scene.agent.metrics();
        for pod in [&far, &reader] {
            let shown = metrics.count(RECEIVE, &pod.labels());
            let told = of(pod, &told);
            ensure(shown == told, || {
                format!("{} lost {shown}, the kernel says {told}", pod.netns.name())
            })?;
        }
        let by_reason =
            [&far, &reader, &sender].map(|pod| dropped(&metrics, pod, "socket_rcvbuff"));
        ensure(by_reason == expected, || {
            format!("socket_rcvbuff: {by_reason:?}, not {expected:?}")
        })?;
        let named: std::collections::BTreeSet<&str> = metrics
            .matching(RECEIVE, &[])
            .map(|(labels, _)| labels["port"].as_str())
            .collect();
        ensure(named.len() <= 21 && named.contains("(other)"), || {
            format!("ports: {named:?}")
        })?;
        let busiest = (6000 + PORTS - 1).to_string();
        ensure(named.contains(busiest.as_str()), || {
            format!("the busiest has no name: {named:?}")
        })
    });
    let whose = if is_receivers { &far } else { &sender };
    let event = scene.events.wait(SOON, |event| {
        event.is("drop", whose.netns.name()) && event.text("reason") == "socket_rcvbuff"
    });
    let shown = &event.json;
    let to: SocketAddr = event.text("destination").parse().expect("a destination");
    assert!((6000..6000 + PORTS).contains(&to.port()), "{shown}");
    scene.agent.stop_cleanly();
}

/// What means no failure is one figure of the node's, and a reason may be made one.
#[test]
fn other_reasons_are_one_figure_and_may_be_named() {
    const IGNORED: &str = "tracer_node_drops_ignored_total";
    let (scene, [client]) = Scene::with(
        Wiring::Routed,
        ["client"],
        &["--drop-reasons", "-no_socket,not_specified"],
    );
    let before = scene.agent.metrics();
    let to = scene.port(Family::V4, CLOSED);
    send(&client, &[to; 12]);
    let blackhole = tests::tcp::scene::routed(Family::V4, 250);
    send(&client, &[blackhole; 7]);
    eventually(SOON, || {
        let metrics = scene.agent.metrics();
        let ignored = metrics.growth(&before, IGNORED, &[]);
        ensure(ignored >= 12, || format!("{ignored} ignored"))?;
        // A blackhole frees without a reason.
        let shown = dropped(&metrics, &client, "not_specified");
        ensure(shown >= 7, || format!("{shown} not_specified"))
    });
    let shown = dropped(&scene.agent.metrics(), &client, "no_socket");
    assert_eq!(shown, 0, "it was taken away");
    scene.agent.stop_cleanly();
}
