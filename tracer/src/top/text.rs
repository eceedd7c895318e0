//! A table as plain text.

use std::fmt::Write as _;

use super::columns::Column;
use super::table::Row;
use crate::export::snapshot::{Hook, Snapshot, Table};
use crate::output::{printable, seconds};

/// The node's state in some lines, then a row for each pod.
pub(super) fn text(snapshot: &Snapshot, total: &Row, rows: &[Row]) -> String {
    let mut out = head(snapshot, total);
    if rows.is_empty() {
        out.push_str("no pod has had traffic yet\n");
    } else {
        table(&mut out, rows);
    }
    out
}

fn head(snapshot: &Snapshot, total: &Row) -> String {
    let mut lines = vec![format!(
        "node {}  tracer {}  counting since {}  FAILED% over {}  P50, P99 since then",
        snapshot.node,
        snapshot.version,
        snapshot.since,
        seconds(snapshot.window_seconds),
    )];
    lines.extend(snapshot.tables.iter().map(neighbour_table));
    lines.push(format!(
        "all pods: {} lookups/s, {}% failed, {} timeouts/s, {} refused creations/s; \
         in all {} lookups failed, {} creations refused",
        figure(total.lookups),
        percent(total.failed_ratio.or(Some(0.0))),
        figure(total.timeouts),
        figure(total.overflows),
        total.failures_total,
        total.overflows_total,
    ));
    let hooks = snapshot.hooks.iter();
    lines.extend(hooks.filter(|h| h.state != "attached").map(not_attached));
    let lost = pairs(snapshot.hooks.iter().map(|h| (&h.name, h.lost)));
    lines.extend(lost.map(|lost| format!("event details lost in a full ring: {lost}")));
    let pending = pairs(snapshot.unattributed_pending.iter().map(|(k, v)| (k, *v)));
    lines.extend(pending.map(|pending| format!("waiting for a pod's name: {pending}")));
    let mute = snapshot
        .sources
        .iter()
        .filter(|s| !s.reason.is_empty() && !s.idle);
    lines.extend(mute.map(|s| format!("pod source {} does not answer: {}", s.name, s.reason)));
    lines.iter().fold(String::new(), |mut out, line| {
        out.push_str(&printable(line));
        out.push('\n');
        out
    })
}

fn neighbour_table(table: &Table) -> String {
    let limit = table.limits[2];
    let (entries, share) = match table.entries {
        Some(entries) if limit > 0 => {
            let share = 100.0 * entries as f64 / limit as f64;
            (entries.to_string(), format!(" ({share:.0}%)"))
        }
        Some(entries) => (entries.to_string(), String::new()),
        None => ("?".into(), String::new()),
    };
    let pressure = match (table.pressure.as_str(), table.time_until_full_seconds) {
        ("" | "normal", None) => String::new(),
        (state, None) => format!(", {state}"),
        (state, Some(left)) => format!(", {state}, full in {}", seconds(left)),
    };
    format!(
        "{} neighbours: {entries}/{limit}{share}{pressure}, full {} times since boot",
        table.family, table.table_fulls
    )
}

fn not_attached(hook: &Hook) -> String {
    let colon = if hook.reason.is_empty() { "" } else { ": " };
    format!("hook {} {}{colon}{}", hook.name, hook.state, hook.reason)
}

/// `name count, name count` of those above 0, if any.
fn pairs<'a>(counts: impl Iterator<Item = (&'a String, u64)>) -> Option<String> {
    let text: Vec<String> = counts
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    (!text.is_empty()).then(|| text.join(", "))
}

/// The widest that a column gets: the longest name that Kubernetes has. Names may come from anybody, and a
/// format's width ends at 65,535.
pub(super) const WIDEST: usize = 253;

/// Names stand left, figures right.
const LEFT: [Column; 3] = [Column::Namespace, Column::Pod, Column::Cause];

fn table(out: &mut String, rows: &[Row]) {
    let columns = &Column::ALL[1..];
    let head = columns.iter().map(|(_, name)| name.to_uppercase());
    let mut lines = vec![head.collect::<Vec<_>>()];
    lines.extend(rows.iter().map(|row| {
        let cells = columns.iter().map(|(column, _)| cell(row, *column));
        cells.collect()
    }));
    // Every cell is ASCII by now: bytes are columns of the terminal.
    let widest = |i: usize| lines.iter().map(|line| line[i].len()).max().unwrap_or(0);
    let width = |i: usize| widest(i).min(WIDEST);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    for line in &lines {
        let mut text = String::new();
        for ((cell, width), (column, _)) in line.iter().zip(&widths).zip(columns) {
            let written = if LEFT.contains(column) {
                write!(text, "{cell:<width$}  ")
            } else {
                write!(text, "{cell:>width$}  ")
            };
            written.expect("a String takes every text");
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
}

fn cell(row: &Row, column: Column) -> String {
    let time = |t: Option<f64>| t.map_or_else(|| "-".into(), seconds);
    match column {
        Column::Worst => String::new(),
        Column::Namespace => printable(&row.namespace).into_owned(),
        Column::Pod => printable(&row.pod).into_owned(),
        Column::Lookups => figure(row.lookups),
        Column::Failed => percent(row.failed_ratio),
        Column::Timeouts => figure(row.timeouts),
        Column::P50 => time(row.p50),
        Column::P99 => time(row.p99),
        Column::Cause => printable(row.cause.as_deref().unwrap_or("-")).into_owned(),
        Column::Entries => row.entries.to_string(),
        Column::Creates => figure(row.creates),
        Column::Overflows => figure(row.overflows),
        Column::FailuresTotal => row.failures_total.to_string(),
        Column::OverflowsTotal => row.overflows_total.to_string(),
        Column::Drops => figure(row.drops),
        Column::ConnectFailed => percent(row.connect_failed_ratio),
        Column::Retransmits => figure(row.retransmits),
        Column::Since => printable(row.since.as_deref().unwrap_or("-")).into_owned(),
    }
}

/// A rate: whole where it is large.
pub(super) fn figure(rate: f64) -> String {
    match rate {
        r if r <= 0.0 => "0".into(),
        r if r < 100.0 => format!("{r:.1}"),
        r => format!("{r:.0}"),
    }
}

/// A few in a million must not look like none, nor almost all like all.
pub(super) fn percent(ratio: Option<f64>) -> String {
    match ratio {
        None => "-".into(),
        Some(r) if r <= 0.0 => "0".into(),
        Some(r) if r < 0.001 => "<0.1".into(),
        Some(r) if r >= 1.0 => "100".into(),
        Some(r) => format!("{:.1}", (r * 100.0).min(99.9)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::snapshot::Source;

    fn row(pod: &str) -> Row {
        Row {
            namespace: "shop".into(),
            pod: pod.into(),
            lookups: 120.4,
            failed_ratio: Some(0.25),
            timeouts: 30.0,
            p50: Some(0.000_7),
            p99: Some(0.25),
            cause: Some("neighbour_table_full".into()),
            overflows_total: 170,
            since: Some("2026-01-01T00:00:09Z".into()),
            ..Row::default()
        }
    }

    #[test]
    fn a_whole_table() {
        let table = |family: &str, entries| Table {
            family: family.into(),
            entries,
            limits: [128, 512, 1024],
            table_fulls: 170,
            ..Table::default()
        };
        let hook = |name: &str, state: &str, reason: &str, lost| Hook {
            name: name.into(),
            state: state.into(),
            reason: reason.into(),
            lost,
            ..Hook::default()
        };
        let snapshot = Snapshot {
            node: "n1".into(),
            version: "0.1.0".into(),
            since: "2026-01-01T00:00:00Z".into(),
            window_seconds: 60.0,
            tables: vec![table("ipv4", Some(512)), table("ipv6", None)],
            hooks: vec![
                hook("neigh", "attached", "", 0),
                hook("dns", "attached", "", 12),
                hook("drops", "unavailable", "no BTF", 0),
            ],
            sources: vec![Source {
                name: "file".into(),
                reason: "no such file".into(),
                ..Source::default()
            }],
            unattributed_pending: [("dns".to_owned(), 3), ("neigh".to_owned(), 0)].into(),
            ..Snapshot::default()
        };
        let rows = [row("cart"), Row::default()];
        let expected = "\
node n1  tracer 0.1.0  counting since 2026-01-01T00:00:00Z  FAILED% over 60.0s  P50, P99 since then
ipv4 neighbours: 512/1024 (50%), full 170 times since boot
ipv6 neighbours: ?/1024, full 170 times since boot
all pods: 120 lookups/s, 25.0% failed, 30.0 timeouts/s, 0 refused creations/s; \
in all 0 lookups failed, 170 creations refused
hook drops unavailable: no BTF
event details lost in a full ring: dns 12
waiting for a pod's name: dns 3
pod source file does not answer: no such file
NAMESPACE  POD   LOOKUPS/S  FAILED%  TIMEOUTS/S     P50    P99  MAIN-CAUSE            \
            NEIGH-ENTRIES  NEIGH-CREATES/S  OVERFLOWS/S  FAILURES  OVERFLOWS  DROPS/S  CONNECT-FAILED%  RETRANSMITS/S                 SINCE
shop       cart        120     25.0        30.0  0.70ms  250ms  neighbour_table_full\
            \x20             0                0            0         0        170        0                -              0  2026-01-01T00:00:09Z
                         0        -           0       -      -  -\
            \x20                                0                0            0         0          0        0                -              0                     -
";
        assert_eq!(text(&snapshot, &rows[0], &rows), expected);
    }

    #[test]
    fn names_cannot_draw() {
        let snapshot = Snapshot {
            node: "\u{1b}[2Jn".into(),
            ..Snapshot::default()
        };
        let text = text(
            &snapshot,
            &row("x"),
            &[row("\u{1b}[31m\n\u{9b}é"), row("y")],
        );
        let plain = |c: char| c == '\n' || c == ' ' || c.is_ascii_graphic();
        assert!(text.chars().all(plain), "{text}");
        assert!(super::text(&snapshot, &row("x"), &[]).ends_with("no pod has had traffic yet\n"));
    }

    #[test]
    fn small_shares_are_not_none() {
        let texts = [
            None,
            Some(0.0),
            Some(1e-6),
            Some(0.5),
            Some(0.9999),
            Some(1.0),
        ]
        .map(percent);
        assert_eq!(texts, ["-", "0", "<0.1", "50.0", "99.9", "100"]);
    }
}
