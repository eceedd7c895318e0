//! Hook `dns` with hook `drops`: lookups that a packet filter kills, wherever it does.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use tests::dns::packet::query;
use tests::dns::scene::lookups;
use tests::dns::{A, Lookup, Scene};
use tests::netns::Netns;
use tests::nft::Rules;
use tests::router::Wiring;
use tests::{Family, eventually, on_one_cpu};

const QUERY: &str = "udp dport 53";
const ANSWER: &str = "udp sport 53";

/// Name, namespace, netfilter hook and match of a place where packets can be refused.
type Place<'a> = (&'a str, fn(&Scene) -> Arc<Netns>, &'a str, &'a str);

/// Two lookups of each family die in each of these places, and one more while nothing is in the way
/// shows that it was the rule.
fn refused_in(wiring: Wiring, places: &[Place<'_>]) {
    let (_lab, mut scene) = Scene::new(wiring);
    let to = Family::ALL.map(|family| scene.address(family));
    for (what, netns, hook, matches) in places {
        let rules = Rules::drop(&netns(&scene), hook, matches);
        let asked = lookups(&["ok-refused"], &to);
        scene.fail(what, &asked, "netfilter", &["netfilter_drop"]);
        assert_eq!(
            rules.hits(),
            asked.len() as u64,
            "the lab failed, {what}: dropped once each"
        );
        drop(rules);
        assert_eq!(
            scene.answered(&["ok-free"]),
            4,
            "the lab failed after {what}"
        );
    }
    scene.settle();
}

fn client(scene: &Scene) -> Arc<Netns> {
    Arc::clone(&scene.client.netns)
}

fn node(scene: &Scene) -> Arc<Netns> {
    Arc::clone(&scene.router)
}

fn server(scene: &Scene) -> Arc<Netns> {
    Arc::clone(&scene.far.netns)
}

#[test]
fn queries_refused_on_their_way_are_netfilters() {
    refused_in(
        Wiring::Routed,
        &[
            ("query in the pod's OUTPUT", client, "output", QUERY),
            (
                "query in the pod's POSTROUTING",
                client,
                "postrouting",
                QUERY,
            ),
            ("query in the node's PREROUTING", node, "prerouting", QUERY),
            ("query in the node's FORWARD", node, "forward", QUERY),
            (
                "query in the node's POSTROUTING",
                node,
                "postrouting",
                QUERY,
            ),
            ("query in the server's INPUT", server, "input", QUERY),
        ],
    );
}

#[test]
fn answers_refused_on_their_way_are_netfilters() {
    refused_in(
        Wiring::Routed,
        &[
            ("answer in the server's OUTPUT", server, "output", ANSWER),
            (
                "answer in the server's POSTROUTING",
                server,
                "postrouting",
                ANSWER,
            ),
            (
                "answer in the node's PREROUTING",
                node,
                "prerouting",
                ANSWER,
            ),
            ("answer in the node's FORWARD", node, "forward", ANSWER),
            (
                "answer in the node's POSTROUTING",
                node,
                "postrouting",
                ANSWER,
            ),
            ("answer in the pod's INPUT", client, "input", ANSWER),
        ],
    );
}

#[test]
fn a_bridge_in_between_changes_nothing() {
    refused_in(
        Wiring::Bridged,
        &[
            ("query in the node's FORWARD", node, "forward", QUERY),
            ("answer in the node's FORWARD", node, "forward", ANSWER),
            ("query in the server's INPUT", server, "input", QUERY),
            ("answer in the pod's INPUT", client, "input", ANSWER),
        ],
    );
}

/// One lookup of each family, asked twice, from a socket that is not told of errors.
fn asked_twice(scene: &Scene, script: &str) -> Vec<Lookup> {
    let to = Family::ALL.map(|family| scene.address(family));
    let twice = to.map(|server| {
        let mut lookup = Lookup::new(format!("{script}.test"), A, server);
        lookup.again_after = Some(Duration::from_millis(300));
        lookup
    });
    twice.into()
}

#[test]
fn a_query_that_output_refuses_twice_is_one_lookup() {
    let (_lab, mut scene) = Scene::new(Wiring::Routed);
    let before = scene.tally.queries;
    let rules = Rules::drop(&scene.client.netns, "output", QUERY);
    let asked = asked_twice(&scene, "ok-twice");
    scene.fail("twice", &asked, "netfilter", &["netfilter_drop"]);
    assert_eq!(rules.hits(), 4, "the lab failed");
    assert_eq!(scene.tally.queries - before, 4);
    scene.settle();
}

#[test]
fn a_refused_query_whose_second_try_is_answered_is_no_failure() {
    let (_lab, mut scene) = Scene::new(Wiring::Routed);
    // Of each family the first of two is dropped, in turn by the pod and by the node.
    let places = [
        (client(&scene), "output"),
        (node(&scene), "forward"),
        (server(&scene), "input"),
    ];
    for (netns, hook) in places {
        let chain = format!(
            " chain first {{ type filter hook {hook} priority 0; \
             ip version 4 udp dport 53 numgen inc mod 2 0 counter name hit drop; \
             ip6 version 6 udp dport 53 numgen inc mod 2 0 counter name hit drop; }}"
        );
        let before = scene.server.received();
        let rules = Rules::load(&netns, &chain);
        let asked = asked_twice(&scene, "ok-second-try");
        let tally = scene.ask(&asked);
        let received = scene.server.received() - before;
        assert_eq!(
            (rules.hits(), received, tally.queries),
            (2, 2, 4),
            "the lab failed in {hook}: {tally:?}"
        );
        assert_eq!(tally.outcome("noerror"), 2, "the lab failed: {tally:?}");
    }
    scene.settle();
}

/// The second query of each has the memory that the first has left, as often as not.
#[test]
fn a_query_refused_where_an_earlier_one_was_in_memory_is_not_that_one() {
    on_one_cpu(|| {
        const ROUNDS: u16 = 50;
        let (_lab, mut scene) = Scene::new(Wiring::Routed);
        let rules = Rules::load(
            &scene.client.netns,
            " chain second { type filter hook output priority 0; \
             udp dport 53 numgen inc mod 2 1 counter name hit drop; }",
        );
        let server = (scene.address(Family::V4), 53);
        let before = scene.server.received();
        let received = |n| {
            let received = scene.server.received() - before;
            let all = format!("{received} of {n} received");
            (received == u64::from(n)).then_some(()).ok_or(all)
        };
        let refused = scene.client.netns.run(|| {
            let refused = (0..ROUNDS).filter(|n| {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("sockets can be made");
                let query = query(*n, 0, "drop-recycled.test", A);
                let sent = socket.send_to(&query, server);
                sent.expect("the first of two passes");
                eventually(Duration::from_secs(5), || received(n + 1));
                socket.send_to(&query, server).is_err()
            });
            refused.count() as u64
        });
        let rounds = u64::from(ROUNDS);
        assert_eq!((refused, rules.hits()), (rounds, rounds), "the lab failed");
        drop(rules);
        scene.tally.queries += 2 * rounds;
        *scene.tally.outcomes.entry("timeout").or_default() += rounds;
        *scene.causes.entry("netfilter").or_default() += rounds;
        scene.settle();
    });
}

/// `reject` tells the sender, so that connected sockets hear of it at once; what they make of it is
/// theirs, the lookup stays unanswered.
#[test]
fn a_rejected_query_is_netfilters_too() {
    let (_lab, mut scene) = Scene::new(Wiring::Routed);
    let to = Family::ALL.map(|family| scene.address(family));
    let rules = Rules::load(
        &scene.router,
        " chain refuse { type filter hook forward priority 0; udp dport 53 counter name hit reject; }",
    );
    let asked = lookups(&["ok-rejected"], &to);
    scene.fail("reject", &asked, "netfilter", &["netfilter_drop"]);
    assert_eq!(rules.hits(), 4, "the lab failed");
    drop(rules);
    scene.settle();
}

#[test]
fn refused_under_one_id_by_ever_new_sockets_are_lookups_of_their_own() {
    const SENT: u64 = 100;
    let (_lab, mut scene) = Scene::new(Wiring::Routed);
    let server = scene.address(Family::V4);
    let rules = Rules::drop(&client(&scene), "output", QUERY);
    // One after the other: the kernel gives the next socket the memory of the last.
    let refused = scene.client.netns.run(|| {
        (0..SENT)
            .filter(|_| {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("sockets can be made");
                socket
                    .send_to(&query(7, 0, "ok-refused.test", A), (server, 53))
                    .is_err()
            })
            .count() as u64
    });
    assert_eq!((refused, rules.hits()), (SENT, SENT), "the lab failed");
    drop(rules);
    scene.tally.queries += SENT;
    *scene.tally.outcomes.entry("timeout").or_default() += SENT;
    *scene.causes.entry("netfilter").or_default() += SENT;
    // And sockets that are answered, under the same id, in the same memory.
    let asked = Lookup {
        id: 7,
        ..Lookup::new("ok-free.test", A, server)
    };
    for _ in 0..20 {
        assert_eq!(scene.ask(std::slice::from_ref(&asked)).answered(), 1);
    }
    scene.settle();
}
