//! Prometheus metrics: built at each scrape from one picture of the figures, never kept beside it.

mod conntrack;
pub mod dns;
mod families;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod openmetrics;
mod pod;
mod tcp;
mod text;
mod zeros;

use std::{net::IpAddr, sync::Arc, time::Duration};

use anyhow::Result;
use tracer_common::{
    Hook,
    neigh::{self, Gc},
    peers::Kind,
};

use self::families::{Families, process};
use super::negotiate::Format;
use crate::{
    aggregate::{Figures, Picture, ledger::Tally as _},
    hooks::FAMILY_NAMES,
    kernel::{
        conntrack::Conntrack,
        load::{HookStatus, State},
        maps::Filling,
        neighbour_tables::NeighbourTable,
    },
    pods::{Owner, SourceStatus},
};

/// What has no series of its own.
const OTHER: &str = "(other)";

/// All that a scrape shows.
pub struct View<'a> {
    /// The node's name.
    pub node: &'a str,
    /// `--dns-port`.
    pub dns_ports: &'a [u16],
    /// The figures.
    pub picture: &'a Picture,
    /// The tables by netlink.
    pub tables: [Option<NeighbourTable>; 2],
    /// `gc_entries` by the hook `neigh`.
    pub entries: [Option<u32>; 2],
    /// Highest `gc_entries` of the last 60 s.
    pub peaks: [u32; 2],
    /// Forecasts.
    pub seconds_until_full: [f64; 2],
    /// Connection tracking, where there is any.
    pub conntrack: Option<Conntrack>,
    /// The hooks.
    pub hooks: &'a [HookStatus],
    /// Runs that the kernel skipped, by hook.
    pub misses: &'a [(Hook, u64)],
    /// The maps that can fill up.
    pub fillings: &'a [Filling],
    /// The pod sources.
    pub sources: &'a [SourceStatus],
    /// For how long this agent has looked.
    pub watched: Duration,
    /// Addresses of pods that went lately.
    pub gone: &'a [(IpAddr, Arc<Owner>)],
    /// Failures by kind and peer.
    pub peers: &'a [(Kind, String, u64)],
    /// Numbers and names of the drop reasons that mean failure.
    pub reasons: &'a [(u32, String)],
    /// Readings of the kernel's counters that failed.
    pub read_errors: u64,
    /// Ring records that could not be decoded.
    pub undecodable: u64,
    /// How often the state folder held what could not be gone on with.
    pub state_resets: u64,
}

/// What Prometheus scrapes.
pub fn render(view: &View<'_>, format: Format) -> Result<String> {
    let mut families = Families::new(view.node, format);
    node(&mut families, view);
    for (owner, figures) in &view.picture.owners {
        pod::add(&mut families, owner, figures, view);
    }
    own(&mut families, view);
    families.finish(process(view.node))
}

fn node(out: &mut Families, view: &View<'_>) {
    for (index, family) in FAMILY_NAMES.iter().enumerate() {
        if let Some(entries) = view.entries[index] {
            out.gauge(
                "node_neighbour_entries",
                "Neighbour entries that count against the limit (the kernel's gc_entries).",
                &[("family", family)],
                entries.into(),
            );
            out.gauge(
                "node_neighbour_entries_peak",
                "Highest of the last 60 s, seen at every creation.",
                &[("family", family)],
                view.peaks[index].max(entries).into(),
            );
            out.gauge(
                "node_neighbour_time_until_full_seconds",
                "Forecast at the present trend; +Inf without one.",
                &[("family", family)],
                view.seconds_until_full[index],
            );
        }
        let Some(table) = view.tables[index] else {
            continue;
        };
        for (threshold, limit) in ["1", "2", "3"].iter().zip(table.limits) {
            out.gauge(
                "node_neighbour_entries_limit",
                "The neighbour table's gc_thresh1, 2 and 3 in force.",
                &[("family", family), ("threshold", threshold)],
                limit.into(),
            );
        }
        out.counter(
            "node_neighbour_table_fulls_total",
            "Neighbour creations refused because the table was full, since boot (the kernel's table_fulls).",
            &[("family", family)],
            table.table_fulls,
        );
        for (gc, runs) in [("forced", table.gc_forced), ("periodic", table.gc_periodic)] {
            out.counter(
                "node_neighbour_gc_runs_total",
                "Garbage collections of the neighbour table, since boot (the kernel's count).",
                &[("family", family), ("gc", gc)],
                runs,
            );
        }
    }
    if let Some(figures) = view.conntrack {
        conntrack::add(out, figures);
    }
    let attached = |hook| {
        view.hooks
            .iter()
            .any(|status: &HookStatus| status.hook == hook && status.state.counts())
    };
    let figures = &view.picture.node;
    if attached(Hook::Neigh) {
        for (family, counts) in FAMILY_NAMES.iter().zip(&figures.neigh) {
            for (result, n) in [
                ("created", counts.created),
                ("table_full", counts.table_full),
            ] {
                out.counter(
                    "node_neighbour_creates_total",
                    "Neighbour creations asked for on the node, by result.",
                    &[("family", family), ("result", result)],
                    n,
                );
            }
        }
    }
    if attached(Hook::Gc) {
        for (family, counts) in FAMILY_NAMES.iter().zip(&figures.neigh) {
            for (gc, n) in Gc::ALL.iter().zip(counts.evictions) {
                out.counter(
                    "node_neighbour_evictions_total",
                    "Neighbour entries removed on the node, by who did it.",
                    &[("family", family), ("gc", gc.name())],
                    n,
                );
            }
        }
    }
    if attached(Hook::Dns) {
        dns::node(out, &figures.dns, view.picture.dns_pending());
    }
    if attached(Hook::Tcp) {
        tcp::node(out, view.picture);
    }
    for (kind, peer, failed) in view.peers {
        let hook = match kind {
            Kind::Dns => Hook::Dns,
            Kind::Connect | Kind::Retransmit | Kind::Unanswered => Hook::Tcp,
        };
        if attached(hook) {
            out.counter(
                "node_peer_failures_total",
                "Failures towards a peer: a node's name where nodes are known, else the address.",
                &[("peer", peer), ("kind", kind.name())],
                *failed,
            );
        }
    }
    if attached(Hook::Drops) {
        for (number, reason) in view.reasons {
            let dropped = view.picture.drops.iter().find(|(n, _)| n == number);
            out.counter(
                "node_drops_total",
                "Packets dropped on the node for a reason that means failure, by the kernel's reason.",
                &[("reason", reason)],
                dropped.map_or(0, |(_, dropped)| *dropped),
            );
        }
        let is_failure = |number: &u32| view.reasons.iter().any(|(n, _)| n == number);
        let ignored = view.picture.drops.iter().filter(|(n, _)| !is_failure(n));
        out.counter(
            "node_drops_ignored_total",
            "Packets dropped on the node for a reason that does not mean failure, or for none.",
            &[],
            ignored.map(|(_, dropped)| dropped).sum(),
        );
    }
    for (signal, ratio) in ratios(figures) {
        if let Some(ratio) = ratio {
            out.gauge(
                "node_failure_ratio",
                "Failures divided by attempts on the node in the last window.",
                &[("signal", signal)],
                ratio,
            );
        }
    }
}

fn ratios(figures: &Figures) -> [(&'static str, Option<f64>); 3] {
    [
        ("dns", figures.dns_ratio),
        ("neighbour", figures.neigh_ratio),
        ("connect", figures.connect_ratio),
    ]
}

/// What tracer says of itself.
fn own(out: &mut Families, view: &View<'_>) {
    for status in view.hooks {
        for state in State::ALL {
            out.gauge(
                "hook_state",
                "1 for the state that the hook is in; `tracer doctor` says why.",
                &[("hook", status.hook.name()), ("state", state.name())],
                f64::from(u8::from(status.state == state)),
            );
        }
    }
    for hook in Hook::ALL {
        let labels = [("hook", hook.name())];
        let ring = view.picture.ring[hook as usize];
        out.counter(
            "events_total",
            "Details streamed by the hook.",
            &labels,
            ring.sent,
        );
        out.counter(
            "events_lost_total",
            "Details of the hook lost in a full ring.",
            &labels,
            ring.lost,
        );
        out.counter(
            "events_suppressed_total",
            "Details of the hook held back by --event-rate.",
            &labels,
            ring.suppressed,
        );
        out.gauge(
            "unattributed_pending",
            "Events counted in the kernel that wait for a pod's name.",
            &labels,
            view.picture.pending[hook as usize] as f64,
        );
        let unknown = view.picture.owners.get(&Owner::unknown());
        let given_up = unknown.map_or(0, |figures| match hook {
            Hook::Neigh => figures.neigh.iter().map(neigh::Counts::attempts).sum(),
            Hook::Dns => figures.dns.queries + figures.dns.received,
            Hook::Drops => {
                figures.receive_drops.values().sum::<u64>() + figures.drops.values().sum::<u64>()
            }
            Hook::Tcp => figures.tcp.events(),
            Hook::Gc | Hook::Cgroups => 0,
        });
        out.counter(
            "unattributed_total",
            "Events that no pod could be named for: counted under (unknown).",
            &labels,
            given_up,
        );
    }
    for (hook, misses) in view.misses {
        out.counter(
            "program_misses_total",
            "Runs of the hook's programs that the kernel skipped (recursion).",
            &[("hook", hook.name())],
            *misses,
        );
    }
    for filling in view.fillings {
        let labels = [("map", filling.map)];
        out.gauge(
            "bpf_map_entries",
            "Entries of the eBPF map.",
            &labels,
            filling.entries as f64,
        );
        out.gauge(
            "bpf_map_max_entries",
            "Room of the eBPF map.",
            &labels,
            filling.max_entries as f64,
        );
        out.counter(
            "bpf_map_full_total",
            "New keys that found the eBPF map full.",
            &labels,
            filling.full,
        );
    }
    for source in view.sources {
        let labels = [("source", source.name)];
        out.gauge(
            "node_pods",
            "Pods that the source knows.",
            &labels,
            source.pods as f64,
        );
        // One that has never answered is as old as the agent.
        let never = (!source.idle).then_some(view.watched);
        if let Some(age) = source.age.or(never) {
            out.gauge(
                "source_age_seconds",
                "Time since the source last answered, or since the agent's start if it never has.",
                &labels,
                age.as_secs_f64(),
            );
        }
    }
    for (address, owner) in view.gone {
        out.gauge(
            "gone_pod_address_info",
            "1; an address of a pod of this node that went in the last hour.",
            &[
                ("namespace", &owner.namespace),
                ("pod", &owner.pod),
                ("address", &address.to_string()),
            ],
            1.0,
        );
    }
    out.counter(
        "map_read_errors_total",
        "Readings of the eBPF maps that failed; the figures are then as of the reading before.",
        &[],
        view.read_errors,
    );
    out.counter(
        "undecodable_events_total",
        "Records of the ring that could not be decoded.",
        &[],
        view.undecodable,
    );
    out.counter(
        "state_resets_total",
        "How often the counters began anew, for the state folder held what the version could not go on with.",
        &[],
        view.state_resets,
    );
    out.gauge(
        "build_info",
        "1; the labels say what runs.",
        &[("version", env!("CARGO_PKG_VERSION"))],
        1.0,
    );
}

#[cfg(test)]
mod tests;
