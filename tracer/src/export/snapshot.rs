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
    /// When this agent began to look: later than `since` where another had counted before. RFC 3339, UTC. Ratios and
    /// episodes are of what came after.
    #[serde(default)]
    pub watched_since: String,
    /// How old the figures are, seconds: more than a few where the kernel's counters cannot be read.
    #[serde(default)]
    pub read_age_seconds: f64,
    /// Span of the ratios, seconds (`--window`).
    pub window_seconds: f64,
    /// The neighbour tables.
    pub tables: Vec<Table>,
    /// Connection tracking in the host's namespace; `None` where the kernel has none.
    pub conntrack: Option<Conntrack>,
    /// The node's last ten minutes.
    #[serde(default)]
    pub history: History,
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

impl Snapshot {
    /// When the agent began to look; an older one does not say, and counts from there.
    pub fn watched_since(&self) -> &str {
        if self.watched_since.is_empty() {
            &self.since
        } else {
            &self.watched_since
        }
    }
}

/// The node's last ten minutes in steps, oldest first; the last step is not over yet.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct History {
    /// Length of a step, seconds.
    pub step_seconds: u64,
    /// Most neighbour entries seen in the step, by family.
    pub entries: BTreeMap<String, Vec<u64>>,
    /// Attempts that ended in the step, by signal (`dns`, `neighbour`, `connect`).
    pub attempts: BTreeMap<String, Vec<u64>>,
    /// Of those, the failed ones.
    pub failed: BTreeMap<String, Vec<u64>>,
}

/// Failures of one kind without a gap of five minutes: the last such row, which may be over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Episode {
    /// `dns`, `neighbour`, `connect`, `served`, `receive`.
    pub signal: String,
    /// What killed: of `dns` a cause, of `connect` a result, of `neighbour` `ipv4_table_full`,
    /// `ipv6_table_full`, `ipv4_recreated`, `ipv6_recreated` (thrown out, and asked for again within
    /// 10 s), of `served` `unanswered`, of `receive` `socket_buffer_full`.
    pub cause: String,
    /// The first failure, to the second, RFC 3339, UTC.
    pub since: String,
    /// The last failure, likewise.
    pub last: String,
    /// Failed since then for this cause.
    pub failed: u64,
    /// All attempts of the signal since then.
    pub attempts: u64,
    /// Failed for this cause within the window of the ratios.
    pub recent_failed: u64,
    /// All attempts of the signal within that window.
    pub recent_attempts: u64,
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
    /// Failures ÷ attempts over the window, by signal (`dns`, `neighbour`, `connect`); none without
    /// attempts.
    pub failure_ratio: BTreeMap<String, f64>,
    /// TCP connection attempts that ended, by result; empty without any.
    #[serde(default)]
    pub connects: BTreeMap<String, u64>,
    /// Established connections that the peer reset.
    #[serde(default)]
    pub resets: u64,
    /// TCP segments sent again on established connections.
    #[serde(default)]
    pub retransmits: u64,
    /// Times that the other end of an established connection fell silent.
    #[serde(default)]
    pub silent: u64,
    /// Connections whose other end never answered until this one gave up.
    #[serde(default)]
    pub unanswered: u64,
    /// Packets dropped for a reason that means failure, by the kernel's name; those above 0.
    #[serde(default)]
    pub drops: BTreeMap<String, u64>,
    /// Destinations that answer nobody, most attempts first; the busiest 100 of the node, the rest and
    /// those that answer again as `(other)`. Not of the node's total.
    #[serde(default)]
    pub dead_endpoints: Vec<DeadEndpoint>,
    /// Datagrams lost in a full receive buffer; not of the node's total.
    #[serde(default)]
    pub receive_drops: u64,
    /// The same by port: the node's busiest 20, the rest as `(other)`.
    #[serde(default)]
    pub receive_drops_by_port: BTreeMap<String, u64>,
    /// What has failed since counting began, and since when.
    #[serde(default)]
    pub episodes: Vec<Episode>,
}

/// A destination that answers nobody.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DeadEndpoint {
    /// `ip:port`.
    pub destination: String,
    /// Failed attempts: of the pod since counting began, or of all since `since`.
    pub attempts: u64,
    /// `NS/NAME` of the pod of this node that had the address last, or has it.
    #[serde(default)]
    pub last_owner: Option<String>,
    /// Since when that pod is gone, RFC 3339, UTC; `None`: it is not, or nobody is known.
    #[serde(default)]
    pub owner_gone_since: Option<String>,
    /// The first failed attempt since it answered last, RFC 3339, UTC; empty for `(other)`.
    #[serde(default)]
    pub since: String,
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
    /// Answered lookups by duration: up to 0.5 ms, 1, 2.5, 5, 10, 25, 50, 100, 250, 500 ms, 1 s,
    /// 2.5, 5 s, and longer; empty without answers.
    #[serde(default)]
    pub buckets: Vec<u64>,
}
