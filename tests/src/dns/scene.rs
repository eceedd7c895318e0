//! A client pod, a node that forwards, a server's pod behind it, and an agent that watches.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::truth::{check_node, compare};
use super::{A, AAAA, Client, Lookup, Server, Tally};
use crate::agent::Agent;
use crate::events::{Event, Events};
use crate::faults::Faults;
use crate::neigh::Family;
use crate::netns::{DEVICE, Lab, Netns, Pod};
use crate::router::{Node, Wiring};
use crate::wait::{eventually, patient};

/// As long as the agent's, so that both judge alike.
pub const CLIENT: Client = Client {
    timeout: Duration::from_secs(1),
    linger: Duration::ZERO,
};

/// How many addresses the server's pod has, of each family.
pub const SERVERS: u16 = 4;

/// The scene, and what the client has seen so far.
#[derive(Debug)]
pub struct Scene {
    /// The agent, with `--dns-timeout 1s`.
    pub agent: Agent,
    /// Its events.
    pub events: Events,
    /// Scripted, at all addresses of the server's pod.
    pub server: Server,
    /// Who asks.
    pub client: Pod,
    /// All lookups of the client, by how they ended for it.
    pub tally: Tally,
    /// Its failed lookups, by what the lab killed them with.
    pub causes: BTreeMap<&'static str, u64>,
    faults: Faults,
    /// The node.
    pub router: Arc<Netns>,
    /// The server's pod.
    pub far: Pod,
}

impl Scene {
    /// All neighbours on the way are known.
    pub fn new(wiring: Wiring) -> (Lab, Self) {
        Self::with(wiring, &[])
    }

    /// The same, with arguments of the agent.
    pub fn with(wiring: Wiring, arguments: &[&str]) -> (Lab, Self) {
        let (node, [client]) = Node::new(wiring, ["client"]);
        // The node needs one on each link to solicit for what it forwards.
        let link = match wiring {
            Wiring::Routed => client.link(),
            Wiring::Bridged => "br0".to_owned(),
        };
        node.router
            .ip(&format!("address add fe80::1/64 dev {link} nodad"));
        let server = serve(&node);
        let agent = Agent::start(&[&["--dns-timeout", "1s"], arguments].concat());
        let events = agent.events();
        let Node { router, far, lab } = node;
        let mut scene = Self {
            agent,
            events,
            server,
            client,
            tally: Tally::default(),
            causes: BTreeMap::new(),
            faults: Faults::default(),
            router,
            far,
        };
        let first = scene.answered(&["ok-first"]);
        assert_eq!(first, 4, "the lab failed: the server cannot be reached");
        (lab, scene)
    }

    /// The server's main address.
    pub fn address(&self, family: Family) -> IpAddr {
        self.far.address(family)
    }

    /// Address number `n` of the server's pod, from 2 to `SERVERS + 1`.
    pub fn nth(&self, family: Family, n: u16) -> IpAddr {
        self.far.neighbour(family, n)
    }

    /// The client asks; what it saw is added up.
    pub fn ask(&mut self, lookups: &[Lookup]) -> Tally {
        let tally = CLIENT.run(&self.client, lookups.to_vec());
        self.tally.add(&tally);
        tally
    }

    /// Lookups of these scripts, to both families' main address, by sockets of both kinds; gives how
    /// many were answered.
    pub fn answered(&mut self, scripts: &[&str]) -> u64 {
        let to = Family::ALL.map(|family| self.address(family));
        let lookups = lookups(scripts, &to);
        self.ask(&lookups).answered()
    }

    /// Asks what is to fail, and notes as a fault of tracer's where there is no event, for each, with
    /// this cause and one of these reasons (none where there are none).
    pub fn fail(&mut self, what: &str, lookups: &[Lookup], cause: &'static str, reasons: &[&str]) {
        let tally = self.ask(lookups);
        let lost = lookups.len() as u64;
        assert_eq!(
            tally.outcome("timeout"),
            lost,
            "the lab failed, {what}: {tally:?}"
        );
        *self.causes.entry(cause).or_default() += lost;
        self.expect(what, lookups, cause, reasons);
    }

    /// Notes a fault where there is no event for each of these with this cause and one of these
    /// reasons.
    pub fn expect(&mut self, what: &str, lookups: &[Lookup], cause: &str, reasons: &[&str]) {
        let end = Instant::now() + patient(Duration::from_secs(2));
        for lookup in lookups {
            let left = end.saturating_duration_since(Instant::now());
            let found = self.events.find(left, |event| {
                event.text("kind") == "dns_failure" && event.json["id"] == lookup.id
            });
            let Some(event) = found else {
                self.fault(&format!("{what}: no event for {lookup:?}"));
                continue;
            };
            let reason = event.text("drop_reason");
            let server = SocketAddr::new(lookup.server, 53).to_string();
            let right = event.text("cause") == cause
                && (reasons.contains(&reason) || reasons.is_empty() && reason.is_empty())
                && event.json["pod"]["name"] == self.client.netns.name()
                && event.text("server") == server;
            if !right {
                let shown = &event.json;
                self.fault(&format!(
                    "{what}: not {cause} {reasons:?} {server}: {shown}"
                ));
            }
        }
    }

    /// The client's failures told in events so far, by cause and drop reason; waits for as many as it
    /// had, for two seconds.
    pub fn told(&mut self, pod: &Pod, failures: u64) -> BTreeMap<(String, String), u64> {
        let end = Instant::now() + patient(Duration::from_secs(2));
        loop {
            let of_pod = |event: &&Event| event.is("dns_failure", pod.netns.name());
            let mut told = BTreeMap::new();
            for event in self.events.seen.iter().filter(of_pod) {
                let key = (
                    event.text("cause").to_owned(),
                    event.text("drop_reason").to_owned(),
                );
                *told.entry(key).or_default() += 1;
            }
            if told.values().sum::<u64>() >= failures || Instant::now() >= end {
                return told;
            }
            self.events.listen(Duration::from_millis(50));
        }
    }

    /// Notes what tracer did wrong; [`Scene::settle`] panics for it, and so does the scene's end where
    /// nobody has asked for the faults.
    pub fn fault(&mut self, what: &str) {
        self.faults.note(what);
    }

    /// Panics unless tracer's figures of the client come to be what it saw, the node's add up and no
    /// fault was noted.
    pub fn settle(self) {
        let causes: Vec<(&str, u64)> = self.causes.iter().map(|(c, n)| (*c, *n)).collect();
        let noted = self.faults.count();
        let faults = format!("{noted} faults are told above");
        eventually(Duration::from_secs(5), || {
            let metrics = self.agent.metrics();
            compare(&metrics, &self.client, &self.tally, &causes)
                .and_then(|()| check_node(&metrics))
                .map_err(|why| format!("{why}; {faults}"))
        });
        assert_eq!(noted, 0, "they are told above");
        self.agent.stop_cleanly();
    }
}

/// A pod more on a node that forwards, which reaches all others.
pub fn pod(lab: &Lab, name: &str, index: u8) -> Pod {
    let pod = lab.pod(name, index, 1);
    let link = pod.link();
    lab.hub
        .ip(&format!("address add fe80::1/64 dev {link} nodad"));
    for family in Family::ALL {
        let hub = pod.hub(family);
        pod.netns.ip(&format!("route add default via {hub}"));
    }
    pod
}

/// Each script asked of each server: by a socket that is connected and one that is not.
pub fn lookups(scripts: &[&str], servers: &[IpAddr]) -> Vec<Lookup> {
    let mut all = Vec::new();
    for server in servers {
        for script in scripts {
            for (qtype, connected) in [(A, false), (AAAA, true)] {
                let mut lookup = Lookup::new(format!("{script}.test"), qtype, *server);
                lookup.connected = connected;
                all.push(lookup);
            }
        }
    }
    all
}

/// The scripted server at all addresses of the far pod, which can answer everybody.
pub fn serve(node: &Node) -> Server {
    let far = &node.far;
    let mut addresses = Vec::new();
    for family in Family::ALL {
        let length = if family == Family::V4 { 16 } else { 64 };
        let nodad = if family == Family::V4 { "" } else { "nodad" };
        for n in 2..SERVERS + 2 {
            let address = far.neighbour(family, n);
            if n > 2 {
                far.netns.ip(&format!(
                    "address add {address}/{length} dev {DEVICE} {nodad}"
                ));
            }
            addresses.push(address);
        }
        let hub = far.hub(family);
        far.netns.ip(&format!("route add default via {hub}"));
    }
    crate::netns::await_ipv6(&far.netns, DEVICE, usize::from(SERVERS));
    Server::start(&far.netns, &addresses)
}
