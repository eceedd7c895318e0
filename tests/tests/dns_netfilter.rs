//! Hook `dns` with hook `drops`: lookups that a packet filter kills, wherever it does.

use std::sync::Arc;
use std::time::Duration;

use tests::Family;
use tests::dns::scene::lookups;
use tests::dns::{A, Lookup, Scene};
use tests::netns::Netns;
use tests::nft::Rules;
use tests::router::Wiring;

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
