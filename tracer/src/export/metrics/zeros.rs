//! Which series of a pod are there before they have counted anything: the one place of that rule.
//!
//! `increase()` sees the first failure only where a scrape before it saw 0, but 0 for every value of
//! every label would be twice as many series as a healthy pod needs. So a pod that has had traffic of a
//! [`Kind`] shows the usual failures of that kind with 0 ([`Expected::USUAL`]), the rest with its first
//! count; and once something of that kind has failed, everything of it, so that what fails next in
//! another way is an increase. The node's series are always all there.

use tracer_common::{
    dns::{self, Cause},
    neigh::{self, Gc},
    tcp,
};

/// The value of a label, and whether it is there with 0 once a pod has had traffic of its kind.
pub trait Expected: Copy + PartialEq + 'static {
    /// Those that are.
    const USUAL: &'static [Self];
}

impl Expected for dns::Outcome {
    /// Failures are in the causes.
    const USUAL: &'static [Self] = &[Self::NoError];
}

impl Expected for Cause {
    const USUAL: &'static [Self] = &[
        Self::NoAnswer,
        Self::Server,
        Self::NeighbourTableFull,
        Self::NeighbourUnresolved,
        Self::Netfilter,
        Self::PortUnreachable,
    ];
}

impl Expected for tcp::Outcome {
    const USUAL: &'static [Self] = &[
        Self::Established,
        Self::Refused,
        Self::Timeout,
        Self::Unreachable,
    ];
}

impl Expected for Gc {
    const USUAL: &'static [Self] = &[];
}

/// What of one kind a pod shows. A second address family is a kind of its own.
#[derive(Clone, Copy)]
pub struct Kind {
    has_failed: bool,
}

impl Kind {
    /// Lookups.
    pub fn dns(counts: &dns::Counts) -> Self {
        Self {
            has_failed: counts.failed() > 0,
        }
    }

    /// Connections.
    pub fn tcp(counts: &tcp::Counts) -> Self {
        Self {
            has_failed: counts.failed() > 0,
        }
    }

    /// Neighbours of one family; entries thrown out to make room are a failure of the table.
    pub fn neighbours(counts: &neigh::Counts) -> Self {
        let forced = counts.evictions[Gc::Forced as usize];
        Self {
            has_failed: counts.table_full + counts.forced_gc + forced > 0,
        }
    }

    /// Of a metric's values with their counts, those that are shown.
    pub fn shown<T: Expected>(
        self,
        counted: impl IntoIterator<Item = (T, u64)>,
    ) -> impl Iterator<Item = (T, u64)> {
        counted
            .into_iter()
            .filter(move |(value, n)| self.shows(*n) || T::USUAL.contains(value))
    }

    /// Is a counter shown that no healthy pod needs?
    pub fn shows(self, n: u64) -> bool {
        n > 0 || self.has_failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn causes(counts: &dns::Counts) -> Vec<(&'static str, u64)> {
        Kind::dns(counts)
            .shown(Cause::ALL.into_iter().zip(counts.causes))
            .map(|(cause, n)| (cause.name(), n))
            .collect()
    }

    #[test]
    fn the_usual_failures_are_there_with_0_and_all_after_the_first_of_any() {
        let mut counts = dns::Counts::default();
        counts.outcomes[dns::Outcome::NxDomain as usize] = 7; // no failure
        let healthy = causes(&counts);
        assert!(healthy.iter().all(|(_, n)| *n == 0), "{healthy:?}");
        assert_eq!(healthy.len(), Cause::USUAL.len());
        counts.outcomes[dns::Outcome::Timeout as usize] = 1;
        counts.causes[Cause::SocketBufferFull as usize] = 1;
        let failing = causes(&counts);
        assert_eq!(failing.len(), Cause::ALL.len());
        assert!(failing.contains(&("socket_buffer_full", 1)));
    }

    #[test]
    fn what_is_unusual_comes_with_its_first_count() {
        let mut counts = neigh::Counts::default();
        let shown = |counts: &neigh::Counts| {
            let of_each = Gc::ALL.into_iter().zip(counts.evictions);
            Kind::neighbours(counts)
                .shown(of_each)
                .map(|(gc, n)| (gc.name(), n))
                .collect::<Vec<_>>()
        };
        assert_eq!(shown(&counts), []);
        counts.evictions[Gc::Periodic as usize] = 2;
        assert_eq!(shown(&counts), [("periodic", 2)]);
        counts.table_full = 1;
        assert_eq!(
            shown(&counts),
            [("forced", 0), ("periodic", 2), ("other", 0)]
        );
    }
}
