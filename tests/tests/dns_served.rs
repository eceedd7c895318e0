//! Hook `dns`, the server's side: what a pod that serves port 53 answered, and what its sockets lost.

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use tests::dns::programs::Dnsmasq;
use tests::dns::scene::{lookups, pod};
use tests::dns::truth::{check_node, compare, compare_served};
use tests::dns::{A, Lookup, Scene, Tally};
use tests::netns::Pod;
use tests::nft::Rules;
use tests::router::Wiring;
use tests::snmp::receive_buffer_errors;
use tests::wait::ensure;
use tests::{Agent, Family, Lab, eventually};

const TIMEOUT: Duration = Duration::from_secs(1);

fn await_served(agent: &Agent, labels: [(&str, &str); 2], served: &BTreeMap<&'static str, u64>) {
    eventually(Duration::from_secs(5), || {
        compare_served(&agent.metrics(), &agent.snapshot(), labels, served)
    });
}

#[test]
fn a_server_is_charged_with_what_it_answered() {
    const SCRIPTS: &[&str] = &[
        "ok",
        "case",
        "nodata",
        "tc",
        "formerr",
        "servfail",
        "nx",
        "notimp",
        "refused",
        "other",
        "drop",
        "late-1500",
        "dup",
        "wrongid",
    ];
    let (_lab, mut scene) = Scene::new(Wiring::Routed);
    let to = Family::ALL.map(|family| scene.address(family));
    let tally = scene.ask(&lookups(SCRIPTS, &to));
    *scene.causes.entry("server").or_default() += tally.errors();
    *scene.causes.entry("no_answer").or_default() += tally.outcome("timeout");
    // What came late comes after the client has closed its sockets.
    eventually(Duration::from_secs(2), || {
        let late = scene.server.answered();
        let expected = 4 + 4 * 13 + 4;
        ensure(late == expected, || format!("{late} of {expected} sent"))
    });
    let served = scene.server.served(TIMEOUT);
    let expected = [("noerror", 4 + 4 * 4), ("unanswered", 4 * 3), ("other", 4)];
    for (outcome, count) in expected {
        assert_eq!(
            served.get(outcome),
            Some(&count),
            "the lab failed: {served:?}"
        );
    }
    await_served(&scene.agent, scene.far.labels(), &served);
    let metrics = eventually(Duration::from_secs(5), || {
        let metrics = scene.agent.metrics();
        check_node(&metrics).map(|()| metrics)
    });
    for lookups in [
        "tracer_pod_dns_lookups_total",
        "tracer_pod_dns_queries_total",
    ] {
        let grown = metrics.count(lookups, &scene.far.labels());
        assert_eq!(grown, 0, "answering is no {lookups}");
    }
    let by_client = metrics.count("tracer_pod_dns_served_total", &scene.client.labels());
    assert_eq!(by_client, 0, "asking is no serving");
    scene.settle();
}

/// Queries translated in the server's own namespace are its own all the same, and a query sent again
/// is served once for each answer.
#[test]
fn a_server_behind_its_own_translation_is_charged_too() {
    let (_lab, mut scene) = Scene::new(Wiring::Routed);
    let [asked4, asked6] = Family::ALL.map(|family| scene.nth(family, 3));
    let [v4, v6] = Family::ALL.map(|family| scene.address(family));
    let chain = format!(
        " chain own {{ type nat hook prerouting priority -100; \
         ip daddr {asked4} udp dport 53 counter name hit dnat ip to {v4}; \
         ip6 daddr {asked6} udp dport 53 counter name hit dnat ip6 to {v6}; }}\n"
    );
    let rules = Rules::load(&scene.far.netns, &chain);
    let asked = lookups(&["ok", "nx", "servfail", "drop"], &[asked4, asked6]);
    let tally = scene.ask(&asked);
    assert_eq!(tally.outcome("noerror"), 4, "the lab failed: {tally:?}");
    assert_eq!(rules.hits(), 16, "the lab failed");
    *scene.causes.entry("server").or_default() += tally.errors();
    *scene.causes.entry("no_answer").or_default() += tally.outcome("timeout");
    // The first of these two queries is never answered, the second is.
    let mut twice = Lookup::new("second.test", A, asked4);
    twice.again_after = Some(Duration::from_millis(200));
    assert_eq!(scene.ask(&[twice]).outcome("noerror"), 1, "the lab failed");
    await_served(
        &scene.agent,
        scene.far.labels(),
        &scene.server.served(TIMEOUT),
    );
    scene.settle();
}

/// A forwarder serves its clients and asks its upstream, and is charged with each.
#[test]
fn a_forwarder_has_both_sides() {
    let (lab, mut scene) = Scene::new(Wiring::Routed);
    let resolver = pod(&lab, "resolver", 5);
    let upstream = format!("--server={}", scene.address(Family::V4));
    let addresses = Family::ALL.map(|family| resolver.address(family));
    let _dnsmasq = Dnsmasq::start(&resolver.netns, &addresses, &[&upstream]);
    let seen = scene.server.seen().len();

    let mut asked = Vec::new();
    // No errors: after one dnsmasq may ask again under the same id, which is no new lookup.
    for script in ["ok", "nodata", "nx", "drop"] {
        for n in 0..5 {
            let to = addresses[n % 2];
            asked.push(Lookup::new(format!("{script}-{n}.forwarded.test"), A, to));
        }
    }
    let tally = scene.ask(&asked);
    *scene.causes.entry("server").or_default() += tally.errors();
    *scene.causes.entry("no_answer").or_default() += tally.outcome("timeout");
    assert_eq!(tally.outcome("noerror"), 5, "the lab failed: {tally:?}");
    assert_eq!(tally.outcome("timeout"), 5, "the lab failed: {tally:?}");

    // What the upstream saw of the forwarder is what the forwarder asked.
    let own = resolver.address(Family::V4);
    eventually(Duration::from_secs(5), || {
        let mut asked = Tally::default();
        for seen in &scene.server.seen()[seen..] {
            assert_eq!(seen.from, own, "the lab failed");
            let outcome = seen.answer.map_or("timeout", |(outcome, _)| outcome);
            asked.queries += 1;
            *asked.outcomes.entry(outcome).or_default() += 1;
        }
        let causes = [
            ("server", asked.errors()),
            ("no_answer", asked.outcome("timeout")),
        ];
        assert!(asked.lookups() >= 20, "the lab failed: {asked:?}");
        compare(&scene.agent.metrics(), &resolver, &asked, &causes)
            .map_err(|why| format!("{why}: {asked:?}"))
    });
    let mut served = BTreeMap::new();
    for (outcome, count) in &tally.outcomes {
        let outcome = if *outcome == "timeout" {
            "unanswered"
        } else {
            *outcome
        };
        *served.entry(outcome).or_default() += count;
    }
    await_served(&scene.agent, resolver.labels(), &served);
    scene.settle();
}

/// Bound and never read, with the smallest buffer there is.
fn deaf(pod: &Pod, family: Family, port: u16) -> UdpSocket {
    let address = (pod.address(family), port);
    let socket = pod
        .netns
        .run(|| UdpSocket::bind(address).expect("pod has its address"));
    rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 1).expect("buffer is set");
    socket
}

fn receive_drops(agent: &Agent, pod: &Pod, port: &str) -> Option<f64> {
    let labels = [&pod.labels()[..], &[("port", port)]].concat();
    agent
        .metrics()
        .get("tracer_pod_udp_receive_drops_total", &labels)
}

fn await_drops(agent: &Agent, pod: &Pod, port: &str, expected: u64) {
    eventually(Duration::from_secs(5), || {
        let value = receive_drops(agent, pod, port);
        ensure(value == Some(expected as f64), || {
            format!("{value:?} lost at port {port}, the kernel says {expected}")
        })
    });
}

#[test]
fn what_a_full_server_loses_is_its_sockets_and_the_clients_cause() {
    let (lab, mut scene) = Scene::new(Wiring::Routed);
    let server = pod(&lab, "slow", 6);
    let _sockets = Family::ALL.map(|family| deaf(&server, family, 53));
    let asked: Vec<Lookup> = (0..128)
        .map(|n| {
            let to = server.address(Family::ALL[n % 2]);
            Lookup::new(format!("ok-{n}.test"), A, to)
        })
        .collect();
    let tally = scene.ask(&asked);
    assert_eq!(tally.outcome("timeout"), 128, "the lab failed: {tally:?}");
    let lost = Family::ALL.map(|family| receive_buffer_errors(&server.netns, family));
    assert!(
        lost.iter().all(|n| (32..64).contains(n)),
        "the lab failed: {lost:?} lost"
    );
    let lost: u64 = lost.iter().sum();
    scene.causes.insert("socket_buffer_full", lost);
    scene.causes.insert("no_answer", 128 - lost);

    let event = scene.events.wait(Duration::from_secs(2), |event| {
        event.is("dns_failure", scene.client.netns.name())
            && event.text("cause") == "socket_buffer_full"
    });
    assert_eq!(
        event.text("drop_reason"),
        "socket_rcvbuff",
        "{}",
        event.json
    );
    await_drops(&scene.agent, &server, "53", lost);
    await_served(&scene.agent, server.labels(), &[("unanswered", 128)].into());
    scene.settle();
}

#[test]
fn datagrams_lost_at_another_port_are_counted_too() {
    let lab = Lab::new();
    let [sender, receiver] = [("sender", 1), ("receiver", 2)].map(|(n, i)| pod(&lab, n, i));
    lab.hub.sysctl("ipv4/ip_forward", "1");
    lab.hub.sysctl("ipv6/conf/all/forwarding", "1");
    let agent = Agent::start(&["--dns-port", "53", "--dns-port", "5353"]);
    let mut by_port = BTreeMap::new();
    for (port, label) in [(9999, "9999"), (5353, "5353")] {
        for family in Family::ALL {
            let _socket = deaf(&receiver, family, port);
            let before = receive_buffer_errors(&receiver.netns, family);
            let to: IpAddr = receiver.address(family);
            let lost = sender.netns.run(|| {
                let socket = UdpSocket::bind((sender.address(family), 0)).expect("bind");
                eventually(Duration::from_secs(5), || {
                    for _ in 0..50 {
                        socket
                            .send_to(&[0; 100], (to, port))
                            .map_err(|e| e.to_string())?;
                    }
                    let lost = receive_buffer_errors(&receiver.netns, family) - before;
                    ensure(lost >= 40, || format!("{lost} lost")).map(|()| lost)
                })
            });
            *by_port.entry(label).or_default() += lost;
        }
    }
    for (label, lost) in by_port {
        await_drops(&agent, &receiver, label, lost);
    }
    agent.stop_cleanly();
}
