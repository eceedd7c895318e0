//! The events that `top` holds, and which of them show.

use std::collections::VecDeque;

use crate::why::evidence::Failure;

/// Events held: about 2 MB.
const HELD: usize = 5_000;

/// Events, oldest first.
#[derive(Debug, Default)]
pub(super) struct Log {
    held: VecDeque<Failure>,
    /// Time of the newest, so that a stream that begins anew does not tell twice.
    newest: String,
    /// Events that came too fast for this reader.
    pub missed: u64,
}

impl Log {
    /// Takes one over.
    pub fn push(&mut self, failure: Failure) {
        if self.held.len() == HELD {
            self.held.pop_front();
        }
        if failure.time > self.newest {
            self.newest.clone_from(&failure.time);
        }
        self.held.push_back(failure);
    }

    /// Time of the newest.
    pub fn newest(&self) -> &str {
        &self.newest
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
    fn the_newest_is_not_always_the_last() {
        let mut log = Log::default();
        log.push(failure(5, "a"));
        log.push(failure(4, "a"));
        assert_eq!(log.newest(), failure(5, "a").time);
    }
}
