//! A pod's figures; which are there with 0 is said in [`zeros`](super::zeros).

use tracer_common::neigh::{self, Gc};

use super::{OTHER, View, dns, families::Families, ratios, tcp, zeros::Kind};
use crate::{aggregate::Figures, hooks::FAMILY_NAMES, pods::Owner};

/// Adds them.
pub(super) fn add(out: &mut Families, owner: &Owner, figures: &Figures, view: &View<'_>) {
    let pod = [
        ("namespace", owner.namespace.as_str()),
        ("pod", owner.pod.as_str()),
    ];
    let with = |name, value| [pod[0], pod[1], (name, value)];
    for ((family, counts), entries) in FAMILY_NAMES.iter().zip(&figures.neigh).zip(figures.entries)
    {
        neighbours(out, pod, family, counts, entries);
    }
    let dns = &figures.dns;
    if dns.queries + dns.late + dns.unmatched > 0 {
        dns::pod(out, dns, pod);
    }
    if dns.received > 0 {
        for (outcome, n) in dns::served(dns) {
            out.counter(
                "pod_dns_served_total",
                "Queries that reached a DNS port of the pod, by how it answered.",
                &with("outcome", outcome),
                n,
            );
        }
    }
    let lost = &figures.receive_drops;
    if dns.received > 0 {
        // With 0 for a server, so that its first loss is an increase.
        for port in view.dns_ports {
            if !lost.contains_key(&Some(*port)) {
                receive_drops(out, pod, &port.to_string(), 0);
            }
        }
    }
    for (port, n) in lost {
        match port {
            Some(port) => receive_drops(out, pod, &port.to_string(), *n),
            None => receive_drops(out, pod, OTHER, *n),
        }
    }
    for (number, n) in &figures.drops {
        if let Some((_, reason)) = view.reasons.iter().find(|(n, _)| n == number) {
            out.counter(
                "pod_drops_total",
                "Packets of the pod dropped for a reason that means failure, by the kernel's reason.",
                &with("reason", reason),
                *n,
            );
        }
    }
    tcp::pod(out, figures, pod);
    for (signal, ratio) in ratios(figures) {
        if let Some(ratio) = ratio {
            out.gauge(
                "pod_failure_ratio",
                "Failures divided by attempts of the pod in the last window.",
                &with("signal", signal),
                ratio,
            );
        }
    }
}

fn neighbours(
    out: &mut Families,
    pod: [(&str, &str); 2],
    family: &str,
    counts: &neigh::Counts,
    entries: u32,
) {
    let family = [pod[0], pod[1], ("family", family)];
    let with = |name, value| [family[0], family[1], family[2], (name, value)];
    if *counts != neigh::Counts::default() || entries > 0 {
        out.gauge(
            "pod_neighbour_entries",
            "Entries in the neighbour table whose device is in the pod's namespace.",
            &family,
            entries.into(),
        );
    }
    let kind = Kind::neighbours(counts);
    if kind.shows(counts.forced_gc) {
        out.counter(
            "pod_neighbour_forced_gc_total",
            "Entries of anyone thrown out because the pod asked for one more.",
            &family,
            counts.forced_gc,
        );
    }
    for (gc, n) in kind.shown(Gc::ALL.into_iter().zip(counts.evictions)) {
        out.counter(
            "pod_neighbour_evictions_total",
            "Neighbour entries of the pod removed, by who did it.",
            &with("gc", gc.name()),
            n,
        );
    }
    // Both results at once: a table that overflows is what tracer is there for.
    if counts.attempts() > 0 {
        for (result, n) in [
            ("created", counts.created),
            ("table_full", counts.table_full),
        ] {
            out.counter(
                "pod_neighbour_creates_total",
                "Neighbour creations asked for by the pod, by result.",
                &with("result", result),
                n,
            );
        }
    }
}

fn receive_drops(out: &mut Families, pod: [(&str, &str); 2], port: &str, n: u64) {
    out.counter(
        "pod_udp_receive_drops_total",
        "Datagrams to the pod lost in a full receive buffer, by port: the node's busiest 20, else (other).",
        &[pod[0], pod[1], ("port", port)],
        n,
    );
}
