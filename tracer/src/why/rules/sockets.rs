//! Connection tracking, receive buffers, and servers on this node that do not answer.

use serde_json::json;

use super::{Finding, Weight, figures, inside, of_this_node, ratio, since, window};
use crate::export::snapshot::Pod;
use crate::why::evidence::Facts;
use crate::why::words::{count, counted, name, share};

/// Share of the limit from which connection tracking is as good as full.
const FULL: f64 = 0.95;

/// Connection tracking takes no more.
pub(super) fn conntrack_full(facts: &Facts) -> Vec<Finding> {
    let Some(conntrack) = &facts.snapshot.conntrack else {
        return Vec::new();
    };
    let filled = ratio(conntrack.entries, conntrack.limit);
    // 0 is no limit.
    if conntrack.limit == 0 || filled < FULL {
        return Vec::new();
    }
    let full = conntrack.entries >= conntrack.limit;
    vec![Finding {
        rule: "conntrack-full",
        weight: if full { Weight::Node } else { Weight::Omen },
        share: filled / 2.0,
        sentence: format!(
            "connection tracking has {} of {} entries ({}){}",
            count(conntrack.entries),
            count(conntrack.limit),
            share(conntrack.entries, conntrack.limit),
            if full {
                ": first packets of new connections are dropped where the kernel finds none to \
                 throw out"
            } else {
                " and is nearly full"
            },
        ),
        since: None,
        figures: figures([
            ("entries", json!(conntrack.entries)),
            ("limit", json!(conntrack.limit)),
            ("drops_since_boot", json!(conntrack.drops)),
            ("early_drops_since_boot", json!(conntrack.early_drops)),
        ]),
        next: format!(
            "sysctl -w net.netfilter.nf_conntrack_max={}",
            conntrack.limit * 2
        ),
        unknown: None,
    }]
}

/// A process reads its datagrams too slowly.
pub(super) fn receive_buffer_full(facts: &Facts) -> Vec<Finding> {
    let [(pod, episode), rest @ ..] = &of(facts, "receive", "socket_buffer_full")[..] else {
        return Vec::new();
    };
    let others = match rest.len() as u64 {
        0 => String::new(),
        n => format!("; {} more lose some too", counted(n, "pod", "pods")),
    };
    let lost = episode.recent_failed + rest.iter().map(|(_, e)| e.recent_failed).sum::<u64>();
    let share = 0.0; // of nobody knows how many
    vec![Finding {
        rule: "receive-buffer-full",
        weight: of_this_node(lost, share),
        share,
        sentence: format!(
            "{} lost {} in full receive buffers {}, {}: it reads too slowly{others}",
            name(pod),
            counted(episode.recent_failed, "datagram", "datagrams"),
            window(facts),
            since(facts, episode),
        ),
        since: Some(episode.since.clone()),
        figures: figures([
            ("pod", json!(name(pod))),
            ("datagrams_lost", json!(episode.recent_failed)),
            ("pods", json!(rest.len() + 1)),
        ]),
        next: inside(facts, pod, "ss -uamn"),
        unknown: Some("how many datagrams came in all: the share lost is not known".into()),
    }]
}

/// A server of names on this node leaves queries unanswered.
pub(super) fn server_does_not_answer(facts: &Facts) -> Vec<Finding> {
    let Some((pod, episode)) = of(facts, "served", "unanswered").into_iter().next() else {
        return Vec::new();
    };
    vec![Finding {
        rule: "server-does-not-answer",
        weight: Weight::Elsewhere,
        share: ratio(episode.recent_failed, episode.recent_attempts),
        sentence: format!(
            "{} left {} of {} DNS queries ({}) unanswered {}, {}",
            name(pod),
            count(episode.recent_failed),
            count(episode.recent_attempts.max(episode.recent_failed)),
            share(
                episode.recent_failed,
                episode.recent_attempts.max(episode.recent_failed)
            ),
            window(facts),
            since(facts, episode),
        ),
        since: Some(episode.since.clone()),
        figures: figures([
            ("pod", json!(name(pod))),
            ("unanswered", json!(episode.recent_failed)),
            ("received", json!(episode.recent_attempts)),
        ]),
        next: format!("tracer why {}", name(pod)),
        unknown: Some("why that server is silent: look at its own log and its CPU quota".into()),
    }]
}

/// The pods this goes on in: of the one asked for, or of all, most first.
fn of<'a>(
    facts: &Facts<'a>,
    signal: &str,
    cause: &str,
) -> Vec<(&'a Pod, &'a crate::export::snapshot::Episode)> {
    let mut pods = facts.suffering(signal, cause);
    if let Some(asked) = facts.pod {
        pods.retain(|(pod, _)| (&pod.namespace, &pod.pod) == (&asked.namespace, &asked.pod));
    }
    pods
}
