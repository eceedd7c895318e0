//! tracer's figures beside what the clients saw.

use super::client::{RESULTS, Tally};
use crate::metrics::Metrics;
use crate::wait::ensure;

/// Attempts by pod and result.
pub const POD_CONNECTS: &str = "tracer_pod_connects_total";
/// The same of the node.
pub const NODE_CONNECTS: &str = "tracer_node_connects_total";
/// Connections that the peer reset.
pub const RESETS: &str = "tracer_pod_resets_total";
/// Segments of established connections sent again.
pub const RETRANSMITS: &str = "tracer_pod_retransmits_total";
/// Failed attempts to who answers nobody.
pub const DEAD: &str = "tracer_pod_dead_endpoint_attempts_total";
/// Who answers nobody, and whose address it was.
pub const DEAD_INFO: &str = "tracer_dead_endpoint_info";
/// Failures by peer.
pub const PEERS: &str = "tracer_node_peer_failures_total";

/// What tracer says of one pod's attempts is what its clients saw. Each result has a series, but `other`
/// only once an attempt has failed.
pub fn compare(
    metrics: &Metrics,
    [namespace, name]: [(&str, &str); 2],
    tally: &Tally,
) -> Result<(), String> {
    let shown = RESULTS.map(|result| {
        let labels = [namespace, name, ("result", result)];
        (result, metrics.get(POD_CONNECTS, &labels))
    });
    let saw = RESULTS.map(|result| {
        let there = result != "other" || tally.failed() > 0;
        (result, there.then_some(tally.count(result) as f64))
    });
    ensure(shown == saw, || {
        format!(
            "{POD_CONNECTS} of {}: {shown:?}, the clients saw {saw:?}",
            name.1
        )
    })
}

/// What must come to hold of the node when nothing is under way: it is the sum of its pods.
pub fn check_node(metrics: &Metrics) -> Result<(), String> {
    // Attempts of others on the host, in namespaces that no source knows, wait for a name.
    let held = metrics.count("tracer_unattributed_pending", &[("hook", "tcp")]);
    let mut more = 0;
    for result in RESULTS {
        let labels = [("result", result)];
        let node = metrics
            .get(NODE_CONNECTS, &labels)
            .ok_or_else(|| format!("{NODE_CONNECTS} has no {result}"))? as u64;
        let pods = metrics.count(POD_CONNECTS, &labels);
        ensure(node >= pods, || {
            format!("{result}: node {node}, pods {pods}")
        })?;
        more += node - pods;
    }
    ensure(more <= held, || {
        format!("the node has {more} attempts more than its pods, {held} held back")
    })
}

/// As [`compare`], but as many of the attempts may be missing or stand under another result as the
/// kernel showed to no program; see [`crate::unseen`].
pub fn compare_seen(
    metrics: &Metrics,
    pod: [(&str, &str); 2],
    tally: &Tally,
    unseen: u64,
) -> Result<(), String> {
    compare(metrics, pod, tally).or_else(|why| {
        let off: u64 = RESULTS
            .iter()
            .map(|result| {
                let labels = [pod[0], pod[1], ("result", *result)];
                let shown = metrics.count(POD_CONNECTS, &labels);
                shown.abs_diff(tally.count(result))
            })
            .sum();
        let missed = metrics.sum("tracer_program_misses_total", &[("hook", "tcp")]);
        // One that stands under another result is missing there, and one too many here.
        ensure(off <= 2 * unseen, || {
            format!("{why}; {unseen} were shown to no program, {missed} runs missed")
        })
    })
}

/// One pod's counter, 0 without a series.
pub fn of_pod(metrics: &Metrics, name: &str, pod: [(&str, &str); 2]) -> u64 {
    metrics.count(name, &pod)
}

/// One pod's failed attempts to a dead destination; `None` where it is not shown.
pub fn dead_of(metrics: &Metrics, pod: [(&str, &str); 2], destination: &str) -> Option<u64> {
    let labels = [&pod[..], &[("destination", destination)]].concat();
    metrics.get(DEAD, &labels).map(|count| count as u64)
}

/// The last owner shown of a dead destination; `None` where it is not shown as dead.
pub fn last_owner(metrics: &Metrics, destination: &str) -> Option<String> {
    let labels = [("destination", destination)];
    let mut found = metrics.matching(DEAD_INFO, &labels);
    let (labels, value) = found.next()?;
    assert!(found.next().is_none(), "{destination} comes twice");
    assert!(
        (value - 1.0).abs() < f64::EPSILON,
        "{DEAD_INFO} of {destination} is {value}"
    );
    Some(labels.get("last_owner").cloned().unwrap_or_default())
}
