//! TCP connections: destinations where nobody is, and other failures.

use std::collections::BTreeSet;

use serde_json::json;

use super::{Finding, Weight, figures, pod_flag, since, window};
use crate::export::snapshot::{DeadEndpoint, Pod};
use crate::why::evidence::{Facts, most_common, ranked};
use crate::why::words::{count, counted, moment, name, share};

/// Results of a connection attempt that failed, and what each means.
const FAILED: [(&str, &str); 4] = [
    ("refused", "are refused"),
    ("timeout", "get no answer"),
    ("unreachable", "find no way"),
    ("other", "fail"),
];
/// Dead endpoints told in sentences; `top` and the snapshot show them all.
const TOLD: usize = 3;

/// Pods go on calling an address that answers nobody.
pub(super) fn dead_endpoint(facts: &Facts) -> Vec<Finding> {
    let pods = facts.snapshot.pods.iter().filter(|pod| {
        facts
            .pod
            .is_none_or(|asked| (&asked.namespace, &asked.pod) == (&pod.namespace, &pod.pod))
    });
    // Its attempts are of all time: only what fails in the window too goes on.
    let goes_on = pods.filter_map(|pod| {
        let ratio = pod.figures.failure_ratio.get("connect").copied()?;
        (ratio > 0.0).then_some((pod, ratio))
    });
    let mut found: Vec<Finding> = goes_on
        .flat_map(|(pod, ratio)| {
            let dead = called(facts, pod).into_iter().take(TOLD);
            dead.map(move |dead| call(facts, pod, dead, ratio))
        })
        .collect();
    found.sort_by_key(|f| std::cmp::Reverse(f.figures["attempts"].as_u64()));
    found.truncate(TOLD);
    found
}

/// The dead endpoints that a pod, of which attempts fail in the window, calls in it. Their attempts are of all time: an
/// event of the window says which; where none says anything, which may be lost, all count.
fn called<'a>(facts: &Facts<'a>, pod: &'a Pod) -> Vec<&'a DeadEndpoint> {
    let recent: BTreeSet<&str> = facts
        .recent_of(pod, "connect_failure")
        .filter(|f| FAILED.iter().any(|(result, _)| *result == f.cause))
        .flat_map(|f| f.towards.iter().chain(&f.backend))
        .map(String::as_str)
        .collect();
    let dead = pod.figures.dead_endpoints.iter();
    dead.filter(|dead| dead.attempts > 0 && dead.destination != "(other)")
        .filter(|dead| recent.is_empty() || recent.contains(&*dead.destination))
        .collect()
}

fn call(facts: &Facts, pod: &Pod, dead: &DeadEndpoint, ratio: f64) -> Finding {
    let now = &facts.snapshot.time;
    let gone = dead.owner_gone_since.as_deref();
    let was = match (dead.last_owner.as_deref().filter(|o| !o.is_empty()), gone) {
        (Some(owner), Some(since)) => {
            format!(
                "which was {owner} until {} and is nobody now",
                moment(since, now)
            )
        }
        (Some(owner), None) => format!("which is {owner} and answers nobody"),
        (None, _) => "which answers nobody".to_owned(),
    };
    let unknown = dead.last_owner.is_none().then(|| {
        format!(
            "who had {} before: no pod of this node in the last hour",
            dead.destination
        )
    });
    Finding {
        rule: "dead-endpoint",
        weight: Weight::Elsewhere,
        share: ratio,
        sentence: format!(
            "{} calls {}, {was}: {} failed so far",
            name(pod),
            dead.destination,
            counted(dead.attempts, "attempt", "attempts"),
        ),
        since: Some(dead.since.clone()).filter(|since| !since.is_empty()),
        figures: figures([
            ("pod", json!(name(pod))),
            ("destination", json!(dead.destination)),
            ("attempts", json!(dead.attempts)),
            ("last_owner", json!(dead.last_owner)),
            ("owner_gone_since", json!(dead.owner_gone_since)),
            ("connect_failure_ratio", json!(ratio)),
        ]),
        next: format!(
            "tracer events --since 5m --kind connect_failure --pod {}",
            name(pod)
        ),
        unknown,
    }
}

/// Established connections whose other end has fallen silent: it vanished, or takes requests and
/// answers none.
pub(super) fn silent_peer(facts: &Facts) -> Vec<Finding> {
    silences(facts, "silent-peer", "silent", |towards, whose, often| {
        format!(
            "{towards} does not answer on connections of {whose} that are established ({often}): it is \
             cut off, or takes requests and answers none, or this node cannot send to it"
        )
    })
}

/// Connections that the other end's kernel took, and on which nobody answered until the client gave up.
pub(super) fn unanswered(facts: &Facts) -> Vec<Finding> {
    let rule = "connections-unanswered";
    silences(facts, rule, "unanswered", |towards, whose, often| {
        format!(
            "{towards} takes connections of {whose} and never answers, until the client gives up \
             ({often}): its kernel is well, its process starves, is paused or hangs"
        )
    })
}

/// Those towards whom events of this result tell of silence, one finding for each.
fn silences(
    facts: &Facts,
    rule: &'static str,
    result: &str,
    sentence: impl Fn(&str, &str, &str) -> String,
) -> Vec<Finding> {
    let recent = facts.recent("connect_failure", result);
    ranked(&recent, |f| f.towards.as_deref())
        .into_iter()
        .take(TOLD)
        .map(|(towards, times)| {
            let of = || {
                recent
                    .iter()
                    .filter(|f| f.towards.as_deref() == Some(towards))
            };
            let pods: BTreeSet<String> =
                of().map(|f| format!("{}/{}", f.namespace, f.pod)).collect();
            let first = of().next().map(|f| f.time.clone());
            let whose = match (pods.first(), pods.len()) {
                (Some(pod), 1) => pod.clone(),
                (_, pods) => counted(pods as u64, "pod", "pods"),
            };
            let since = first.as_deref().map_or_else(String::new, |first| {
                format!(" since {}", moment(first, &facts.snapshot.time))
            });
            let often = format!(
                "{} {}{since}",
                counted(times as u64, "time", "times"),
                window(facts)
            );
            Finding {
                rule,
                weight: Weight::Elsewhere,
                share: 0.0,
                sentence: sentence(towards, &whose, &often),
                since: first,
                figures: figures([
                    ("destination", json!(towards)),
                    ("recorded", json!(times)),
                    ("pods", json!(pods)),
                ]),
                next: format!(
                    "tracer events --since 5m --kind connect_failure{}",
                    pod_flag(facts)
                ),
                unknown: Some(format!(
                    "whether {towards} hangs, is gone, or the way to it is cut: look at its node"
                )),
            }
        })
        .collect()
}

/// Connection attempts fail, and no dead endpoint explains them.
pub(super) fn connects_fail(facts: &Facts) -> Vec<Finding> {
    let calls_the_dead = |pod: &Pod| !called(facts, pod).is_empty();
    match facts.pod {
        Some(pod) if calls_the_dead(pod) => return Vec::new(),
        None if facts.snapshot.pods.iter().any(calls_the_dead) => {
            return others_fail(facts, calls_the_dead);
        }
        _ => {}
    }
    let with_since = FAILED.into_iter().filter_map(|(result, means)| {
        let episode = facts.active("connect", result)?;
        let recent = facts.recent("connect_failure", result);
        let towards = most_common(&recent, |f| f.towards.as_deref());
        let to = towards.map_or_else(String::new, |(towards, _)| format!(" to {towards}"));
        let of = facts
            .pod
            .map_or_else(String::new, |pod| format!(" of {}", name(pod)));
        Some(finding(
            facts,
            super::ratio(episode.recent_failed, episode.recent_attempts),
            format!(
                "{} of the TCP connects{of}{to} ({} of {} {}) {means} {}",
                share(episode.recent_failed, episode.recent_attempts),
                count(episode.recent_failed),
                count(episode.recent_attempts),
                window(facts),
                since(facts, episode),
            ),
            Some(episode.since.clone()),
        ))
    });
    let found: Vec<Finding> = with_since.collect();
    if !found.is_empty() {
        return found;
    }
    // An agent that does not say since when still has the ratio of the window.
    let ratio = facts.figures().failure_ratio.get("connect").copied();
    let of = facts
        .pod
        .map_or_else(String::new, |pod| format!(" of {}", name(pod)));
    ratio
        .filter(|ratio| *ratio > 0.0)
        .map(|ratio| {
            let sentence = format!(
                "{:.1} % of the TCP connects{of} fail {}",
                100.0 * ratio,
                window(facts)
            );
            finding(facts, ratio, sentence, None)
        })
        .into_iter()
        .collect()
}

/// The same of the pods that call no dead endpoint, where others do.
fn others_fail(facts: &Facts, calls_the_dead: impl Fn(&Pod) -> bool) -> Vec<Finding> {
    let of_result = |(result, means): (&str, &str)| {
        let mut pods = facts.suffering("connect", result);
        pods.retain(|(pod, _)| !calls_the_dead(pod));
        let (worst, first) = pods.first()?;
        let failed = pods.iter().map(|(_, e)| e.recent_failed).sum();
        let all = pods.iter().map(|(_, e)| e.recent_attempts).sum();
        let whose = match pods.len() as u64 {
            1 => name(worst),
            pods => counted(pods, "pod", "pods"),
        };
        let began = pods.iter().map(|(_, e)| *e).min_by_key(|e| &e.since);
        let began = began.unwrap_or(first);
        let sentence = format!(
            "{} of the TCP connects of {whose} ({} of {} {}) {means} {}",
            share(failed, all),
            count(failed),
            count(all),
            window(facts),
            since(facts, began),
        );
        let ratio = super::ratio(failed, all);
        Some(finding(facts, ratio, sentence, Some(began.since.clone())))
    };
    FAILED.into_iter().filter_map(of_result).collect()
}

fn finding(facts: &Facts, ratio: f64, sentence: String, since: Option<String>) -> Finding {
    Finding {
        rule: "connects-fail",
        weight: Weight::Elsewhere,
        share: ratio,
        sentence,
        since,
        figures: figures([
            ("connect_failure_ratio", json!(ratio)),
            ("connects", json!(facts.figures().connects)),
        ]),
        next: format!(
            "tracer events --since 5m --kind connect_failure{}",
            pod_flag(facts)
        ),
        unknown: Some("whether the far side is down or the way to it: look at its node".into()),
    }
}
