//! Events: one JSON object each, held for late comers and streamed to readers.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::sync::watch;

/// Events held for `--since`, and for readers who are slow.
const HELD: usize = 10_000;
/// Bytes that a reader takes at once, about.
const BATCH: usize = 64 << 10;

/// One event, as the contract says.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// RFC 3339, UTC.
    pub time: String,
    /// The node's name.
    pub node: String,
    /// Whose.
    pub pod: Pod,
    /// Inode of the network namespace.
    pub netns: u32,
    /// Process name, where the kernel was in its context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// Its process id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Kind and its own fields.
    #[serde(flatten)]
    pub details: Details,
}

/// A pod's labels.
#[derive(Clone, Debug, Serialize)]
pub struct Pod {
    /// Kubernetes namespace, or a word in parentheses.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// What each kind has of its own.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Details {
    /// A neighbour creation was refused, for the table is full.
    NeighbourOverflow {
        /// `ipv4` or `ipv6`.
        family: &'static str,
        /// Address that wanted an entry.
        destination: String,
        /// Device of the entry.
        device: String,
        /// The table's `gc_entries`.
        entries: u32,
        /// Its `gc_thresh3`.
        limit: u32,
        /// Source of the packet that was dropped, where it was forwarded.
        #[serde(skip_serializing_if = "Option::is_none")]
        source: Option<String>,
        /// The kernel wanted the entry for itself: to answer or to find a neighbour.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        wanted_by_kernel: bool,
    },
    /// The neighbour table's pressure changed.
    NeighbourPressure {
        /// `ipv4` or `ipv6`.
        family: &'static str,
        /// The table's `gc_entries`.
        entries: u32,
        /// Its `gc_thresh3`.
        limit: u32,
        /// Forecast; none without a trend.
        time_until_full_seconds: Option<f64>,
        /// `rising`, `critical` or `normal`.
        state: &'static str,
    },
    /// A lookup failed.
    DnsFailure {
        /// Name asked for.
        qname: String,
        /// Type asked for.
        qtype: String,
        /// `ip:port` asked.
        server: String,
        /// Transaction id.
        id: u16,
        /// How it ended.
        outcome: &'static str,
        /// What killed it.
        cause: &'static str,
        /// The kernel's reason, where a packet of it was dropped.
        #[serde(skip_serializing_if = "Option::is_none")]
        drop_reason: Option<String>,
        /// From the first query to the end.
        waited_seconds: f64,
    },
    /// A packet was dropped for a reason that means failure.
    Drop {
        /// The kernel's name of the reason.
        reason: String,
        /// `tcp`, `udp`, `icmp`, `icmpv6`, `sctp`, or the number.
        protocol: String,
        /// `ip:port`; the port is 0 where the packet has none.
        source: String,
        /// As `source`.
        destination: String,
        /// Device that the packet was at; empty where it had none yet.
        device: String,
    },
    /// A TCP connection attempt or an established connection failed.
    ConnectFailure {
        /// Own `ip:port`; the port is 0 where none was chosen yet.
        source: String,
        /// `ip:port` that was asked.
        destination: String,
        /// `ip:port` behind it, where netfilter redirected a packet that this node dropped.
        #[serde(skip_serializing_if = "Option::is_none")]
        backend: Option<String>,
        /// `refused`, `timeout`, `unreachable`, `other`, `reset`, `silent` or `unanswered`.
        result: &'static str,
        /// `NS/NAME` of the pod of this node that had the address last, or has it.
        #[serde(skip_serializing_if = "Option::is_none")]
        last_owner: Option<String>,
        /// Since when it is gone, RFC 3339, UTC.
        #[serde(skip_serializing_if = "Option::is_none")]
        owner_gone_since: Option<String>,
        /// From the first SYN to the end; from the request to now for a silent server; since
        /// the last packet for one that never answered.
        #[serde(skip_serializing_if = "Option::is_none")]
        waited_seconds: Option<f64>,
    },
}

/// Stands for a name asked for that is not to show; no host name holds a parenthesis.
pub const REDACTED: &str = "(redacted)";

impl Details {
    /// Takes out what pods asked for.
    pub fn redact(&mut self) {
        if let Self::DnsFailure { qname, .. } = self {
            REDACTED.clone_into(qname);
        }
    }
}

/// Holds the last events. Readers have none of their own: each goes through those that are held, at its
/// own pace, so that a slow one costs nothing but what it misses.
pub struct Hub {
    held: Mutex<Held>,
    /// The number of the next event.
    news: watch::Sender<u64>,
}

#[derive(Default)]
struct Held {
    /// The number of the first.
    first: u64,
    events: VecDeque<(Instant, Arc<str>)>,
}

impl Held {
    fn next(&self) -> u64 {
        self.first + self.events.len() as u64
    }
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            held: Mutex::default(),
            news: watch::Sender::new(0),
        }
    }
}

impl Hub {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes one event, of this moment: not of a time of day, for the clock may be set.
    pub fn publish(&self, at: Instant, event: &Event) {
        let line: Arc<str> = match serde_json::to_string(event) {
            Ok(line) => line.into(),
            Err(error) => {
                tracing::error!("an event cannot be written as JSON: {error}");
                return;
            }
        };
        let mut held = self.held();
        if held.events.len() == HELD {
            held.events.pop_front();
            held.first += 1;
        }
        held.events.push_back((at, line));
        self.news.send_replace(held.next());
    }

    /// A reader of the events of the last `since` that are still held, and of all new ones from here on.
    pub fn follow(self: &Arc<Self>, since: Option<Duration>) -> Follower {
        let held = self.held();
        let now = held.next();
        let from = since.and_then(|since| Instant::now().checked_sub(since));
        // Not quite in the order of their moments: some waited for a name.
        let is_young = |(at, _): &(Instant, _)| from.is_none_or(|from| *at >= from);
        let first = since.and_then(|_| held.events.iter().position(is_young));
        Follower {
            next: first.map_or(now, |first| held.first + first as u64),
            from,
            now,
            news: self.news.subscribe(),
            hub: Arc::clone(self),
        }
    }
}

/// One who reads events.
pub struct Follower {
    hub: Arc<Hub>,
    /// The number of the next event.
    next: u64,
    /// Of those before `now`, what is older does not count.
    from: Option<Instant>,
    now: u64,
    news: watch::Receiver<u64>,
}

/// What comes next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// So many were not read in time, before the lines.
    pub missed: u64,
    /// Events, one JSON object each.
    pub lines: Vec<Arc<str>>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.missed == 0 && self.lines.is_empty()
    }
}

impl Follower {
    /// What there is already, about [`BATCH`] bytes of it at most; empty where there is nothing.
    pub fn ready(&mut self) -> Batch {
        let mut batch = Batch::default();
        let mut bytes = 0;
        let held = self.hub.held();
        if self.next < held.first {
            batch.missed = held.first - self.next;
            self.next = held.first;
        }
        let from = (self.next - held.first) as usize;
        for (at, line) in held.events.range(from..) {
            let is_old = self.from.is_some_and(|from| *at < from);
            let skipped = is_old && self.next < self.now;
            self.next += 1;
            if skipped {
                continue;
            }
            bytes += line.len();
            batch.lines.push(Arc::clone(line));
            if bytes >= BATCH {
                break;
            }
        }
        batch
    }

    /// Has it read all that was there when it came?
    pub fn is_through(&self) -> bool {
        self.next >= self.now
    }

    /// What there is, as [`Self::ready`]; where there is nothing, waits for it. May be cancelled without loss.
    pub async fn next(&mut self) -> Batch {
        loop {
            self.news.mark_unchanged();
            let batch = self.ready();
            if !batch.is_empty() {
                return batch;
            }
            // The hub, and so the sender, is here as long as the follower.
            let _ = self.news.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        Event {
            time: "2026-01-01T00:00:00Z".to_owned(),
            node: "n".to_owned(),
            pod: Pod {
                namespace: "shop".to_owned(),
                name: "cart".to_owned(),
                uid: None,
            },
            netns: 7,
            comm: None,
            pid: None,
            details: Details::NeighbourOverflow {
                family: "ipv4",
                destination: "10.0.0.1".to_owned(),
                device: "eth0".to_owned(),
                entries: 1024,
                limit: 1024,
                source: None,
                wanted_by_kernel: false,
            },
        }
    }

    #[test]
    fn an_event_is_one_flat_object() {
        let value = serde_json::to_value(event()).unwrap();
        assert_eq!(value["kind"], "neighbour_overflow");
        assert_eq!(value["pod"]["name"], "cart");
        assert_eq!(value["limit"], 1024);
        assert!(value.get("comm").is_none());
    }

    fn read(follower: &mut Follower) -> (u64, usize) {
        let (mut missed, mut lines) = (0, 0);
        loop {
            let batch = follower.ready();
            if batch.is_empty() {
                return (missed, lines);
            }
            missed += batch.missed;
            lines += batch.lines.len();
        }
    }

    #[test]
    fn late_comers_get_what_is_held() {
        let hub = Arc::new(Hub::default());
        let now = Instant::now();
        hub.publish(now, &event());
        // Waited for its pod's name.
        hub.publish(now.checked_sub(Duration::from_mins(1)).unwrap(), &event());
        hub.publish(now, &event());
        let seen = |since| read(&mut hub.follow(since)).1;
        assert_eq!(seen(None), 0);
        assert_eq!(seen(Some(Duration::from_secs(30))), 2);
        assert_eq!(seen(Some(Duration::from_secs(90))), 3);
        assert_eq!(seen(Some(Duration::MAX)), 3);
    }

    #[tokio::test]
    async fn slow_readers_learn_what_they_missed() {
        let hub = Arc::new(Hub::default());
        let now = Instant::now();
        let mut slow = hub.follow(None);
        let mut quick = hub.follow(None);
        for _ in 0..HELD + 7 {
            hub.publish(now, &event());
            assert_eq!(quick.next().await.lines.len(), 1);
        }
        let first = slow.next().await;
        assert_eq!(first.missed, 7);
        assert!(first.lines.len() < HELD, "all at once");
        let rest = read(&mut slow);
        assert_eq!(rest, (0, HELD - first.lines.len()));
        // Nothing was forgotten while it was busy, and nothing comes twice.
        hub.publish(now, &event());
        assert_eq!(slow.next().await.lines.len(), 1);
        assert_eq!(slow.ready(), Batch::default());
    }
}
