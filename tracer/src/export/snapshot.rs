//! `/api/v1/snapshot`: everything the agent knows at one moment, as JSON. The agent writes it;
//! `tracer top` and `tracer why` read it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// All that `top` shows.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// When it was taken, RFC 3339, UTC.
    pub time: String,
    /// The node's name.
    pub node: String,
    /// tracer's version.
    pub version: String,
    /// When counting began, RFC 3339, UTC.
    pub since: String,
    /// Span of the ratios, seconds (`--window`).
    pub window_seconds: f64,
    /// The neighbour tables.
    pub tables: Vec<Table>,
    /// Connection tracking in the host's namespace; `None` where the kernel has none.
    pub conntrack: Option<Conntrack>,
    /// The hooks.
    pub hooks: Vec<Hook>,
    /// The pod sources.
    pub sources: Vec<Source>,
    /// The whole node: complete, pods that are gone included.
    pub total: Figures,
    /// Destinations that answer nobody, the busiest 100, the one with most attempts first.
    #[serde(default)]
    pub dead_endpoints: Vec<DeadEndpoint>,
    /// Failures towards peers, by name.
    #[serde(default)]
    pub peers: Vec<Peer>,
    /// What is not attributed yet, by hook.
    pub unattributed_pending: BTreeMap<String, u64>,
    /// One for each pod, and for what is no pod.
    pub pods: Vec<Pod>,
}

/// One neighbour table.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Table {
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// The kernel's `gc_entries`: what it compares with the limit. `None` where the hook `neigh`
    /// cannot run.
    pub entries: Option<u64>,
    /// Highest of the last 60 s, seen at every creation.
    pub entries_peak: u64,
    /// Highest since counting began.
    pub entries_peak_since_start: u64,
    /// Forecast; `None` without a trend.
    pub time_until_full_seconds: Option<f64>,
    /// `normal`, `rising` or `critical`.
    pub pressure: String,
    /// gc_thresh1, 2, 3.
    pub limits: [u64; 3],
    /// Creations refused because the table was full, since boot.
    pub table_fulls: u64,
    /// Forced garbage collections since boot.
    pub gc_forced: u64,
    /// Periodic garbage collections since boot.
    pub gc_periodic: u64,
}

/// Connection tracking, by the kernel's own figures. The counters are since boot, and `None` where the
/// kernel does not give them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Conntrack {
    /// Connections in the table.
    pub entries: u64,
    /// Most that it takes; 0 is no limit.
    pub limit: u64,
    /// Connections whose entry could not be inserted; their packets were dropped.
    pub insert_failed: Option<u64>,
    /// Packets dropped: table full, or a race lost.
    pub drops: Option<u64>,
    /// Entries thrown out of a full table to make room; no packet was dropped for them.
    pub early_drops: Option<u64>,
}

/// One hook.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Hook {
    /// Its name.
    pub name: String,
    /// `attached`, `degraded`, `unavailable` or `off`.
    pub state: String,
    /// What it is attached to, such as `raw_tracepoint neigh_create`.
    pub mechanism: String,
    /// Why it is not `attached`; empty if it is.
    pub reason: String,
    /// Records streamed.
    pub events: u64,
    /// Records lost in a full ring.
    pub lost: u64,
    /// Records held back by `--event-rate`.
    pub suppressed: u64,
}

/// One pod source.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// Pods it knows.
    pub pods: u64,
    /// Since it last answered, seconds; `None` if it never did.
    pub age_seconds: Option<f64>,
    /// Why it does not answer; empty if it does.
    pub reason: String,
    /// There is nothing on this node that it could ask, and nobody waits for it.
    #[serde(default)]
    pub idle: bool,
}

/// One pod, or what stands for it (`(host)`, `(netns)`, `(unknown)`, `(other)`).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Pod {
    /// Kubernetes namespace, or a word in parentheses.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// Its figures.
    #[serde(flatten)]
    pub figures: Figures,
}

/// Counters since counting began, and ratios over the window.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    /// Neighbour creations, by family (`ipv4`, `ipv6`).
    pub neighbour: BTreeMap<String, Neighbour>,
    /// Lookups.
    pub dns: Dns,
    /// Connections.
    #[serde(default)]
    pub tcp: Tcp,
    /// Packets dropped for a reason that means failure, by the kernel's name; only reasons that
    /// occurred.
    #[serde(default)]
    pub drops: BTreeMap<String, u64>,
    /// Datagrams lost in full receive buffers, by port: the node's busiest 20, else `(other)`. Not of
    /// the node.
    #[serde(default)]
    pub receive_drops: BTreeMap<String, u64>,
    /// Failed attempts to destinations that answer nobody, by `ip:port`: the node's busiest 100, else
    /// `(other)`. Not of the node.
    #[serde(default)]
    pub dead_endpoint_attempts: BTreeMap<String, u64>,
    /// Failures ÷ attempts over the window, by signal (`dns`, `neighbour`, `connect`); none without
    /// attempts.
    pub failure_ratio: BTreeMap<String, f64>,
}

/// TCP connections.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tcp {
    /// Attempts ended, by result; all results present.
    pub connects: BTreeMap<String, u64>,
    /// Segments sent again on established connections.
    pub retransmits: u64,
    /// Established connections that the other end reset.
    pub resets: u64,
    /// Times that the other end of an established connection fell silent.
    pub silent: u64,
}

/// A destination that answers nobody.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DeadEndpoint {
    /// `ip:port`.
    pub destination: String,
    /// `NS/NAME` of the pod of this node that had the address last, or has it.
    pub last_owner: Option<String>,
    /// Since when that pod is gone, RFC 3339, UTC; `None`: it is not, or nobody is known.
    pub owner_gone_since: Option<String>,
    /// The first of the failed attempts, RFC 3339, UTC.
    pub since: String,
    /// Failed attempts since then, of all pods.
    pub attempts: u64,
}

/// Failures towards one peer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Peer {
    /// A node's name where nodes are known, else the address; `(other)` for the rest.
    pub peer: String,
    /// Failures by kind: `dns`, `connect`, `retransmit`; only kinds that occurred.
    pub failures: BTreeMap<String, u64>,
}

/// Neighbour creations of one family.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Neighbour {
    /// Granted.
    pub created: u64,
    /// Refused: the table is full.
    pub table_full: u64,
    /// Refused for want of memory.
    pub no_memory: u64,
    /// Of `table_full`: what the kernel wanted for itself. The node is then unreachable for new
    /// peers.
    pub kernel_full: u64,
    /// Entries removed, by who did it: `forced` and `periodic` garbage collection, `other`.
    pub evictions: BTreeMap<String, u64>,
    /// Entries of anyone thrown out because this one asked for one more.
    pub forced_gc: u64,
    /// Of `created`: entries that a forced collection had thrown out within 10 s. Many mean that the
    /// table thrashes.
    pub recreated: u64,
    /// Entries in the table now; 0 for the node's total.
    pub entries: u64,
}

/// Lookups.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Dns {
    /// Query packets.
    pub queries: u64,
    /// Lookups begun.
    pub started: u64,
    /// Lookups that wait for an answer.
    pub pending: u64,
    /// Lookups ended, by outcome; all outcomes present.
    pub outcomes: BTreeMap<String, u64>,
    /// Failed lookups, by cause; all causes present.
    pub causes: BTreeMap<String, u64>,
    /// Answers after the deadline.
    pub late: u64,
    /// Answers to nothing asked.
    pub unmatched: u64,
    /// Queries not followed, for want of room.
    pub untracked: u64,
    /// The server's side: query packets that reached a socket of this pod on a DNS port.
    pub received: u64,
    /// Of those, by what became of them: answered with an outcome as above, `unanswered` within the
    /// timeout, or `untracked` for want of room.
    pub served: BTreeMap<String, u64>,
    /// Of those, the ones that still wait for the server's answer.
    pub serving: u64,
    /// Answered lookups.
    pub answered: u64,
    /// Sum of their durations, seconds.
    pub duration_sum_seconds: f64,
    /// Median duration since counting began, seconds, from the buckets; `None` without answers.
    pub p50_seconds: Option<f64>,
    /// 99th percentile, likewise.
    pub p99_seconds: Option<f64>,
}
