//! The maps in user space's hands: what `tracer-ebpf/src/maps.rs` declares, by the same names.

mod leave;

use std::{collections::HashSet, os::fd::AsFd as _};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf},
};
use tracer_common::{
    ClientMap, FAMILIES, Hook, dns,
    drops::{self, MAX_REASONS, ReceiverKey, ReceiverValue},
    event::RingStats,
    neigh, peers,
    quota::ByAddress,
    tcp,
};

use super::reasons::Reasons;

pub use leave::{Leave, Left};

/// How many hooks there are.
pub const HOOKS: usize = Hook::COUNT as usize;

/// The maps whose new keys may find no room.
const CLIENT_MAPS: [(&str, ClientMap); ClientMap::COUNT as usize] = [
    ("NEIGH", ClientMap::Neigh),
    ("DNS", ClientMap::Dns),
    ("NEIGH_FORWARDED", ClientMap::NeighForwarded),
    ("PENDING", ClientMap::Pending),
    ("SERVED", ClientMap::Served),
    ("RECEIVE_DROPS", ClientMap::ReceiveDrops),
    ("PEERS", ClientMap::Peers),
    ("RECEIVE_PORTS", ClientMap::ReceivePorts),
    ("DROPS", ClientMap::Drops),
    ("TCP", ClientMap::Tcp),
    ("CONNECTING", ClientMap::Connecting),
    ("TALKING", ClientMap::Talking),
    ("DESTINATIONS", ClientMap::Destinations),
    ("ATTEMPTS", ClientMap::Attempts),
];

/// `BPF_NOEXIST` (include/uapi/linux/bpf.h): an update makes a new entry or fails.
const BPF_NOEXIST: u64 = 1;

/// Span of the peaks, seconds.
const PEAK_SPAN: u64 = 60;

/// One map's filling.
#[derive(Clone, Copy, Debug)]
pub struct Filling {
    /// Its name.
    pub map: &'static str,
    /// Entries in it.
    pub entries: u64,
    /// Room.
    pub max_entries: u64,
    /// How often a new key found no room.
    pub full: u64,
}

/// All maps that user space reads.
pub struct Maps {
    neigh: HashMap<MapData, neigh::Key, neigh::Value>,
    neigh_node: PerCpuArray<MapData, neigh::Counts>,
    tables: Array<MapData, neigh::Table>,
    forwarded: HashMap<MapData, neigh::ForwardedKey, neigh::Value>,
    pod_addresses: HashMap<MapData, [u32; 4], u32>,
    /// What is in it; `None`: what an agent before has left.
    told: Option<HashSet<[u32; 4]>>,
    strangers: Array<MapData, u64>,
    refused: PerCpuArray<MapData, neigh::Refused>,
    peak: PerCpuArray<MapData, neigh::Peak>,
    walk: Array<MapData, neigh::Walk>,
    dns: HashMap<MapData, dns::Key, dns::Value>,
    dns_node: PerCpuArray<MapData, dns::Counts>,
    peers: HashMap<MapData, peers::Key, u64>,
    receive_drops: HashMap<MapData, ReceiverKey, ReceiverValue>,
    receive_ports: HashMap<MapData, ReceiverKey, ReceiverValue>,
    drops: HashMap<MapData, drops::Key, drops::Value>,
    tcp: HashMap<MapData, tcp::Key, tcp::Value>,
    tcp_node: PerCpuArray<MapData, tcp::Counts>,
    talking: HashMap<MapData, u64, tcp::Talking>,
    destinations: HashMap<MapData, tcp::Destination, tcp::DestinationValue>,
    attempts: HashMap<MapData, tcp::AttemptsKey, tcp::AttemptsValue>,
    max_entries: [u64; CLIENT_MAPS.len()],
    drops_node: PerCpuArray<MapData, u64>,
    ring_stats: PerCpuArray<MapData, RingStats>,
    full: PerCpuArray<MapData, u64>,
    ring: Option<RingBuf<MapData>>,
    cgroups: Option<RingBuf<MapData>>,
}

fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<T> {
    let map = ebpf
        .take_map(name)
        .ok_or_else(|| anyhow!("the eBPF object has no map {name}"))?;
    T::try_from(map).with_context(|| format!("the eBPF map {name} is of another kind"))
}

/// The same, of one that whoever runs the programs reads too: it stays there.
fn share<T: TryFrom<Map, Error = MapError>>(ebpf: &Ebpf, name: &str) -> Result<T> {
    let again = |data: &MapData| -> Result<MapData> {
        let fd = data.fd().as_fd().try_clone_to_owned()?;
        Ok(MapData::from_fd(fd)?)
    };
    let map = match ebpf.map(name) {
        Some(Map::HashMap(data)) => Map::HashMap(again(data)?),
        Some(Map::Array(data)) => Map::Array(again(data)?),
        _ => return Err(anyhow!("the eBPF object has no hash map or array {name}")),
    };
    T::try_from(map).with_context(|| format!("the eBPF map {name} is of another kind"))
}

fn max_entries(ebpf: &Ebpf, name: &str) -> Result<u64> {
    match ebpf.map(name) {
        Some(Map::HashMap(data)) => Ok(data.info()?.max_entries().into()),
        _ => Err(anyhow!("the eBPF object has no hash map {name}")),
    }
}

impl Maps {
    /// Takes them out of the loaded object, and puts the rest keys in, which the kernel charges
    /// where a map is full.
    pub fn take(ebpf: &mut Ebpf, reasons: &Reasons) -> Result<Self> {
        let mut max_entries_of = [0; CLIENT_MAPS.len()];
        for (entries, (name, map)) in max_entries_of.iter_mut().zip(CLIENT_MAPS) {
            *entries = max_entries(ebpf, name)?;
            // Most of these have a place outside the hash map.
            if matches!(map, ClientMap::Pending | ClientMap::Served) {
                *entries += u64::from(dns::PLACES);
            }
        }
        let mut neigh: HashMap<MapData, neigh::Key, neigh::Value> = take(ebpf, "NEIGH")?;
        for family in [tracer_common::AF_INET, tracer_common::AF_INET6] {
            put(
                &mut neigh,
                neigh::Key::rest(family),
                neigh::Value::default(),
            )?;
        }
        let mut dns: HashMap<MapData, dns::Key, dns::Value> = take(ebpf, "DNS")?;
        put(&mut dns, dns::Key::default(), dns::Value::default())?;
        let mut peers: HashMap<MapData, peers::Key, u64> = take(ebpf, "PEERS")?;
        for kind in peers::Kind::ALL {
            put(&mut peers, peers::Key::rest(kind), 0)?;
        }
        let mut drops: HashMap<MapData, drops::Key, drops::Value> = take(ebpf, "DROPS")?;
        for (number, _) in reasons.names_of_failures() {
            let rest = drops::Key {
                reason: u16::try_from(number)?,
                ..drops::Key::default()
            };
            put(&mut drops, rest, drops::Value::default())?;
        }
        let mut tcp: HashMap<MapData, tcp::Key, tcp::Value> = take(ebpf, "TCP")?;
        put(&mut tcp, tcp::Key::default(), tcp::Value::default())?;
        let mut receive_drops: HashMap<MapData, ReceiverKey, ReceiverValue> =
            take(ebpf, "RECEIVE_DROPS")?;
        put(
            &mut receive_drops,
            ReceiverKey::default(),
            ReceiverValue::default(),
        )?;
        Ok(Self {
            neigh,
            neigh_node: take(ebpf, "NEIGH_NODE")?,
            tables: take(ebpf, "TABLES")?,
            forwarded: take(ebpf, "NEIGH_FORWARDED")?,
            pod_addresses: take(ebpf, "POD_ADDRESSES")?,
            told: None,
            strangers: take(ebpf, "STRANGERS")?,
            refused: take(ebpf, "REFUSED")?,
            peak: take(ebpf, "NEIGH_PEAK")?,
            walk: share(ebpf, "WALK")?,
            dns,
            receive_drops,
            receive_ports: take(ebpf, "RECEIVE_PORTS")?,
            drops,
            tcp,
            tcp_node: take(ebpf, "TCP_NODE")?,
            talking: share(ebpf, "TALKING")?,
            destinations: take(ebpf, "DESTINATIONS")?,
            attempts: take(ebpf, "ATTEMPTS")?,
            peers,
            dns_node: take(ebpf, "DNS_NODE")?,
            max_entries: max_entries_of,
            drops_node: take(ebpf, "DROPS_NODE")?,
            ring_stats: take(ebpf, "RING_STATS")?,
            full: take(ebpf, "FULL")?,
            ring: Some(take(ebpf, "RING")?),
            cgroups: Some(take(ebpf, "CGROUPS")?),
        })
    }

    /// The ring, once.
    pub fn take_ring(&mut self) -> Option<RingBuf<MapData>> {
        self.ring.take()
    }

    /// The ring of new cgroups' names, once.
    pub fn take_cgroups(&mut self) -> Option<RingBuf<MapData>> {
        self.cgroups.take()
    }
}

/// What the counter maps hold at one moment.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// Creations, by namespace and family.
    pub neigh: Vec<(neigh::Key, neigh::Value)>,
    /// Creations of the node, by family.
    pub neigh_node: [neigh::Counts; 2],
    /// Refusals for forwarded packets, by source address.
    pub forwarded: Vec<(neigh::ForwardedKey, neigh::Value)>,
    /// The last walks of the tables, by family.
    pub walks: [neigh::Walk; 2],
    /// Lookups, by client.
    pub dns: Vec<(dns::Key, dns::Value)>,
    /// Lookups of the node.
    pub dns_node: dns::Counts,
    /// Failures by the address at the other end.
    pub peers: Vec<(peers::Key, u64)>,
    /// Datagrams lost in full receive buffers, by socket's owner.
    pub receive_drops: Vec<(ReceiverKey, ReceiverValue)>,
    /// The same by socket's owner and port, as far as there was room.
    pub receive_ports: Vec<(ReceiverKey, ReceiverValue)>,
    /// Packets dropped, by owner and reason.
    pub drops: Vec<(drops::Key, drops::Value)>,
    /// Connections, by client.
    pub tcp: Vec<(tcp::Key, tcp::Value)>,
    /// Connections of the node.
    pub tcp_node: tcp::Counts,
    /// Connections to ports where requests must be answered.
    pub talking: u64,
    /// Where attempts failed.
    pub destinations: Vec<(tcp::Destination, tcp::DestinationValue)>,
    /// Failed attempts by client and destination.
    pub attempts: Vec<(tcp::AttemptsKey, tcp::AttemptsValue)>,
    /// Packets dropped on the node, by reason, whatever it means; only reasons that occurred.
    pub drops_node: Vec<(u32, u64)>,
    /// The ring's figures, by hook.
    pub ring: [RingStats; HOOKS],
    /// Keys that found their map full, by hook.
    pub full: [u64; ClientMap::COUNT as usize],
}

impl Maps {
    /// Reads the counters. The clients before the node: a client's sum is never ahead of the node's.
    pub fn read(&self) -> Result<Reading> {
        let mut reading = Reading {
            neigh: entries(&self.neigh).context("cannot read the eBPF map NEIGH")?,
            forwarded: entries(&self.forwarded)
                .context("cannot read the eBPF map NEIGH_FORWARDED")?,
            walks: [self.walk.get(&0, 0)?, self.walk.get(&1, 0)?],
            dns: entries(&self.dns).context("cannot read the eBPF map DNS")?,
            peers: entries(&self.peers).context("cannot read the eBPF map PEERS")?,
            // Ports before their owners, attempts before what has become of their destinations: a
            // part is never ahead of the whole.
            receive_ports: entries(&self.receive_ports)
                .context("cannot read the eBPF map RECEIVE_PORTS")?,
            drops: entries(&self.drops).context("cannot read the eBPF map DROPS")?,
            attempts: entries(&self.attempts).context("cannot read the eBPF map ATTEMPTS")?,
            destinations: entries(&self.destinations)
                .context("cannot read the eBPF map DESTINATIONS")?,
            tcp: entries(&self.tcp).context("cannot read the eBPF map TCP")?,
            talking: self.talking.keys().count() as u64,
            receive_drops: entries(&self.receive_drops)
                .context("cannot read the eBPF map RECEIVE_DROPS")?,
            ..Reading::default()
        };
        for family in 0..FAMILIES {
            for counts in self.neigh_node.get(&family, 0)?.iter() {
                reading.neigh_node[family as usize].add(counts);
            }
        }
        reading.dns_node = self.dns_node()?;
        for counts in self.tcp_node.get(&0, 0)?.iter() {
            reading.tcp_node.add(counts);
        }
        for reason in 0..MAX_REASONS {
            let dropped = self.drops_node.get(&reason, 0)?.iter().sum();
            if dropped > 0 {
                reading.drops_node.push((reason, dropped));
            }
        }
        for hook in Hook::ALL {
            let ring = &mut reading.ring[hook as usize];
            for stats in self.ring_stats.get(&(hook as u32), 0)?.iter() {
                ring.sent += stats.sent;
                ring.lost += stats.lost;
                ring.suppressed += stats.suppressed;
            }
        }
        for map in 0..ClientMap::COUNT {
            reading.full[map as usize] = self.full.get(&map, 0)?.iter().sum();
        }
        Ok(reading)
    }

    /// The tables as the program `tables` saw them last.
    pub fn tables(&self) -> Result<[neigh::Table; 2]> {
        Ok([self.tables.get(&0, 0)?, self.tables.get(&1, 0)?])
    }

    /// Does any lookup wait, for its answer or to be counted, or any query for its server?
    pub fn dns_waiting(&self) -> Result<bool> {
        let node = self.dns_node()?;
        Ok(node.started != node.ended() || node.serving() > 0)
    }

    fn dns_node(&self) -> Result<dns::Counts> {
        let mut node = dns::Counts::default();
        for counts in self.dns_node.get(&0, 0)?.iter() {
            node.add(counts);
        }
        Ok(node)
    }

    /// CPUs on which a refusal has waited for its packet for too long.
    pub fn stale_refusals(&self, now_ns: u64) -> Result<Vec<u32>> {
        Ok(self
            .refused
            .get(&0, 0)?
            .iter()
            .zip(0..)
            .filter(|(refused, _)| {
                refused.ktime_ns != 0 && now_ns.saturating_sub(refused.ktime_ns) > neigh::SETTLE_NS
            })
            .map(|(_, cpu)| cpu)
            .collect())
    }

    /// Highest `gc_entries` that a creation saw in the last 60 s, by family.
    pub fn peaks(&self, now_second: u64) -> Result<[u32; 2]> {
        let mut peaks = [0; 2];
        for family in 0..FAMILIES {
            for slot in 0..neigh::PEAK_SECONDS {
                for peak in self
                    .peak
                    .get(&(family * neigh::PEAK_SECONDS + slot), 0)?
                    .iter()
                {
                    if peak.second + PEAK_SPAN > now_second {
                        let entries = u32::try_from(peak.entries)?;
                        peaks[family as usize] = entries.max(peaks[family as usize]);
                    }
                }
            }
        }
        Ok(peaks)
    }

    /// Tells the programs which addresses this node's pods have: an answer to one of them is the asker's. One that finds
    /// no room is a stranger's.
    pub fn tell_pod_addresses(&mut self, addresses: impl Iterator<Item = [u32; 4]>) {
        let addresses: HashSet<[u32; 4]> = addresses.collect();
        let told = self
            .told
            .take()
            .unwrap_or_else(|| self.pod_addresses.keys().filter_map(Result::ok).collect());
        for gone in told.difference(&addresses) {
            if let Err(error) = self.pod_addresses.remove(gone) {
                tracing::debug!("{gone:?} is not in POD_ADDRESSES: {error}");
            }
        }
        for new in addresses.difference(&told) {
            if let Err(error) = self.pod_addresses.insert(new, 1, 0) {
                tracing::debug!("{new:?} finds no room in POD_ADDRESSES: {error}");
            }
        }
        self.told = Some(addresses);
    }

    /// Tells the programs how many entries there are of addresses that no pod of this node has: they count only what
    /// they enter, and pods come and go.
    pub fn tell_strangers(&mut self, reading: &Reading) -> Result<()> {
        let is_strange = |address: &[u32; 4]| {
            let told = self.told.as_ref();
            told.is_none_or(|told| !told.contains(address))
        };
        let forwarded = reading.forwarded.iter();
        let forwarded = forwarded.filter(|(key, _)| is_strange(&key.source));
        let dropped = reading.drops.iter().filter(|(key, _)| key.family != 0);
        let dropped = dropped.filter(|(key, _)| is_strange(&key.address));
        for (map, strangers) in [
            (ByAddress::Forwarded, forwarded.count() as u64),
            (ByAddress::Drops, dropped.count() as u64),
        ] {
            self.strangers
                .set(map as u32, strangers, 0)
                .context("cannot write the eBPF map STRANGERS")?;
        }
        Ok(())
    }

    /// Removes a peer that has been well for long.
    pub fn forget_peer(&mut self, key: &peers::Key) {
        if let Err(error) = self.peers.remove(key) {
            tracing::debug!("peer {key:?} is not in PEERS: {error}");
        }
    }

    /// Removes attempts that are accounted for and can get no more.
    pub fn forget_attempts(&mut self, key: &tcp::AttemptsKey) {
        if let Err(error) = self.attempts.remove(key) {
            tracing::debug!("attempts {key:?} are not in ATTEMPTS: {error}");
        }
    }

    /// Removes a destination where nobody has failed for long.
    pub fn forget_destination(&mut self, key: &tcp::Destination) {
        if let Err(error) = self.destinations.remove(key) {
            tracing::debug!("destination {key:?} is not in DESTINATIONS: {error}");
        }
    }

    /// How full the maps are that can fill up. Lookups that wait are counted elsewhere, for
    /// walking their map costs too much: `pending`; so are queries that wait for their server, of
    /// which several may share an entry, and attempts under way.
    pub fn fillings(&self, reading: &Reading, pending: u64) -> Vec<Filling> {
        let fillings = CLIENT_MAPS.iter().zip(self.max_entries);
        fillings
            .map(|((name, map), max_entries)| Filling {
                map: name,
                entries: match map {
                    ClientMap::Neigh => reading.neigh.len() as u64,
                    ClientMap::Dns => reading.dns.len() as u64,
                    ClientMap::NeighForwarded => reading.forwarded.len() as u64,
                    ClientMap::Pending => pending,
                    ClientMap::Served => reading.dns_node.serving().max(0).cast_unsigned(),
                    ClientMap::ReceiveDrops => reading.receive_drops.len() as u64,
                    ClientMap::Peers => reading.peers.len() as u64,
                    ClientMap::ReceivePorts => reading.receive_ports.len() as u64,
                    ClientMap::Drops => reading.drops.len() as u64,
                    ClientMap::Tcp => reading.tcp.len() as u64,
                    ClientMap::Connecting => reading.tcp_node.under_way(),
                    ClientMap::Talking => reading.talking,
                    ClientMap::Destinations => reading.destinations.len() as u64,
                    ClientMap::Attempts => reading.attempts.len() as u64,
                },
                max_entries,
                full: reading.full[*map as usize],
            })
            .collect()
    }
}

/// Puts a new entry in; one that is there, from an agent before, stays.
fn put<K: aya::Pod, V: aya::Pod>(map: &mut HashMap<MapData, K, V>, key: K, value: V) -> Result<()> {
    match map.insert(key, value, BPF_NOEXIST) {
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::AlreadyExists =>
        {
            Ok(())
        }
        // An agent before has left it full, and only one that runs takes out what is over.
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::ArgumentListTooLong =>
        {
            tracing::warn!("a map is full: what finds no room in it is counted for the node only");
            Ok(())
        }
        result => Ok(result?),
    }
}

/// All entries. Only user space removes any, so the walk neither restarts nor repeats; an entry
/// that appears meanwhile may be missed until the next reading.
fn entries<K: aya::Pod, V: aya::Pod>(map: &HashMap<MapData, K, V>) -> Result<Vec<(K, V)>> {
    map.iter().map(|entry| Ok(entry?)).collect()
}
