//! The events that `top` holds, and which of them show.

use std::{
    collections::{HashSet, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use crate::why::evidence::Failure;

/// Events held: about 2 MB.
const HELD: usize = 5_000;

/// Events, oldest first.
#[derive(Debug, Default)]
pub(super) struct Log {
    held: VecDeque<Failure>,
    /// Events that came too fast for this reader.
    pub missed: u64,
}

impl Log {
    /// Takes one over.
    pub fn push(&mut self, failure: Failure) {
        if self.held.len() == HELD {
            self.held.pop_front();
        }
        self.held.push_back(failure);
    }

    /// Marks of all, so that a stream that begins anew does not tell twice.
    pub fn marks(&self) -> HashSet<u64> {
        self.held.iter().map(mark).collect()
    }

    /// In one piece, for the rules.
    pub fn all(&mut self) -> &[Failure] {
        self.held.make_contiguous()
    }

    /// Newest first, those that hold the text anywhere.
    pub fn matching<'a>(&'a self, filter: &'a str) -> impl Iterator<Item = &'a Failure> {
        let filter = filter.to_lowercase();
        let held = self.held.iter().rev();
        held.filter(move |failure| shows(failure, &filter))
    }

    /// One pod's, newest first.
    pub fn of<'a>(&'a self, (namespace, pod): (&'a str, &'a str)) -> Vec<&'a Failure> {
        let held = self.held.iter().rev();
        held.filter(|f| f.namespace == namespace && f.pod == pod)
            .collect()
    }
}

/// What tells an event from others. Not by its time alone: somebody may set the clock.
pub(super) fn mark(failure: &Failure) -> u64 {
    let mut hasher = DefaultHasher::new();
    let parts = [
        &failure.time,
        &failure.kind,
        &failure.namespace,
        &failure.pod,
        &failure.sentence,
    ];
    parts.hash(&mut hasher);
    hasher.finish()
}

/// Does the event hold this text, which is in lower case?
pub(super) fn shows(failure: &Failure, filter: &str) -> bool {
    let words = [
        &failure.namespace,
        "/",
        &failure.pod,
        " ",
        &failure.kind,
        " ",
        &failure.sentence,
    ];
    filter.is_empty() || words.concat().to_lowercase().contains(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(second: usize, pod: &str) -> Failure {
        Failure {
            time: format!("2026-01-01T00:{:02}:{:02}Z", second / 60 % 60, second % 60),
            kind: "dns_failure".into(),
            namespace: "shop".into(),
            pod: pod.into(),
            sentence: format!("A name{second}. failed"),
            ..Failure::default()
        }
    }

    #[test]
    fn the_newest_stay_and_the_filter_looks_everywhere() {
        let mut log = Log::default();
        for second in 0..HELD + 10 {
            let pod = if second % 2 == 0 { "even" } else { "odd" };
            log.push(failure(second, pod));
        }
        assert_eq!(log.all().len(), HELD);
        assert_eq!(log.matching("").count(), HELD);
        assert_eq!(log.matching("SHOP/odd").count(), HELD / 2);
        assert_eq!(log.matching("name4999.").count(), 1);
        assert_eq!(log.of(("shop", "even")).len(), HELD / 2);
        assert_eq!(log.of(("shop", "none")).len(), 0);
    }

    #[test]
    fn events_are_told_apart_by_more_than_their_time() {
        let mut log = Log::default();
        log.push(failure(5, "a"));
        let marks = log.marks();
        assert!(marks.contains(&mark(&failure(5, "a"))));
        for other in [failure(5, "b"), failure(4, "a")] {
            assert!(!marks.contains(&mark(&other)), "{other:?}");
        }
    }
}
