//! The columns of the table, and the orders that they stand for.

use std::cmp::Ordering;
use std::str::FromStr;

use super::cluster::NodeColumn;
use super::table::Row;

/// A column of the table, or the order in which the worst comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Column {
    /// Most failures now, then most failures ever.
    #[default]
    Worst,
    /// Kubernetes namespace.
    Namespace,
    /// Pod.
    Pod,
    /// Lookups a second.
    Lookups,
    /// Failed share of the lookups.
    Failed,
    /// Timeouts a second.
    Timeouts,
    /// Median of the answered lookups.
    P50,
    /// 99th percentile.
    P99,
    /// Main cause.
    Cause,
    /// Neighbour entries in the tables now.
    Entries,
    /// Neighbour entries asked for, a second.
    Creates,
    /// Overflows a second.
    Overflows,
    /// Failed lookups since counting began.
    FailuresTotal,
    /// Overflows since counting began.
    OverflowsTotal,
    /// Packets dropped, a second.
    Drops,
    /// Failed share of the TCP connects.
    ConnectFailed,
    /// TCP segments sent again, a second.
    Retransmits,
    /// Since when something fails that still does.
    Since,
}

impl Column {
    /// In the order of the table, with [`Column::Worst`] before them.
    pub const ALL: [(Self, &str); 18] = [
        (Self::Worst, "worst"),
        (Self::Namespace, "namespace"),
        (Self::Pod, "pod"),
        (Self::Lookups, "lookups/s"),
        (Self::Failed, "failed%"),
        (Self::Timeouts, "timeouts/s"),
        (Self::P50, "p50"),
        (Self::P99, "p99"),
        (Self::Cause, "main-cause"),
        (Self::Entries, "neigh-entries"),
        (Self::Creates, "neigh-creates/s"),
        (Self::Overflows, "overflows/s"),
        (Self::FailuresTotal, "failures"),
        (Self::OverflowsTotal, "overflows"),
        (Self::Drops, "drops/s"),
        (Self::ConnectFailed, "connect-failed%"),
        (Self::Retransmits, "retransmits/s"),
        (Self::Since, "since"),
    ];

    /// Names rise, figures fall: what matters stands above.
    pub(super) fn compare(self, a: &Row, b: &Row) -> Ordering {
        let falling = |figure: fn(&Row) -> f64| figure(b).total_cmp(&figure(a));
        // What has no figure stands below every figure.
        let optional = |figure: fn(&Row) -> Option<f64>| {
            let value = |row| figure(row).unwrap_or(f64::NEG_INFINITY);
            value(b).total_cmp(&value(a))
        };
        match self {
            Self::Worst => falling(|r| r.failures + r.overflows + r.drops)
                .then_with(|| falling(|r| r.connect_failed_ratio.unwrap_or(0.0)))
                .then_with(|| falling(|r| r.failed_ratio.unwrap_or(0.0)))
                .then_with(|| falling(|r| (r.failures_total + r.overflows_total) as f64))
                .then_with(|| falling(|r| r.lookups + r.creates)),
            Self::Namespace => a.namespace.cmp(&b.namespace),
            Self::Pod => a.pod.cmp(&b.pod),
            Self::Lookups => falling(|r| r.lookups),
            Self::Failed => optional(|r| r.failed_ratio),
            Self::Timeouts => falling(|r| r.timeouts),
            Self::P50 => optional(|r| r.p50),
            Self::P99 => optional(|r| r.p99),
            Self::Cause => {
                let key = |row: &Row| (row.cause.is_none(), row.cause.clone());
                key(a).cmp(&key(b))
            }
            Self::Entries => b.entries.cmp(&a.entries),
            Self::Creates => falling(|r| r.creates),
            Self::Overflows => falling(|r| r.overflows),
            Self::FailuresTotal => b.failures_total.cmp(&a.failures_total),
            Self::OverflowsTotal => b.overflows_total.cmp(&a.overflows_total),
            Self::Drops => falling(|r| r.drops),
            Self::ConnectFailed => optional(|r| r.connect_failed_ratio),
            Self::Retransmits => falling(|r| r.retransmits),
            // The newest trouble above.
            Self::Since => b.since.cmp(&a.since),
        }
    }
}

impl Column {
    /// As in the head of the table.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|c| c.0 == self).map_or("", |c| c.1)
    }
}

impl FromStr for Column {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let matches = |(_, name): &&(Self, &str)| name.eq_ignore_ascii_case(s);
        Self::ALL.iter().find(matches).map(|c| c.0).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|c| c.1).collect();
            format!("no such column; the columns are {}", names.join(", "))
        })
    }
}

/// `--sort`: a column of the one table, or of the other, for it is not known yet which it will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sort {
    pods: Option<Column>,
    nodes: Option<NodeColumn>,
}

impl Default for Sort {
    fn default() -> Self {
        Self {
            pods: Some(Column::default()),
            nodes: Some(NodeColumn::default()),
        }
    }
}

impl Sort {
    /// In the table of pods.
    pub fn pods(self) -> Result<Column, String> {
        let own = self.pods;
        own.ok_or_else(|| "such a column has only the table of --prometheus".into())
    }

    /// In the table of nodes.
    pub fn nodes(self) -> Result<NodeColumn, String> {
        let names = NodeColumn::ALL.map(|(_, name)| name).join(", ");
        let own = self.nodes;
        own.ok_or_else(|| format!("with --prometheus the columns are {names}"))
    }
}

impl FromStr for Sort {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (pods, nodes) = (s.parse::<Column>(), s.parse::<NodeColumn>());
        match (pods, nodes) {
            (Err(error), Err(other)) => Err(format!("{error}; {other}")),
            (pods, nodes) => Ok(Self {
                pods: pods.ok(),
                nodes: nodes.ok(),
            }),
        }
    }
}
