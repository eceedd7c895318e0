//! Refusals for forwarded packets: a router in front of the wire has the entries, the pod behind it
//! that sends is who suffers.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tests::entries::{add, entries, keep_reachable, mac};
use tests::neigh::{Statistics, burst, send, statistics};
use tests::netns::{DEVICE, Pod};
use tests::nft::Rules;
use tests::point::{POD_CREATES, POD_ENTRIES, figure, within};
use tests::router::{Node, Wiring, without_entry};
use tests::wait::ensure;
use tests::{Agent, Family, Lab, Point, Thresholds, eventually};

const LIMITS: [u64; 3] = [64, 128, 128];

/// The counts when all is charged: equal to the kernel's, and nothing waits.
fn settled(agent: &Agent, before: &Point) -> Point {
    eventually(Duration::from_secs(10), || {
        let after = Point::take(agent, before)?;
        after.compare(before).map(|()| after)
    })
}

fn table_full(after: &Point, before: &Point, labels: [(&str, &str); 2], family: Family) -> u64 {
    after.pod_growth(
        before,
        POD_CREATES,
        labels,
        family,
        &[("result", "table_full")],
    )
}

/// Panics unless a sender is charged with what it was refused, but for what the kernel showed to no
/// program.
fn assert_charged(
    after: &Point,
    before: &Point,
    labels: [(&str, &str); 2],
    family: Family,
    refused: u64,
) {
    let charged = table_full(after, before, labels, family);
    within(charged, refused, || before.hidden().refusals(family))
        .unwrap_or_else(|why| panic!("{labels:?} {family:?}: charged {why}"));
}

fn overflow(wiring: Wiring, family: Family) {
    overflow_behind(wiring, family, "");
}

/// The same, where the router has these chains.
fn overflow_behind(wiring: Wiring, family: Family, chains: &str) {
    let (mut node, [one, two]) = Node::new(wiring, ["one", "two"]);
    let _rules = Rules::load(&node.router, chains);
    let (agent, before) = Point::begin(&["--pods", "local"]);
    let mut events = agent.events();

    let wanted = [1000..1200, 2000..2200, 3000..3100].map(|range| node.beyond(family, range));
    let wire = node.far.hub(family);
    let senders = [
        (&*one.netns, one.address(family)),
        (&*two.netns, two.address(family)),
        // The router's own traffic, at the same time on the same device.
        (&*node.router, wire),
    ];
    let limits = Thresholds::set(node.lab.lock(), LIMITS);
    std::thread::scope(|scope| {
        for ((netns, from), destinations) in senders.into_iter().zip(&wanted) {
            scope.spawn(move || {
                for some in destinations.chunks(25) {
                    send(netns, from, some);
                }
            });
        }
    });
    drop(limits);
    let refused = wanted.each_ref().map(|to| node.refused(family, to));

    let after = settled(&agent, &before);
    let router = node.router.labels();
    let kernel_full = figure(&agent.snapshot(), router, family, "kernel_full");
    // A refusal is its sender's by the packet that is dropped for it; where no program sees that packet, it
    // counts as the router's own need.
    let hidden = before.hidden().refusals(family);
    for (who, expected) in [
        (one.labels(), refused[0]),
        (two.labels(), refused[1]),
        // Its solicitations for the others' sake are its own needs.
        (router, refused[2] + kernel_full),
    ] {
        let charged = table_full(&after, &before, who, family);
        assert!(
            charged <= expected && charged + hidden >= expected,
            "{who:?}: {charged} of {refused:?} and {kernel_full}; {hidden} were hidden"
        );
    }
    eprintln!("{family:?}: refused {refused:?}, and {kernel_full} for the router's own needs");
    assert!(
        refused.iter().sum::<u64>() >= 372,
        "the lab failed: {refused:?}"
    );
    if family == Family::V4 {
        assert!(kernel_full <= hidden, "all ARP was done before");
    }

    for (pod, destinations) in [(&one, &wanted[0]), (&two, &wanted[1])] {
        let event = events.wait(Duration::from_secs(2), |event| {
            event.is("neighbour_overflow", pod.netns.name())
        });
        let shown = &event.json;
        assert_eq!(shown["pod"]["namespace"], "(netns)", "{shown}");
        assert_eq!(shown["family"], family.label(), "{shown}");
        assert_eq!(shown["device"], node.far.link(), "{shown}");
        assert_eq!(shown["limit"], LIMITS[2], "{shown}");
        let to = event.text("destination").parse().expect("an address");
        assert!(destinations.contains(&to), "{shown}");
        assert_eq!(
            (&shown["comm"], &shown["pid"]),
            (&Value::Null, &Value::Null),
            "{shown}"
        );
    }
    agent.stop_cleanly();
}

#[test]
fn ipv4_routed_refusals_are_their_senders() {
    overflow(Wiring::Routed, Family::V4);
}

#[test]
fn ipv6_routed_refusals_are_their_senders() {
    overflow(Wiring::Routed, Family::V6);
}

#[test]
fn ipv4_bridged_refusals_are_their_senders() {
    overflow(Wiring::Bridged, Family::V4);
}

#[test]
fn ipv6_bridged_refusals_are_their_senders() {
    overflow(Wiring::Bridged, Family::V6);
}

/// Entries are looked for behind POSTROUTING, where the packets are the router's by their addresses.
#[test]
fn translated_refusals_are_their_senders() {
    let masquerade = " chain translate { type nat hook postrouting priority 100; masquerade; }";
    for family in Family::ALL {
        overflow_behind(Wiring::Routed, family, masquerade);
    }
}

#[test]
fn who_fills_the_table_and_who_suffers_are_told_apart() {
    let (mut node, [filler, victim]) = Node::new(Wiring::Routed, ["filler", "victim"]);
    keep_reachable(&filler.netns, DEVICE);
    let (agent, before) = Point::begin(&[]);
    let mut events = agent.events();
    let family = Family::V4;
    let destinations = node.beyond(family, 1000..1100);
    let limits = Thresholds::set(node.lab.lock(), [128, 200, 200]);
    add(&filler, family, 1000..1180, "reachable");
    send(&victim.netns, victim.address(family), &destinations);
    drop(limits);
    let refused = node.refused(family, &destinations);
    assert!(refused >= 75, "the lab failed: {refused}");

    let after = settled(&agent, &before);
    assert_charged(&after, &before, victim.labels(), family, refused);
    let hidden = before.hidden().refusals(family);
    for (innocent, own) in [
        (filler.labels(), 0),
        // What died of a refusal was hidden: its own need.
        (node.router.labels(), hidden),
        (node.far.labels(), 0),
    ] {
        let charged = table_full(&after, &before, innocent, family);
        assert!(charged <= own, "{innocent:?}: {charged}, {own} were hidden");
    }
    let event = events.wait(Duration::from_secs(2), |e| {
        e.text("kind") == "neighbour_overflow"
    });
    assert!(
        event.is("neighbour_overflow", victim.netns.name()),
        "{}",
        event.json
    );
    eventually(Duration::from_secs(3), || {
        let metrics = agent.metrics();
        let live = |pod: &Pod| {
            let labels = [&pod.labels()[..], &[("family", family.label())]].concat();
            metrics.count(POD_ENTRIES, &labels)
        };
        let truth = entries(&filler.netns, family).len() as u64;
        ensure(
            live(&filler) == truth && truth >= 180 && live(&victim) < 20,
            || {
                format!(
                    "filler {} of {truth}, victim {}",
                    live(&filler),
                    live(&victim)
                )
            },
        )
    });
    agent.stop_cleanly();
}

#[test]
fn a_file_names_senders_by_their_addresses() {
    let (mut node, [cart, till]) = Node::new(Wiring::Bridged, ["cart", "till"]);
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let path = folder.path().join("pods.toml");
    let text = [("cart-1", &cart), ("till-1", &till)].map(|(name, pod)| {
        let [v4, v6] = Family::ALL.map(|family| pod.address(family));
        format!("[[pod]]\nnamespace = \"shop\"\nname = \"{name}\"\nips = [\"{v4}\", \"{v6}\"]\n")
    });
    fs::write(&path, text.concat()).expect("file can be written");
    let (agent, before) = Point::begin(&["--pods", &format!("file:{}", path.display())]);
    let mut events = agent.events();
    let label = |name| [("namespace", "shop"), ("pod", name)];
    for family in Family::ALL {
        let wanted = [1000..1200, 2000..2100].map(|range| node.beyond(family, range));
        let limits = Thresholds::set(node.lab.lock(), LIMITS);
        for (pod, destinations) in [&cart, &till].into_iter().zip(&wanted) {
            send(&pod.netns, pod.address(family), destinations);
        }
        drop(limits);
        let refused = wanted.each_ref().map(|to| node.refused(family, to));
        assert!(
            refused.iter().all(|n| *n > 0),
            "the lab failed: {refused:?}"
        );
        eventually(Duration::from_secs(5), || {
            let after = Point::take(&agent, &before)?;
            for (who, refused) in [label("cart-1"), label("till-1")].into_iter().zip(refused) {
                let charged = table_full(&after, &before, who, family);
                within(charged, refused, || before.hidden().refusals(family))
                    .map_err(|why| format!("{who:?} {family:?}: charged {why}"))?;
            }
            Ok::<(), String>(())
        });
        events.wait(Duration::from_secs(2), |event| {
            event.is("neighbour_overflow", "till-1") && event.text("family") == family.label()
        });
    }
    agent.stop_cleanly();
}

/// A pod whose table is full gets ARP requests and solicitations from a peer it does not know, and
/// answers none: no packet is dropped, and yet it is out of reach.
fn unreachable_for_new_peers(family: Family) {
    let mut lab = Lab::new();
    let [reached, filler] = [("reached", 1), ("filler", 2)].map(|(n, i)| lab.pod(n, i, 1));
    keep_reachable(&filler.netns, DEVICE);
    let (hub, link, target) = (
        Arc::clone(&lab.hub),
        reached.link(),
        reached.address(family),
    );
    keep_reachable(&hub, &link);
    for version in ["ipv4", "ipv6"] {
        hub.sysctl(&format!("{version}/neigh/{link}/retrans_time_ms"), "200");
    }
    // The kernel sends probes for no packet from a link-local address.
    hub.ip(&format!("address add fe80::1/64 dev {link} nodad"));
    let mac = mac(&reached.netns, DEVICE);
    let replace = |state| {
        hub.ip(&format!(
            "neigh replace {target} lladdr {mac} dev {link} nud {state}"
        ));
    };
    replace("reachable");
    let (agent, before) = Point::begin(&[]);

    let limits = Thresholds::set(lab.lock(), [128, 200, 200]);
    let used = entry_count(family);
    add(&filler, family, 1000..1000 + (195 - used), "reachable");
    burst(&filler, family, 2000, 60);
    // Now three times, 0.2 s apart, the hub asks the pod itself whether it is there.
    replace("probe");
    eventually(Duration::from_secs(2), || {
        let all = entries(&hub, family);
        let state = all.iter().find(|entry| entry.address == target);
        ensure(state.is_none_or(|entry| entry.state == "FAILED"), || {
            format!("the pod answers: {state:?}")
        })
    });
    drop(limits);

    let after = settled(&agent, &before);
    let refused = table_full(&after, &before, reached.labels(), family);
    let snapshot = agent.snapshot();
    let kernel_full = figure(&snapshot, reached.labels(), family, "kernel_full");
    assert_eq!(kernel_full, refused, "all of them the kernel's own needs");
    let hidden = before.hidden().creations(family, "table_full");
    assert!(refused + hidden >= 3, "{refused}; {hidden} were hidden");
    if family == Family::V4 {
        assert!(refused <= 3, "{refused}: more than one for each request");
    }
    let total = &snapshot["total"]["neighbour"][family.label()]["kernel_full"];
    assert!(total.as_u64() >= Some(kernel_full), "{total}");
    agent.stop_cleanly();
}

fn entry_count(family: Family) -> u16 {
    let Statistics { entries, .. } = statistics(family);
    u16::try_from(entries).expect("few entries")
}

#[test]
fn an_arp_request_that_a_full_table_leaves_unanswered_is_the_kernels_own_need() {
    unreachable_for_new_peers(Family::V4);
}

#[test]
fn a_solicitation_that_a_full_table_leaves_unanswered_is_the_kernels_own_need() {
    unreachable_for_new_peers(Family::V6);
}

/// It used to be charged to the pod that had the address before, for good.
#[test]
fn an_address_that_moved_is_its_new_owners() {
    let (mut node, [old, new]) = Node::new(Wiring::Bridged, ["old", "new"]);
    let family = Family::V4;
    let (agent, before) = Point::begin(&[]);
    let wanted = [1000..1100, 2000..2100].map(|range| node.beyond(family, range));
    let address = old.address(family);
    let limits = Thresholds::set(node.lab.lock(), [2, 4, 8]);
    send(&old.netns, address, &wanted[0]);
    let of_old = without_entry(&node.router, family, &wanted[0]);
    let first = settled(&agent, &before);
    old.netns
        .ip(&format!("addr flush dev {DEVICE} to {address}"));
    new.netns.ip(&format!("addr add {address}/32 dev {DEVICE}"));
    send(&new.netns, address, &wanted[1]);
    drop(limits);
    let refused = [of_old, without_entry(&node.router, family, &wanted[1])];
    let after = settled(&agent, &before);
    assert!(
        refused.iter().all(|n| *n >= 50),
        "the lab failed: {refused:?}"
    );
    for (point, pod, refused) in [
        (&first, &old, refused[0]),
        (&after, &old, refused[0]),
        (&after, &new, refused[1]),
    ] {
        assert_charged(point, &before, pod.labels(), family, refused);
    }
    agent.stop_cleanly();
}
