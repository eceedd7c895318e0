//! tracer's DNS metrics against what the clients saw.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Tally;
use crate::metrics::Metrics;
use crate::netns::Pod;
use crate::wait::ensure;

/// Outcomes of lookups, as the contract lists them.
pub const OUTCOMES: [&str; 9] = [
    "noerror", "nodata", "nxdomain", "servfail", "refused", "formerr", "notimp", "other", "timeout",
];
/// Outcomes of the server's side, as the contract lists them.
pub const SERVED: [&str; 9] = [
    "noerror",
    "nodata",
    "nxdomain",
    "servfail",
    "refused",
    "formerr",
    "notimp",
    "other",
    "unanswered",
];
/// Causes of failed lookups, as the contract lists them.
pub const CAUSES: [&str; 10] = [
    "no_answer",
    "server",
    "neighbour_table_full",
    "neighbour_unresolved",
    "neighbour_queue_full",
    "netfilter",
    "socket_buffer_full",
    "no_route",
    "port_unreachable",
    "dropped",
];

/// Of them, those that are there with 0 as soon as a pod has asked anything.
pub const USUAL_CAUSES: [&str; 6] = [
    "no_answer",
    "server",
    "neighbour_table_full",
    "neighbour_unresolved",
    "netfilter",
    "port_unreachable",
];

/// What tracer says of one pod is what its clients saw: lookups by outcome, failures by cause.
pub fn compare(
    metrics: &Metrics,
    pod: &Pod,
    tally: &Tally,
    causes: &[(&str, u64)],
) -> Result<(), String> {
    let [namespace, name] = pod.labels();
    // Once a lookup has failed, all series are there.
    let failed = tally.errors() + tally.outcome("timeout") > 0;
    let check = |metric: &str, label: Option<(&'static str, &str)>, expected: u64, usual: bool| {
        let mut labels = vec![namespace, name];
        labels.extend(label);
        let value = metrics.get(metric, &labels);
        let there = usual || failed || expected > 0;
        ensure(value == there.then_some(expected as f64), || {
            format!(
                "{metric} {labels:?} is {value:?}, the clients saw {expected}, some failed: {failed}"
            )
        })
    };
    let queries = "tracer_pod_dns_queries_total";
    check(queries, None, tally.queries, true)?;
    for outcome in OUTCOMES {
        let (metric, label) = ("tracer_pod_dns_lookups_total", ("outcome", outcome));
        let expected = tally.outcome(outcome);
        check(metric, Some(label), expected, outcome == "noerror")?;
    }
    let causes: BTreeMap<&str, u64> = causes.iter().copied().collect();
    for cause in CAUSES {
        let expected = causes.get(cause).copied().unwrap_or(0);
        let metric = "tracer_pod_dns_failures_total";
        let usual = USUAL_CAUSES.contains(&cause);
        check(metric, Some(("cause", cause)), expected, usual).map_err(|why| {
            let all = CAUSES.map(|cause| {
                let labels = [namespace, name, ("cause", cause)];
                (cause, metrics.sum(metric, &labels))
            });
            format!("{why}; all: {all:?}; the lab's: {causes:?}")
        })?;
    }
    for (what, expected) in [
        ("late_responses", tally.late),
        ("unmatched_responses", tally.unmatched),
        ("untracked", 0),
    ] {
        let metric = format!("tracer_pod_dns_{what}_total");
        check(&metric, None, expected, false)?;
    }
    check(
        "tracer_pod_dns_lookup_duration_seconds_count",
        None,
        tally.answered(),
        true,
    )
}

/// What a server is charged with is what it did: queries by outcome, in the metrics and in the API,
/// and no lookups of its own for answering.
pub fn compare_served(
    metrics: &Metrics,
    snapshot: &Value,
    labels: [(&str, &str); 2],
    served: &BTreeMap<&'static str, u64>,
) -> Result<(), String> {
    const NAME: &str = "tracer_pod_dns_served_total";
    let pods = snapshot["pods"].as_array().expect("the snapshot has pods");
    let shown = pods
        .iter()
        .find(|pod| labels.iter().all(|(label, value)| pod[label] == *value));
    let named = |outcome| (outcome, [&labels[..], &[("outcome", outcome)]].concat());
    let counted: BTreeMap<&str, f64> = SERVED
        .map(named)
        .into_iter()
        .filter_map(|(outcome, all)| Some((outcome, metrics.get(NAME, &all)?)))
        .collect();
    let did: BTreeMap<&str, f64> = SERVED
        .map(|outcome| (outcome, served.get(outcome).copied().unwrap_or(0) as f64))
        .into();
    ensure(counted == did, || {
        format!("{NAME} of {labels:?}: {counted:?}, the server did {did:?}")
    })?;
    let figure = |outcome| shown?["dns"]["served"][outcome].as_f64();
    let told = SERVED.map(|outcome| (outcome, figure(outcome).unwrap_or(0.0)));
    ensure(BTreeMap::from(told) == did, || {
        format!("the API's served of {labels:?}: {told:?}, the server did {did:?}")
    })
}

/// What must come to hold of the node when nothing is asked any more: it is the sum of its pods, and
/// no lookup waits for its end, which might be one too many.
pub fn check_node(metrics: &Metrics) -> Result<(), String> {
    // Lookups of others on the host, in namespaces that no source knows, wait for a name.
    let held = metrics.count("tracer_unattributed_pending", &[("hook", "dns")]);
    let same = |label: &str, values: &[&str], name: &str| {
        let mut more = 0;
        for value in values {
            let labels = [(label, *value)];
            let node = metrics.count(&format!("tracer_node_dns_{name}_total"), &labels);
            let pods = metrics.count(&format!("tracer_pod_dns_{name}_total"), &labels);
            ensure(node >= pods, || {
                format!("{value}: node {node}, pods {pods}")
            })?;
            more += node - pods;
        }
        ensure(more <= held, || {
            format!("the node has {more} {name} more than its pods, {held} held back")
        })
    };
    same("outcome", &OUTCOMES, "lookups")?;
    same("cause", &CAUSES, "failures")?;
    let pending = metrics.count("tracer_node_dns_pending", &[]);
    ensure(pending == 0, || format!("{pending} are pending"))?;
    check_sums(metrics)
}

/// What must hold of the node at any moment.
pub fn check_sums(metrics: &Metrics) -> Result<(), String> {
    let ended = metrics.count("tracer_node_dns_lookups_total", &[]);
    let timeouts = metrics.count("tracer_node_dns_lookups_total", &[("outcome", "timeout")]);
    let started = metrics.count("tracer_node_dns_lookups_started_total", &[]);
    let pending = metrics.count("tracer_node_dns_pending", &[]);
    ensure(started == ended + pending, || {
        format!("started {started}, ended {ended}, pending {pending}")
    })?;
    let histogram = "tracer_node_dns_lookup_duration_seconds";
    let count = metrics.count(&format!("{histogram}_count"), &[]);
    ensure(count == ended - timeouts, || {
        format!("the histogram has {count} of {} answered", ended - timeouts)
    })?;
    let mut below = 0;
    let bounds = "0.0005 0.001 0.0025 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1 2.5 5 +Inf";
    for bound in bounds.split(' ') {
        let bucket = metrics
            .get(&format!("{histogram}_bucket"), &[("le", bound)])
            .ok_or_else(|| format!("no bucket {bound}"))? as u64;
        ensure(bucket >= below, || {
            format!("bucket {bound} has {bucket} < {below}")
        })?;
        below = bucket;
    }
    ensure(below == count, || {
        format!("the last bucket has {below} of {count}")
    })
}
