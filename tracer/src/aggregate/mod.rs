//! Figures by owner and for the node, from the kernel's counters and the resolver.

pub mod dead;
pub mod episodes;
pub mod forecast;
pub mod history;
pub mod ledger;
pub mod pressure;
pub mod shares;
pub mod window;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tracer_common::{
    Hook, dns,
    drops::{self, ReceiverKey},
    event::RingStats,
    family_index, neigh, tcp,
};

use self::{
    dead::{Attempts as DeadAttempts, Dead, DeadEndpoint},
    episodes::{Episode, Episodes, Kind, Observation},
    history::Totals,
    ledger::{Ledger, Tally},
    shares::Shares,
    window::{Attempts, Window},
};
use crate::{
    hooks::{self, address},
    kernel::{
        self,
        maps::{HOOKS, Reading},
    },
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

impl Tally for u64 {
    fn plus(&mut self, other: &Self) {
        *self += other;
    }
    fn since(&self, earlier: &Self) -> Self {
        self - earlier
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

/// Ports with figures of their own.
const NAMED_PORTS: usize = 20;

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

#[derive(Debug, Default)]
struct Windows {
    dns: Window,
    neigh: Window,
    connect: Window,
    episodes: Episodes,
}

impl Windows {
    /// Takes the counters over; sets the ratios and the episodes.
    fn note(&mut self, (second, span): (u64, u64), figures: &mut Figures, first: bool) {
        let totals = figures.totals();
        self.neigh.note(second, totals.neighbour, span);
        self.dns.note(second, totals.dns, span);
        self.connect.note(second, totals.connect, span);
        let now = SystemTime::now();
        self.episodes
            .note(figures.observations(), (second, span), now, first);
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

/// Keys that may leave the kernel's maps.
#[derive(Debug, Default)]
pub struct Leaving {
    /// Of the map `NEIGH`.
    pub neigh: Vec<u64>,
    /// Of the map `NEIGH_FORWARDED`.
    pub forwarded: Vec<neigh::ForwardedKey>,
    /// Of the map `DNS`.
    pub dns: Vec<dns::Key>,
    /// Of the maps `RECEIVE_DROPS` and `RECEIVE_PORTS`.
    pub receivers: Vec<ReceiverKey>,
    /// Of the map `DROPS`.
    pub drops: Vec<drops::Key>,
    /// Of the map `TCP`.
    pub tcp: Vec<tcp::Key>,
    /// Of the maps `ATTEMPTS` and `DESTINATIONS`.
    pub dead: dead::Over,
}

/// The state between readings.
pub struct Aggregate {
    window: Duration,
    max_pods: usize,
    neigh: Ledger<u64, NeighCounts>,
    forwarded: Ledger<neigh::ForwardedKey, NeighCounts>,
    dns: Ledger<dns::Key, dns::Counts>,
    receivers: Ledger<ReceiverKey, u64>,
    ports: Shares<ReceiverKey, Arc<Owner>, u16>,
    /// By owner: the reason is 0.
    drops: Ledger<drops::Key, u64>,
    reasons: Shares<drops::Key, Arc<Owner>, u32>,
    tcp: Ledger<tcp::Key, tcp::Counts>,
    dead: Dead,
    admitted: HashSet<Arc<Owner>>,
    node: Windows,
    has_read: bool,
    windows: HashMap<Arc<Owner>, Windows>,
    gone: HashMap<Arc<Owner>, Instant>,
    picture: Arc<Picture>,
}

impl Aggregate {
    /// With the span of the ratios and the label sets kept.
    pub fn new(window: Duration, max_pods: usize) -> Self {
        Self {
            window,
            max_pods,
            neigh: Ledger::default(),
            forwarded: Ledger::of_reused_keys(),
            dns: Ledger::default(),
            receivers: Ledger::default(),
            ports: Shares::new(NAMED_PORTS),
            drops: Ledger::of_reused_keys(),
            reasons: Shares::new(usize::MAX),
            tcp: Ledger::default(),
            dead: Dead::default(),
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
        for (key, value) in &reading.drops {
            netns.insert(key.net_cookie, value.netns);
        }
        for (key, value) in &reading.tcp {
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

        self.receivers.update(
            reading
                .receive_drops
                .iter()
                .map(|(key, value)| (*key, value.dropped)),
            now,
            |key, since| {
                resolver.resolve(
                    &identity(key.net_cookie, Some(key.cgroup_id)),
                    until_now(since),
                )
            },
            &mut admit,
        );
        self.tcp.update(
            reading.tcp.iter().map(|(key, value)| (*key, value.counts)),
            now,
            |key, since| {
                resolver.resolve(
                    &identity(key.net_cookie, Some(key.cgroup_id)),
                    until_now(since),
                )
            },
            &mut admit,
        );
        // A packet from an address that nobody is known to have is the pod's in whose namespace it
        // was dropped, once it is sure that nobody will be known.
        self.drops.give_up(now, |key| {
            let of_device = identity(key.net_cookie, None);
            let owner = resolver.resolve(&of_device, until_now(None))?;
            (key.family != 0 && owner.is_pod()).then(|| admit(owner))
        });
        let mut dropped: HashMap<drops::Key, u64> = HashMap::new();
        for (key, value) in &reading.drops {
            *dropped.entry(without_reason(key)).or_default() += value.dropped;
        }
        self.drops.update(
            dropped,
            now,
            |key, since| {
                let inode = netns.get(&key.net_cookie).copied().unwrap_or_default();
                if is_rest(key) {
                    return Some(Owner::other());
                }
                resolver.resolve(&hooks::drops::identity(key, inode), until_now(since))
            },
            &mut admit,
        );
        self.share(&reading, second);
        self.dead.update(
            &reading,
            now,
            second,
            |client| self.tcp.owner(client).cloned(),
            |address| resolver.tenant(&address),
        );

        let span = self.window.as_secs().max(1);
        let mut picture = Picture {
            drops: reading.drops_node.clone(),
            ring: reading.ring,
            ..Picture::default()
        };
        picture.pending[Hook::Neigh as usize] = self.neigh.pending() + self.forwarded.pending();
        picture.pending[Hook::Dns as usize] = self.dns.pending();
        picture.pending[Hook::Drops as usize] = self.receivers.pending() + self.drops.pending();
        picture.pending[Hook::Tcp as usize] = self.tcp.pending();
        picture.node.neigh = reading.neigh_node;
        picture.node.dns = reading.dns_node;
        picture.node.tcp = reading.tcp_node;
        let first = !self.has_read;
        self.has_read = true;
        self.node.note((second, span), &mut picture.node, first);
        picture.dead_endpoints = self.dead.endpoints();

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
        for (owner, counts) in self.tcp.totals() {
            if counts != tcp::Counts::default() {
                picture.owners.entry(owner).or_default().tcp = counts;
            }
        }
        for (owner, ports) in self.ports.all() {
            let figures = picture.owners.entry(owner.clone()).or_default();
            figures.receive_drops.clone_from(ports);
        }
        for (owner, reasons) in self.reasons.all() {
            let figures = picture.owners.entry(owner.clone()).or_default();
            let named = reasons
                .iter()
                .filter_map(|(reason, n)| Some(((*reason)?, *n)));
            figures.drops = named.collect();
        }
        for (owner, attempts) in self.dead.attempts() {
            let figures = picture.owners.entry(owner.clone()).or_default();
            figures.dead_attempts.clone_from(attempts);
        }
        self.windows
            .retain(|owner, _| picture.owners.contains_key(owner));
        for (owner, figures) in &mut picture.owners {
            let windows = self.windows.entry(owner.clone()).or_default();
            windows.note((second, span), figures, first);
        }
        picture.reading = reading;
        self.picture = Arc::new(picture);
    }

    /// Gives what grew to the owners, by port and by reason.
    fn share(&mut self, reading: &Reading, second: u64) {
        for (key, value) in &reading.receive_ports {
            if let Some(owner) = self.receivers.owner(&ReceiverKey { port: 0, ..*key }) {
                self.ports.take(*key, value.dropped, owner, Some(key.port));
            }
        }
        for (key, value) in &reading.receive_drops {
            let is_rest = *key == ReceiverKey::default();
            let portless = if is_rest {
                value.dropped
            } else {
                value.portless
            };
            if let Some(owner) = self.receivers.owner(key) {
                self.ports.take(*key, portless, owner, None);
            }
        }
        self.ports.settle(second);
        for (key, value) in &reading.drops {
            if let Some(owner) = self.drops.owner(&without_reason(key)) {
                let reason = Some(key.reason.into());
                self.reasons.take(*key, value.dropped, owner, reason);
            }
        }
        self.reasons.settle(second);
    }

    /// Which keys may leave the kernel's maps: those of pods that are gone, and of cgroups and
    /// namespaces of nobody that have been idle for long. Figures of what is no pod stay.
    pub fn retire(&mut self, resolver: &Resolver, now: Instant) -> Leaving {
        let reading = &self.picture.reading;
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
        let mut leaving = Leaving {
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
            drops: self.drops.retire(
                now,
                |key, owner| {
                    !is_rest(key)
                        && (ended(owner)
                            || is_unknown(owner)
                            || (key.cgroup_id != 0 && !resolver.has_cgroup(key.cgroup_id)))
                },
                ended,
            ),
            tcp: self.tcp.retire(
                now,
                |key, owner| {
                    key.net_cookie != 0
                        && (ended(owner)
                            || is_unknown(owner)
                            || !resolver.has_cgroup(key.cgroup_id))
                },
                ended,
            ),
            dead: self.dead.over(reading, kernel::monotonic()),
        };
        self.ports.retain_owners(|owner| !ended(owner));
        self.reasons.retain_owners(|owner| !ended(owner));
        self.dead.retain_owners(|owner| !ended(owner));
        // With each owner go its ports and its reasons.
        let over: HashSet<ReceiverKey> = leaving.receivers.iter().copied().collect();
        for (key, _) in &reading.receive_ports {
            if over.contains(&ReceiverKey { port: 0, ..*key }) {
                self.ports.forget_key(key);
                leaving.receivers.push(*key);
            }
        }
        let over: HashSet<drops::Key> = leaving.drops.drain(..).collect();
        for (key, _) in &reading.drops {
            if over.contains(&without_reason(key)) {
                self.reasons.forget_key(key);
                leaving.drops.push(*key);
            }
        }
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

fn without_reason(key: &drops::Key) -> drops::Key {
    drops::Key { reason: 0, ..*key }
}

/// Is it what the kernel charges when the map is full?
fn is_rest(key: &drops::Key) -> bool {
    key.net_cookie == 0 && key.family == 0
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
