//! An incident: a pod fills the neighbour table, and lookups of two pods die of it.

use std::net::IpAddr;
use std::time::Duration;

use crate::agent::Agent;
use crate::dns::{A, Client, Lookup, Server};
use crate::neigh::{FIRST_SILENT, Family, burst, table_fulls};
use crate::netns::{Lab, Pod};

/// Limits under which it happens.
pub const LIMITS: [u64; 3] = [32, 64, 64];
/// Entries that the greedy pod asks for.
const BURST: u16 = 150;
/// As long as the agent's, so that both judge alike.
const CLIENT: Client = Client {
    timeout: Duration::from_secs(1),
    linger: Duration::ZERO,
};

/// Who takes part.
#[derive(Debug)]
pub struct Overflow {
    /// Watches.
    pub agent: Agent,
    /// Holds most of the entries, and fails.
    pub greedy: Pod,
    /// Fails too.
    pub victim: Pod,
    servers: Vec<[IpAddr; 2]>,
    _server: Server,
}

impl Overflow {
    /// Everybody is there, and nothing has failed.
    pub fn new(lab: &Lab, arguments: &[&str]) -> Self {
        Self::with(lab, || {
            Agent::start(&[&["--dns-timeout", "1s"], arguments].concat())
        })
    }

    /// With another agent, started when the pods are there; its timeout is a second.
    pub fn with(lab: &Lab, agent: impl FnOnce() -> Agent) -> Self {
        let greedy = lab.pod("greedy", 1, 40);
        let victim = lab.pod("victim", 2, 40);
        let servers: Vec<[IpAddr; 2]> = (3..=41)
            .map(|n| [&greedy, &victim].map(|pod| pod.neighbour(Family::V4, n)))
            .collect();
        let known = [&greedy, &victim].map(|pod| pod.hub(Family::V4));
        let all: Vec<IpAddr> = servers.iter().flatten().chain(&known).copied().collect();
        let server = Server::start(&lab.hub, &all);
        let scene = Self {
            agent: agent(),
            greedy,
            victim,
            servers,
            _server: server,
        };
        scene.look_up_well();
        scene
    }

    /// Lookups that are answered.
    pub fn look_up_well(&self) {
        for pod in [&self.greedy, &self.victim] {
            let lookups =
                (0..20).map(|n| Lookup::new(format!("ok-{n}.test"), A, pod.hub(Family::V4)));
            let tally = CLIENT.run(pod, lookups.collect());
            assert_eq!(tally.outcome("noerror"), 20, "the lab failed: {tally:?}");
        }
    }

    /// Under [`LIMITS`]: fills the table and asks servers whose entry is still to be made. Gives how
    /// many lookups of each pod died, and how many creations the kernel refused.
    pub fn strike(&self) -> ([u64; 2], u64) {
        let before = table_fulls(Family::V4);
        burst(&self.greedy, Family::V4, FIRST_SILENT, BURST);
        let lost = std::thread::scope(|scope| {
            [&self.greedy, &self.victim]
                .map(|pod| {
                    scope.spawn(move || {
                        let index = usize::from(pod.netns.name() == self.victim.netns.name());
                        let cold = self.servers.iter().enumerate().map(|(n, servers)| {
                            Lookup::new(format!("ok-cold-{n}.test"), A, servers[index])
                        });
                        let lookups = cold.take(15).collect();
                        CLIENT.run(pod, lookups).outcome("timeout")
                    })
                })
                .map(|lost| lost.join().expect("lookups end"))
        });
        let refused = table_fulls(Family::V4) - before;
        assert!(
            refused > 0 && lost[0] > 0,
            "the lab failed: {refused} refused, {lost:?} lost"
        );
        (lost, refused)
    }
}
