//! Client pods, a node that forwards, a server's pod behind it, all ways to fail, and an agent that
//! watches.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::client::{Attempt, Ended, Means, Tally};
use super::server::{Manner, Server};
use super::truth::{DEAD_INFO, check_node, compare_seen};
use crate::agent::Agent;
use crate::events::Events;
use crate::faults::Faults;
use crate::neigh::Family;
use crate::netns::{Netns, Pod};
use crate::nft::Rules;
use crate::router::{Node, Wiring};
use crate::unseen::Unseen;
use crate::wait::{eventually, is_emulated, patient};

/// Long enough for the kernel to send a SYN again and to give its verdict, where it has one.
pub const PATIENCE: Duration = Duration::from_millis(2500);

/// Where somebody listens.
pub const OPEN: u16 = 80;
/// Where nobody listens.
pub const CLOSED: u16 = 81;
/// What the node drops without a word.
pub const DROPPED: u16 = 82;
/// What the node rejects with a reset.
pub const RESET: u16 = 83;

/// Segments that the node treats as its routes say: the third number of the address, the kind of the
/// route; one without a kind has no route at all.
pub const ROUTES: [(u8, &str); 4] = [
    (250, "blackhole"),
    (251, "unreachable"),
    (252, "prohibit"),
    (253, ""),
];

/// The scene.
#[derive(Debug)]
pub struct Scene {
    /// The agent.
    pub agent: Agent,
    /// Its events.
    pub events: Events,
    /// Listens on port [`OPEN`] of the far pod.
    pub server: Server,
    faults: Faults,
    rules: Rules,
    unseen: Unseen,
    /// The node, and the far pod.
    pub node: Node,
}

impl Scene {
    /// With client pods of these names, wired to the node like this.
    pub fn new<const N: usize>(wiring: Wiring, names: [&str; N]) -> (Self, [Pod; N]) {
        Self::with(wiring, names, &[])
    }

    /// The same, with arguments of the agent.
    pub fn with<const N: usize>(
        wiring: Wiring,
        names: [&str; N],
        arguments: &[&str],
    ) -> (Self, [Pod; N]) {
        let (node, pods) = prepare(wiring, names);
        (Self::begin(node, arguments), pods)
    }

    /// With a node that [`prepare`] has made.
    pub fn begin(node: Node, arguments: &[&str]) -> Self {
        Self::around(node, || Agent::start(arguments))
    }

    /// The same, with an agent that is started so.
    pub fn around(node: Node, start: impl FnOnce() -> Agent) -> Self {
        let open = Family::ALL.map(|family| SocketAddr::new(node.far.address(family), OPEN));
        let server = Server::start(&node.far.netns, &open, Manner::Close);
        let rules = Rules::named(
            &node.router,
            "refuse",
            &format!(
                " chain refuse {{ type filter hook forward priority 0; \
                 tcp dport {DROPPED} counter name hit drop; \
                 tcp dport {RESET} reject with tcp reset; }}\n"
            ),
        );
        let unseen = Unseen::watch(&[
            // From SYN_SENT: an attempt's end.
            ("sock/inet_sock_set_state", "oldstate==2"),
            ("sock/inet_sk_error_report", "0"),
        ]);
        let agent = start();
        let events = agent.events();
        Self {
            agent,
            events,
            server,
            faults: Faults::default(),
            rules,
            unseen,
            node,
        }
    }

    /// Port of the server's pod.
    pub fn port(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.node.far.address(family), port)
    }

    /// On the server's segment, where nobody has the address; the node knows after 0.3 s.
    pub fn nobody(&self, family: Family, number: u16) -> SocketAddr {
        SocketAddr::new(self.node.far.neighbour(family, 1000 + number), OPEN)
    }

    /// Destinations on the server's segment that are shown as dead. Others of the host may call
    /// others.
    pub fn dead(&self) -> Vec<SocketAddr> {
        let metrics = self.agent.metrics();
        let shown = metrics.matching(DEAD_INFO, &[]);
        let destinations = shown.filter_map(|(labels, _)| labels["destination"].parse().ok());
        let [v4, v6] = Family::ALL.map(|family| self.node.far.address(family));
        destinations
            .filter(|to: &SocketAddr| match (to.ip(), v4, v6) {
                (IpAddr::V4(to), IpAddr::V4(own), _) => to.octets()[..2] == own.octets()[..2],
                (IpAddr::V6(to), _, IpAddr::V6(own)) => to.segments()[..4] == own.segments()[..4],
                _ => false,
            })
            .collect()
    }

    /// Ends of attempts, of whose errors and states two are noted each, that the kernel showed to no
    /// program; see [`crate::unseen`].
    pub fn unseen(&self) -> u64 {
        self.unseen.count()
    }

    /// Packets that the node dropped without a word.
    pub fn dropped(&self) -> u64 {
        self.rules.hits()
    }

    /// Notes a fault where there is no event for each of these that failed, with its addresses and
    /// result; waits for two seconds.
    pub fn expect_events(&mut self, pod: &Pod, ended: &[Ended]) {
        let end = Instant::now() + patient(Duration::from_secs(2));
        for one in ended.iter().filter(|one| one.result != "established") {
            let left = end.saturating_duration_since(Instant::now());
            let found = self.events.find(left, |event| {
                let source: Option<SocketAddr> = event.text("source").parse().ok();
                event.is("connect_failure", pod.netns.name())
                    && source.is_some_and(|source| source.port() == one.source.port())
                    && event.text("destination") == one.to.to_string()
            });
            let Some(event) = found else {
                let port = format!(":{}\"", one.source.port());
                let near = self.events.seen.iter().map(|event| event.json.to_string());
                let near: Vec<String> = near.filter(|shown| shown.contains(&port)).collect();
                let metrics = self.agent.metrics();
                let [lost, held] = ["lost", "suppressed"].map(|what| {
                    metrics.count(&format!("tracer_events_{what}_total"), &[("hook", "tcp")])
                });
                self.fault(&format!(
                    "no event for {one:?}, but {near:?}; {lost} lost, {held} held back"
                ));
                continue;
            };
            let family = if one.to.is_ipv4() {
                Family::V4
            } else {
                Family::V6
            };
            let source = SocketAddr::new(pod.address(family), one.source.port());
            let local = one.to.ip().is_loopback();
            let right = event.text("result") == one.result
                && (local || event.text("source") == source.to_string())
                && event.json["pod"]["namespace"] == "(netns)"
                && event.json["netns"] == pod.netns.inode()
                && event.json["node"] == "lab";
            if !right {
                self.fault(&format!("not {one:?} from {source}: {}", event.json));
            }
        }
    }

    /// Attempts that may have another result than the application saw: where two processors run in turn, it may take
    /// an error in the midst of the kernel's noting (`docs/hooks/tcp.md`).
    pub fn in_between() -> u64 {
        u64::from(is_emulated())
    }

    /// How much tracer did wrong so far.
    pub fn faults(&self) -> u64 {
        self.faults.count()
    }

    /// Notes what tracer did wrong; [`Scene::settle`] panics for it, and so does the scene's end where
    /// nobody has asked for the faults.
    pub fn fault(&mut self, what: &str) {
        self.faults.note(what);
    }

    /// Panics unless tracer's figures of these pods come to be what their clients saw, the node's add
    /// up, and no fault was noted. Exactly, but for what the kernel showed to no program and what was
    /// [in between](Self::in_between).
    pub fn settle(self, pods: &[(&Pod, &Tally)]) {
        let noted = self.faults.count();
        let faults = format!("{noted} faults are told above");
        eventually(Duration::from_secs(5), || {
            let metrics = self.agent.metrics();
            for (pod, tally) in pods {
                let off = self.unseen.count() + Self::in_between();
                compare_seen(&metrics, pod.labels(), tally, off)
                    .map_err(|why| format!("{why}; {faults}"))?;
            }
            check_node(&metrics)
        });
        eprintln!("{} events were shown to no program", self.unseen.count());
        assert!(noted <= Self::in_between(), "they are told above");
        self.agent.stop_cleanly();
    }
}

/// A node with pods of these names, on which everything reaches everything that is there.
pub fn prepare<const N: usize>(wiring: Wiring, names: [&str; N]) -> (Node, [Pod; N]) {
    let (node, pods) = Node::new(wiring, names);
    let (router, far) = (&node.router, &node.far);
    // The node needs one on each link to solicit for what it forwards.
    let links = match wiring {
        Wiring::Routed => pods.iter().map(Pod::link).collect(),
        Wiring::Bridged => vec!["br0".to_owned()],
    };
    for link in links {
        router.ip(&format!("address add fe80::1/64 dev {link} nodad"));
    }
    for family in Family::ALL {
        let hub = far.hub(family);
        far.netns.ip(&format!("route add default via {hub}"));
        // Three solicitations in 0.3 s.
        let path = format!("{}/neigh/{}/retrans_time_ms", family.label(), far.link());
        router.sysctl(&path, "100");
    }
    for (number, kind) in ROUTES {
        if !kind.is_empty() {
            router.ip(&format!("route add {kind} 10.{number}.0.0/16"));
            router.ip(&format!("route add {kind} fd00:0:0:{number:x}::/64"));
        }
    }
    speak_freely(router);
    speak_freely(&far.netns);
    for pod in &pods {
        speak_freely(&pod.netns);
    }
    (node, pods)
}

/// No limit to ICMP errors: the lab's counts must not hang on it.
fn speak_freely(router: &Netns) {
    router.sysctl("ipv4/icmp_ratemask", "0");
    router.sysctl("ipv6/icmp/ratelimit", "0");
    router.run(|| {
        // Not every kernel has them for each namespace; the lab stays below the host's then.
        for key in ["icmp_msgs_per_sec", "icmp_msgs_burst"] {
            let _ = fs::write(format!("/proc/sys/net/ipv4/{key}"), "100000");
        }
    });
}

/// A destination on one of the [`ROUTES`].
pub fn routed(family: Family, number: u8) -> SocketAddr {
    let address: IpAddr = match family {
        Family::V4 => [10, number, 0, 53].into(),
        Family::V6 => {
            let segments = [0xfd00, 0, 0, u16::from(number), 0, 0, 0, 0x53];
            segments.into()
        }
    };
    SocketAddr::new(address, OPEN)
}

/// Each destination by each means that fits.
pub fn by_all_means(destinations: &[SocketAddr], patience: Duration) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    for to in destinations {
        for means in [Means::Polled, Means::Blocking, Means::Mapped] {
            if means != Means::Mapped || to.is_ipv4() {
                attempts.push(Attempt::new(*to, means, patience));
            }
        }
    }
    attempts
}
