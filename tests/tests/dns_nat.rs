//! Hook `dns` behind address translation: lookups are matched, the server shown is the one asked, and
//! what kills their packets is named.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tests::Family;
use tests::dns::scene::lookups;
use tests::dns::{A, Client, Lookup, Scene, Server};
use tests::netns::Netns;
use tests::nft::Rules;
use tests::router::Wiring;

/// Addresses of a service, as kube-proxy translates them.
fn service() -> [IpAddr; 2] {
    ["10.96.0.10", "fd96::10"].map(|text| text.parse().expect("an address"))
}

/// All that a server can answer, and silence.
const SCRIPTS: &[&str] = &["ok", "nodata", "nx", "servfail", "refused", "tc", "drop"];

/// A chain that translates the service to the server's pod, in this hook.
fn to_server(scene: &Scene, hook: &str) -> String {
    let [v4, v6] = Family::ALL.map(|family| scene.address(family));
    let [service4, service6] = service();
    format!(
        " chain service {{ type nat hook {hook} priority -100; \
         ip daddr {service4} udp dport 53 counter name hit dnat ip to {v4}; \
         ip6 daddr {service6} udp dport 53 counter name hit dnat ip6 to {v6}; }}\n"
    )
}

/// A chain that drops what matches and whose source port or address no other test packet has.
fn refuse(hook: &str, matches: &str) -> String {
    format!(" chain refuse {{ type filter hook {hook} priority 0; {matches} drop; }}\n")
}

/// All scripts of both families, then lookups that die in each of these places.
fn translated(scene: &mut Scene, translate: &Rules, places: &[(&str, &Arc<Netns>, &str, &str)]) {
    let asked = lookups(SCRIPTS, &service());
    let tally = scene.ask(&asked);
    assert_eq!(tally.outcome("noerror"), 8, "the lab failed: {tally:?}");
    assert_eq!(tally.outcome("timeout"), 4, "the lab failed: {tally:?}");
    assert!(
        translate.hits() >= 28,
        "the lab failed: nothing was translated"
    );
    *scene.causes.entry("server").or_default() += tally.errors();
    *scene.causes.entry("no_answer").or_default() += tally.outcome("timeout");
    let silent: Vec<Lookup> = asked
        .into_iter()
        .filter(|lookup| lookup.name.starts_with("drop"))
        .collect();
    scene.expect("silence", &silent, "no_answer", &[]);
    for (what, netns, hook, matches) in places {
        // Beside the translation there may be no second table of the lab in the same namespace.
        let rules = Rules::named(netns, "refuse", &refuse(hook, matches));
        let asked = lookups(&["ok-refused"], &service());
        scene.fail(what, &asked, "netfilter", &["netfilter_drop"]);
        drop(rules);
        let free = scene.ask(&lookups(&["ok-free"], &service()));
        assert_eq!(free.answered(), 4, "the lab failed after {what}");
    }
}

#[test]
fn a_service_that_the_node_translates() {
    let (_lab, mut scene) = Scene::new(Wiring::Routed);
    let (router, far) = (Arc::clone(&scene.router), Arc::clone(&scene.far.netns));
    let client = Arc::clone(&scene.client.netns);
    let translate = Rules::load(&router, &to_server(&scene, "prerouting"));
    translated(
        &mut scene,
        &translate,
        &[
            (
                "query behind DNAT, FORWARD",
                &router,
                "forward",
                "udp dport 53",
            ),
            (
                "query behind DNAT, server's INPUT",
                &far,
                "input",
                "udp dport 53",
            ),
            (
                "answer before DNAT is undone, FORWARD",
                &router,
                "forward",
                "udp sport 53",
            ),
            (
                "answer in the server's OUTPUT",
                &far,
                "output",
                "udp sport 53",
            ),
            (
                "answer after DNAT is undone, pod's INPUT",
                &client,
                "input",
                "udp sport 53",
            ),
        ],
    );
    scene.settle();
}

/// As a pod with the node's network has it: the translation sits in front of the hook.
#[test]
fn a_service_that_the_client_itself_translates() {
    let (_lab, mut scene) = Scene::new(Wiring::Routed);
    let (router, far) = (Arc::clone(&scene.router), Arc::clone(&scene.far.netns));
    let client = Arc::clone(&scene.client.netns);
    let translate = Rules::load(&client, &to_server(&scene, "output"));
    translated(
        &mut scene,
        &translate,
        &[
            (
                "query behind DNAT, OUTPUT",
                &client,
                "output",
                "udp dport 53",
            ),
            (
                "query behind DNAT, POSTROUTING",
                &client,
                "postrouting",
                "udp dport 53",
            ),
            ("query on the node", &router, "forward", "udp dport 53"),
            ("query at the server", &far, "input", "udp dport 53"),
            ("answer on the node", &router, "forward", "udp sport 53"),
            (
                "answer in the pod's INPUT",
                &client,
                "input",
                "udp sport 53",
            ),
        ],
    );

    // An answer from an address that was not asked is none, though conntrack is there.
    let wrong = Client {
        timeout: Duration::from_secs(1),
        linger: Duration::from_millis(100),
    };
    let asked: Vec<Lookup> = service()
        .map(|to| Lookup::new("wrongaddr.test", A, to))
        .into();
    let tally = wrong.run(&scene.client, asked.clone());
    assert_eq!(
        (tally.unmatched, tally.outcome("timeout")),
        (2, 2),
        "the lab failed: {tally:?}"
    );
    scene.tally.add(&tally);
    *scene.causes.entry("no_answer").or_default() += 2;
    scene.expect("wrong address", &asked, "no_answer", &[]);
    scene.settle();
}

#[test]
fn a_client_that_the_node_masquerades() {
    let (_lab, mut scene) = Scene::new(Wiring::Bridged);
    let (router, far) = (Arc::clone(&scene.router), Arc::clone(&scene.far.netns));
    let client = Arc::clone(&scene.client.netns);
    let link = scene.far.link();
    // Both: as a node does for what leaves it by way of a service.
    let chains = format!(
        "{} chain outward {{ type nat hook postrouting priority 100; oifname \"{link}\" masquerade \
         random; }}\n",
        to_server(&scene, "prerouting")
    );
    let translate = Rules::load(&router, &chains);
    let seen = scene.server.seen().len();
    translated(
        &mut scene,
        &translate,
        &[
            (
                "query before masquerade, FORWARD",
                &router,
                "forward",
                "udp dport 53",
            ),
            (
                "query behind masquerade, server's INPUT",
                &far,
                "input",
                "udp dport 53",
            ),
            (
                "answer in the server's OUTPUT",
                &far,
                "output",
                "udp sport 53",
            ),
            (
                "answer before it is undone, PREROUTING",
                &router,
                "prerouting",
                "udp sport 53",
            ),
            (
                "answer after it is undone, FORWARD",
                &router,
                "forward",
                "udp sport 53",
            ),
            (
                "answer in the pod's INPUT",
                &client,
                "input",
                "udp sport 53",
            ),
        ],
    );
    let hubs = Family::ALL.map(|family| scene.far.hub(family));
    let all = scene.server.seen();
    assert!(
        all[seen..].iter().all(|seen| hubs.contains(&seen.from)),
        "the lab failed: not masqueraded"
    );
    scene.settle();
}

/// As a mesh's sidecar has it: what goes to port 53 ends at a local port that is no DNS port.
#[test]
fn a_redirect_to_another_port_of_the_pod() {
    let (_lab, mut scene) = Scene::new(Wiring::Routed);
    let client = Arc::clone(&scene.client.netns);
    let local: [SocketAddr; 2] =
        ["127.0.0.1:15053", "[::1]:15053"].map(|text| text.parse().expect("an address and a port"));
    let sidecar = client.run(|| Server::start_here(&local));
    let received = scene.server.received();
    let redirect = Rules::load(
        &client,
        " chain sidecar { type nat hook output priority -100; udp dport 53 counter name hit redirect \
         to :15053; }\n",
    );
    translated(
        &mut scene,
        &redirect,
        &[
            ("query, OUTPUT", &client, "output", "udp dport 15053"),
            ("query, INPUT", &client, "input", "udp dport 15053"),
            ("answer, INPUT", &client, "input", "udp sport { 53, 15053 }"),
        ],
    );
    assert_eq!(
        scene.server.received(),
        received,
        "the lab failed: not redirected"
    );
    assert!(
        sidecar.received() >= 28,
        "the lab failed: {}",
        sidecar.received()
    );
    scene.settle();
}
