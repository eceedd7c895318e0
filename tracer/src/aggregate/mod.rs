//! Figures by owner and for the node, from the kernel's counters and the resolver.

pub mod dead;
pub mod episodes;
pub mod figures;
pub mod forecast;
pub mod history;
pub mod ledger;
pub mod pressure;
#[cfg(test)]
mod properties;
pub mod retire;
pub mod shares;
#[cfg(test)]
mod tests;
pub mod window;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tracer_common::{
    Hook, dns,
    drops::{self, ReceiverKey},
    family_index, neigh, tcp,
};

use self::{
    dead::Dead,
    figures::Windows,
    ledger::{Ledger, Tally},
    shares::Shares,
};
use crate::{
    hooks::{self, address},
    kernel::maps::Reading,
    pods::{Identity, Owner, Resolver, When},
};

pub use self::figures::{Figures, NeighCounts, Picture, ReceiveDrops};

/// Ports with figures of their own.
const NAMED_PORTS: usize = 20;

/// The state between readings. What is written of it outlives the agent: whose the kernel's keys are, and
/// what those that are gone had counted. The windows begin anew.
#[derive(Serialize, Deserialize)]
pub struct Aggregate {
    #[serde(skip)]
    window: Duration,
    #[serde(skip)]
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
    #[serde(skip)]
    node: Windows,
    /// The node's figures when this agent began.
    #[serde(skip)]
    found: Option<Figures>,
    #[serde(skip)]
    windows: HashMap<Arc<Owner>, Windows>,
    #[serde(skip)]
    gone: HashMap<Arc<Owner>, Instant>,
    #[serde(skip)]
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
            found: None,
            windows: HashMap::new(),
            gone: HashMap::new(),
            picture: Arc::default(),
        }
    }

    /// One that was written, with the span of the ratios and the label sets kept.
    #[must_use]
    pub fn restored(self, window: Duration, max_pods: usize) -> Self {
        Self {
            window,
            max_pods,
            ..self
        }
    }

    /// How often it has been decided whose something is.
    pub fn decisions(&self) -> u64 {
        self.neigh.decisions()
            + self.forwarded.decisions()
            + self.dns.decisions()
            + self.receivers.decisions()
            + self.drops.decisions()
            + self.tcp.decisions()
            + self.dead.decisions()
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
            is_forwarded: false,
        };
        let until_now = |since| When {
            from: since,
            to: now,
        };
        let heard = resolver.has_heard_all();
        self.forwarded.trust(heard);
        self.drops.trust(heard);
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
                    source: Some(address(key.source_family as u16, key.source)),
                    is_forwarded: true,
                    ..identity(key.net_cookie, None)
                };
                resolver.resolve(&identity, until_now(since))
            },
            &mut admit,
        );
        let client = |net_cookie, cgroup_id, since| {
            resolver.resolve(&identity(net_cookie, Some(cgroup_id)), until_now(since))
        };
        self.dns.update(
            reading.dns.iter().map(|(key, value)| (*key, value.counts)),
            now,
            |key, since| client(key.net_cookie, key.cgroup_id, since),
            &mut admit,
        );
        self.receivers.update(
            reading
                .receive_drops
                .iter()
                .map(|(key, value)| (*key, value.dropped)),
            now,
            |key, since| client(key.net_cookie, key.cgroup_id, since),
            &mut admit,
        );
        self.tcp.update(
            reading.tcp.iter().map(|(key, value)| (*key, value.counts)),
            now,
            |key, since| client(key.net_cookie, key.cgroup_id, since),
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
        let found = self.found.get_or_insert_with(|| picture.node.clone());
        let grown = picture.node.since(found);
        self.node.note((second, span), &mut picture.node, &grown);
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
        let grown = self.grown();
        let nothing = Figures::default();
        for (owner, figures) in &mut picture.owners {
            let windows = self.windows.entry(owner.clone()).or_default();
            let grown = grown.get(owner).unwrap_or(&nothing);
            windows.note((second, span), figures, grown);
        }
        picture.reading = reading;
        self.picture = Arc::new(picture);
    }

    /// What windows look at, of each owner, since this agent began.
    fn grown(&self) -> HashMap<Arc<Owner>, Figures> {
        let mut all: HashMap<Arc<Owner>, Figures> = HashMap::new();
        for (owner, counts) in self.neigh.grown().into_iter().chain(self.forwarded.grown()) {
            all.entry(owner).or_default().neigh.plus(&counts);
        }
        for (owner, counts) in self.dns.grown() {
            all.entry(owner).or_default().dns = counts;
        }
        for (owner, counts) in self.tcp.grown() {
            all.entry(owner).or_default().tcp = counts;
        }
        for (owner, dropped) in self.receivers.grown() {
            let figures = all.entry(owner).or_default();
            figures.receive_drops.insert(None, dropped);
        }
        all
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
