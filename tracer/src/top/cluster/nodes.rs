//! The answers about all nodes become a row for each: its figures, and how odd it is.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Result, ensure};
use serde::Serialize;

use super::api::{Answers, Sample};
use super::score::{Floor, ODD, Spread};

mod peers;

/// Below these a share says nothing.
const MIN_ATTEMPTS: f64 = 20.0;
const MIN_FAILURES: f64 = 5.0;
/// Of failures towards a node, and of segments sent again.
const MIN_TOWARDS: f64 = 10.0;
pub(super) const MIN_SEGMENTS: f64 = 20.0;
/// So many nodes must fail towards one before it is accused.
const MIN_WITNESSES: usize = 2;
/// Segments a second that a node may send again more than the others without being odd, ÷ 5.
const SEGMENTS_FLOOR: f64 = 0.2;

/// What a node is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Signal {
    /// Neighbour entries refused for a full table.
    Neighbour,
    /// Per cent of the lookups that failed.
    Dns,
    /// Per cent of the TCP connects that failed.
    Connect,
    /// TCP segments sent again: of a busy node more than of an idle one, for no counter says how many were
    /// sent. So they alone make no node odder than [`ODD`].
    Retransmit,
    /// Failures of other nodes towards it.
    Towards,
}

impl Signal {
    fn floor(self, range_seconds: f64) -> Floor {
        let (absolute, relative) = match self {
            Self::Neighbour => (1.0, 0.5),
            Self::Dns | Self::Connect => (1.0, 0.2),
            Self::Retransmit => (SEGMENTS_FLOOR * range_seconds, 0.5),
            Self::Towards => (2.0, 0.5),
        };
        Floor { absolute, relative }
    }
}

/// Can it be asked?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// Its agent is scraped.
    #[default]
    Up,
    /// Its agent is a target and does not answer.
    Down,
    /// Its agent was a target within the last hour.
    NoTarget,
    /// Kubernetes has it, and no agent of it was ever seen.
    NoAgent,
}

/// Attempts and failures by what they failed of.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Attempts {
    pub all: f64,
    pub failed: f64,
    pub by: BTreeMap<String, f64>,
    /// Of the failed ones, those towards nodes that several nodes fail towards.
    pub excused: f64,
    /// The peer with most failures, and how many.
    pub worst_peer: Option<(String, f64)>,
}

impl Attempts {
    /// Per cent that failed, where there are enough to tell.
    pub fn percent(&self) -> Option<f64> {
        share(self.failed, self.all)
    }

    /// The same without what others are to blame for.
    fn own_percent(&self) -> Option<f64> {
        let all = self.all - self.excused;
        let failed = self.failed - self.excused;
        // What is left may be too little to tell; then it is well.
        self.percent()
            .map(|_| share(failed.max(0.0), all).unwrap_or(0.0))
    }

    /// What most of them failed of.
    pub fn mostly(&self) -> Option<&str> {
        let most = self.by.iter().max_by(|a, b| a.1.total_cmp(b.1));
        most.filter(|(_, n)| **n > 0.0)
            .map(|(what, _)| what.as_str())
    }

    /// Failures of one kind.
    pub fn count(&mut self, what: &str, failed: f64) {
        self.failed += failed;
        *self.by.entry(what.to_owned()).or_default() += failed;
    }
}

fn share(failed: f64, all: f64) -> Option<f64> {
    (all >= MIN_ATTEMPTS).then(|| (100.0 * failed / all).min(100.0))
}

/// What other nodes tell of one.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Towards {
    /// Failures of all others.
    pub failures: f64,
    /// Those of the node with most.
    pub largest: f64,
    /// Nodes with any.
    pub nodes: usize,
    pub by_kind: BTreeMap<String, f64>,
}

/// One signal of one node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Finding {
    pub signal: Signal,
    pub figure: f64,
    pub median: f64,
    pub score: f64,
    /// No other node has any.
    pub alone: bool,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Node {
    pub name: String,
    pub state: State,
    /// Kubernetes says that it is Ready; none where nobody says anything.
    pub ready: Option<bool>,
    pub refused: Option<f64>,
    pub dns: Attempts,
    pub connects: Attempts,
    pub retransmits: Option<f64>,
    pub retransmits_excused: f64,
    pub towards: Towards,
    /// The fuller neighbour table: entries ÷ limit.
    pub table_used: Option<f64>,
    /// What is odd, the oddest first.
    pub findings: Vec<Finding>,
    /// The highest of all signals.
    pub score: f64,
}

impl Node {
    /// Named by the table: odd, or not to be asked.
    pub fn is_odd(&self) -> bool {
        self.state != State::Up || !self.findings.is_empty()
    }

    /// Odd by more than segments sent again.
    fn fails(&self) -> bool {
        (self.findings.iter()).any(|finding| finding.signal != Signal::Retransmit)
    }

    fn figure(&self, signal: Signal) -> Option<f64> {
        match signal {
            Signal::Neighbour => self.refused,
            Signal::Dns => self.dns.own_percent(),
            Signal::Connect => self.connects.own_percent(),
            Signal::Retransmit => self
                .retransmits
                .map(|n| (n - self.retransmits_excused).max(0.0)),
            Signal::Towards => Some(self.towards.failures - self.towards.largest),
        }
    }

    /// Is the figure large enough to accuse anybody?
    fn enough(&self, signal: Signal, figure: f64) -> bool {
        match signal {
            Signal::Neighbour => figure >= MIN_FAILURES,
            Signal::Dns => self.dns.failed - self.dns.excused >= MIN_FAILURES,
            Signal::Connect => self.connects.failed - self.connects.excused >= MIN_FAILURES,
            Signal::Retransmit => figure >= MIN_SEGMENTS,
            Signal::Towards => {
                figure >= MIN_TOWARDS / 2.0
                    && self.towards.failures >= MIN_TOWARDS
                    && self.towards.nodes >= MIN_WITNESSES
            }
        }
    }
}

/// All nodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Cluster {
    /// The oddest first.
    pub nodes: Vec<Node>,
    /// What the figures of all nodes have in common, by signal.
    pub spreads: Vec<(Signal, Spread)>,
    pub warnings: Vec<String>,
}

impl Cluster {
    /// From the answers to [`super::queries::Queries::nodes`].
    pub fn new(answers: Answers, range_seconds: f64) -> Result<Self> {
        let Answers {
            samples,
            mut warnings,
        } = answers;
        let count = samples.len();
        let Ok(answer) = <[Vec<Sample>; 10]>::try_from(samples) else {
            anyhow::bail!("{count} answers to ten queries");
        };
        let mut nodes = merge(&answer);
        ensure!(
            !nodes.is_empty(),
            "it knows no agent of tracer: no series tracer_build_info in the last hour; is tracer \
             scraped by it, and is the tenant (--header) or --match the right one?"
        );
        warnings.extend(mixed(&answer[0]));
        warnings.extend(nothing(&nodes, range_seconds));
        peers::tell_peers(&mut nodes, &answer[8]);
        let mut spreads = Vec::new();
        judge(&mut nodes, Signal::Neighbour, range_seconds, &mut spreads);
        // Then whom others fail towards, for that is no fault of theirs.
        let pairs = peers::pairs(&answer[8], &nodes, range_seconds);
        peers::tell_towards(&mut nodes, &pairs);
        judge(&mut nodes, Signal::Towards, range_seconds, &mut spreads);
        peers::excuse(&mut nodes, &pairs);
        for signal in [Signal::Dns, Signal::Connect, Signal::Retransmit] {
            judge(&mut nodes, signal, range_seconds, &mut spreads);
        }
        let mut nodes: Vec<Node> = nodes.into_values().collect();
        for node in &mut nodes {
            node.findings.sort_by(|a, b| b.score.total_cmp(&a.score));
        }
        nodes.sort_by(|a, b| {
            let rank = |node: &Node| match node.state {
                State::Down => 0,
                State::Up if node.fails() => 1,
                State::NoTarget => 2,
                State::NoAgent => 3,
                State::Up if node.is_odd() => 4,
                State::Up => 5,
            };
            rank(a)
                .cmp(&rank(b))
                .then_with(|| b.score.total_cmp(&a.score))
                .then_with(|| a.name.cmp(&b.name))
        });
        Ok(Self {
            nodes,
            spreads,
            warnings,
        })
    }
}

/// Nodes of several clusters are no peers, and may have the same names.
fn mixed(built: &[Sample]) -> Option<String> {
    let mut clusters: Vec<&str> = built.iter().map(|s| s.label("cluster")).collect();
    clusters.sort_unstable();
    clusters.dedup();
    (clusters.len() > 1).then(|| {
        let last = clusters.last().copied().unwrap_or_default();
        let count = clusters.len();
        format!("{count} clusters are mixed here; choose one, such as --match 'cluster={last:?}'")
    })
}

/// Every agent tells from its start how many entries were refused.
fn nothing(nodes: &Nodes, range_seconds: f64) -> Option<String> {
    let is_up = |node: &&Node| node.state == State::Up;
    let is_nothing = nodes.values().any(|node| is_up(&node))
        && nodes.values().filter(is_up).all(|n| n.refused.is_none());
    is_nothing.then(|| {
        format!(
            "no node has figures of the last {range_seconds} s: --range must span two scrapes at \
             least, better four"
        )
    })
}

type Nodes = BTreeMap<String, Node>;

/// Joins all that is told of a node by its name.
fn merge(answer: &[Vec<Sample>; 10]) -> Nodes {
    let [
        built,
        up,
        ready,
        refused,
        causes,
        lookups,
        connects,
        retransmits,
        _,
        used,
    ] = answer;
    let mut nodes = states(built, up, ready);
    let mut tell = |samples: &[Sample], into: fn(&mut Node, &Sample)| {
        for sample in samples.iter().filter(|s| s.value.is_finite()) {
            if let Some(node) = nodes.get_mut(sample.label("node")) {
                into(node, sample);
            }
        }
    };
    tell(refused, |node, s| node.refused = Some(s.value));
    tell(causes, |node, s| node.dns.count(s.label("cause"), s.value));
    tell(lookups, |node, s| node.dns.all = s.value);
    tell(connects, |node, s| {
        node.connects.all += s.value;
        if s.label("result") != "established" {
            node.connects.count(s.label("result"), s.value);
        }
    });
    tell(retransmits, |node, s| node.retransmits = Some(s.value));
    tell(used, |node, s| node.table_used = Some(s.value));
    nodes
}

/// Which nodes there are, and whether each can be asked.
fn states(built: &[Sample], up: &[Sample], ready: &[Sample]) -> Nodes {
    let mut nodes = Nodes::new();
    let target = |s: &Sample| (s.label("job").to_owned(), s.label("instance").to_owned());
    let targets: BTreeMap<(String, String), bool> =
        up.iter().map(|s| (target(s), s.value >= 1.0)).collect();
    let mut told = HashSet::new();
    for sample in built.iter().filter(|s| !s.label("node").is_empty()) {
        let name = sample.label("node").to_owned();
        let state = match targets.get(&target(sample)) {
            Some(true) => State::Up,
            Some(false) => State::Down,
            None => State::NoTarget,
        };
        told.insert(target(sample));
        let node = nodes.entry(name.clone()).or_insert_with(|| Node {
            name,
            state,
            ..Node::default()
        });
        // An agent that was moved to another address is up if any of them is.
        node.state = node.state.min(state);
    }
    // Targets that never told their node's name: the scrape configuration names them.
    for sample in up.iter().filter(|s| !told.contains(&target(s))) {
        let labels = ["node", "instance"].map(|name| sample.label(name));
        let name = labels.into_iter().find(|name| !name.is_empty());
        // Google's managed Prometheus calls a target `NODE:PORT-NAME`.
        let name = name.map(|name| name.strip_suffix(":metrics").unwrap_or(name));
        if let Some(name) = name.filter(|_| sample.value < 1.0) {
            let new = || Node {
                name: name.to_owned(),
                state: State::Down,
                ..Node::default()
            };
            nodes.entry(name.to_owned()).or_insert_with(new);
        }
    }
    // Kubernetes' word on it, where both mean the same nodes.
    let ready: BTreeMap<&str, bool> = ready
        .iter()
        .map(|s| (s.label("node"), s.value >= 1.0))
        .collect();
    if nodes.keys().any(|name| ready.contains_key(name.as_str())) {
        // A node that was taken out of the cluster is not missing.
        nodes.retain(|name, node| node.state == State::Up || ready.contains_key(name.as_str()));
        for (name, is_ready) in ready {
            let new = || Node {
                name: name.to_owned(),
                state: State::NoAgent,
                ..Node::default()
            };
            nodes.entry(name.to_owned()).or_insert_with(new).ready = Some(is_ready);
        }
    }
    nodes
}

fn judge(
    nodes: &mut Nodes,
    signal: Signal,
    range_seconds: f64,
    spreads: &mut Vec<(Signal, Spread)>,
) {
    let figures = nodes.values().filter_map(|node| node.figure(signal));
    let Some(spread) = Spread::of(figures, signal.floor(range_seconds)) else {
        return;
    };
    let some = nodes
        .values()
        .filter(|node| node.figure(signal).is_some_and(|figure| figure > 0.0))
        .count();
    for node in nodes.values_mut() {
        let Some(figure) = node.figure(signal) else {
            continue;
        };
        let score = match signal {
            Signal::Retransmit => spread.score(figure).min(ODD),
            _ => spread.score(figure),
        };
        let enough = node.enough(signal, figure);
        if enough {
            node.score = node.score.max(score);
        }
        if enough && score >= ODD {
            node.findings.push(Finding {
                signal,
                figure,
                median: spread.median,
                score,
                alone: some == 1,
            });
        }
    }
    spreads.push((signal, spread));
}

#[cfg(test)]
mod tests;
