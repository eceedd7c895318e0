//! Figures by owner and for the node, from the kernel's counters and the resolver.

pub mod episodes;
pub mod forecast;
pub mod history;
pub mod ledger;
pub mod pressure;
pub mod window;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tracer_common::{
    Hook,
    dns::{self, MAX_PORTS},
    drops::ReceiverKey,
    event::RingStats,
    family_index, neigh,
};

use self::{
    episodes::{Episode, Episodes, Kind, Observation},
    history::Totals,
    ledger::{Ledger, Tally},
    window::{Attempts, Window},
};
use crate::{
    hooks::address,
    kernel::maps::{HOOKS, Reading},
    pods::{Identity, Owner, Resolver, When},
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

/// Datagrams lost in full receive buffers: by port as in `--dns-port`, the last of all other ports.
pub type ReceiveDrops = [u64; MAX_PORTS as usize + 1];

impl Tally for ReceiveDrops {
    fn plus(&mut self, other: &Self) {
        for (mine, theirs) in self.iter_mut().zip(other) {
            *mine += theirs;
        }
    }
    fn since(&self, earlier: &Self) -> Self {
        let mut counts = *self;
        for (mine, theirs) in counts.iter_mut().zip(earlier) {
            *mine -= theirs;
        }
        counts
    }
    fn events(&self) -> u64 {
        self.iter().sum()
    }
}

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
    /// Failures ÷ attempts over the window.
    pub dns_ratio: Option<f64>,
    /// Failures ÷ attempts over the window.
    pub neigh_ratio: Option<f64>,
    /// What has failed, since when.
    pub episodes: Vec<Episode>,
}

#[derive(Debug, Default)]
struct Windows {
    dns: Window,
    neigh: Window,
    episodes: Episodes,
}

impl Windows {
    fn note(&mut self, (second, span): (u64, u64), figures: &Figures, first: bool) {
        let totals = figures.totals();
        self.neigh.note(second, totals.neighbour, span);
        self.dns.note(second, totals.dns, span);
        let now = SystemTime::now();
        self.episodes
            .note(figures.observations(), (second, span), now, first);
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
        let dropped = self.receive_drops.iter().sum();
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
    }
}

/// Everything at one moment.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    /// The node: complete.
    pub node: Figures,
    /// By owner, sorted by name.
    pub owners: BTreeMap<Arc<Owner>, Figures>,
    /// Packets dropped on the node, by reason number.
    pub drops: Vec<(u32, u64)>,
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

/// Keys that may leave the kernel's maps.
#[derive(Debug, Default)]
pub struct Leaving {
    /// Of the map `NEIGH`.
    pub neigh: Vec<u64>,
    /// Of the map `NEIGH_FORWARDED`.
    pub forwarded: Vec<neigh::ForwardedKey>,
    /// Of the map `DNS`.
    pub dns: Vec<dns::Key>,
    /// Of the map `RECEIVE_DROPS`.
    pub receivers: Vec<ReceiverKey>,
}

/// The state between readings.
pub struct Aggregate {
    window: Duration,
    max_pods: usize,
    neigh: Ledger<u64, NeighCounts>,
    forwarded: Ledger<neigh::ForwardedKey, NeighCounts>,
    dns: Ledger<dns::Key, dns::Counts>,
    receivers: Ledger<ReceiverKey, ReceiveDrops>,
    dns_ports: Vec<u16>,
    admitted: HashSet<Arc<Owner>>,
    node: Windows,
    has_read: bool,
    windows: HashMap<Arc<Owner>, Windows>,
    gone: HashMap<Arc<Owner>, Instant>,
    picture: Arc<Picture>,
}

impl Aggregate {
    /// With the span of the ratios, the label sets kept and the ports that have figures of their own.
    pub fn new(window: Duration, max_pods: usize, dns_ports: Vec<u16>) -> Self {
        Self {
            window,
            max_pods,
            neigh: Ledger::default(),
            forwarded: Ledger::of_reused_keys(),
            dns: Ledger::default(),
            receivers: Ledger::default(),
            dns_ports,
            admitted: HashSet::new(),
            node: Windows::default(),
            has_read: false,
            windows: HashMap::new(),
            gone: HashMap::new(),
            picture: Arc::default(),
        }
    }

    /// The picture as of the last reading.
    pub fn picture(&self) -> Arc<Picture> {
        self.picture.clone()
    }

    /// Takes a reading over. `second` counts up with time, for the windows.
    pub fn update(&mut self, reading: Reading, resolver: &Resolver, now: Instant, second: u64) {
        let mut netns = HashMap::new();
        let mut by_cookie: HashMap<u64, NeighCounts> = HashMap::new();
        for (key, value) in &reading.neigh {
            if let Some(family) = family_index(key.family as u16) {
                by_cookie.entry(key.net_cookie).or_default()[family as usize].add(&value.counts);
                netns.insert(key.net_cookie, value.netns);
            }
        }
        for (key, value) in &reading.dns {
            netns.insert(key.net_cookie, value.netns);
        }
        for (key, value) in &reading.receive_drops {
            netns.insert(key.net_cookie, value.netns);
        }

        let admitted = &mut self.admitted;
        let max_pods = self.max_pods;
        let mut admit = |owner: Arc<Owner>| {
            if is_fixed(&owner) || admitted.contains(&owner) {
                return owner;
            }
            if admitted.len() >= max_pods {
                return Owner::other();
            }
            admitted.insert(owner.clone());
            owner
        };
        let identity = |net_cookie: u64, cgroup_id| Identity {
            cgroup_id,
            net_cookie,
            netns: netns.get(&net_cookie).copied().unwrap_or_default(),
            source: None,
        };
        let until_now = |since| When {
            from: since,
            to: now,
        };
        self.neigh.update(
            by_cookie,
            now,
            |&cookie, since| resolver.resolve(&identity(cookie, None), until_now(since)),
            &mut admit,
        );
        self.forwarded.update(
            reading.forwarded.iter().map(|(key, value)| {
                let mut counts = NeighCounts::default();
                if let Some(family) = family_index(key.family as u16) {
                    counts[family as usize] = value.counts;
                }
                (*key, counts)
            }),
            now,
            |key, since| {
                let identity = Identity {
                    cgroup_id: None,
                    net_cookie: 0,
                    netns: 0,
                    source: Some(address(key.family as u16, key.source)),
                };
                resolver.resolve(&identity, until_now(since))
            },
            &mut admit,
        );
        self.dns.update(
            reading.dns.iter().map(|(key, value)| (*key, value.counts)),
            now,
            |key, since| {
                resolver.resolve(
                    &identity(key.net_cookie, Some(key.cgroup_id)),
                    until_now(since),
                )
            },
            &mut admit,
        );

        let dns_ports = &self.dns_ports;
        self.receivers.update(
            reading.receive_drops.iter().map(|(key, value)| {
                let mut counts = ReceiveDrops::default();
                let port = dns_ports.iter().position(|port| *port == key.port);
                counts[port.unwrap_or(counts.len() - 1)] = value.dropped;
                (*key, counts)
            }),
            now,
            |key, since| {
                resolver.resolve(
                    &identity(key.net_cookie, Some(key.cgroup_id)),
                    until_now(since),
                )
            },
            &mut admit,
        );

        let span = self.window.as_secs().max(1);
        let mut picture = Picture {
            drops: reading.drops_node.clone(),
            ring: reading.ring,
            ..Picture::default()
        };
        picture.pending[Hook::Neigh as usize] = self.neigh.pending() + self.forwarded.pending();
        picture.pending[Hook::Dns as usize] = self.dns.pending();
        picture.pending[Hook::Drops as usize] = self.receivers.pending();
        picture.node.neigh = reading.neigh_node;
        picture.node.dns = reading.dns_node;
        let first = !self.has_read;
        self.has_read = true;
        self.node.note((second, span), &picture.node, first);
        picture.node.neigh_ratio = self.node.neigh.ratio();
        picture.node.dns_ratio = self.node.dns.ratio();
        picture.node.episodes = self.node.episodes.all().collect();

        // The rest keys are always there; they show once something was charged to them.
        for (owner, counts) in self.neigh.totals() {
            if counts != NeighCounts::default() {
                picture.owners.entry(owner).or_default().neigh = counts;
            }
        }
        for (owner, counts) in self.forwarded.totals() {
            if counts != NeighCounts::default() {
                picture.owners.entry(owner).or_default().neigh.plus(&counts);
            }
        }
        for (key, value) in &reading.neigh {
            let Some(family) = family_index(key.family as u16) else {
                continue;
            };
            let family = family as usize;
            if value.live > 0
                && value.live_generation == reading.walks[family].generation
                && let Some(owner) = self.neigh.owner(&key.net_cookie)
            {
                picture.owners.entry(owner.clone()).or_default().entries[family] += value.live;
            }
        }
        for (owner, counts) in self.dns.totals() {
            if counts != dns::Counts::default() {
                picture.owners.entry(owner).or_default().dns = counts;
            }
        }
        for (owner, counts) in self.receivers.totals() {
            if counts != ReceiveDrops::default() {
                picture.owners.entry(owner).or_default().receive_drops = counts;
            }
        }
        self.windows
            .retain(|owner, _| picture.owners.contains_key(owner));
        for (owner, figures) in &mut picture.owners {
            let windows = self.windows.entry(owner.clone()).or_default();
            windows.note((second, span), figures, first);
            figures.neigh_ratio = windows.neigh.ratio();
            figures.dns_ratio = windows.dns.ratio();
            figures.episodes = windows.episodes.all().collect();
        }
        picture.reading = reading;
        self.picture = Arc::new(picture);
    }

    /// Which keys may leave the kernel's maps: those of pods that are gone, and of cgroups and
    /// namespaces of nobody that have been idle for long. Figures of what is no pod stay.
    pub fn retire(&mut self, resolver: &Resolver, now: Instant) -> Leaving {
        let gone = &mut self.gone;
        for owner in &self.admitted {
            if resolver.is_alive(owner) || is_lasting(owner) {
                gone.remove(owner);
            } else {
                gone.entry(owner.clone()).or_insert(now);
            }
        }
        let ended = |owner: &Owner| {
            gone.iter()
                .any(|(o, since)| **o == *owner && now.duration_since(*since) >= ledger::GRACE)
        };
        let leaving = Leaving {
            neigh: self.neigh.retire(
                now,
                |&cookie, owner| cookie != 0 && (ended(owner) || is_unknown(owner)),
                ended,
            ),
            forwarded: self.forwarded.retire(
                now,
                |_, owner| ended(owner) || is_unknown(owner),
                ended,
            ),
            dns: self.dns.retire(
                now,
                |key, owner| {
                    key.net_cookie != 0
                        && (ended(owner)
                            || is_unknown(owner)
                            || !resolver.has_cgroup(key.cgroup_id))
                },
                ended,
            ),
            receivers: self.receivers.retire(
                now,
                |key, owner| {
                    key.net_cookie != 0
                        && (ended(owner)
                            || is_unknown(owner)
                            || !resolver.has_cgroup(key.cgroup_id))
                },
                ended,
            ),
        };
        let admitted = &mut self.admitted;
        gone.retain(|owner, since| {
            let over = now.duration_since(*since) >= 2 * ledger::GRACE;
            if over {
                admitted.remove(owner);
            }
            !over
        });
        leaving
    }
}

/// Label values that take no room of `--max-pods`.
fn is_fixed(owner: &Owner) -> bool {
    is_unknown(owner) || (owner.namespace == "(host)" && owner.pod == "(kernel)")
}

fn is_unknown(owner: &Owner) -> bool {
    owner.namespace == "(unknown)" || owner.namespace == "(other)"
}

/// What is no pod keeps its figures: host units, the unknown, the rest.
fn is_lasting(owner: &Owner) -> bool {
    is_unknown(owner) || owner.namespace == "(host)"
}
