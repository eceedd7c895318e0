//! What `top` itself remembers of each pod while it runs: failures a tick, and the latency buckets
//! of the last minute. The agent keeps no history of pods: a thousand of them would make every
//! snapshot large for what only a person who looks needs. Bounded by the pods of the last snapshot.

use std::collections::{HashMap, VecDeque};

use tracer_common::dns::Counts;

use crate::export::snapshot::{Figures, Snapshot};

/// Ticks of failures kept for each pod.
const TICKS: usize = 60;
/// Span of the quantiles, seconds.
const QUANTILES_OVER: u64 = 60;
/// Seconds between two sets of buckets kept.
const STEP: u64 = 5;

type Buckets = [u64; 14];

/// One pod's.
#[derive(Debug, Default)]
pub(super) struct Trend {
    failures: VecDeque<u64>,
    total: Option<u64>,
    /// Oldest first, with the second they were taken in.
    buckets: VecDeque<(u64, Buckets)>,
    now: Buckets,
}

impl Trend {
    /// Failures a tick, oldest first.
    pub fn failures(&self) -> Vec<u64> {
        self.failures.iter().copied().collect()
    }

    /// Answered lookups of the last minute by duration, or since `top` began.
    pub fn buckets(&self) -> Buckets {
        let mut recent = self.now;
        if let Some((_, oldest)) = self.buckets.front() {
            for (count, before) in recent.iter_mut().zip(oldest) {
                *count = count.saturating_sub(*before);
            }
        }
        recent
    }

    /// Duration below which this share of them stayed, seconds.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let counts = Counts {
            buckets: self.buckets(),
            ..Counts::default()
        };
        counts.quantile(share)
    }

    fn note(&mut self, second: u64, figures: &Figures) {
        let total = failures(figures);
        let grown = self.total.map_or(0, |before| total.saturating_sub(before));
        self.total = Some(total);
        if self.failures.len() == TICKS {
            self.failures.pop_front();
        }
        self.failures.push_back(grown);

        let mut now = Buckets::default();
        for (mine, theirs) in now.iter_mut().zip(&figures.dns.buckets) {
            *mine = *theirs;
        }
        self.now = now;
        let fresh = |(at, _): &(u64, Buckets)| second < at + STEP;
        if !self.buckets.back().is_some_and(fresh) {
            self.buckets.push_back((second, now));
        }
        while self.buckets.len() > 1 && self.buckets[1].0 + QUANTILES_OVER <= second {
            self.buckets.pop_front();
        }
    }
}

/// All that means failure, as one number.
fn failures(figures: &Figures) -> u64 {
    let refused: u64 = figures.neighbour.values().map(|n| n.table_full).sum();
    let lookups: u64 = figures.dns.causes.values().sum();
    let connects = figures.connects.iter();
    let connects = connects.filter(|(result, _)| *result != "established");
    refused + lookups + connects.map(|(_, n)| n).sum::<u64>() + figures.receive_drops
}

/// Of all pods.
#[derive(Debug, Default)]
pub(super) struct Trends {
    pods: HashMap<(String, String), Trend>,
    since: String,
}

impl Trends {
    /// Takes a snapshot over. `second` counts up with time.
    pub fn note(&mut self, second: u64, snapshot: &Snapshot) {
        if self.since != snapshot.since {
            // Another agent, which counts from nothing.
            self.pods.clear();
            self.since.clone_from(&snapshot.since);
        }
        let mut kept = std::mem::take(&mut self.pods);
        for pod in &snapshot.pods {
            let key = (pod.namespace.clone(), pod.pod.clone());
            let mut trend = kept.remove(&key).unwrap_or_default();
            trend.note(second, &pod.figures);
            self.pods.insert(key, trend);
        }
    }

    /// One pod's.
    pub fn of(&self, key: (&str, &str)) -> Option<&Trend> {
        self.pods.get(&(key.0.to_owned(), key.1.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::snapshot::{Dns, Pod};

    fn snapshot(since: &str, failed: u64, fast: u64, slow: u64) -> Snapshot {
        let mut buckets = vec![0; 14];
        (buckets[0], buckets[12]) = (fast, slow);
        let dns = Dns {
            causes: [("server".to_owned(), failed)].into(),
            buckets,
            ..Dns::default()
        };
        Snapshot {
            since: since.into(),
            pods: vec![Pod {
                namespace: "shop".into(),
                pod: "cart".into(),
                figures: Figures {
                    dns,
                    ..Figures::default()
                },
            }],
            ..Snapshot::default()
        }
    }

    #[test]
    fn the_last_minute_counts_and_no_more() {
        let mut trends = Trends::default();
        let key = ("shop", "cart");
        for second in 0..300 {
            // Fast for long, slow of late.
            let slow = if second > 200 { 10 * (second - 200) } else { 0 };
            trends.note(
                second,
                &snapshot("a", 3 * second, 1000 * second.min(200), slow),
            );
        }
        let trend = trends.of(key).unwrap();
        assert_eq!(trend.failures(), vec![3; TICKS]);
        assert_eq!(trend.buckets()[0], 0);
        assert!(trend.buckets()[12] >= 10 * QUANTILES_OVER, "{trend:?}");
        assert!(trend.quantile(0.5).unwrap() > 2.5);
        assert!(trend.buckets.len() as u64 <= QUANTILES_OVER / STEP + 2);
    }

    #[test]
    fn pods_that_go_and_agents_that_start_anew_leave_nothing() {
        let mut trends = Trends::default();
        trends.note(0, &snapshot("a", 50, 100, 0));
        trends.note(1, &snapshot("a", 57, 200, 0));
        assert_eq!(trends.of(("shop", "cart")).unwrap().failures(), [0, 7]);
        trends.note(2, &snapshot("b", 5, 1, 0));
        let trend = trends.of(("shop", "cart")).unwrap();
        assert_eq!((trend.failures(), trend.buckets()[0]), (vec![0], 0));
        trends.note(3, &Snapshot::default());
        assert!(trends.of(("shop", "cart")).is_none());
    }
}
