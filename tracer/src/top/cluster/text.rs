//! Nodes and pods as plain text and as JSON, for scripts.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::columns::NodeColumn;
use super::nodes::{Attempts, Cluster, Node};
use super::pods::{NodePods, Pod};
use super::reason::{self, percent};
use crate::output::printable;
use crate::top::text::WIDEST;

/// The head in some lines, then a row for each node.
pub(super) fn nodes(base: &str, range: Duration, cluster: &Cluster, rows: &[&Node]) -> String {
    let odd = rows.iter().filter(|node| node.is_odd()).count();
    let mut out = format!(
        "{}  {} nodes, {odd} odd  over {}\n",
        printable(base),
        rows.len(),
        humantime::format_duration(range)
    );
    for line in reason::alike(cluster, range) {
        writeln!(out, "{line}").expect("a String takes every text");
    }
    warnings(&mut out, &cluster.warnings);
    let mut head: Vec<String> = NodeColumn::ALL
        .iter()
        .map(|(_, name)| name.to_uppercase())
        .collect();
    head.push("REASON".into());
    let rows = rows.iter().map(|node| {
        let cells = NodeColumn::ALL.iter().map(|(column, _)| column.cell(node));
        let mut cells: Vec<String> = cells.collect();
        cells.push(reason::of(node, range));
        cells
    });
    table(&mut out, head, rows, &[0, NodeColumn::ALL.len()]);
    out
}

/// One node: its pods that fail, its dead destinations.
pub(super) fn pods(base: &str, range: Duration, node: Option<&Node>, pods: &NodePods) -> String {
    let mut out = format!(
        "{}  node {}  over {}\n",
        printable(base),
        printable(&pods.node),
        humantime::format_duration(range)
    );
    match node {
        Some(node) => writeln!(out, "{}", reason::of(node, range)),
        None => writeln!(out, "no agent of this node is known"),
    }
    .expect("a String takes every text");
    warnings(&mut out, &pods.warnings);
    let holders = pods.holders_in_words();
    if !holders.is_empty() {
        writeln!(out, "{holders}").expect("a String takes every text");
    }
    let well = pods.well;
    if pods.failing.is_empty() {
        writeln!(out, "no pod fails; {well} had traffic").expect("a String takes every text");
    } else {
        let head = POD_COLUMNS.map(|(name, _)| name.to_owned()).to_vec();
        let rows = pods.failing.iter().map(pod_cells);
        table(&mut out, head, rows, &[0, 1, 4, 7, 12]);
        writeln!(out, "{well} other pods are well").expect("a String takes every text");
    }
    if !pods.dead.is_empty() {
        out.push('\n');
        let head = ["DEAD-DESTINATION", "ATTEMPTS", "MOSTLY-BY", "LAST-OWNER"];
        let rows = pods.dead.iter().map(|dead| {
            let or_dash = |text: &str| {
                if text.is_empty() {
                    "-".to_owned()
                } else {
                    printable(text).into_owned()
                }
            };
            vec![
                printable(&dead.destination).into_owned(),
                format!("{:.0}", dead.attempts),
                or_dash(&dead.mostly_by),
                or_dash(&dead.last_owner),
            ]
        });
        table(&mut out, head.map(str::to_owned).to_vec(), rows, &[0, 2, 3]);
    }
    out
}

/// What pods are told by, and the width that the screen gives it.
pub(super) const POD_COLUMNS: [(&str, usize); 13] = [
    ("NAMESPACE", 0),
    ("POD", 0),
    ("LOOKUPS", 8),
    ("DNS-FAILED%", 5),
    ("MAIN-CAUSE", 20),
    ("CONNECTS", 8),
    ("CONNECT-FAILED%", 5),
    ("MAIN-RESULT", 11),
    ("REFUSED", 7),
    ("NEIGH-ENTRIES", 6),
    ("RESENT", 7),
    ("DROPS", 7),
    ("MAIN-REASON", 18),
];

/// In the order of [`POD_COLUMNS`].
pub(super) fn pod_cells(pod: &Pod) -> Vec<String> {
    let whole = |n: f64| format!("{:.0}", n + 0.0); // no "-0"
    // Of one pod, few attempts tell something too.
    let share = |attempts: &Attempts| {
        if attempts.all <= 0.0 {
            return "-".to_owned();
        }
        let text = percent((100.0 * attempts.failed / attempts.all).min(100.0));
        text.trim_end_matches('%').to_owned()
    };
    let mostly = |attempts: &Attempts| {
        let most = attempts.mostly().unwrap_or("-");
        printable(most).into_owned()
    };
    let drops = Attempts {
        by: pod.drops.clone(),
        failed: pod.drops.values().sum(),
        ..Attempts::default()
    };
    vec![
        printable(&pod.namespace).into_owned(),
        printable(&pod.pod).into_owned(),
        whole(pod.dns.all),
        share(&pod.dns),
        mostly(&pod.dns),
        whole(pod.connects.all),
        share(&pod.connects),
        mostly(&pod.connects),
        whole(pod.refused),
        whole(pod.entries),
        whole(pod.retransmits),
        whole(drops.failed),
        mostly(&drops),
    ]
}

fn warnings(out: &mut String, warnings: &[String]) {
    for warning in warnings {
        writeln!(out, "warning: {}", printable(warning)).expect("a String takes every text");
    }
}

/// Columns as wide as they need; those at `left` stand left.
fn table(
    out: &mut String,
    head: Vec<String>,
    rows: impl Iterator<Item = Vec<String>>,
    left: &[usize],
) {
    let lines: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    // Every cell is ASCII by now: bytes are columns of the terminal.
    let widest = |i: usize| lines.iter().map(|line| line[i].len()).max().unwrap_or(0);
    let width = |i: usize| widest(i).min(WIDEST);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for line in &lines {
        let mut text = String::new();
        for (i, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let written = if left.contains(&i) {
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

/// All nodes as one object.
pub(super) fn nodes_json(base: &str, range: Duration, cluster: &Cluster, rows: &[&Node]) -> Value {
    let rows: Vec<Value> = rows.iter().map(|node| node_json(node, range)).collect();
    json!({
        "prometheus": base,
        "range_seconds": range.as_secs_f64(),
        "all_nodes": reason::alike(cluster, range),
        "warnings": cluster.warnings,
        "nodes": rows,
    })
}

/// One node and its pods as one object.
pub(super) fn pods_json(
    base: &str,
    range: Duration,
    node: Option<&Node>,
    pods: &NodePods,
) -> Value {
    json!({
        "prometheus": base,
        "range_seconds": range.as_secs_f64(),
        "warnings": pods.warnings,
        "node": node.map(|node| node_json(node, range)),
        "pods": pods,
    })
}

fn node_json(node: &Node, range: Duration) -> Value {
    let attempts = |attempts: &Attempts| {
        json!({
            "total": attempts.all,
            "failed": attempts.failed,
            "failed_percent": attempts.percent(),
            "by": attempts.by,
        })
    };
    json!({
        "node": node.name,
        "odd": node.is_odd(),
        "score": node.score,
        "state": node.state,
        "ready": node.ready,
        "reason": reason::of(node, range),
        "findings": node.findings,
        "dns": attempts(&node.dns),
        "connects": attempts(&node.connects),
        "neighbour_refused": node.refused,
        "neighbour_table_used": node.table_used,
        "retransmits": node.retransmits,
        "failed_towards": node.towards,
    })
}
