//! Hook `dns` with hook `drops`: lookups that routing, a queue or the far end lose on a node that
//! forwards, and such that nobody lost.

use std::net::IpAddr;
use std::process::Command;

use tests::Family;
use tests::dns::scene::{SERVERS, lookups};
use tests::dns::{A, Lookup, Scene};
use tests::entries::{know, mac};
use tests::netns::{DEVICE, Netns, await_ipv6};
use tests::process::check;
use tests::router::Wiring;

/// Addresses that no device of the lab has.
fn nowhere() -> [IpAddr; 2] {
    ["10.250.0.53", "fd00:0:0:fa::53"].map(|text| text.parse().expect("an address"))
}

/// Reasons that mean a missing route. For a route that forbids, the kernel gives none.
const NO_ROUTE: &[&str] = &[
    "ip_innoroutes",
    "ip_outnoroutes",
    "not_specified",
    "ip_inaddrerrors",
];

#[test]
fn what_the_node_has_no_route_for_says_so() {
    let (_lab, mut scene) = Scene::new(Wiring::Routed);
    scene.fail(
        "no route",
        &lookups(&["ok-none"], &nowhere()),
        "no_route",
        NO_ROUTE,
    );
    for kind in ["unreachable", "prohibit", "blackhole"] {
        let routes = ["10.250.0.0/16", "fd00:0:0:fa::/64"];
        let change = |what: &str| {
            for route in routes {
                scene.router.ip(&format!("route {what} {kind} {route}"));
            }
        };
        change("add");
        let asked = lookups(&["ok-forbidden"], &nowhere());
        // The reason is the kernel's affair: a blackhole gives none.
        scene.fail(kind, &asked, "no_route", NO_ROUTE);
        for route in routes {
            scene.router.ip(&format!("route del {kind} {route}"));
        }
    }
    scene.settle();
}

/// Lets the client ask from addresses to which the node knows no way.
fn ask_from_afar(scene: &Scene) {
    let client = &scene.client;
    for (family, own) in Family::ALL
        .into_iter()
        .zip(["192.168.77.7/32", "fd77::7/128"])
    {
        let address = own.split('/').next().expect("an address");
        let nodad = if family == Family::V6 { "nodad" } else { "" };
        client
            .netns
            .ip(&format!("address add {own} dev {DEVICE} {nodad}"));
        let hub = client.hub(family);
        client
            .netns
            .ip(&format!("route replace default via {hub} src {address}"));
    }
    for scope in ["all", &client.link()] {
        scene
            .router
            .sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "0");
    }
}

#[test]
fn answers_that_find_no_way_back_say_no_route() {
    let (_lab, mut scene) = Scene::new(Wiring::Routed);
    ask_from_afar(&scene);
    let to = Family::ALL.map(|family| scene.address(family));
    let sent = scene.server.answered();
    scene.fail(
        "no way back",
        &lookups(&["ok-back"], &to),
        "no_route",
        NO_ROUTE,
    );
    assert_eq!(scene.server.answered() - sent, 4, "the lab failed");
    scene.settle();
}

#[test]
fn what_the_reverse_path_filter_drops_has_another_reason() {
    let (_lab, mut scene) = Scene::new(Wiring::Routed);
    ask_from_afar(&scene);
    let link = scene.client.link();
    scene
        .router
        .sysctl(&format!("ipv4/conf/{link}/rp_filter"), "1");
    let received = scene.server.received();
    let asked = lookups(&["ok-strict"], &[scene.address(Family::V4)]);
    scene.fail("rp_filter", &asked, "dropped", &["ip_rpfilter"]);
    assert_eq!(scene.server.received(), received, "the lab failed");
    scene.settle();
}

/// A queue on a device that has room for nothing.
fn no_room(netns: &Netns, device: &str, verb: &str) {
    let tc = format!("qdisc {verb} dev {device} root bfifo limit 1");
    netns.run(|| check(Command::new("tc").args(tc.split(' '))));
}

#[test]
fn what_a_full_queue_of_a_device_drops_has_another_reason() {
    let (_lab, mut scene) = Scene::new(Wiring::Routed);
    let (client, far, router) = (
        scene.client.clone(),
        scene.far.clone(),
        scene.router.clone(),
    );
    for family in Family::ALL {
        for pod in [&client, &far] {
            know(
                &pod.netns,
                DEVICE,
                pod.hub(family),
                &mac(&router, &pod.link()),
            );
            know(
                &router,
                &pod.link(),
                pod.address(family),
                &mac(&pod.netns, DEVICE),
            );
        }
    }
    let places = [
        ("query in the pod", &client.netns, DEVICE.to_owned()),
        ("query on the node", &router, far.link()),
        ("answer in the server's pod", &far.netns, DEVICE.to_owned()),
        ("answer on the node", &router, client.link()),
    ];
    let to = Family::ALL.map(|family| scene.address(family));
    for (what, netns, device) in places {
        no_room(netns, &device, "add");
        let reasons = ["qdisc_drop", "qdisc_overlimit", "qdisc_generic"];
        scene.fail(what, &lookups(&["ok-queue"], &to), "dropped", &reasons);
        no_room(netns, &device, "del");
        assert_eq!(
            scene.answered(&["ok-free"]),
            4,
            "the lab failed after {what}"
        );
    }
    scene.settle();
}

/// Addresses of the server's pod on which nobody listens.
fn closed(scene: &Scene) -> [IpAddr; 2] {
    let closed = Family::ALL.map(|family| scene.far.neighbour(family, 50));
    let netns = &scene.far.netns;
    for (address, length) in closed.iter().zip([16, 64]) {
        let nodad = if address.is_ipv6() { "nodad" } else { "" };
        netns.ip(&format!(
            "address add {address}/{length} dev {DEVICE} {nodad}"
        ));
    }
    await_ipv6(netns, DEVICE, usize::from(SERVERS) + 1);
    closed
}

#[test]
fn a_closed_port_behind_the_node_is_named() {
    let (_lab, mut scene) = Scene::new(Wiring::Bridged);
    let asked = lookups(&["ok-closed"], &closed(&scene));
    scene.fail("closed", &asked, "port_unreachable", &["no_socket"]);
    scene.settle();
}

/// The kernel uses the memory of a packet again at once: what is dropped there next is another's.
#[test]
fn answers_and_drops_of_others_in_turn_are_told_apart() {
    let (_lab, mut scene) = Scene::new(Wiring::Routed);
    let closed = closed(&scene);
    let open = Family::ALL.map(|family| scene.address(family));
    let mut asked = Vec::new();
    for n in 0..300 {
        for to in [open[n % 2], closed[n % 2]] {
            asked.push(Lookup::new(format!("ok-{n}.test"), A, to));
        }
    }
    for some in asked.chunks(200) {
        let tally = scene.ask(some);
        assert_eq!(tally.outcome("noerror"), 100, "the lab failed: {tally:?}");
        assert_eq!(tally.outcome("timeout"), 100, "the lab failed: {tally:?}");
    }
    scene.causes.insert("port_unreachable", 300);
    scene.settle();
}

#[test]
fn silence_without_a_drop_is_no_answer() {
    let (_lab, mut scene) = Scene::new(Wiring::Bridged);
    let to = Family::ALL.map(|family| scene.address(family));
    scene.fail(
        "silent",
        &lookups(&["drop-a", "drop-b"], &to),
        "no_answer",
        &[],
    );
    // A drop that the lookup survives is none of its causes, either.
    assert_eq!(scene.answered(&["ok-after"]), 4);
    scene.settle();
}
