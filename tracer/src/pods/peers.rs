//! Failures by peer: the node that a server is on, where nodes are known, else its address.
//!
//! A figure is counted under the name that its peer had when it grew: no counter falls or moves.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::Result;
use tracer_common::dns::PeerKey;

use super::kubernetes::{Access, Nodes};
use crate::{config::Pods, hooks::address};

/// Peers with a name of their own.
const NAMED: usize = 20;
/// What found no room.
const OTHER: &str = "(other)";
/// A named peer without a failure for so long gives up its place where another wants it.
const IDLE: Duration = Duration::from_mins(10);
/// How long figures wait for the list of nodes.
const HOLD: Duration = Duration::from_secs(30);

struct Peer {
    failed: u64,
    grown: Instant,
}

/// Failures by peer.
pub struct Peers {
    nodes: Option<Nodes>,
    since: Instant,
    /// What the kernel has counted so far, by its key.
    seen: HashMap<PeerKey, u64>,
    named: HashMap<String, Peer>,
    other: u64,
}

impl Peers {
    /// With the nodes' names, where the pods come from an API server too. Needs a tokio runtime of
    /// several threads.
    pub fn start(pods: &Pods) -> Result<Self> {
        let access = match pods {
            Pods::Kubernetes => Access::any(),
            Pods::Auto => Access::arranged(),
            _ => None,
        };
        Ok(Self::with(access.map(Nodes::start).transpose()?))
    }

    fn with(nodes: Option<Nodes>) -> Self {
        Self {
            nodes,
            since: Instant::now(),
            seen: HashMap::new(),
            named: HashMap::new(),
            other: 0,
        }
    }

    /// Takes over what the kernel has counted.
    pub fn update(&mut self, counted: &[(PeerKey, u64)], now: Instant) {
        let settled = self.nodes.as_ref().is_none_or(Nodes::is_settled);
        if !settled && now.duration_since(self.since) < HOLD {
            return;
        }
        for (key, total) in counted {
            let seen = self.seen.entry(*key).or_default();
            let grown = total.saturating_sub(*seen);
            *seen = *total;
            if grown > 0 {
                self.count(*key, grown, now);
            }
        }
    }

    fn count(&mut self, key: PeerKey, failed: u64, now: Instant) {
        // The kernel's own rest.
        if key.family == 0 {
            self.other += failed;
            return;
        }
        let address = address(key.family as u16, key.address);
        let name = self.name(address);
        if !self.named.contains_key(&name) && !self.make_room(now) {
            self.other += failed;
            return;
        }
        let peer = self.named.entry(name).or_insert(Peer {
            failed: 0,
            grown: now,
        });
        peer.failed += failed;
        peer.grown = now;
    }

    fn name(&self, address: IpAddr) -> String {
        let node = self.nodes.as_ref().and_then(|nodes| nodes.name(address));
        node.unwrap_or_else(|| address.to_string())
    }

    /// Is there room for another? One that is idle goes, and its figure into the rest's, which stays
    /// complete.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.named.len() < NAMED {
            return true;
        }
        let idle = self.named.iter().min_by_key(|(_, peer)| peer.grown);
        let Some((name, _)) = idle.filter(|(_, p)| now.duration_since(p.grown) >= IDLE) else {
            return false;
        };
        let name = name.clone();
        if let Some(peer) = self.named.remove(&name) {
            self.other += peer.failed;
        }
        true
    }

    /// Names and failures; all together are all failures of the node.
    pub fn failures(&self) -> Vec<(String, u64)> {
        let mut failures: Vec<(String, u64)> = self
            .named
            .iter()
            .map(|(name, peer)| (name.clone(), peer.failed))
            .collect();
        failures.sort_unstable();
        failures.push((OTHER.to_owned(), self.other));
        failures
    }
}

#[cfg(test)]
mod tests {
    use tracer_common::AF_INET;

    use super::*;

    fn key(last: u8) -> PeerKey {
        PeerKey {
            address: [u32::from_ne_bytes([10, 0, 0, last]), 0, 0, 0],
            family: AF_INET.into(),
        }
    }

    fn of(peers: &Peers, name: &str) -> Option<u64> {
        let failures = peers.failures();
        failures.iter().find(|(n, _)| n == name).map(|(_, n)| *n)
    }

    fn sum(peers: &Peers) -> u64 {
        peers.failures().iter().map(|(_, n)| n).sum()
    }

    #[test]
    fn the_first_twenty_have_names_and_the_sum_is_complete() {
        let mut peers = Peers::with(None);
        let now = Instant::now();
        let many: Vec<_> = (1..=25).map(|n| (key(n), 2)).collect();
        peers.update(&many, now);
        peers.update(&many, now);
        assert_eq!(of(&peers, "10.0.0.20"), Some(2));
        assert_eq!(
            (of(&peers, "10.0.0.21"), of(&peers, OTHER)),
            (None, Some(10))
        );
        peers.update(&[(PeerKey::default(), 7)], now);
        assert_eq!((of(&peers, OTHER), sum(&peers)), (Some(17), 57));
    }

    #[test]
    fn an_idle_one_gives_its_place_to_one_that_fails() {
        let mut peers = Peers::with(None);
        let start = Instant::now();
        let many: Vec<_> = (1..=21).map(|n| (key(n), 2)).collect();
        peers.update(&many, start);
        let later = start + IDLE;
        peers.update(&[(key(21), 5)], later);
        assert_eq!(of(&peers, "10.0.0.21"), Some(3), "what came before stays");
        assert_eq!((of(&peers, OTHER), sum(&peers)), (Some(4), 45));
        assert_eq!(peers.named.len(), NAMED);
    }
}
