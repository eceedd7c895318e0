//! Failures by peer: the node that an address is on, where nodes are known, else the address.
//!
//! A figure is counted under the name that its peer had when it grew: no counter falls or moves.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tracer_common::peers::{Key, Kind};

use super::{
    Resolver,
    kubernetes::{Access, Nodes},
};
use crate::{aggregate::shares::Shares, config::Pods, hooks::address, moment};

/// Peers with a name of their own.
const NAMED: usize = 20;
/// What found no room.
const OTHER: &str = "(other)";
/// How long figures wait for the list of nodes.
const HOLD: Duration = Duration::from_secs(30);
/// A peer without a failure for so long leaves the kernel's map.
const IDLE: Duration = Duration::from_mins(10);

/// Failures by peer.
pub struct Peers {
    nodes: Option<Nodes>,
    since: Instant,
    /// Has this agent taken over what the kernel has counted? Before, what was idle is not known.
    has_counted: bool,
    tally: Tally,
    /// How often keys have left.
    retired: u64,
}

/// What outlives the agent.
#[derive(Debug, Serialize, Deserialize)]
pub struct Tally {
    shares: Shares<Key, Kind, String>,
    /// What the kernel had counted, by key.
    grown: HashMap<Key, Grown>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            shares: Shares::new(NAMED),
            grown: HashMap::new(),
        }
    }
}

/// What the kernel had counted, and when it had grown last.
#[derive(Debug, Serialize, Deserialize)]
struct Grown {
    total: u64,
    #[serde(with = "moment")]
    at: Instant,
}

impl Peers {
    /// On the node of this name; with the nodes' names, where the pods come from an API server too. Needs a tokio
    /// runtime of several threads.
    pub fn start(pods: &Pods, node: &str) -> Result<Self> {
        let access = match pods {
            Pods::Kubernetes => Access::any(),
            Pods::Auto => Access::arranged(),
            _ => None,
        };
        let nodes = access.map(|access| Nodes::start(access, node));
        Ok(Self::with(nodes.transpose()?))
    }

    fn with(nodes: Option<Nodes>) -> Self {
        Self {
            nodes,
            since: Instant::now(),
            has_counted: false,
            tally: Tally::default(),
            retired: 0,
        }
    }

    /// What outlives the agent.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The same, from an agent before.
    pub fn remember(&mut self, tally: Tally) {
        self.tally = tally;
    }

    /// What proves where pods are: those of this node.
    pub fn learn(&self, resolver: &Resolver) {
        if let Some(nodes) = &self.nodes {
            nodes.learn(resolver.pod_addresses(), resolver.has_heard_all());
        }
    }

    /// Takes over what the kernel has counted. `second` counts up with time.
    pub fn update(&mut self, counted: &[(Key, u64)], now: Instant, second: u64) {
        let settled = self.nodes.as_ref().is_none_or(Nodes::is_settled);
        if !settled && now.duration_since(self.since) < HOLD {
            return;
        }
        self.has_counted = true;
        for (key, total) in counted {
            let grown = self
                .tally
                .grown
                .entry(*key)
                .or_insert(Grown { total: 0, at: now });
            if grown.total == *total {
                continue;
            }
            *grown = Grown {
                total: *total,
                at: now,
            };
            let Some(kind) = Kind::ALL.get(usize::from(key.kind)) else {
                continue;
            };
            let name = self.name(key);
            self.tally.shares.take(*key, *total, kind, name);
        }
        self.tally.shares.settle(second);
    }

    /// `None` is the kernel's own rest.
    fn name(&self, key: &Key) -> Option<String> {
        if key.family == 0 {
            return None;
        }
        let address = address(key.family, key.address);
        let node = self.nodes.as_ref().and_then(|nodes| nodes.name(address));
        Some(node.unwrap_or_else(|| address.to_string()))
    }

    /// How often keys have left: a memory from before is out of date.
    pub fn decisions(&self) -> u64 {
        self.retired
    }

    /// Which keys may leave the kernel's map.
    pub fn retire(&mut self, now: Instant) -> Vec<Key> {
        if !self.has_counted {
            return Vec::new();
        }
        let idle = |(key, grown): (&Key, &Grown)| {
            (key.family != 0 && now.duration_since(grown.at) >= IDLE).then_some(*key)
        };
        let over: Vec<Key> = self.tally.grown.iter().filter_map(idle).collect();
        for key in &over {
            self.tally.grown.remove(key);
            self.tally.shares.forget_key(key);
        }
        self.retired += over.len() as u64;
        over
    }

    /// Kinds, names and failures; all of a kind together are all of the node.
    pub fn failures(&self) -> Vec<(Kind, String, u64)> {
        let mut failures: Vec<_> = self
            .tally
            .shares
            .all()
            .flat_map(|(kind, counts)| {
                counts
                    .iter()
                    .filter_map(|(peer, n)| peer.as_ref().map(|peer| (*kind, peer.clone(), *n)))
            })
            .collect();
        failures.sort_unstable();
        for kind in Kind::ALL {
            let rest = self.tally.shares.all().find(|(k, _)| **k == kind);
            let rest = rest.and_then(|(_, counts)| counts.get(&None));
            failures.push((kind, OTHER.to_owned(), rest.copied().unwrap_or_default()));
        }
        failures
    }
}

#[cfg(test)]
mod tests {
    use tracer_common::AF_INET;

    use super::*;

    fn key(last: u8, kind: Kind) -> Key {
        Key {
            address: [u32::from_ne_bytes([10, 0, 0, last]), 0, 0, 0],
            family: AF_INET,
            kind: kind as u16,
        }
    }

    fn of(peers: &Peers, kind: Kind, name: &str) -> Option<u64> {
        let failures = peers.failures();
        let found = failures.iter().find(|(k, n, _)| *k == kind && n == name);
        found.map(|(_, _, n)| *n)
    }

    #[test]
    fn each_kind_has_all_its_failures() {
        let mut peers = Peers::with(None);
        let now = Instant::now();
        let counted = [
            (key(1, Kind::Dns), 2),
            (key(1, Kind::Connect), 3),
            (Key::rest(Kind::Retransmit), 7),
        ];
        peers.update(&counted, now, 0);
        peers.update(&counted, now, 1);
        let figures = Kind::ALL.map(|kind| (of(&peers, kind, "10.0.0.1"), of(&peers, kind, OTHER)));
        assert_eq!(
            figures,
            [
                (Some(2), Some(0)),
                (Some(3), Some(0)),
                (None, Some(7)),
                (None, Some(0))
            ]
        );
    }

    #[test]
    fn twenty_have_names_and_the_sum_is_complete() {
        let mut peers = Peers::with(None);
        let many: Vec<_> = (1..=25).map(|n| (key(n, Kind::Dns), n.into())).collect();
        peers.update(&many, Instant::now(), 0);
        assert_eq!(of(&peers, Kind::Dns, "10.0.0.6"), Some(6));
        assert_eq!(of(&peers, Kind::Dns, "10.0.0.5"), None);
        assert_eq!(of(&peers, Kind::Dns, OTHER), Some(1 + 2 + 3 + 4 + 5));
    }

    #[test]
    fn what_failed_while_no_agent_ran_is_counted_before_its_key_leaves() {
        let mut before = Peers::with(None);
        let start = Instant::now();
        before.update(&[(key(1, Kind::Dns), 2)], start, 0);
        let mut peers = Peers::with(None);
        peers.remember(before.tally);
        let late = start + 2 * IDLE;
        assert!(peers.retire(late).is_empty());
        peers.update(&[(key(1, Kind::Dns), 9)], late, 1200);
        assert!(peers.retire(late).is_empty());
        assert_eq!(of(&peers, Kind::Dns, "10.0.0.1"), Some(9));
        assert_eq!(peers.retire(late + IDLE).len(), 1);
        assert_eq!(peers.decisions(), 1);
    }

    #[test]
    fn one_that_is_well_for_long_leaves_the_kernel_and_its_figure_stays() {
        let mut peers = Peers::with(None);
        let start = Instant::now();
        peers.update(&[(key(1, Kind::Dns), 2)], start, 0);
        assert!(peers.retire(start).is_empty());
        assert_eq!(peers.retire(start + IDLE), [key(1, Kind::Dns)]);
        peers.update(&[(key(1, Kind::Dns), 1)], start + IDLE, 600);
        assert_eq!(of(&peers, Kind::Dns, "10.0.0.1"), Some(3));
    }
}
