//! Connection tracking's figures.

use super::families::Families;
use crate::kernel::conntrack::Conntrack;

/// Adds them.
pub(super) fn add(out: &mut Families, figures: Conntrack) {
    out.gauge(
        "node_conntrack_entries",
        "Connections tracked in the host's namespace.",
        &[],
        figures.entries.into(),
    );
    out.gauge(
        "node_conntrack_entries_limit",
        "Most connections that the kernel tracks in a namespace (nf_conntrack_max).",
        &[],
        figures.limit.into(),
    );
    let Some(counters) = figures.counters else {
        return;
    };
    out.counter(
        "node_conntrack_insert_failed_total",
        "Connections that could not be put into the table, since boot (the kernel's insert_failed).",
        &[],
        counters.insert_failed,
    );
    out.counter(
        "node_conntrack_drops_total",
        "Packets that connection tracking dropped, since boot (the kernel's drop).",
        &[],
        counters.drops,
    );
}
