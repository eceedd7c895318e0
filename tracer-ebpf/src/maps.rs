//! All maps. What survives a restart, how full they are and what happens when one is full is
//! user space's business (`tracer/src/kernel/maps.rs`), which finds them by these names.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use tracer_common::{ClientMap, FAMILIES, Hook, dns, drops, event, neigh, peers, quota, tcp};

/// Clients (namespaces, or cgroup and namespace) with counters of their own.
const CLIENTS: u32 = 8192;

/// The build whose programs count: its `BUILD`.
#[map]
pub static ACTIVE: Array<u64> = Array::with_max_entries(1, 0);

/// Creations by namespace and family.
#[map]
pub static NEIGH: HashMap<neigh::Key, neigh::Value> =
    HashMap::with_max_entries(CLIENTS * FAMILIES, BPF_F_NO_PREALLOC);

/// Creations of the node, by family: complete, whatever happens to `NEIGH`.
#[map]
pub static NEIGH_NODE: PerCpuArray<neigh::Counts> = PerCpuArray::with_max_entries(FAMILIES, 0);

/// Refusals for forwarded packets, by source address.
#[map]
pub static NEIGH_FORWARDED: HashMap<neigh::ForwardedKey, neigh::Value> =
    HashMap::with_max_entries(CLIENTS, BPF_F_NO_PREALLOC);

/// The refusal that waits on this CPU for the packet that is dropped for it.
#[map]
pub static REFUSED: PerCpuArray<neigh::Refused> = PerCpuArray::with_max_entries(1, 0);

/// Entries that a forced collection on this CPU threw out and nobody is charged with yet, by family.
#[map]
pub static FORCED: PerCpuArray<u64> = PerCpuArray::with_max_entries(FAMILIES, 0);

/// Entries that forced collections threw out, and when.
#[map]
pub static EVICTED: LruHashMap<neigh::EvictedKey, u64> = LruHashMap::with_max_entries(8192, 0);

/// Highest `gc_entries` of the last seconds, by family.
#[map]
pub static NEIGH_PEAK: PerCpuArray<neigh::Peak> =
    PerCpuArray::with_max_entries(FAMILIES * neigh::PEAK_SECONDS, 0);

/// The last walk of each table.
#[map]
pub static WALK: Array<neigh::Walk> = Array::with_max_entries(FAMILIES, 0);

/// When a creation was last refused for a full table, by family, `CLOCK_MONOTONIC` nanoseconds.
#[map]
pub static NEIGH_LAST_FULL: Array<u64> = Array::with_max_entries(FAMILIES, 0);

/// The tables' state as the program `tables` saw it last.
#[map]
pub static TABLES: Array<neigh::Table> = Array::with_max_entries(FAMILIES, 0);

/// Lookups by client.
#[map]
pub static DNS: HashMap<dns::Key, dns::Value> =
    HashMap::with_max_entries(CLIENTS, BPF_F_NO_PREALLOC);

/// Lookups of the node: complete, whatever happens to `DNS`.
#[map]
pub static DNS_NODE: PerCpuArray<dns::Counts> = PerCpuArray::with_max_entries(1, 0);

/// Failures by the address at the other end. The rest keys are always there.
#[map]
pub static PEERS: HashMap<peers::Key, u64> = HashMap::with_max_entries(CLIENTS, BPF_F_NO_PREALLOC);

/// One all-zero value: what a new entry of `DNS` is made of (too large for the stack).
#[map]
pub static DNS_ZERO: Array<dns::Value> = Array::with_max_entries(1, 0);

/// Lookups that wait for an answer, where their places are others'. Allocated as needed: full, keys and values take
/// 29 MB.
#[map]
pub static PENDING: HashMap<dns::LookupKey, dns::Lookup> =
    HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// Lookups that wait, each at its place.
#[map]
pub static PENDING_NEAR: Array<dns::Place<dns::LookupKey, dns::Lookup>> =
    Array::with_max_entries(dns::PLACES, 0);

/// Entries of `PENDING` and of `SERVED`, by [`dns::Far`].
#[map]
pub static FAR: Array<u64> = Array::with_max_entries(dns::Far::COUNT, 0);

/// Sockets that DNS packets went through: each at its place, which the latest takes.
#[map]
pub static SOCKETS: Array<dns::KnownSocket> = Array::with_max_entries(dns::SOCKETS_LEN, 0);

/// One all-zero lookup: what a new entry of `PENDING` is made of (too large for the stack).
#[map]
pub static LOOKUP_ZERO: Array<dns::Lookup> = Array::with_max_entries(1, 0);

/// Lookups that ended as `timeout`, so that a late answer is told from one to nothing asked.
#[map]
pub static EXPIRED: LruHashMap<dns::LookupKey, dns::Ended> =
    LruHashMap::with_max_entries(16_384, 0);

/// Lookups that were answered, so that the same question again is told from a new one: each at its place, which
/// costs a tenth of an entry in a map that forgets the least recently used.
#[map]
pub static ANSWERS: Array<dns::AnsweredLookup> = Array::with_max_entries(dns::ANSWERS_LEN, 0);

/// The answer that reached a socket's filter last on this CPU.
#[map]
pub static ANSWERED: PerCpuArray<dns::Answered> = PerCpuArray::with_max_entries(1, 0);

/// DNS packets on their way through this node, by a hash of their `sk_buff`'s address.
#[map]
pub static PACKETS: Array<dns::Packet> = Array::with_max_entries(dns::PACKETS_LEN, 0);

/// Lookups that wait, by what their packets say of the client, where their place does not say it.
#[map]
pub static ENDPOINTS: Array<[dns::Way; dns::ENDPOINT_WAYS]> =
    Array::with_max_entries(dns::ENDPOINT_SETS, 0);

/// Queries that wait for a server's answer, where their places are others'. Allocated as needed: full, keys and
/// values take 8 MB.
#[map]
pub static SERVED: HashMap<dns::ServedKey, dns::Served> =
    HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// Queries that wait for a server's answer, each at its place.
#[map]
pub static SERVED_NEAR: Array<dns::Place<dns::ServedKey, dns::Served>> =
    Array::with_max_entries(dns::PLACES, 0);

/// When netfilter last refused a query before it left, `CLOCK_MONOTONIC` nanoseconds.
#[map]
pub static REFUSED_QUERY: Array<u64> = Array::with_max_entries(1, 0);

/// The question of the query that never left, by the program that looks at it.
#[map]
pub static QUESTION: PerCpuArray<crate::dns::Words> = PerCpuArray::with_max_entries(3, 0);

/// Addresses that this node's pods have, network byte order; IPv4 in the first word. Kept by user space.
#[map]
pub static POD_ADDRESSES: HashMap<[u32; 4], u32> =
    HashMap::with_max_entries(8192, BPF_F_NO_PREALLOC);

/// Not 0: the program is at work that sees packets die.
#[map]
pub static DROPS_WATCHED: Array<u32> = Array::with_max_entries(1, 0);

/// Not 0: the programs at the end of sends are at work.
#[map]
pub static SENDS_WATCHED: Array<u32> = Array::with_max_entries(1, 0);

/// Sends under way whose query is counted, each at its task's place.
#[map]
pub static SENT: Array<dns::Sent> = Array::with_max_entries(dns::SENT_LEN, 0);

/// Targets whose solicitation found the neighbour table full, and when, `CLOCK_MONOTONIC`
/// nanoseconds.
#[map]
pub static UNSOLICITED: LruHashMap<neigh::Target, u64> = LruHashMap::with_max_entries(8192, 0);

/// Where this CPU keeps its copy of per-CPU data.
#[map]
pub static THIS_CPU: PerCpuArray<drops::ThisCpu> = PerCpuArray::with_max_entries(1, 0);

/// What conntrack had refused when a CPU last dropped a packet for it, by namespace and CPU.
#[map]
pub static CONNTRACK_REFUSALS: LruHashMap<drops::RefusalsKey, drops::Refusals> =
    LruHashMap::with_max_entries(8192, 0);

/// Datagrams lost in full receive buffers, by socket's owner.
#[map]
pub static RECEIVE_DROPS: HashMap<drops::ReceiverKey, drops::ReceiverValue> =
    HashMap::with_max_entries(CLIENTS, BPF_F_NO_PREALLOC);

/// The same by socket's owner and port, as far as there is room.
#[map]
pub static RECEIVE_PORTS: HashMap<drops::ReceiverKey, drops::ReceiverValue> =
    HashMap::with_max_entries(CLIENTS, BPF_F_NO_PREALLOC);

/// Dropped packets by owner and reason.
#[map]
pub static DROPS: HashMap<drops::Key, drops::Value> =
    HashMap::with_max_entries(2 * CLIENTS, BPF_F_NO_PREALLOC);

/// Connections by client.
#[map]
pub static TCP: HashMap<tcp::Key, tcp::Value> =
    HashMap::with_max_entries(CLIENTS, BPF_F_NO_PREALLOC);

/// Connections of the node: complete, whatever happens to `TCP`.
#[map]
pub static TCP_NODE: PerCpuArray<tcp::Counts> = PerCpuArray::with_max_entries(1, 0);

/// Attempts under way, by the address of their `struct sock`.
#[map]
pub static CONNECTING: HashMap<u64, tcp::Connecting> =
    HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// What the first of a pair of programs has counted, by socket and packet.
#[map]
pub static TURNS: LruHashMap<[u64; 2], u8> = LruHashMap::with_max_entries(8192, 0);

/// Connections to `--silent-port`, by the address of their `struct sock`.
#[map]
pub static TALKING: HashMap<u64, tcp::Talking> =
    HashMap::with_max_entries(32_768, BPF_F_NO_PREALLOC);

/// Where attempts failed.
#[map]
pub static DESTINATIONS: HashMap<tcp::Destination, tcp::DestinationValue> =
    HashMap::with_max_entries(CLIENTS, BPF_F_NO_PREALLOC);

/// Failed attempts, by client, destination and how often that had answered.
#[map]
pub static ATTEMPTS: HashMap<tcp::AttemptsKey, tcp::AttemptsValue> =
    HashMap::with_max_entries(2 * CLIENTS, BPF_F_NO_PREALLOC);

/// Where dropped packets of redirected connections were to go.
#[map]
pub static BEHIND: LruHashMap<tcp::BehindKey, tcp::Behind> = LruHashMap::with_max_entries(8192, 0);

/// What the kernel's drop reasons mean, by number.
#[map]
pub static REASONS: Array<drops::Reason> = Array::with_max_entries(drops::MAX_REASONS, 0);

/// Packets dropped on the node, by reason number, whatever it means.
#[map]
pub static DROPS_NODE: PerCpuArray<u64> = PerCpuArray::with_max_entries(drops::MAX_REASONS, 0);

/// Details of failures, for user space.
#[map]
pub static RING: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Names of new cgroups, for user space: room for 3,900 between two looks. Apart from `RING`,
/// where a flood of failures would crowd out the names that they wait for; and a ring, not a map by
/// id, because it keeps their order, tells what it loses, and an empty one costs no system call.
#[map]
pub static CGROUPS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// What each hook sent, lost and held back.
#[map]
pub static RING_STATS: PerCpuArray<event::RingStats> =
    PerCpuArray::with_max_entries(Hook::COUNT, 0);

/// The event budget of each hook.
#[map]
pub static RATE: Array<event::RateWindow> = Array::with_max_entries(Hook::COUNT, 0);

/// New keys that found their map full and were charged elsewhere, by [`ClientMap`].
#[map]
pub static FULL: PerCpuArray<u64> = PerCpuArray::with_max_entries(ClientMap::COUNT, 0);

/// What one client has of the maps that all clients share, by [`quota::place`].
#[map]
pub static QUOTAS: Array<quota::Quota> = Array::with_max_entries(quota::QUOTAS, 0);

/// Entries of addresses that no pod of this node is known to have, by [`quota::ByAddress`]. User space puts right what
/// the kernel has added up.
#[map]
pub static STRANGERS: Array<u64> = Array::with_max_entries(quota::ByAddress::COUNT, 0);

/// Kernel threads that are at the periodic collection, where the stack does not say it.
#[map]
pub static PERIODIC_TASKS: HashMap<u64, u32> = HashMap::with_max_entries(64, 0);
