//! Connections, and destinations that answer nobody.

use tracer_common::tcp::Outcome;

use super::{OTHER, families::Families, zeros::Kind};
use crate::aggregate::{Figures, Picture};

/// The node's.
pub fn node(out: &mut Families, picture: &Picture) {
    let counts = &picture.node.tcp;
    for (result, n) in Outcome::RESULTS.iter().zip(counts.results) {
        out.counter(
            "node_connects_total",
            "TCP connection attempts of the node that ended, by result.",
            &[("result", result.name())],
            n,
        );
    }
    out.counter(
        "node_connect_destinations_untracked_total",
        "Failed attempts whose destination is not watched for being dead, for want of room.",
        &[],
        counts.untracked,
    );
    for dead in &picture.dead_endpoints {
        let owner = dead.tenant.owner.as_ref().map(ToString::to_string);
        out.gauge(
            "dead_endpoint_info",
            "1; a destination that answers nobody, and the pod of this node that had its address last.",
            &[
                ("destination", &dead.destination),
                ("last_owner", owner.as_deref().unwrap_or_default()),
            ],
            1.0,
        );
    }
}

/// A pod's.
pub fn pod(out: &mut Families, figures: &Figures, pod: [(&str, &str); 2]) {
    let counts = &figures.tcp;
    let kind = Kind::tcp(counts);
    // What a server's side of a connection does is no attempt.
    if counts.ended() > 0 {
        for (result, n) in kind.shown(Outcome::RESULTS.into_iter().zip(counts.results)) {
            out.counter(
                "pod_connects_total",
                "TCP connection attempts of the pod that ended, by result.",
                &[pod[0], pod[1], ("result", result.name())],
                n,
            );
        }
    }
    for (name, help, n) in [
        (
            "pod_retransmits_total",
            "TCP segments that the pod sent again on established connections.",
            counts.retransmits,
        ),
        (
            "pod_resets_total",
            "Established connections of the pod that the other end reset.",
            counts.resets,
        ),
        (
            "pod_silent_connections_total",
            "Times that the other end of an established connection of the pod fell silent.",
            counts.silent,
        ),
        (
            "pod_unanswered_connections_total",
            "Connections of the pod whose other end never answered until the pod gave up.",
            counts.unanswered,
        ),
    ] {
        if kind.shows(n) {
            out.counter(name, help, &pod, n);
        }
    }
    for (destination, n) in &figures.dead_attempts {
        let destination = destination.as_deref().unwrap_or(OTHER);
        out.counter(
            "pod_dead_endpoint_attempts_total",
            "Failed attempts of the pod to a destination that answers nobody: the node's busiest 100, \
             else (other).",
            &[pod[0], pod[1], ("destination", destination)],
            *n,
        );
    }
}
