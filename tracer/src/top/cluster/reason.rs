//! Why a node is odd, and what all nodes have alike, in words.

use std::time::Duration;

use super::nodes::{Attempts, Cluster, Finding, Node, Signal, State};
use crate::output::printable;
use crate::why::words::{count, counted};

/// From here on a share is worth words where it is not odd.
const NOTABLE_PERCENT: f64 = 1.0;
/// A median that is bad by itself: of entries refused, and of per cent.
const BAD_MEDIAN: f64 = 5.0;
/// A peer that has this share of the failures is named.
const NAMED_PEER: f64 = 0.8;

/// Causes that lie on the node itself, for which no server is to blame.
const OWN_CAUSES: [&str; 5] = [
    "neighbour_table_full",
    "neighbour_queue_full",
    "netfilter",
    "socket_buffer_full",
    "no_route",
];

/// The node's reason; `-` where there is nothing to say.
pub(super) fn of(node: &Node, range: Duration) -> String {
    let mut parts = Vec::new();
    parts.extend(of_state(node));
    let over = humantime::format_duration(range).to_string();
    let found = node
        .findings
        .iter()
        .map(|finding| of_finding(node, finding, &over));
    parts.extend(found);
    if parts.is_empty() {
        parts.extend(not_odd(node, &over));
    }
    if parts.is_empty() {
        return "-".into();
    }
    parts.join("; ")
}

fn of_state(node: &Node) -> Option<String> {
    let ready = match node.ready {
        Some(true) => ", though Kubernetes calls the node Ready",
        Some(false) => ", and Kubernetes calls the node not Ready",
        None => "",
    };
    match node.state {
        State::Up => None,
        State::Down => Some(format!("cannot be scraped{ready}")),
        State::NoTarget => Some(format!(
            "is scraped no more: it had an agent within the last hour{ready}"
        )),
        State::NoAgent => Some("no agent of it is scraped".into()),
    }
}

fn of_finding(node: &Node, finding: &Finding, over: &str) -> String {
    let whole = |n: f64| count(n.round() as u64);
    let rest = |median: String| {
        if finding.alone {
            "the rest 0".to_owned()
        } else {
            format!("median {median}")
        }
    };
    match finding.signal {
        Signal::Neighbour => format!(
            "neighbour table full: {} refused in {over}; {}",
            whole(finding.figure),
            rest(whole(finding.median))
        ),
        Signal::Dns => failing(
            "DNS",
            ("lookup", "lookups"),
            &node.dns,
            &rest(percent(finding.median)),
        ),
        Signal::Connect => failing(
            "TCP",
            ("connect", "connects"),
            &node.connects,
            &rest(percent(finding.median)),
        ),
        Signal::Retransmit => format!(
            "{} TCP segments sent again in {over}; {}",
            whole(finding.figure),
            rest(whole(finding.median))
        ),
        Signal::Towards => {
            let kinds = node.towards.by_kind.iter().filter(|(_, n)| **n >= 0.5);
            let kinds: Vec<String> = kinds
                .map(|(kind, n)| format!("{} {}", whole(*n), of_kind(kind)))
                .collect();
            let nodes = node.towards.nodes as u64;
            format!(
                "{} {} towards it: {} in {over}; {}",
                counted(nodes, "other node", "other nodes"),
                if nodes == 1 { "fails" } else { "fail" },
                kinds.join(", "),
                rest(whole(finding.median))
            )
        }
    }
}

fn of_kind(kind: &str) -> String {
    match kind {
        "dns" => "lookups".into(),
        "connect" => "connects".into(),
        "retransmit" => "segments sent again".into(),
        "unanswered" => "connections that it never answered".into(),
        other => printable(other).into_owned(),
    }
}

fn failing(what: &str, (one, many): (&str, &str), attempts: &Attempts, rest: &str) -> String {
    let mostly = attempts.mostly().map(|what| printable(what).into_owned());
    let mostly = mostly.map_or_else(String::new, |mostly| format!(", mostly {mostly}"));
    let peer = attempts
        .worst_peer
        .as_ref()
        .filter(|(_, n)| *n >= NAMED_PEER * attempts.failed)
        .map_or_else(String::new, |(peer, _)| {
            format!(", towards {}", printable(peer))
        });
    format!(
        "{what}: {} of {} failed{mostly}{peer}; {rest}",
        percent(attempts.percent().unwrap_or_default()),
        counted(attempts.all.round() as u64, one, many)
    )
}

/// What fails without being odd.
fn not_odd(node: &Node, over: &str) -> Vec<String> {
    let mut parts = Vec::new();
    if let Some(refused) = node.refused.filter(|n| *n >= 0.5) {
        parts.push(format!(
            "neighbour table full: {} refused in {over}",
            count(refused.round() as u64)
        ));
    }
    for (what, attempts) in [("DNS", &node.dns), ("TCP connects", &node.connects)] {
        let Some(failed) = attempts.percent().filter(|p| *p >= NOTABLE_PERCENT) else {
            continue;
        };
        let excuse = if attempts.excused >= NAMED_PEER * attempts.failed {
            ", towards a node that others fail towards too"
        } else {
            ""
        };
        parts.push(format!("{what}: {} failed{excuse}", percent(failed)));
    }
    if !parts.is_empty() {
        parts[0].insert_str(0, "not odd: ");
    }
    parts
}

/// What all nodes have, so that none is to blame: a line each.
pub(super) fn alike(cluster: &Cluster, range: Duration) -> Vec<String> {
    let over = humantime::format_duration(range);
    let mut lines = Vec::new();
    let down = cluster.nodes.iter().filter(|n| n.state == State::Down);
    let (down, all) = (down.count(), cluster.nodes.len());
    if down > 1 && 2 * down >= all {
        lines.push(format!(
            "{down} of {all} nodes cannot be scraped: look first at the network between Prometheus and them"
        ));
    }
    for (signal, spread) in &cluster.spreads {
        if spread.median < BAD_MEDIAN {
            continue;
        }
        let bad = |node: &&Node| match signal {
            Signal::Neighbour => node.refused.is_some_and(|n| n >= BAD_MEDIAN),
            Signal::Dns => node.dns.percent().is_some_and(|p| p >= BAD_MEDIAN),
            Signal::Connect => node.connects.percent().is_some_and(|p| p >= BAD_MEDIAN),
            Signal::Retransmit | Signal::Towards => false,
        };
        let bad = cluster.nodes.iter().filter(bad).count();
        let nodes = if bad == all {
            format!("all nodes ({all})")
        } else {
            format!("all nodes alike ({bad} of {all})")
        };
        match signal {
            Signal::Neighbour => lines.push(format!(
                "{nodes}: neighbour tables are full, {} entries refused in {over} in the median: \
                 gc_thresh3 is too low everywhere",
                count(spread.median.round() as u64)
            )),
            Signal::Dns => {
                let cause = most(cluster.nodes.iter().map(|node| &node.dns));
                let side = match &cause {
                    Some(cause) if OWN_CAUSES.contains(&cause.as_str()) => {
                        "each node's own trouble"
                    }
                    _ => "the server's side, not a node's",
                };
                lines.push(format!(
                    "{nodes}: {} of the lookups fail in the median{}: {side}",
                    percent(spread.median),
                    mostly(cause)
                ));
            }
            Signal::Connect => {
                let result = most(cluster.nodes.iter().map(|node| &node.connects));
                lines.push(format!(
                    "{nodes}: {} of the TCP connects fail in the median{}: look at what they \
                     connect to, not at a node",
                    percent(spread.median),
                    mostly(result)
                ));
            }
            Signal::Retransmit | Signal::Towards => {}
        }
    }
    lines
}

fn mostly(what: Option<String>) -> String {
    what.map_or_else(String::new, |what| format!(", mostly {}", printable(&what)))
}

/// What most of all nodes' failures are of.
fn most<'a>(attempts: impl Iterator<Item = &'a Attempts>) -> Option<String> {
    let mut all = Attempts::default();
    for one in attempts {
        for (what, n) in &one.by {
            *all.by.entry(what.clone()).or_default() += n;
        }
    }
    all.mostly().map(str::to_owned)
}

/// `0%`, `0.4%`, `12%`.
pub(super) fn percent(percent: f64) -> String {
    match percent {
        p if p <= 0.0 => "0%".into(),
        p if p < 0.1 => "<0.1%".into(),
        p if p < 10.0 => format!("{p:.1}%"),
        p if p < 100.0 => format!("{:.0}%", p.min(99.0)),
        _ => "100%".into(),
    }
}
