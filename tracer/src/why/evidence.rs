//! What the rules rest on: figures of one snapshot, of the node or of one pod, and the failures that
//! the agent still holds. Nothing here judges.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::export::events::REDACTED;
use crate::export::snapshot::{Episode, Figures, Pod, Snapshot, Table};

/// One event, as far as it says who, when and towards what.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Failure {
    /// RFC 3339, UTC.
    pub time: String,
    /// Such as `dns_failure`.
    pub kind: String,
    /// Kubernetes namespace, or a word in parentheses.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// Whose call it was, where that is known: of the host's process ids.
    pub pid: Option<u32>,
    /// What killed it: a cause, a drop reason, a result, a family.
    pub cause: String,
    /// Name asked for, of lookups.
    pub name: Option<String>,
    /// Server or destination, as it was asked for.
    pub towards: Option<String>,
    /// Where a connection went instead: behind a Service.
    pub backend: Option<String>,
    /// The whole event as a sentence.
    pub sentence: String,
}

impl Failure {
    /// Was this pod hit?
    fn is_of(&self, pod: &Pod) -> bool {
        pod.namespace == self.namespace && pod.pod == self.pod
    }

    /// Reads a line of the stream; `None` for what is no event.
    pub fn parse(line: &str) -> Option<Self> {
        let event: Value = serde_json::from_str(line).ok()?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let kind = text(&event["kind"])?;
        let cause = ["cause", "reason", "result", "family"]
            .into_iter()
            .find_map(|field| text(&event[field]));
        Some(Self {
            time: text(&event["time"])?,
            namespace: text(&event["pod"]["namespace"])?,
            pod: text(&event["pod"]["name"])?,
            pid: event["pid"].as_u64().and_then(|pid| pid.try_into().ok()),
            cause: cause.unwrap_or_default(),
            name: text(&event["qname"]).filter(|name| name != REDACTED),
            backend: text(&event["backend"]),
            towards: text(&event["server"]).or_else(|| text(&event["destination"])),
            sentence: crate::events_cmd::sentence(&event),
            kind,
        })
    }
}

/// All that a verdict may rest on.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// What the agent knows.
    pub snapshot: &'a Snapshot,
    /// Failures it still holds, oldest first.
    pub failures: &'a [Failure],
    /// The pod asked for; `None` for the node.
    pub pod: Option<&'a Pod>,
}

impl<'a> Facts<'a> {
    /// Figures of the pod, or of the whole node.
    pub fn figures(&self) -> &'a Figures {
        self.pod.map_or(&self.snapshot.total, |pod| &pod.figures)
    }

    /// The last episode of this kind, of the pod or the node.
    pub fn episode(&self, signal: &str, cause: &str) -> Option<&'a Episode> {
        episode(self.figures(), signal, cause)
    }

    /// The same, if it goes on.
    pub fn active(&self, signal: &str, cause: &str) -> Option<&'a Episode> {
        self.episode(signal, cause).filter(|e| e.recent_failed > 0)
    }

    /// Pods in which this kind goes on, most failures first.
    pub fn suffering(&self, signal: &str, cause: &str) -> Vec<(&'a Pod, &'a Episode)> {
        let mut pods: Vec<_> = self
            .snapshot
            .pods
            .iter()
            .filter_map(|pod| {
                let episode = episode(&pod.figures, signal, cause)?;
                (episode.recent_failed > 0).then_some((pod, episode))
            })
            .collect();
        pods.sort_by_key(|(_, episode)| std::cmp::Reverse(episode.recent_failed));
        pods
    }

    /// The table of this family.
    pub fn table(&self, family: &str) -> Option<&'a Table> {
        self.snapshot.tables.iter().find(|t| t.family == family)
    }

    /// Who holds the most entries of this family, and how many.
    pub fn top_holder(&self, family: &str) -> Option<(&'a Pod, u64)> {
        self.snapshot
            .pods
            .iter()
            .filter_map(|pod| Some((pod, pod.figures.neighbour.get(family)?.entries)))
            .filter(|(_, entries)| *entries > 0)
            .max_by_key(|(_, entries)| *entries)
    }

    /// Failures of the last window, of this kind and cause, of the pod or the node.
    pub fn recent(&self, kind: &str, cause: &str) -> Vec<&'a Failure> {
        self.in_window(kind)
            .filter(|f| f.cause == cause && self.pod.is_none_or(|pod| f.is_of(pod)))
            .collect()
    }

    /// Failures of the last window, of this kind, of a pod.
    pub fn recent_of(&self, pod: &Pod, kind: &str) -> impl Iterator<Item = &'a Failure> {
        self.in_window(kind).filter(move |f| f.is_of(pod))
    }

    fn in_window(&self, kind: &str) -> impl Iterator<Item = &'a Failure> {
        let from = parse_time(&self.snapshot.time).and_then(|now| {
            now.checked_sub(Duration::from_secs_f64(
                self.snapshot.window_seconds.clamp(0.0, 1e6),
            ))
        });
        self.failures
            .iter()
            .filter(move |f| f.kind == kind && parse_time(&f.time) >= from)
    }
}

fn episode<'a>(figures: &'a Figures, signal: &str, cause: &str) -> Option<&'a Episode> {
    figures
        .episodes
        .iter()
        .find(|e| e.signal == signal && e.cause == cause)
}

/// RFC 3339.
pub fn parse_time(text: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(text).ok()
}

/// What most of them have in common, with how many of all have it; `None` where less than half do.
pub fn most_common<'a>(
    failures: &[&'a Failure],
    part: impl Fn(&'a Failure) -> Option<&'a str>,
) -> Option<(&'a str, usize)> {
    let (value, count) = ranked(failures, part).into_iter().next()?;
    (2 * count >= failures.len()).then_some((value, count))
}

/// Values of one part with how often each occurs, most first, then by name.
pub fn ranked<'a>(
    failures: &[&'a Failure],
    part: impl Fn(&'a Failure) -> Option<&'a str>,
) -> Vec<(&'a str, usize)> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for value in failures.iter().filter_map(|f| part(f)) {
        *counts.entry(value).or_default() += 1;
    }
    let mut ranked: Vec<_> = counts.into_iter().collect();
    ranked.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
    ranked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_read_from_its_line() {
        let line = r#"{"time":"2026-01-01T00:00:01Z","kind":"dns_failure","node":"n",
            "pod":{"namespace":"shop","name":"cart"},"pid":42,"qname":"a.b.","server":"10.0.0.1:53",
            "outcome":"timeout","cause":"no_answer","qtype":"A","waited_seconds":5.0}"#;
        let failure = Failure::parse(line).unwrap();
        assert_eq!((&*failure.pod, &*failure.cause), ("cart", "no_answer"));
        assert_eq!(failure.name.as_deref(), Some("a.b."));
        assert_eq!(failure.pid, Some(42));
        assert_eq!(failure.towards.as_deref(), Some("10.0.0.1:53"));
        assert!(
            failure
                .sentence
                .starts_with("A a.b. at 10.0.0.1:53: timeout")
        );
        for bad in ["", "[]", r#"{"kind":"missed","count":3}"#] {
            assert_eq!(Failure::parse(bad), None);
        }
    }

    #[test]
    fn what_less_than_half_share_is_not_common() {
        let failure = |server: &str| Failure {
            towards: Some(server.into()),
            ..Failure::default()
        };
        let all = ["a", "b", "a", "c"].map(failure);
        let refs: Vec<_> = all.iter().collect();
        assert_eq!(most_common(&refs, |f| f.towards.as_deref()), Some(("a", 2)));
        assert_eq!(most_common(&refs[1..], |f| f.towards.as_deref()), None);
        assert_eq!(most_common(&[], |f| f.towards.as_deref()), None);
    }
}
