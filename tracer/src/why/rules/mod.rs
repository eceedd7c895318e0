//! The rules: each looks at the facts and says what it finds, with the figures it rests on, or
//! nothing. `docs/why.md` tells them in words, under the same names. A rule never accuses without a
//! figure of the window, or an event in it.

mod connect;
mod dns;
mod neighbour;
mod sockets;
#[cfg(test)]
mod tests;

use serde::Serialize;
use serde_json::{Map, Value};

use super::evidence::Facts;
use super::words::{later, moment};
use crate::export::snapshot::{Episode, Pod};

/// How bad, and whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Weight {
    /// It is over.
    Past,
    /// This node kills it, but so few that nobody is to be woken for them.
    Few,
    /// Something fails, and nothing on this node is seen to be the cause.
    Elsewhere,
    /// Nothing fails yet.
    Omen,
    /// This node kills it.
    Node,
}

/// What one rule found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The rule's name.
    pub rule: &'static str,
    /// How bad, and whose.
    pub weight: Weight,
    /// Share of the attempts that die of it, 0 to 1: ranks findings of one weight.
    #[serde(skip)]
    pub share: f64,
    /// The sentence.
    pub sentence: String,
    /// Since when, RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// The figures that the sentence rests on.
    pub figures: Map<String, Value>,
    /// The next command to run.
    pub next: String,
    /// What cannot be known from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
}

/// So many failures are no trouble of the node's where they are this small a share as well: a scanner
/// that meets a network policy, a datagram lost in a burst.
const FEW: u64 = 5;
const LITTLE: f64 = 0.01;

type Rule = fn(&Facts) -> Vec<Finding>;

/// All rules, by name; the first of two that weigh the same stands above.
pub const RULES: [(&str, Rule); 13] = [
    ("table-full", neighbour::table_full),
    ("conntrack-full", sockets::conntrack_full),
    ("table-thrashes", neighbour::table_thrashes),
    ("table-fills", neighbour::table_fills),
    ("dns-killed-here", dns::killed_here),
    ("receive-buffer-full", sockets::receive_buffer_full),
    ("dead-endpoint", connect::dead_endpoint),
    ("silent-peer", connect::silent_peer),
    ("connections-unanswered", connect::unanswered),
    ("dns-killed-elsewhere", dns::killed_elsewhere),
    ("connects-fail", connect::connects_fail),
    ("server-does-not-answer", sockets::server_does_not_answer),
    ("was-full", neighbour::was_full),
];

/// What all rules find, the worst first.
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found: Vec<Finding> = RULES.iter().flat_map(|(_, rule)| rule(facts)).collect();
    found.sort_by(|a, b| (b.weight.cmp(&a.weight)).then_with(|| b.share.total_cmp(&a.share)));
    found
}

/// What packets that die on this node weigh. Not for the neighbour table: there the first refusals are
/// the omen of the many.
fn of_this_node(failed: u64, share: f64) -> Weight {
    if failed < FEW && share < LITTLE {
        Weight::Few
    } else {
        Weight::Node
    }
}

/// `since 13:29:07 UTC`, or, where it began with the agent, what is known.
fn since(facts: &Facts, episode: &Episode) -> String {
    let now = &facts.snapshot.time;
    // The first reading comes within a second or two of the start; episodes are told to the second,
    // and so may seem to be older than it.
    let with_the_agent =
        later(facts.snapshot.watched_since(), &episode.since).is_none_or(|gap| gap.as_secs() < 3);
    let at = moment(&episode.since, now);
    if with_the_agent {
        format!("since {at} or before")
    } else {
        format!("since {at}")
    }
}

/// `in the last 60 s`.
fn window(facts: &Facts) -> String {
    format!("in the last {:.0} s", facts.snapshot.window_seconds)
}

/// ` --pod NS/NAME` for a command, where a pod was asked for.
fn pod_flag(facts: &Facts) -> String {
    facts.pod.map_or_else(String::new, |pod| {
        format!(" --pod {}", super::words::name(pod))
    })
}

/// A command that looks at what only the pod's own network namespace shows: its sockets, neighbours
/// and routes. Where nobody knows the way into it, the command says that it has to be run there.
fn inside(facts: &Facts, pod: &Pod, command: &str) -> String {
    // Of a process that has failed lately, so that it is there in all likelihood.
    let pid = || {
        ["dns_failure", "connect_failure"]
            .into_iter()
            .flat_map(|kind| facts.recent_of(pod, kind))
            .filter_map(|f| f.pid)
            .last()
    };
    // Names of namespaces are names of files, and this is to be given to a shell.
    let is_plain = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && (name.chars()).all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    match &*pod.namespace {
        "(netns)" if is_plain(&pod.pod) => format!("ip netns exec {} {command}", pod.pod),
        namespace if namespace.starts_with('(') && namespace != "(netns)" => command.to_owned(),
        _ => match pid() {
            Some(pid) => format!("nsenter -t {pid} -n {command}"),
            None => format!(
                "{command}  # in the network namespace of {}",
                super::words::name(pod)
            ),
        },
    }
}

fn figures<const N: usize>(pairs: [(&str, Value); N]) -> Map<String, Value> {
    pairs
        .into_iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}
