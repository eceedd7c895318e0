//! Refusals on nodes whose networks wrap, translate, answer and forward: whose trouble each is.

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tests::entries::{know, mac};
use tests::neigh::{FIRST_SILENT, burst, send, table_fulls};
use tests::netns::{DEVICE, Netns, Pod, await_ipv6};
use tests::nft::Rules;
use tests::point::{POD_CREATES, await_refused, figure, within};
use tests::router::{Node, Wiring, without_entry};
use tests::wait::ensure;
use tests::{Family, Point, Thresholds, eventually};

const LIMITS: [u64; 3] = [64, 128, 128];

/// Fills the table, and keeps it full as long as the limits stand.
fn fill(filler: &Pod, family: Family) {
    burst(filler, family, FIRST_SILENT, 200);
}

/// Switches conntrack on.
const FOLLOW: &str = " chain follow { type filter hook forward priority 0; ct state new counter; }";

/// Who asks, and who answers.
struct Talk {
    asking: UdpSocket,
    answering: UdpSocket,
    to: IpAddr,
}

impl Talk {
    /// From address to address, each in its namespace.
    fn between(asker: (&Netns, IpAddr), server: (&Netns, IpAddr)) -> Self {
        let [asking, answering] = [asker, server].map(|(netns, address)| {
            let socket = netns.run(|| UdpSocket::bind((address, 7)).expect("it is its own"));
            let wait = Some(Duration::from_secs(5));
            socket.set_read_timeout(wait).expect("timeouts can be set");
            socket
        });
        Self {
            asking,
            answering,
            to: server.1,
        }
    }

    /// One question and one answer, which may not get there.
    fn answer(&self) {
        let to = (self.to, 7);
        self.asking.send_to(b"?", to).expect("the way is known");
        let (_, from) = self.answering.recv_from(&mut [0; 9]).expect("it arrives");
        self.answering.send_to(b"!", from).expect("it can be sent");
    }

    fn hear(&self) {
        let heard = self.asking.recv_from(&mut [0; 9]);
        heard.expect("the lab failed: no answer");
    }

    /// Panics if an answer has come.
    fn expect_silence(&self) {
        self.asking.set_nonblocking(true).expect("it can be");
        let heard = self.asking.recv_from(&mut [0; 9]);
        assert!(heard.is_err(), "the lab failed: an answer came");
    }
}

/// The node has thrown out its entry of a pod: what comes in for it dies there, and is the pod's, whoever sent it.
#[test]
fn an_answer_that_cannot_reach_who_asked_is_the_askers() {
    for (family, far_away, range) in [
        (Family::V4, "10.177.0.9", "10.177.0.0/24"),
        (Family::V6, "fd00:177::9", "fd00:177::/64"),
    ] {
        let (mut node, [client, filler]) = Node::new(Wiring::Routed, ["client", "filler"]);
        let (router, far) = (Arc::clone(&node.router), node.far.clone());
        // On no device, so that no source knows whose it is: as a server on another node.
        let server: IpAddr = far_away.parse().expect("an address");
        far.netns.ip(&format!("route add local {range} dev lo"));
        far.netns.sysctl("ipv6/ip_nonlocal_bind", "1");
        far.netns
            .ip(&format!("route add default via {}", far.hub(family)));
        router.ip(&format!("route add {range} via {}", far.address(family)));
        let _rules = Rules::load(&router, FOLLOW);
        for (netns, device, neighbour, of, its) in [
            (
                &client.netns,
                DEVICE,
                client.hub(family),
                &router,
                &*client.link(),
            ),
            (&far.netns, DEVICE, far.hub(family), &router, &far.link()),
            (
                &router,
                &far.link(),
                far.address(family),
                &far.netns,
                DEVICE,
            ),
        ] {
            know(netns, device, neighbour, &mac(of, its));
        }
        let asker = (&*client.netns, client.address(family));
        let talk = Talk::between(asker, (&*far.netns, server));
        talk.answer();
        talk.hear();

        let (agent, before) = Point::begin(&[]);
        let mut events = agent.events();
        let limits = Thresholds::set(node.lab.lock(), LIMITS);
        fill(&filler, family);
        router.ip(&format!(
            "neigh flush to {} dev {}",
            client.address(family),
            client.link()
        ));
        // Into the place that is free now.
        fill(&filler, family);
        let answers = 40;
        for _ in 0..answers {
            talk.answer();
        }
        drop(limits);
        talk.expect_silence();
        await_refused(&agent, &before, client.labels(), family, answers);
        let event = events.wait(Duration::from_secs(2), |event| {
            event.is("neighbour_overflow", client.netns.name())
        });
        let shown = &event.json;
        assert_eq!(
            shown["destination"],
            client.address(family).to_string(),
            "{shown}"
        );
        agent.stop_cleanly();
    }
}

/// Who asks is on the wire and no pod of this node: that the answer dies is the trouble of the pod that answers.
#[test]
fn an_answer_to_who_is_on_the_wire_is_its_senders() {
    // IPv6 would want an address of the device, by which the source would know it.
    let family = Family::V4;
    let (mut node, [server, filler]) = Node::new(Wiring::Routed, ["server", "filler"]);
    let (router, far) = (Arc::clone(&node.router), node.far.clone());
    far.netns
        .ip(&format!("route add default via {}", far.hub(family)));
    let _rules = Rules::load(&router, FOLLOW);
    for (netns, device, neighbour, of, its) in [
        (
            &server.netns,
            DEVICE,
            server.hub(family),
            &router,
            &*server.link(),
        ),
        (
            &router,
            &server.link(),
            server.address(family),
            &server.netns,
            DEVICE,
        ),
        (&far.netns, DEVICE, far.hub(family), &router, &far.link()),
    ] {
        know(netns, device, neighbour, &mac(of, its));
    }
    let stranger = far.neighbour(family, 60);
    far.netns
        .ip(&format!("route add local {stranger}/32 dev lo"));
    let server_at = (&*server.netns, server.address(family));
    let talk = Talk::between((&*far.netns, stranger), server_at);
    let (agent, before) = Point::begin(&[]);
    let limits = Thresholds::set(node.lab.lock(), LIMITS);
    fill(&filler, family);
    let answers = 40;
    for _ in 0..answers {
        talk.answer();
    }
    drop(limits);
    talk.expect_silence();
    await_refused(&agent, &before, server.labels(), family, answers);
    agent.stop_cleanly();
}

/// A pod that forwards (containers in it, virtual machines): who is behind it is nobody that the cluster knows, and may
/// have another pod's address.
#[test]
fn what_a_pod_forwards_is_the_pods() {
    let (mut node, [pod]) = Node::new(Wiring::Routed, ["pod"]);
    let inner = Netns::new("inner");
    pod.netns.ip(&format!(
        "link add dind index 71 type veth peer name {DEVICE} index 72 netns {}",
        inner.name()
    ));
    pod.netns.ip("link set dind up");
    inner.ip(&format!("link set {DEVICE} up"));
    let mut ips = Vec::new();
    for (family, range, length) in [
        (Family::V4, "172.17.0", 24),
        (Family::V6, "fd00:172:17:0:0:0:0", 64),
    ] {
        let (separator, nodad) = if family == Family::V4 {
            (".", "")
        } else {
            (":", "nodad")
        };
        let [gateway, own] = [1, 2].map(|n| format!("{range}{separator}{n}"));
        pod.netns
            .ip(&format!("address add {gateway}/{length} dev dind {nodad}"));
        inner.ip(&format!("address add {own}/{length} dev {DEVICE} {nodad}"));
        ips.push(own);
    }
    await_ipv6(&inner, DEVICE, 1);
    await_ipv6(&pod.netns, "dind", 1);
    inner.ip("route add default via 172.17.0.1");
    inner.ip("route add default via fd00:172:17::1");
    // As routers need one on each link to solicit for others.
    pod.netns
        .ip(&format!("address add fe80::2/64 dev {DEVICE} nodad"));
    pod.netns.sysctl("ipv4/ip_forward", "1");
    pod.netns.sysctl("ipv6/conf/all/forwarding", "1");
    let _rules = Rules::load(
        &pod.netns,
        &format!(
            " chain translate {{ type nat hook postrouting priority 100; oifname \"{DEVICE}\" masquerade; }}"
        ),
    );
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let path = folder.path().join("pods.toml");
    let text = format!(
        "[[pod]]\nnamespace = \"ci\"\nname = \"runner\"\nnetns = \"{}\"\n\
         [[pod]]\nnamespace = \"shop\"\nname = \"cart\"\nips = {ips:?}\n",
        pod.netns.path().display()
    );
    fs::write(&path, text).expect("file can be written");
    let (agent, before) = Point::begin(&["--pods", &format!("file:{}", path.display())]);
    for (family, own) in Family::ALL.into_iter().zip(&ips) {
        let own: IpAddr = own.parse().expect("an address");
        let wanted: Vec<IpAddr> = (1000..1200).map(|n| pod.neighbour(family, n)).collect();
        let limits = Thresholds::set(node.lab.lock(), LIMITS);
        send(&inner, own, &wanted);
        drop(limits);
        let refused = without_entry(&pod.netns, family, &wanted);
        assert!(refused >= 72, "the lab failed: {refused}");
        let kernel_full = || {
            let labels = [("namespace", "ci"), ("pod", "runner")];
            figure(&agent.snapshot(), labels, family, "kernel_full")
        };
        eventually(Duration::from_secs(5), || {
            let after = Point::take(&agent, &before)?;
            let full = [("result", "table_full")];
            let of = |labels| after.pod_growth(&before, POD_CREATES, labels, family, &full);
            let own = kernel_full();
            let charged = of([("namespace", "ci"), ("pod", "runner")]);
            within(charged, refused + own, || before.hidden().refusals(family))
                .map_err(|why| format!("{family:?}: the pod's {why}"))?;
            let others = of([("namespace", "shop"), ("pod", "cart")]);
            ensure(others == 0, || format!("{family:?}: {others} of another's"))
        });
    }
    agent.stop_cleanly();
}

/// What the node has wrapped for another node is from the node, by all that the outside says.
#[test]
fn what_is_wrapped_for_a_tunnel_is_its_senders() {
    let (mut node, [client, filler]) = Node::new(Wiring::Routed, ["client", "filler"]);
    let (router, far) = (Arc::clone(&node.router), node.far.clone());
    router.ip(&format!(
        "link add vx0 type vxlan id 42 local {} remote {} dstport 4789",
        far.hub(Family::V4),
        far.address(Family::V4)
    ));
    router.ip("link set vx0 up");
    // The other end's addresses, as an overlay's daemon makes them known.
    let inside: [IpAddr; 2] =
        ["172.31.9.2", "fd00:31:9::2"].map(|text| text.parse().expect("an address"));
    router.ip("address add 172.31.9.1/24 dev vx0");
    router.ip("address add fd00:31:9::1/64 dev vx0 nodad");
    await_ipv6(&router, "vx0", 1);
    for to in inside {
        know(&router, "vx0", to, "02:00:00:00:00:42");
    }
    for family in Family::ALL {
        let hub = client.hub(family);
        know(&client.netns, DEVICE, hub, &mac(&router, &client.link()));
    }
    let (agent, before) = Point::begin(&[]);
    let limits = Thresholds::set(node.lab.lock(), LIMITS);
    fill(&filler, Family::V4);
    router.ip(&format!(
        "neigh flush to {} dev {}",
        far.address(Family::V4),
        far.link()
    ));
    fill(&filler, Family::V4);
    let fulls = table_fulls(Family::V4);
    for (family, to) in Family::ALL.into_iter().zip(inside) {
        send(&client.netns, client.address(family), &[to; 30]);
    }
    let refused = table_fulls(Family::V4) - fulls;
    drop(limits);
    assert!(refused >= 60, "the lab failed: {refused}");
    await_refused(&agent, &before, client.labels(), Family::V4, 60);
    agent.stop_cleanly();
}
