//! The node's last ten minutes in steps of five seconds, for whoever looks only once things have
//! gone wrong. Bounded: 120 steps of ten numbers; pods have none, for a thousand of them would.

use std::collections::VecDeque;

use super::window::Attempts;

/// Seconds of a step.
pub const STEP: u64 = 5;
/// Steps kept.
const STEPS: usize = 120;

/// What is noted of each reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Lookups ended.
    pub dns: Attempts,
    /// Neighbour creations.
    pub neighbour: Attempts,
    /// TCP connection attempts ended.
    pub connect: Attempts,
}

/// One step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Highest number of neighbour entries seen, by family.
    pub entries: [u32; 2],
    /// In this step.
    pub dns: Attempts,
    /// In this step.
    pub neighbour: Attempts,
    /// In this step.
    pub connect: Attempts,
}

/// Steps, oldest first.
#[derive(Debug, Default)]
pub struct History {
    samples: VecDeque<Sample>,
    step: u64,
    /// As of the end of the step before.
    base: Totals,
    /// As of the last reading.
    last: Totals,
}

impl History {
    /// Takes a reading over. `second` counts up with time.
    pub fn note(&mut self, second: u64, entries: [u32; 2], now: Totals) {
        let step = second / STEP;
        if self.samples.is_empty() {
            self.base = now;
            self.samples.push_back(Sample::default());
        } else if step > self.step {
            self.base = self.last;
            // A step that nobody read in shows as the last one did: entries stay, nothing happens.
            let missed = (step - self.step - 1).min(STEPS as u64);
            let idle = Sample {
                entries: self.samples.back().map_or([0; 2], |last| last.entries),
                ..Sample::default()
            };
            self.samples.extend((0..missed).map(|_| idle));
            self.samples.push_back(Sample::default());
        }
        self.step = step;
        self.last = now;
        while self.samples.len() > STEPS {
            self.samples.pop_front();
        }
        let grown = |now: Attempts, base: Attempts| Attempts {
            all: now.all.saturating_sub(base.all),
            failed: now.failed.saturating_sub(base.failed),
        };
        if let Some(sample) = self.samples.back_mut() {
            for (highest, entries) in sample.entries.iter_mut().zip(entries) {
                *highest = entries.max(*highest);
            }
            sample.dns = grown(now.dns, self.base.dns);
            sample.neighbour = grown(now.neighbour, self.base.neighbour);
            sample.connect = grown(now.connect, self.base.connect);
        }
    }

    /// The steps, oldest first; the last is not over yet.
    pub fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(all: u64, failed: u64) -> Totals {
        Totals {
            dns: Attempts { all, failed },
            ..Totals::default()
        }
    }

    #[test]
    fn steps_hold_what_happened_in_them() {
        let mut history = History::default();
        for (second, entries, now) in [
            (3, 10, totals(100, 9)),
            (4, 30, totals(110, 9)),
            (5, 20, totals(120, 12)),
            (9, 5, totals(130, 13)),
            (21, 6, totals(140, 13)),
        ] {
            history.note(second, [entries, 0], now);
        }
        let samples: Vec<_> = history
            .samples()
            .map(|s| (s.entries[0], s.dns.all, s.dns.failed))
            .collect();
        // What was there at the first reading happened before.
        let expected = [(30, 10, 0), (20, 20, 4), (20, 0, 0), (20, 0, 0), (6, 10, 0)];
        assert_eq!(samples, expected);
    }

    #[test]
    fn old_steps_go() {
        let mut history = History::default();
        for second in 0..5000 {
            history.note(second, [1, 1], totals(second, 0));
        }
        assert_eq!(history.samples().count(), STEPS);
        history.note(u64::MAX, [1, 1], totals(1, 0));
        assert_eq!(history.samples().count(), STEPS);
    }
}
