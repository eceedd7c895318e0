//! Events: one JSON object each, held for late comers and streamed to readers.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use serde::Serialize;
use tokio::sync::broadcast;

/// Events held for `--since`.
const HELD: usize = 10_000;
/// Events that a slow reader may lag behind.
const LAG: usize = 4096;

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
        /// `refused`, `timeout`, `unreachable`, `other`, `reset` or `silent`.
        result: &'static str,
        /// `NS/NAME` of the pod of this node that had the address last, or has it.
        #[serde(skip_serializing_if = "Option::is_none")]
        last_owner: Option<String>,
        /// Since when it is gone, RFC 3339, UTC.
        #[serde(skip_serializing_if = "Option::is_none")]
        owner_gone_since: Option<String>,
        /// From the first SYN to the end; from the request to now for a silent server.
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

/// Holds the last events and hands new ones to readers.
pub struct Hub {
    held: Mutex<VecDeque<(SystemTime, Arc<str>)>>,
    sender: broadcast::Sender<Arc<str>>,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            held: Mutex::default(),
            sender: broadcast::Sender::new(LAG),
        }
    }
}

impl Hub {
    /// Publishes one event.
    pub fn publish(&self, at: SystemTime, event: &Event) {
        let line: Arc<str> = match serde_json::to_string(event) {
            Ok(line) => line.into(),
            Err(error) => {
                tracing::error!("an event cannot be written as JSON: {error}");
                return;
            }
        };
        // Under the lock, so that a reader who subscribes sees each event once.
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.len() == HELD {
            held.pop_front();
        }
        held.push_back((at, line.clone()));
        let _ = self.sender.send(line); // nobody listens: fine
    }

    /// The events of the last `since`, and all new ones from here on.
    pub fn subscribe(
        &self,
        since: Option<Duration>,
    ) -> (Vec<Arc<str>>, broadcast::Receiver<Arc<str>>) {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let past = match since.map(|since| SystemTime::now().checked_sub(since)) {
            None => Vec::new(),
            Some(from) => held
                .iter()
                .filter(|(at, _)| from.is_none_or(|from| *at >= from))
                .map(|(_, line)| line.clone())
                .collect(),
        };
        (past, self.sender.subscribe())
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

    #[test]
    fn late_comers_get_what_is_held() {
        let hub = Hub::default();
        let now = SystemTime::now();
        hub.publish(now.checked_sub(Duration::from_mins(1)).unwrap(), &event());
        hub.publish(now, &event());
        assert_eq!(hub.subscribe(None).0.len(), 0);
        assert_eq!(hub.subscribe(Some(Duration::from_secs(30))).0.len(), 1);
        assert_eq!(hub.subscribe(Some(Duration::from_secs(90))).0.len(), 2);
    }
}
