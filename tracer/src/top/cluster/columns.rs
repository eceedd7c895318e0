//! The columns of the table of nodes.

use std::cmp::Ordering;
use std::str::FromStr;

use super::nodes::{Node, State};
use super::reason::percent;
use crate::output::printable;

/// A column, or the order in which it puts the nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeColumn {
    /// By name.
    Node,
    /// The oddest first, and before them what cannot be scraped.
    #[default]
    Oddness,
    /// Failed share of the lookups.
    Dns,
    /// Failed share of the TCP connects.
    Connect,
    /// Neighbour entries refused.
    Refused,
    /// TCP segments sent again.
    Retransmits,
    /// Failures of others towards it.
    Towards,
    /// Share of the fuller neighbour table in use.
    Table,
}

impl NodeColumn {
    /// In the order of the table; the reason comes after them.
    pub const ALL: [(Self, &'static str); 8] = [
        (Self::Node, "node"),
        (Self::Oddness, "oddness"),
        (Self::Dns, "dns-failed%"),
        (Self::Connect, "connect-failed%"),
        (Self::Refused, "refused"),
        (Self::Retransmits, "resent"),
        (Self::Towards, "failed-towards"),
        (Self::Table, "table%"),
    ];

    /// As in the head of the table.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|c| c.0 == self).map_or("", |c| c.1)
    }

    /// Names rise, figures fall. The nodes' own order is the oddest first: a stable sort keeps it
    /// among equals.
    pub(super) fn compare(self, a: &Node, b: &Node) -> Ordering {
        let falling = |figure: fn(&Node) -> Option<f64>| {
            // What has no figure stands below every figure.
            let value = |node| figure(node).unwrap_or(f64::NEG_INFINITY);
            value(b).total_cmp(&value(a))
        };
        match self {
            Self::Oddness => Ordering::Equal,
            Self::Node => a.name.cmp(&b.name),
            Self::Dns => falling(|n| n.dns.percent()),
            Self::Connect => falling(|n| n.connects.percent()),
            Self::Refused => falling(|n| n.refused),
            Self::Retransmits => falling(|n| n.retransmits),
            Self::Towards => falling(|n| Some(n.towards.failures)),
            Self::Table => falling(|n| n.table_used),
        }
    }

    /// The text of a cell: printable ASCII without spaces.
    pub(super) fn cell(self, node: &Node) -> String {
        let share = |p: Option<f64>| {
            p.map_or_else(
                || "-".into(),
                |p| percent(p).trim_end_matches('%').to_owned(),
            )
        };
        let whole = |n: Option<f64>| n.map_or_else(|| "-".into(), |n| format!("{:.0}", n + 0.0)); // no "-0"
        match self {
            Self::Node => printable(&node.name).replace(' ', "_"),
            Self::Oddness => match node.state {
                State::Up if node.score >= 100.0 => format!("{:.0}", node.score),
                State::Up => format!("{:.1}", node.score),
                State::Down => "down".into(),
                State::NoTarget => "gone".into(),
                State::NoAgent => "no-agent".into(),
            },
            Self::Dns => share(node.dns.percent()),
            Self::Connect => share(node.connects.percent()),
            Self::Refused => whole(node.refused),
            Self::Retransmits => whole(node.retransmits),
            Self::Towards => whole(Some(node.towards.failures)),
            Self::Table => share(node.table_used.map(|used| 100.0 * used)),
        }
    }
}

impl FromStr for NodeColumn {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let matches = |(_, name): &&(Self, &str)| name.eq_ignore_ascii_case(s);
        Self::ALL.iter().find(matches).map(|c| c.0).ok_or_else(|| {
            let names = Self::ALL.map(|(_, name)| name).join(", ");
            format!("with --prometheus the columns are {names}")
        })
    }
}
