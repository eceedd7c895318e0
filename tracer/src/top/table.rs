//! Two snapshots become rows. No drawing here, and no clock.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::str::FromStr;
use std::time::Duration;

use crate::export::snapshot::{Figures, Snapshot};

/// What one pod did in the interval, and since counting began.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// Kubernetes namespace, or a word in parentheses.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// Lookups ended, a second.
    pub lookups: f64,
    /// Failed lookups ÷ lookups over the agent's window; none without lookups.
    pub failed_ratio: Option<f64>,
    /// Lookups failed, a second.
    pub failures: f64,
    /// Lookups without an answer, a second.
    pub timeouts: f64,
    /// Median of the answered lookups since counting began, seconds.
    pub p50: Option<f64>,
    /// 99th percentile, likewise.
    pub p99: Option<f64>,
    /// What killed most of the failed lookups: of the interval's, else of all.
    pub cause: Option<String>,
    /// Neighbour entries in the tables now.
    pub entries: u64,
    /// Neighbour entries asked for, a second.
    pub creates: f64,
    /// Of those refused for a full table.
    pub overflows: f64,
    /// Lookups failed since counting began.
    pub failures_total: u64,
    /// Neighbour entries refused for a full table since counting began.
    pub overflows_total: u64,
}

/// The row of the whole node, pods that are gone included; it has no name.
pub(super) fn total(before: &Snapshot, after: &Snapshot, interval: Duration) -> Row {
    let before = comparable(before, after).map(|s| &s.total);
    row(before.unwrap_or(&after.total), &after.total, interval)
}

/// A row for each pod of `after`, sorted.
pub fn rows(before: &Snapshot, after: &Snapshot, interval: Duration, sort: Column) -> Vec<Row> {
    let before: Option<HashMap<_, _>> = comparable(before, after).map(|snapshot| {
        let pods = snapshot.pods.iter();
        pods.map(|p| ((p.namespace.as_str(), p.pod.as_str()), &p.figures))
            .collect()
    });
    // A pod that was not there yet had counted nothing.
    let nothing = Figures::default();
    let mut rows: Vec<Row> = after
        .pods
        .iter()
        .map(|pod| {
            let key = (pod.namespace.as_str(), pod.pod.as_str());
            let old = match &before {
                Some(before) => before.get(&key).copied().unwrap_or(&nothing),
                None => &pod.figures,
            };
            Row {
                namespace: pod.namespace.clone(),
                pod: pod.pod.clone(),
                ..row(old, &pod.figures, interval)
            }
        })
        .collect();
    rows.sort_by(|a, b| {
        sort.compare(a, b)
            .then_with(|| Column::Worst.compare(a, b))
            .then_with(|| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)))
    });
    rows
}

/// Where the agent began to count anew in between, the old figures say nothing of the interval.
fn comparable<'a>(before: &'a Snapshot, after: &Snapshot) -> Option<&'a Snapshot> {
    (before.since == after.since).then_some(before)
}

fn row(old: &Figures, new: &Figures, interval: Duration) -> Row {
    let interval = interval.as_secs_f64();
    let rate = |count: fn(&Figures) -> u64| {
        let grown = count(new).saturating_sub(count(old));
        if interval > 0.0 {
            grown as f64 / interval
        } else {
            0.0
        }
    };
    Row {
        namespace: String::new(),
        pod: String::new(),
        lookups: rate(|f| f.dns.outcomes.values().sum()),
        failed_ratio: new.failure_ratio.get("dns").copied(),
        failures: rate(failures),
        timeouts: rate(|f| f.dns.outcomes.get("timeout").copied().unwrap_or_default()),
        p50: new.dns.p50_seconds,
        p99: new.dns.p99_seconds,
        cause: main_cause(old, new),
        entries: new.neighbour.values().map(|n| n.entries).sum(),
        creates: rate(|f| {
            let families = f.neighbour.values();
            families
                .map(|n| n.created + n.table_full + n.no_memory)
                .sum()
        }),
        overflows: rate(overflows),
        failures_total: failures(new),
        overflows_total: overflows(new),
    }
}

/// Every failed lookup has one cause.
fn failures(figures: &Figures) -> u64 {
    figures.dns.causes.values().sum()
}

fn overflows(figures: &Figures) -> u64 {
    figures.neighbour.values().map(|n| n.table_full).sum()
}

fn main_cause(old: &Figures, new: &Figures) -> Option<String> {
    let most = |count: &dyn Fn(&str, u64) -> u64| {
        let causes = new.dns.causes.iter().map(|(c, n)| (count(c, *n), c));
        causes
            .filter(|(n, _)| *n > 0)
            .max_by(|a, b| a.0.cmp(&b.0).then_with(|| b.1.cmp(a.1)))
            .map(|(_, cause)| cause.clone())
    };
    let grown = |c: &str, n: u64| n.saturating_sub(old.dns.causes.get(c).copied().unwrap_or(0));
    most(&grown).or_else(|| most(&|_, n| n))
}

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
}

impl Column {
    /// In the order of the table, with [`Column::Worst`] before them.
    pub const ALL: [(Self, &str); 14] = [
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
    ];

    /// Names rise, figures fall: what matters stands above.
    fn compare(self, a: &Row, b: &Row) -> Ordering {
        let falling = |figure: fn(&Row) -> f64| figure(b).total_cmp(&figure(a));
        // What has no figure stands below every figure.
        let optional = |figure: fn(&Row) -> Option<f64>| {
            let value = |row| figure(row).unwrap_or(f64::NEG_INFINITY);
            value(b).total_cmp(&value(a))
        };
        match self {
            Self::Worst => falling(|r| r.failures + r.overflows)
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
        }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::export::snapshot::{Dns, Neighbour, Pod};

    fn figures(noerror: u64, timeout: u64, refused: u64, created: u64, full: u64) -> Figures {
        let count = |pairs: &[(&str, u64)]| -> BTreeMap<String, u64> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect()
        };
        let neighbour = Neighbour {
            created,
            table_full: full,
            no_memory: 0,
            ..Neighbour::default()
        };
        let mut ratio = BTreeMap::new();
        if noerror + timeout + refused > 0 {
            let failed = (timeout + refused) as f64;
            ratio.insert("dns".to_owned(), failed / (failed + noerror as f64));
        }
        Figures {
            neighbour: [("ipv4".to_owned(), neighbour)].into(),
            dns: Dns {
                outcomes: count(&[
                    ("noerror", noerror),
                    ("timeout", timeout),
                    ("refused", refused),
                ]),
                causes: count(&[("no_answer", timeout), ("server", refused), ("dropped", 0)]),
                ..Dns::default()
            },
            failure_ratio: ratio,
            ..Figures::default()
        }
    }

    fn snapshot(pods: &[(&str, Figures)]) -> Snapshot {
        let pods = pods.iter().map(|(name, figures)| Pod {
            namespace: "shop".into(),
            pod: (*name).into(),
            figures: figures.clone(),
        });
        Snapshot {
            since: "2026-01-01T00:00:00Z".into(),
            pods: pods.collect(),
            ..Snapshot::default()
        }
    }

    const TWO: Duration = Duration::from_secs(2);

    fn names(rows: &[Row]) -> Vec<&str> {
        rows.iter().map(|r| r.pod.as_str()).collect()
    }

    #[test]
    fn rates_are_of_the_interval_and_totals_of_all() {
        let before = snapshot(&[("a", figures(10, 5, 0, 100, 7))]);
        let after = snapshot(&[("a", figures(14, 5, 2, 110, 27))]);
        let row = rows(&before, &after, TWO, Column::Worst).remove(0);
        assert_eq!((row.lookups, row.timeouts, row.failures), (3.0, 0.0, 1.0));
        assert_eq!((row.creates, row.overflows), (15.0, 10.0));
        assert_eq!((row.failures_total, row.overflows_total), (7, 27));
        assert_eq!(row.failed_ratio, Some(7.0 / 21.0));
        // More timeouts in all, but not in the interval.
        assert_eq!(row.cause.as_deref(), Some("server"));
    }

    #[test]
    fn after_the_incident_its_cause_still_shows() {
        let now = snapshot(&[
            ("a", figures(10, 5, 2, 0, 0)),
            ("b", figures(1, 0, 0, 0, 0)),
        ]);
        let rows = rows(&now, &now, TWO, Column::Worst);
        assert_eq!(names(&rows), ["a", "b"]);
        assert_eq!(rows[0].cause.as_deref(), Some("no_answer"));
        assert_eq!((rows[0].failures, rows[0].failures_total), (0.0, 7));
        assert_eq!(rows[1].cause, None);
    }

    #[test]
    fn a_new_pod_counts_from_nothing_and_a_new_agent_does_not_count() {
        let before = snapshot(&[("gone", figures(1, 1, 1, 1, 1))]);
        let mut after = snapshot(&[("new", figures(4, 0, 0, 0, 6))]);
        let new = rows(&before, &after, TWO, Column::Worst);
        assert_eq!(names(&new), ["new"]);
        assert_eq!((new[0].lookups, new[0].overflows), (2.0, 3.0));

        after.since = "2026-01-02T00:00:00Z".into();
        after.total = figures(4, 0, 0, 0, 6);
        let restarted = rows(&before, &after, TWO, Column::Worst);
        assert_eq!((restarted[0].lookups, restarted[0].overflows), (0.0, 0.0));
        let total = total(&before, &after, TWO);
        assert_eq!((total.lookups, total.overflows_total), (0.0, 6));
    }

    #[test]
    fn odd_figures_do_not_hurt() {
        let before = snapshot(&[("a", figures(10, 0, 0, 0, 9))]);
        let after = snapshot(&[("a", figures(5, 0, 0, 0, 3))]);
        let row = rows(&before, &after, Duration::ZERO, Column::P99).remove(0);
        assert_eq!((row.lookups, row.overflows, row.p99), (0.0, 0.0, None));
        assert!(rows(&after, &snapshot(&[]), TWO, Column::Worst).is_empty());
    }

    #[test]
    fn the_worst_comes_first_and_every_column_sorts() {
        let before = snapshot(&[("old", figures(0, 90, 0, 0, 0))]);
        let after = snapshot(&[
            ("quiet", figures(0, 0, 0, 0, 0)),
            ("busy", figures(50, 0, 0, 0, 0)),
            ("old", figures(0, 90, 0, 0, 0)),
            ("full", figures(0, 0, 0, 0, 8)),
            ("dns", figures(0, 9, 0, 0, 0)),
        ]);
        let order = |sort| names(&rows(&before, &after, TWO, sort)).join(" ");
        assert_eq!(order(Column::Worst), "dns full old busy quiet");
        assert_eq!(order(Column::Pod), "busy dns full old quiet");
        assert_eq!(order(Column::Lookups), "busy dns full old quiet");
        assert_eq!(order(Column::Failed), "dns old busy full quiet");
        assert_eq!(order(Column::OverflowsTotal), "full dns old busy quiet");
        assert_eq!(order(Column::Cause), "dns old full busy quiet");
        for (column, name) in Column::ALL {
            assert_eq!(name.parse(), Ok(column));
            assert_eq!(name.to_uppercase().parse(), Ok(column));
            order(column);
        }
        let error = "size".parse::<Column>().unwrap_err();
        assert!(error.contains("lookups/s, failed%"), "{error}");
    }
}
