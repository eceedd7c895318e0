//! Hook `dns` with hook `drops`: answers that no socket of this node's resolvers sent, as of a server
//! elsewhere. Nothing but what they say leads to their lookup.

use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddrV4};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketType, bind, ipproto, recv, sendto, socket, sockopt,
};
use tests::dns::packet::answer;
use tests::dns::scene::lookups;
use tests::dns::{A, Lookup, Scene, Server};
use tests::nft::Rules;
use tests::router::Wiring;
use tests::wait::ensure;
use tests::{Family, eventually};

const UDP_HEADER: usize = 8;

/// Answers so many queries to `address` by a raw socket, of which the hook knows no query. (The
/// kernel says "port unreachable" too, for it has no other socket there.)
fn serve(scene: &Scene, address: IpAddr, queries: usize) -> JoinHandle<()> {
    let IpAddr::V4(address) = address else {
        panic!("raw answers are IPv4");
    };
    let raw = scene.far.netns.run(|| {
        let raw = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::UDP));
        let raw: OwnedFd = raw.expect("raw sockets can be made");
        bind(&raw, &SocketAddrV4::new(address, 0)).expect("the server's address can be bound");
        let patience = Duration::from_secs(5);
        sockopt::set_socket_timeout(&raw, sockopt::Timeout::Recv, Some(patience))
            .expect("a timeout");
        raw
    });
    std::thread::spawn(move || {
        for _ in 0..queries {
            let mut packet = [MaybeUninit::uninit(); 2048];
            let ((packet, _), _) =
                recv(&raw, &mut packet, RecvFlags::empty()).expect("the lab failed: no query came");
            let header = usize::from(packet[0] & 0xf) * 4;
            let source: [u8; 4] = packet[12..16].try_into().expect("four bytes");
            let (udp, query) = packet[header..].split_at(UDP_HEADER);
            let message = answer(query, 0, false, true);
            let length = u16::try_from(UDP_HEADER + message.len()).expect("answers are short");
            // From 53 to the client's port; a checksum of 0 is none.
            let mut datagram = vec![0, 53, udp[0], udp[1]];
            datagram.extend(length.to_be_bytes());
            datagram.extend([0, 0]);
            datagram.extend(message);
            let client = SocketAddrV4::new(source.into(), 0);
            sendto(&raw, &datagram, SendFlags::empty(), &client).expect("the answer can be sent");
        }
    })
}

fn asked(address: IpAddr, script: &str, count: usize) -> Vec<Lookup> {
    (0..count)
        .map(|n| Lookup::new(format!("{script}-{n}.test"), A, address))
        .collect()
}

#[test]
fn answers_of_a_server_elsewhere_are_joined_by_what_they_say() {
    for wiring in [Wiring::Routed, Wiring::Bridged] {
        let (_lab, mut scene) = Scene::new(wiring);
        // An address of the server's pod where no server listens.
        let address = scene.nth(Family::V4, tests::dns::scene::SERVERS + 2);
        scene
            .far
            .netns
            .ip(&format!("address add {address}/32 dev lo"));
        let route = format!("route add {address}/32 via {}", scene.address(Family::V4));
        scene.router.ip(&route);

        let server = serve(&scene, address, 4);
        let tally = scene.ask(&asked(address, "free", 4));
        assert_eq!(tally.answered(), 4, "the lab failed: {tally:?}");
        server.join().expect("the server ends well");

        for (what, netns, hook) in [
            ("the node's FORWARD", &scene.router, "forward"),
            ("the pod's INPUT", &scene.client.netns, "input"),
        ]
        .map(|(what, netns, hook)| (what, Arc::clone(netns), hook))
        {
            let rules = Rules::drop(&netns, hook, "udp sport 53");
            let lookups = asked(address, "lost", 4);
            let server = serve(&scene, address, lookups.len());
            // An answer's drop goes before the query's, which found no other socket.
            scene.fail(what, &lookups, "netfilter", &["netfilter_drop"]);
            assert_eq!(rules.hits(), 4, "the lab failed, {what}");
            server.join().expect("the server ends well");
        }
        let to = Family::ALL.map(|family| scene.address(family));
        scene.ask(&lookups(&["ok-after"], &to));
        scene.settle();
    }
}

/// A raw socket gets a copy of every datagram of its namespace, and is nobody's client or server.
#[test]
fn raw_sockets_beside_change_nothing() {
    let (_lab, mut scene) = Scene::new(Wiring::Routed);
    let raw = [&scene.client.netns, &scene.far.netns].map(|netns| {
        netns.run(|| {
            let raw = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::UDP));
            raw.expect("raw sockets can be made")
        })
    });
    for _ in 0..5 {
        assert_eq!(scene.answered(&["ok-beside"]), 4, "the lab failed");
    }
    eventually(Duration::from_secs(5), || {
        let snapshot = scene.agent.snapshot();
        let pods = snapshot["pods"].as_array().expect("the snapshot has pods");
        let pod = pods
            .iter()
            .find(|pod| pod["pod"] == scene.far.netns.name())
            .ok_or("no server yet")?;
        let (received, served) = (&pod["dns"]["received"], &pod["dns"]["served"]);
        ensure(
            *received == scene.server.received() && served["noerror"] == *received,
            || format!("received {received}, {served}"),
        )
    });
    scene.settle();
    drop(raw);
}

/// The node puts what it forwards into a tunnel to another node: what dies there is inside.
#[test]
fn what_a_tunnel_carries_is_looked_into() {
    let (_lab, mut scene) = Scene::new(Wiring::Routed);
    // Client and server by way of VXLAN between the node and the server's pod.
    let (router, far) = (Arc::clone(&scene.router), Arc::clone(&scene.far.netns));
    let [near_end, far_end] = [scene.far.hub(Family::V4), scene.far.address(Family::V4)];
    for (netns, local, remote, inner) in [
        (&router, near_end, far_end, "172.31.9.1"),
        (&far, far_end, near_end, "172.31.9.2"),
    ] {
        netns.ip(&format!(
            "link add vx0 type vxlan id 42 local {local} remote {remote} dstport 4789"
        ));
        netns.ip(&format!("address add {inner}/24 dev vx0"));
        netns.ip("link set vx0 up");
    }
    let server: IpAddr = "172.31.9.2".parse().expect("an address");
    far.ip(&format!(
        "route replace {} via 172.31.9.1",
        scene.client.address(Family::V4)
    ));
    let inside = Server::start(&far, &[server]);
    eventually(Duration::from_secs(5), || {
        let tally = scene.ask(&asked(server, "ok", 1));
        ensure(tally.answered() == 1, || {
            "the tunnel carries nothing".to_owned()
        })
    });
    // What was lost until the tunnel stood is not this test's affair.
    let before = scene.agent.metrics();
    let mut dropped = 0;
    for (what, netns, hook, matches) in [
        (
            "outer query, the node's OUTPUT",
            &router,
            "output",
            "udp dport 4789",
        ),
        (
            "outer answer, the node's INPUT",
            &router,
            "input",
            "udp dport 4789",
        ),
        (
            "inner answer, the node's FORWARD",
            &router,
            "forward",
            "udp sport 53",
        ),
    ] {
        let rules = Rules::drop(netns, hook, matches);
        let lookups = asked(server, "ok-tunnel", 4);
        let tally = scene.ask(&lookups);
        assert_eq!(tally.outcome("timeout"), 4, "the lab failed, {what}");
        assert!(rules.hits() >= 4, "the lab failed, {what}");
        dropped += rules.hits();
        scene.expect(what, &lookups, "netfilter", &["netfilter_drop"]);
    }
    let name = "tracer_pod_dns_failures_total";
    eventually(Duration::from_secs(5), || {
        let [namespace, pod] = scene.client.labels();
        let labels = [namespace, pod, ("cause", "netfilter")];
        let grown = scene.agent.metrics().growth(&before, name, &labels);
        ensure(grown == 12, || format!("{grown} of 12"))?;
        // The drops are the client's too, though the packet around was from node to node. The node itself may have
        // something to say into the tunnel (neighbour discovery), once or twice.
        let labels = [namespace, pod, ("reason", "netfilter_drop")];
        let drops = "tracer_pod_drops_total";
        let grown = scene.agent.metrics().growth(&before, drops, &labels);
        ensure((12..=dropped).contains(&grown), || {
            format!("{grown} of {dropped} drops")
        })
    });
    drop(inside);
}
