//! Whom nodes fail towards, and whose failure that is.

use std::collections::{BTreeMap, HashSet};

use super::{MIN_FAILURES, Node, Nodes, Signal};
use crate::top::cluster::api::Sample;

/// Causes of a failed lookup that lie on the node that asked, or came as an answer: no fault of the node
/// that was asked.
const OWN_CAUSES: [&str; 7] = [
    "neighbour_table_full",
    "neighbour_queue_full",
    "netfilter",
    "socket_buffer_full",
    "no_route",
    "dropped",
    "server",
];

/// Segments a second that a node must send a peer again before they excuse it: some are on every network.
const MIN_RESENT: f64 = 0.5;

/// Failures of a node towards another.
pub(super) struct Pair<'a> {
    from: &'a str,
    to: &'a str,
    kind: &'a str,
    failures: f64,
}

/// Of each node that may be believed: one whose own table is full fails towards anybody.
pub(super) fn pairs<'a>(samples: &'a [Sample], nodes: &Nodes, range_seconds: f64) -> Vec<Pair<'a>> {
    let pair = |s: &'a Sample| {
        let (from, to, kind) = (s.label("node"), s.label("peer"), s.label("kind"));
        let is_full = |node: &Node| node.refused.is_some_and(|n| n >= MIN_FAILURES);
        let witness = nodes.get(from).filter(|node| !is_full(node))?;
        let fault = match kind {
            "dns" => others_fault(witness),
            "retransmit" if s.value < MIN_RESENT * range_seconds => 0.0,
            _ => 1.0,
        };
        let failures = s.value * fault;
        let counts = from != to && nodes.contains_key(to) && failures > 0.0;
        counts.then_some(Pair {
            from,
            to,
            kind,
            failures,
        })
    };
    samples.iter().filter_map(pair).collect()
}

/// The share of a node's failed lookups that whom it asked may be to blame for.
fn others_fault(node: &Node) -> f64 {
    let all: f64 = node.dns.by.values().sum();
    let own: f64 = OWN_CAUSES
        .iter()
        .filter_map(|cause| node.dns.by.get(*cause))
        .sum();
    if all > 0.0 { (all - own) / all } else { 1.0 }
}

/// Whom a node fails towards most, node or not.
pub(super) fn tell_peers(nodes: &mut Nodes, samples: &[Sample]) {
    for sample in samples {
        let Some(node) = nodes.get_mut(sample.label("node")) else {
            continue;
        };
        let worst = match sample.label("kind") {
            "dns" => &mut node.dns.worst_peer,
            "connect" => &mut node.connects.worst_peer,
            _ => continue,
        };
        if worst.as_ref().is_none_or(|(_, most)| *most < sample.value) {
            *worst = Some((sample.label("peer").to_owned(), sample.value));
        }
    }
}

pub(super) fn tell_towards(nodes: &mut Nodes, pairs: &[Pair]) {
    let mut by_witness: BTreeMap<(&str, &str), f64> = BTreeMap::new();
    for pair in pairs {
        // Most segments are sent again towards whom everybody talks to, which is no fault of his.
        if pair.kind != "retransmit" {
            *by_witness.entry((pair.to, pair.from)).or_default() += pair.failures;
        }
        if let Some(node) = nodes.get_mut(pair.to) {
            *node.towards.by_kind.entry(pair.kind.into()).or_default() += pair.failures;
        }
    }
    for ((to, _), failures) in by_witness {
        if let Some(node) = nodes.get_mut(to) {
            node.towards.failures += failures;
            node.towards.largest = node.towards.largest.max(failures);
            node.towards.nodes += 1;
        }
    }
}

/// Takes off a node's failures what it had towards nodes that several fail towards.
pub(super) fn excuse(nodes: &mut Nodes, pairs: &[Pair]) {
    let is_accused = |node: &Node| node.findings.iter().any(|f| f.signal == Signal::Towards);
    let accused: HashSet<String> = nodes
        .values()
        .filter(|node| is_accused(node))
        .map(|node| node.name.clone())
        .collect();
    for pair in pairs.iter().filter(|pair| accused.contains(pair.to)) {
        let Some(node) = nodes.get_mut(pair.from) else {
            continue;
        };
        match pair.kind {
            "dns" => node.dns.excused += pair.failures,
            "connect" => node.connects.excused += pair.failures,
            "retransmit" => node.retransmits_excused += pair.failures,
            _ => {} // no figure of the witness's has them
        }
    }
}
