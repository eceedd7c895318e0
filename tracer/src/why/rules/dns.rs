//! Lookups that fail for another reason than a full neighbour table.

use serde_json::json;

use super::{Finding, Weight, figures, inside, of_this_node, pod_flag, ratio, since, window};
use crate::export::snapshot::Episode;
use crate::why::evidence::{Facts, Failure, most_common};
use crate::why::words::{count, counted, name, share};

/// Causes that lie on this node, what they mean, and the command that shows more.
const HERE: [(&str, &str, &str); 5] = [
    (
        "netfilter",
        "a netfilter rule on this node drops their packets",
        "nft list ruleset",
    ),
    (
        "socket_buffer_full",
        "a full receive buffer on this node loses their packets: a process reads too slowly",
        "ss -uamn",
    ),
    (
        "neighbour_queue_full",
        "too many packets wait here for one neighbour that does not answer",
        "ip neigh show",
    ),
    (
        "no_route",
        "this node or the pod has no route to the server",
        "ip route",
    ),
    (
        "dropped",
        "the kernel of this node drops their packets for a reason of its own",
        "",
    ),
];

/// Causes that lie elsewhere, or where nothing on this node is seen, and what cannot be known.
const ELSEWHERE: [(&str, &str, &str); 4] = [
    (
        "server",
        "the server answers with an error",
        "why the server answers so: ask the server's own log",
    ),
    (
        "no_answer",
        "no answer came, and no packet of theirs was dropped on this node",
        "whether query or answer was lost beyond this node, or the server is silent: look at the \
         server's node",
    ),
    (
        "port_unreachable",
        "nobody listens at the server's port",
        "why nobody listens there: look at the server's pod",
    ),
    (
        "neighbour_unresolved",
        "the next host on the way to the server does not answer ARP or neighbour discovery",
        "whether that host is gone or cut off",
    ),
];

/// Packets of lookups die on this node.
pub(super) fn killed_here(facts: &Facts) -> Vec<Finding> {
    HERE.into_iter()
        .filter_map(|(cause, means, next)| {
            let episode = facts.active("dns", cause)?;
            let reasons = if cause == "dropped" {
                drop_reasons(facts)
            } else {
                Vec::new()
            };
            let next = match cause {
                "dropped" => events(facts),
                "netfilter" => next.into(),
                _ => where_it_is(facts, cause, next),
            };
            // An answer that finds no socket: its client has stopped waiting, which is no fault of
            // the node.
            let gave_up =
                !reasons.is_empty() && reasons.iter().all(|reason| *reason == "no_socket");
            let means = if gave_up {
                "their clients had closed the socket before the answer came"
            } else {
                means
            };
            let part = ratio(episode.recent_failed, episode.recent_attempts);
            Some(Finding {
                rule: "dns-killed-here",
                weight: if gave_up {
                    Weight::Elsewhere
                } else {
                    of_this_node(episode.recent_failed, part)
                },
                ..finding(
                    facts,
                    episode,
                    &match reasons.last() {
                        Some(reason) => format!("{means} ({reason})"),
                        None => means.to_owned(),
                    },
                    next,
                )
            })
        })
        .collect()
}

/// The command, in the namespace of the pod that it is about, where that is one: of whose buffers are
/// full, client's or server's; else of who asks.
fn where_it_is(facts: &Facts, cause: &str, command: &str) -> String {
    let pod = match facts.pod {
        _ if cause == "socket_buffer_full" => {
            let readers = facts.suffering("receive", cause);
            readers.first().map(|(reader, _)| *reader)
        }
        Some(asked) => Some(asked),
        None => match facts.suffering("dns", cause)[..] {
            [(only, _)] => Some(only),
            _ => None,
        },
    };
    pod.map_or_else(|| command.to_owned(), |pod| inside(facts, pod, command))
}

/// Lookups fail, and nothing on this node is seen to be the cause.
pub(super) fn killed_elsewhere(facts: &Facts) -> Vec<Finding> {
    ELSEWHERE
        .into_iter()
        .filter_map(|(cause, means, unknown)| {
            let episode = facts.active("dns", cause)?;
            // All network namespaces of the node share the table: who has no room in it for the one who
            // asks does not answer him.
            let node = Facts {
                pod: None,
                ..*facts
            };
            let full = ["ipv4_table_full", "ipv6_table_full"]
                .iter()
                .any(|cause| node.active("neighbour", cause).is_some());
            let means = if cause == "neighbour_unresolved" && full {
                "the next host on the way to the server does not answer ARP or neighbour \
                 discovery, as no host on this node can whose entry for the asker is refused"
            } else {
                means
            };
            Some(Finding {
                rule: "dns-killed-elsewhere",
                weight: Weight::Elsewhere,
                unknown: Some(unknown.to_owned()),
                ..finding(facts, episode, means, events(facts))
            })
        })
        .collect()
}

fn finding(facts: &Facts, episode: &Episode, means: &str, next: String) -> Finding {
    let recent = facts.recent("dns_failure", &episode.cause);
    let server = common(&recent, |f| f.towards.as_deref());
    let asked = common(&recent, |f| f.name.as_deref());
    let pods = facts.suffering("dns", &episode.cause);
    let whose = match (facts.pod, &pods[..]) {
        (Some(pod), _) => format!(" of {}", name(pod)),
        (None, [(pod, _)]) => format!(" of {}", name(pod)),
        (None, []) => String::new(),
        (None, many) => format!(" of {}", counted(many.len() as u64, "pod", "pods")),
    };
    let at = server.map_or_else(String::new, |(server, _)| format!(" at {server}"));
    let mainly = asked.map_or_else(String::new, |(asked, n)| {
        format!(", {} of {} recorded for {asked}", n, recent.len())
    });
    Finding {
        rule: "",
        weight: Weight::Elsewhere,
        share: ratio(episode.recent_failed, episode.recent_attempts),
        sentence: format!(
            "{} of the lookups{whose} ({} of {} {}{mainly}) fail{at} {}: {means}",
            share(episode.recent_failed, episode.recent_attempts),
            count(episode.recent_failed),
            count(episode.recent_attempts),
            window(facts),
            since(facts, episode),
        ),
        since: Some(episode.since.clone()),
        figures: figures([
            ("cause", json!(episode.cause)),
            ("lookups_failed", json!(episode.recent_failed)),
            ("lookups", json!(episode.recent_attempts)),
            ("pods", json!(pods.len())),
            ("server", json!(server.map(|(server, _)| server))),
            ("server_failures_recorded", json!(server.map(|(_, n)| n))),
            ("name", json!(asked.map(|(asked, _)| asked))),
            ("failures_recorded", json!(recent.len())),
        ]),
        next,
        unknown: None,
    }
}

/// What most of the recorded failures share; one failure shares nothing with anybody.
fn common<'a>(
    recent: &[&'a Failure],
    part: impl Fn(&'a Failure) -> Option<&'a str>,
) -> Option<(&'a str, usize)> {
    most_common(recent, part)
}

/// The kernel's reasons of the recorded ones, the latest last.
fn drop_reasons<'a>(facts: &'a Facts) -> Vec<&'a str> {
    let recent = facts.recent("dns_failure", "dropped");
    let reason = |f: &&'a Failure| f.sentence.rsplit_once('(')?.1.strip_suffix(')');
    recent.iter().filter_map(reason).collect()
}

fn events(facts: &Facts) -> String {
    format!(
        "tracer events --since 5m --kind dns_failure{}",
        pod_flag(facts)
    )
}
