//! What goes on, in rounds, and what the clients and the kernel say of it.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tests::dns::{A, AAAA, Client, Lookup, Server, Tally};
use tests::neigh::{FIRST_SILENT, burst, table_fulls};
use tests::netns::Pod;
use tests::storm::{CLOSED, LIMITS};
use tests::{Family, Lab, Metrics, Thresholds};

use crate::report::Row;

/// As long as the agent's, so that both judge alike.
const CLIENT: Client = Client {
    timeout: Duration::from_secs(1),
    linger: Duration::ZERO,
};
/// Where somebody listens.
const OPEN: u16 = 80;
/// Connections of a pod in a round, of each kind.
const CONNECTS: u64 = 20;
/// Neighbours asked for at once.
const BURST: u16 = 150;
/// Every so many rounds the table overflows.
const OVERFLOWS: u64 = 4;
/// Indices of the pods that come and go: one is not made again before its predecessor's link is gone.
const GUESTS: std::ops::Range<u8> = 10..200;

const NODE_CREATES: &str = "tracer_node_neighbour_creates_total";
/// The metric of a pod's creations.
pub const POD_CREATES: &str = "tracer_pod_neighbour_creates_total";

/// Labels of refusals.
pub fn refused(family: Family) -> [(&'static str, &'static str); 2] {
    [("family", family.label()), ("result", "table_full")]
}

/// What a pod has seen.
struct Steady {
    pod: Pod,
    tally: Tally,
    established: u64,
    refused: u64,
}

/// The pods, the servers, and what was seen.
pub struct Load {
    clients: Vec<Steady>,
    /// Lookups and connections of pods that came and went.
    guests: [u64; 2],
    fulls: [u64; 2],
    rounds: u64,
    stop: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
    addresses: Vec<IpAddr>,
    server: Option<Server>,
    hub: Arc<tests::Netns>,
}

impl Load {
    pub fn new(lab: &Lab) -> Self {
        let client = |(name, index)| Steady {
            pod: lab.pod(name, index, 1),
            tally: Tally::default(),
            established: 0,
            refused: 0,
        };
        let clients: Vec<Steady> = [("steady", 1), ("greedy", 2)].map(client).into();
        let addresses = clients.iter().map(|client| client.pod.hub(Family::V4));
        let addresses: Vec<IpAddr> = addresses.collect();
        let stop = Arc::new(AtomicBool::new(false));
        let listener = lab.hub.spawn({
            let stop = Arc::clone(&stop);
            let listener = lab.hub.run(|| TcpListener::bind(("0.0.0.0", OPEN)));
            let listener = listener.expect("the port is free");
            move || {
                while !stop.load(Ordering::Relaxed) {
                    // One that is gone again has had its connection.
                    drop(listener.accept());
                }
            }
        });
        let server = Server::start(&lab.hub, &addresses);
        Self {
            clients,
            guests: [0; 2],
            fulls: [0; 2],
            rounds: 0,
            stop,
            listener: Some(listener),
            addresses,
            server: Some(server),
            hub: Arc::clone(&lab.hub),
        }
    }

    /// The agent counts from here on.
    pub fn begin(&mut self) {
        self.fulls = Family::ALL.map(table_fulls);
    }

    pub fn rounds(&self) -> u64 {
        self.rounds
    }

    /// Lookups good and bad, connections, a pod that comes and goes; an overflow now and then.
    pub fn round(&mut self, lab: &mut Lab) {
        std::thread::scope(|scope| {
            for client in &mut self.clients {
                scope.spawn(|| client.go_about());
            }
        });
        let index = GUESTS.start + (self.rounds % (GUESTS.len() as u64)) as u8;
        self.guest(lab, index);
        if self.rounds.is_multiple_of(OVERFLOWS) {
            let limits = Thresholds::set(lab.lock(), LIMITS);
            for client in &self.clients {
                for family in Family::ALL {
                    burst(&client.pod, family, FIRST_SILENT, BURST);
                }
            }
            drop(limits);
        }
        self.rounds += 1;
    }

    /// The first thing that a new pod does is what its names are learnt for.
    fn guest(&mut self, lab: &Lab, index: u8) {
        let pod = lab.pod("guest", index, 1);
        let to = pod.hub(Family::V4);
        let _server = Server::start(&lab.hub, &[to]);
        let lookups = (0..10).map(|n| Lookup::new(format!("ok-guest-{n}.test"), A, to));
        let tally = CLIENT.run(&pod, lookups.collect());
        self.guests[0] += tally.lookups();
        self.guests[1] += connects(&pod, to, OPEN);
    }

    /// What was seen, beside what the agent says, and said of pods that are gone.
    pub fn compare(&self, metrics: &Metrics, ended: &[AtomicU64; 2]) -> Vec<Row> {
        let mut rows = Vec::new();
        for (client, who) in self.clients.iter().zip(["steady", "greedy"]) {
            let labels = client.pod.labels();
            let count = |name: &str, label: (&str, &str)| {
                metrics.count(name, &[&labels[..], &[label]].concat())
            };
            for (outcome, n) in &client.tally.outcomes {
                let label = ("outcome", *outcome);
                let found = count("tracer_pod_dns_lookups_total", label);
                let what = format!("{who}: lookups, {outcome}");
                rows.push(Row::of_outcome(what, *n, found));
            }
            let queries = metrics.count("tracer_pod_dns_queries_total", &labels);
            let what = format!("{who}: queries");
            rows.push(Row::new(what, client.tally.queries, queries));
            let results = [
                ("established", client.established),
                ("refused", client.refused),
            ];
            for (result, n) in results {
                let found = count("tracer_pod_connects_total", ("result", result));
                rows.push(Row::new(format!("{who}: connects, {result}"), n, found));
            }
        }
        for (index, family) in Family::ALL.into_iter().enumerate() {
            let truth = table_fulls(family) - self.fulls[index];
            let ended = ended[index].load(Ordering::Relaxed);
            for (who, name, gone) in [
                ("node", NODE_CREATES, 0),
                ("sum of pods", POD_CREATES, ended),
            ] {
                let what = format!("{who}: refused, {}", family.label());
                let found = metrics.count(name, &refused(family)) + gone;
                rows.push(Row::new(what, truth, found));
            }
        }
        // Others on this machine look up names too, so what pods that are gone did is a lower bound.
        let lookups: u64 = self.clients.iter().map(|c| c.tally.lookups()).sum();
        let connects: u64 = self.clients.iter().map(|c| c.established + c.refused).sum();
        for (what, name, least) in [
            (
                "lookups",
                "tracer_node_dns_lookups_total",
                lookups + self.guests[0],
            ),
            (
                "connects",
                "tracer_node_connects_total",
                connects + self.guests[1],
            ),
        ] {
            let found = metrics.count(name, &[]);
            let what = format!("node: {what}, at least");
            rows.push(Row::new(what, least, found.min(least)));
        }
        rows
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes it up; fails only where it has ended.
        drop(
            self.hub
                .run(|| TcpStream::connect((self.addresses[0], OPEN))),
        );
        if let Some(listener) = self.listener.take() {
            // One that panicked has said so.
            drop(listener.join());
        }
        drop(self.server.take());
    }
}

impl Steady {
    fn go_about(&mut self) {
        let to = self.pod.hub(Family::V4);
        let scripts = [
            ("ok", 40, A),
            ("ok", 40, AAAA),
            ("nx", 5, A),
            ("servfail", 5, A),
            ("drop", 3, A),
        ];
        let lookups = scripts.into_iter().flat_map(|(script, count, qtype)| {
            (0..count).map(move |n| Lookup::new(format!("{script}-{n}.test"), qtype, to))
        });
        self.tally.add(&CLIENT.run(&self.pod, lookups.collect()));
        self.established += connects(&self.pod, to, OPEN);
        self.refused += CONNECTS - connects(&self.pod, to, CLOSED);
    }
}

/// How many of [`CONNECTS`] attempts succeed.
fn connects(pod: &Pod, to: IpAddr, port: u16) -> u64 {
    let to = SocketAddr::new(to, port);
    pod.netns.run(|| {
        let limit = Duration::from_secs(2);
        let connected = (0..CONNECTS).filter(|_| TcpStream::connect_timeout(&to, limit).is_ok());
        connected.count() as u64
    })
}
