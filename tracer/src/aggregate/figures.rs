//! What is known of an owner and of the node at one moment.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use tracer_common::{dns, event::RingStats, neigh, tcp};

use super::{
    dead::{Attempts as DeadAttempts, DeadEndpoint},
    episodes::{Episode, Episodes, Kind, Observation},
    history::Totals,
    ledger::Tally,
    window::{Attempts, Window},
};
use crate::{
    kernel::maps::{HOOKS, Reading},
    pods::Owner,
};

/// Creations of both families.
pub type NeighCounts = [neigh::Counts; 2];

impl Tally for NeighCounts {
    fn plus(&mut self, other: &Self) {
        for (mine, theirs) in self.iter_mut().zip(other) {
            mine.add(theirs);
        }
    }
    fn since(&self, earlier: &Self) -> Self {
        [0, 1].map(|family: usize| self[family].since(&earlier[family]))
    }
    fn events(&self) -> u64 {
        self.iter().map(neigh::Counts::attempts).sum()
    }
}

impl Tally for u64 {
    fn plus(&mut self, other: &Self) {
        *self += other;
    }
    fn since(&self, earlier: &Self) -> Self {
        self.saturating_sub(*earlier)
    }
    fn events(&self) -> u64 {
        *self
    }
}

impl Tally for tcp::Counts {
    fn plus(&mut self, other: &Self) {
        self.add(other);
    }
    fn since(&self, earlier: &Self) -> Self {
        tcp::Counts::since(self, earlier)
    }
    fn events(&self) -> u64 {
        self.ended() + self.retransmits + self.resets
    }
}

/// Datagrams lost in full receive buffers, by port; `None` is the rest.
pub type ReceiveDrops = BTreeMap<Option<u16>, u64>;

impl Tally for dns::Counts {
    fn plus(&mut self, other: &Self) {
        self.add(other);
    }
    fn since(&self, earlier: &Self) -> Self {
        dns::Counts::since(self, earlier)
    }
    fn events(&self) -> u64 {
        self.queries + self.received
    }
}

/// Figures of one owner, or of the node.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Creations, by family.
    pub neigh: NeighCounts,
    /// Entries in the tables whose device is in the owner's namespace, by family.
    pub entries: [u32; 2],
    /// Lookups.
    pub dns: dns::Counts,
    /// Datagrams lost in full receive buffers. Not of the node.
    pub receive_drops: ReceiveDrops,
    /// Packets dropped for a reason that means failure, by the kernel's number. Not of the node.
    pub drops: BTreeMap<u32, u64>,
    /// Connections.
    pub tcp: tcp::Counts,
    /// Failed attempts to destinations that answer nobody. Not of the node.
    pub dead_attempts: DeadAttempts,
    /// Failures ÷ attempts over the window.
    pub dns_ratio: Option<f64>,
    /// Failures ÷ attempts over the window.
    pub neigh_ratio: Option<f64>,
    /// Failures ÷ attempts over the window.
    pub connect_ratio: Option<f64>,
    /// What has failed, since when.
    pub episodes: Vec<Episode>,
}

/// What was going on of late.
#[derive(Debug, Default)]
pub(super) struct Windows {
    dns: Window,
    neigh: Window,
    connect: Window,
    episodes: Episodes,
}

impl Windows {
    /// Takes over what the counters have `grown` by since this agent began; sets the ratios and the episodes. What was
    /// there before is of no window: nobody knows when it came.
    pub(super) fn note(
        &mut self,
        (second, span): (u64, u64),
        figures: &mut Figures,
        grown: &Figures,
    ) {
        let totals = grown.totals();
        self.neigh.note(second, totals.neighbour, span);
        self.dns.note(second, totals.dns, span);
        self.connect.note(second, totals.connect, span);
        let now = SystemTime::now();
        self.episodes
            .note(grown.observations(), (second, span), now);
        figures.neigh_ratio = self.neigh.ratio();
        figures.dns_ratio = self.dns.ratio();
        figures.connect_ratio = self.connect.ratio();
        figures.episodes = self.episodes.all().collect();
    }
}

impl Figures {
    /// What the ratios are of.
    pub fn totals(&self) -> Totals {
        Totals {
            dns: Attempts {
                all: self.dns.ended(),
                failed: self.dns.failed(),
            },
            neighbour: Attempts {
                all: self.neigh.iter().map(neigh::Counts::attempts).sum(),
                failed: self.neigh.iter().map(|n| n.table_full).sum(),
            },
            connect: Attempts {
                all: self.tcp.ended(),
                failed: self.tcp.failed(),
            },
        }
    }

    /// The counters that windows look at, without what they were earlier.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        Self {
            neigh: Tally::since(&self.neigh, &earlier.neigh),
            dns: Tally::since(&self.dns, &earlier.dns),
            tcp: Tally::since(&self.tcp, &earlier.tcp),
            ..Self::default()
        }
    }

    /// What may fail, each with what of it has failed.
    fn observations(&self) -> impl Iterator<Item = Observation> {
        let observation = |signal, cause, failed, all| Observation {
            kind: Kind { signal, cause },
            totals: Attempts { all, failed },
        };
        let [v4, v6] = &self.neigh;
        let lookups = self.dns.ended();
        let causes = dns::Cause::ALL.iter().zip(self.dns.causes);
        let dropped = self.receive_drops.values().sum();
        let connects = self.tcp.ended();
        let failed_connects = tcp::Outcome::RESULTS.iter().zip(self.tcp.results).skip(1);
        let unanswered = self.dns.served[dns::Outcome::Timeout as usize];
        [
            observation("neighbour", "ipv4_table_full", v4.table_full, v4.attempts()),
            observation("neighbour", "ipv6_table_full", v6.table_full, v6.attempts()),
            observation("neighbour", "ipv4_recreated", v4.recreated, v4.created),
            observation("neighbour", "ipv6_recreated", v6.recreated, v6.created),
            observation("served", "unanswered", unanswered, self.dns.received),
            observation("receive", "socket_buffer_full", dropped, dropped),
        ]
        .into_iter()
        .chain(causes.map(move |(cause, failed)| observation("dns", cause.name(), failed, lookups)))
        .chain(
            failed_connects.map(move |(result, failed)| {
                observation("connect", result.name(), failed, connects)
            }),
        )
    }
}

/// Everything at one moment.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    /// The node: complete.
    pub node: Figures,
    /// By owner, sorted by name.
    pub owners: BTreeMap<Arc<Owner>, Figures>,
    /// Packets dropped on the node, by reason number, whatever it means.
    pub drops: Vec<(u32, u64)>,
    /// Destinations that answer nobody, the busiest.
    pub dead_endpoints: Vec<DeadEndpoint>,
    /// The ring, by hook.
    pub ring: [RingStats; HOOKS],
    /// Events that wait for a name, by hook index.
    pub pending: [u64; HOOKS],
    /// Keys in the kernel's client maps, and how often one found no room: see `Maps::fillings`.
    pub reading: Reading,
}

impl Picture {
    /// Lookups of the node that wait for an answer.
    pub fn dns_pending(&self) -> u64 {
        self.node.dns.started.saturating_sub(self.node.dns.ended())
    }
}
