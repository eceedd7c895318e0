//! Lookups.

use prometheus::proto::{Bucket, Histogram, MetricType, Summary};
use tracer_common::dns::{BUCKETS_NS, Cause, Counts, Outcome};

use super::{families::Families, zeros::Kind};

/// The node's.
pub fn node(out: &mut Families, counts: &Counts, pending: u64) {
    for (outcome, n) in Outcome::ALL.iter().zip(counts.outcomes) {
        out.counter(
            "node_dns_lookups_total",
            "Lookups of the node that ended, by outcome.",
            &[("outcome", outcome.name())],
            n,
        );
    }
    for (cause, n) in Cause::ALL.iter().zip(counts.causes) {
        out.counter(
            "node_dns_failures_total",
            "Failed lookups of the node, by what killed them.",
            &[("cause", cause.name())],
            n,
        );
    }
    out.add(
        "node_dns_lookup_duration_seconds",
        "From the first query to the answer, for the answered lookups of the node.",
        MetricType::HISTOGRAM,
        &[],
        |metric| {
            let mut below = 0;
            let buckets = BUCKETS_NS
                .iter()
                .zip(counts.buckets)
                .map(|(bound, n)| {
                    below += n;
                    let mut bucket = Bucket::default();
                    bucket.set_upper_bound(*bound as f64 / 1e9);
                    bucket.set_cumulative_count(below);
                    bucket
                })
                .collect();
            let mut histogram = Histogram::default();
            histogram.set_bucket(buckets);
            histogram.set_sample_count(counts.answered());
            histogram.set_sample_sum(counts.duration_ns as f64 / 1e9);
            metric.set_histogram(histogram);
        },
    );
    out.counter(
        "node_dns_lookups_started_total",
        "Lookups of the node begun: those ended plus those pending.",
        &[],
        counts.started,
    );
    out.gauge(
        "node_dns_pending",
        "Lookups of the node that wait for an answer.",
        &[],
        pending as f64,
    );
}

/// A pod's, as a client.
pub fn pod(out: &mut Families, dns: &Counts, pod: [(&str, &str); 2]) {
    let with = |name, value| [pod[0], pod[1], (name, value)];
    out.counter(
        "pod_dns_queries_total",
        "Query packets of the pod, retransmissions too.",
        &pod,
        dns.queries,
    );
    let kind = Kind::dns(dns);
    for (outcome, n) in kind.shown(Outcome::ALL.into_iter().zip(dns.outcomes)) {
        out.counter(
            "pod_dns_lookups_total",
            "Lookups of the pod that ended, by outcome.",
            &with("outcome", outcome.name()),
            n,
        );
    }
    for (cause, n) in kind.shown(Cause::ALL.into_iter().zip(dns.causes)) {
        out.counter(
            "pod_dns_failures_total",
            "Failed lookups of the pod, by what killed them.",
            &with("cause", cause.name()),
            n,
        );
    }
    out.add(
        "pod_dns_lookup_duration_seconds",
        "From the first query to the answer, for the answered lookups of the pod.",
        MetricType::SUMMARY,
        &pod,
        |metric| {
            let mut summary = Summary::default();
            summary.set_sample_count(dns.answered());
            summary.set_sample_sum(dns.duration_ns as f64 / 1e9);
            metric.set_summary(summary);
        },
    );
    for (name, help, n) in [
        (
            "pod_dns_untracked_total",
            "Queries of the pod not followed, for want of room.",
            dns.untracked,
        ),
        (
            "pod_dns_late_responses_total",
            "Answers to the pod after the timeout.",
            dns.late,
        ),
        (
            "pod_dns_unmatched_responses_total",
            "Answers to the pod to nothing asked.",
            dns.unmatched,
        ),
    ] {
        if kind.shows(n) {
            out.counter(name, help, &pod, n);
        }
    }
}

/// What became of the queries that a server received.
pub fn served(dns: &Counts) -> impl Iterator<Item = (&'static str, u64)> {
    let outcomes = Outcome::ALL.iter().map(|outcome| match outcome {
        Outcome::Timeout => "unanswered",
        answered => answered.name(),
    });
    outcomes
        .zip(dns.served)
        .chain([("untracked", dns.served_untracked)])
}
