//! Hook `dns` with hook `drops`: answers that the node loses on their way to the pod, and queries
//! that it cannot deliver, for want of a neighbour.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tests::dns::packet::query;
use tests::dns::scene::lookups;
use tests::dns::{A, Lookup, Scene, Server};
use tests::entries::{entries, flush, know, mac};
use tests::neigh::{FIRST_SILENT, burst, table_fulls};
use tests::netns::{DEVICE, Netns, await_ipv6};
use tests::nft::Rules;
use tests::router::Wiring;
use tests::{Family, Lab, Thresholds, on_one_cpu};

/// What the kernel says when it frees what waited for a neighbour; IPv6 gives no reason.
const UNRESOLVED: [&str; 2] = ["neigh_failed", "not_specified"];
/// Few enough for a burst to overflow the table.
const LIMITS: [u64; 3] = [32, 64, 64];

/// Three solicitations in 0.3 s, so that the kernel gives up before the lookup does.
fn hurry(netns: &Netns, device: &str) {
    for family in Family::ALL {
        let key = format!("{}/neigh/{device}/retrans_time_ms", family.label());
        netns.sysctl(&key, "100");
    }
}

/// All on the way know each other for good, but the node forgets the client: the query arrives, and
/// the answer needs a new entry.
fn forget_client(scene: &Scene, family: Family) {
    let (client, router, far) = (&scene.client, &scene.router, &scene.far);
    for pod in [client, far] {
        let wire = mac(router, &pod.link());
        know(&pod.netns, DEVICE, pod.hub(family), &wire);
    }
    let wire = mac(&far.netns, DEVICE);
    for n in 2..tests::dns::scene::SERVERS + 2 {
        know(router, &far.link(), far.neighbour(family, n), &wire);
    }
    flush(router, family);
    assert!(!knows(router, client.address(family)), "the lab failed");
}

fn knows(netns: &Netns, address: IpAddr) -> bool {
    Family::ALL.iter().any(|family| {
        let all = entries(netns, *family);
        all.iter().any(|entry| entry.address == address)
    })
}

fn forwarding_meets_a_full_table(family: Family) {
    let (mut lab, mut scene) = Scene::new(Wiring::Routed);
    let filler = lab.pod("filler", 9, 1);
    forget_client(&scene, family);
    let (fulls, answered) = (table_fulls(family), scene.server.answered());
    // One is known to the node, and its answers are lost; the way to the other one is not known.
    let servers = [scene.address(family), scene.far.neighbour(family, 60)];
    let limits = Thresholds::set(lab.lock(), LIMITS);
    burst(&filler, family, FIRST_SILENT, 150);
    let asked = lookups(&["ok-a", "ok-b"], &servers);
    let reasons = ["neigh_createfail"];
    scene.fail("full table", &asked, "neighbour_table_full", &reasons);
    drop(limits);
    let grown = table_fulls(family) - fulls;
    let sent = scene.server.answered() - answered;
    assert!(
        grown >= 8 && sent == 4,
        "the lab failed: {grown} refused, {sent} answers sent"
    );
    scene.settle();
}

#[test]
fn queries_and_answers_lost_to_the_nodes_full_ipv4_table_say_so() {
    forwarding_meets_a_full_table(Family::V4);
}

#[test]
fn queries_and_answers_lost_to_the_nodes_full_ipv6_table_say_so() {
    forwarding_meets_a_full_table(Family::V6);
}

#[test]
fn answers_that_wait_for_the_client_in_vain_say_so() {
    let (_lab, mut scene) = Scene::new(Wiring::Routed);
    hurry(&scene.router, &scene.client.link());
    for family in Family::ALL {
        forget_client(&scene, family);
    }
    // The client is there, and silent when asked who it is.
    scene.client.netns.sysctl("ipv4/conf/eth0/arp_ignore", "8");
    let deaf = Rules::drop(
        &scene.client.netns,
        "input",
        "icmpv6 type nd-neighbor-solicit",
    );
    let answered = scene.server.answered();
    let asked = lookups(&["ok-unresolved"], &Family::ALL.map(|f| scene.address(f)));
    scene.fail("no neighbour", &asked, "neighbour_unresolved", &UNRESOLVED);
    let sent = scene.server.answered() - answered;
    assert!(
        sent == 4 && deaf.hits() >= 3,
        "the lab failed: {sent} answers sent"
    );
    scene.settle();
}

/// All on one CPU: it hears of the answer, and of its end.
#[test]
fn answers_that_nobody_has_read_when_the_socket_is_closed_have_arrived() {
    on_one_cpu(|| {
        const ASKED: u16 = 10;
        /// What the kernel may take to free a socket, and less than tracer waits for its answer's end.
        const GRACE: Duration = Duration::from_millis(50);
        let (_lab, mut scene) = Scene::new(Wiring::Routed);
        for family in Family::ALL {
            let server = (scene.address(family), 53);
            let any = scene.client.address(family);
            scene.client.netns.run(|| {
                for id in 0..ASKED {
                    let socket = UdpSocket::bind((any, 0)).expect("sockets can be made");
                    let sent = socket.send_to(&query(id, 0, "ok-unread.test", A), server);
                    sent.expect("nothing is in the way");
                    let wait = Some(Duration::from_secs(5));
                    socket.set_read_timeout(wait).expect("timeouts can be set");
                    let there = socket.peek(&mut [0; 512]).expect("it is answered");
                    assert!(there > 12, "the lab failed: {there} bytes");
                    drop(socket);
                    thread::sleep(GRACE);
                }
            });
            scene.tally.queries += u64::from(ASKED);
            *scene.tally.outcomes.entry("noerror").or_default() += u64::from(ASKED);
        }
        scene.settle();
    });
}

#[test]
fn queries_forwarded_to_nobody_say_so() {
    let (_lab, mut scene) = Scene::new(Wiring::Bridged);
    hurry(&scene.router, &scene.far.link());
    let nobody = Family::ALL.map(|family| scene.far.neighbour(family, FIRST_SILENT));
    let asked = lookups(&["ok-nobody"], &nobody);
    scene.fail("no neighbour", &asked, "neighbour_unresolved", &UNRESOLVED);
    scene.settle();
}

#[test]
fn a_full_queue_of_the_nodes_neighbour_is_named() {
    let (_lab, mut scene) = Scene::new(Wiring::Routed);
    let link = scene.far.link();
    hurry(&scene.router, &link);
    for family in Family::ALL {
        let key = format!("{}/neigh/{link}/unres_qlen_bytes", family.label());
        scene.router.sysctl(&key, "1");
    }
    // Room for one packet: each pushes out the one before, and the last dies with the neighbour.
    for family in Family::ALL {
        let nobody = scene.far.neighbour(family, FIRST_SILENT);
        let asked: Vec<Lookup> = (0..4)
            .map(|n| Lookup::new(format!("ok-{n}.test"), A, nobody))
            .collect();
        let tally = scene.ask(&asked);
        assert_eq!(tally.outcome("timeout"), 4, "the lab failed: {tally:?}");
        *scene.causes.entry("neighbour_queue_full").or_default() += 3;
        *scene.causes.entry("neighbour_unresolved").or_default() += 1;
        scene.expect(
            "queue",
            &asked[..3],
            "neighbour_queue_full",
            &["neigh_queuefull"],
        );
        scene.expect(
            "last in the queue",
            &asked[3..],
            "neighbour_unresolved",
            &UNRESOLVED,
        );
    }
    scene.settle();
}

/// Server addresses in a namespace, in the /64 of `like`, no two of which share a multicast group to
/// be solicited by.
fn servers(netns: &Netns, device: &str, like: IpAddr) -> Vec<IpAddr> {
    let IpAddr::V6(like) = like else {
        panic!("{like} has no multicast group");
    };
    let [a, b, c, d, ..] = like.segments();
    let all: Vec<IpAddr> = (1..=100)
        .map(|n| Ipv6Addr::new(a, b, c, d, 1, 0, 0x77, n).into())
        .collect();
    let commands: Vec<String> = all
        .iter()
        .map(|address| format!("address add {address}/64 dev {device} nodad"))
        .collect();
    netns.ip_batch(&commands.join("\n"));
    await_ipv6(netns, device, all.len());
    all
}

/// The client asks all of them while the table has no room for all: some have no entry, and some have
/// one but not the group to solicit them by. All lookups that fail do for the full table.
fn solicitations_meet_a_full_table(
    scene: &mut Scene,
    lab: &mut Lab,
    (from, device): (&Netns, &str),
    servers: &[IpAddr],
) {
    let filler = lab.pod("filler", 9, 1);
    hurry(from, device);
    let asked: Vec<Lookup> = servers
        .iter()
        .map(|server| Lookup::new("ok.test", A, *server))
        .collect();
    let fulls = table_fulls(Family::V6);
    let limits = Thresholds::set(lab.lock(), LIMITS);
    burst(&filler, Family::V6, FIRST_SILENT, 30);
    let (mut waited, mut resolved) = (BTreeSet::new(), BTreeSet::new());
    let tally = thread::scope(|scope| {
        let client = scope.spawn(|| scene.ask(&asked));
        while !client.is_finished() {
            for entry in entries(from, Family::V6) {
                match &*entry.state {
                    "INCOMPLETE" | "FAILED" => waited.insert(entry.address),
                    _ => resolved.insert(entry.address),
                };
            }
        }
        client.join().expect("the client ends")
    });
    drop(limits);
    let lost = tally.outcome("timeout");
    // These had an entry and were solicited in vain, though the servers answer.
    let unsolicited = waited
        .difference(&resolved)
        .filter(|address| servers.contains(address))
        .count();
    let grown = table_fulls(Family::V6) - fulls;
    eprintln!("{lost} lost, {unsolicited} of them with an entry; {grown} refused");
    assert!(grown > 0 && unsolicited > 0, "the lab failed: {tally:?}");
    *scene.causes.entry("neighbour_table_full").or_default() += lost;
}

#[test]
fn queries_behind_a_refused_solicitation_say_full_table() {
    let (mut lab, mut scene) = Scene::new(Wiring::Routed);
    let (hub, pod) = (Arc::clone(&scene.router), scene.client.clone());
    let all = servers(&hub, &pod.link(), pod.hub(Family::V6));
    let _server = Server::start(&hub, &all);
    solicitations_meet_a_full_table(&mut scene, &mut lab, (&pod.netns, DEVICE), &all);
    scene.settle();
}

#[test]
fn forwarded_queries_behind_a_refused_solicitation_say_full_table() {
    let (mut lab, mut scene) = Scene::new(Wiring::Routed);
    let (node, far) = (Arc::clone(&scene.router), scene.far.clone());
    let all = servers(&far.netns, DEVICE, far.address(Family::V6));
    let _server = Server::start(&far.netns, &all);
    // Only the node's needs count.
    forget_client(&scene, Family::V6);
    let wire = mac(&scene.client.netns, DEVICE);
    let link = scene.client.link();
    know(&node, &link, scene.client.address(Family::V6), &wire);
    solicitations_meet_a_full_table(&mut scene, &mut lab, (&node, &far.link()), &all);
    scene.settle();
}
