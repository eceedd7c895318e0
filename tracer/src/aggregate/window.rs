//! Failure ratios over the last `--window`, in buckets of one second.

use std::collections::VecDeque;

/// Attempts and failures since counting began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    /// All.
    pub all: u64,
    /// Those that failed.
    pub failed: u64,
}

/// Running totals, one for each second in which they changed.
#[derive(Debug, Default)]
pub struct Window {
    seconds: VecDeque<(u64, Attempts)>,
    /// The totals at the window's beginning.
    base: Attempts,
}

impl Window {
    /// Notes the totals as they are in a second, and forgets what lies before the window.
    pub fn note(&mut self, second: u64, now: Attempts, span: u64) {
        match self.seconds.back_mut() {
            Some((last, totals)) if *last == second => *totals = now,
            Some((_, totals)) if *totals == now => {}
            None if self.base == now => {}
            _ => self.seconds.push_back((second, now)),
        }
        while let Some((oldest, totals)) = self.seconds.front()
            && oldest + span <= second
        {
            self.base = *totals;
            self.seconds.pop_front();
        }
    }

    /// Attempts and failures in the window. The totals of an owner whose figures end may fall.
    pub fn counts(&self) -> Attempts {
        let now = self.seconds.back().map_or(self.base, |(_, now)| *now);
        Attempts {
            all: now.all.saturating_sub(self.base.all),
            failed: now.failed.saturating_sub(self.base.failed),
        }
    }

    /// Failures ÷ attempts in the window; `None` without attempts.
    pub fn ratio(&self) -> Option<f64> {
        let Attempts { all, failed } = self.counts();
        (all > 0).then(|| failed as f64 / all as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(all: u64, failed: u64) -> Attempts {
        Attempts { all, failed }
    }

    #[test]
    fn the_ratio_is_of_the_window_only() {
        let mut window = Window::default();
        window.note(0, at(0, 0), 10);
        assert_eq!(window.ratio(), None);
        window.note(1, at(10, 10), 10);
        assert_eq!(window.ratio(), Some(1.0));
        window.note(5, at(20, 10), 10);
        assert_eq!(window.ratio(), Some(0.5));
        // Second 1 leaves: ten attempts without a failure remain.
        window.note(11, at(20, 10), 10);
        assert_eq!(window.ratio(), Some(0.0));
        window.note(15, at(20, 10), 10);
        assert_eq!(window.ratio(), None);
    }

    #[test]
    fn an_idle_window_takes_no_room() {
        let mut window = Window::default();
        for second in 0..1000 {
            window.note(second, at(5, 1), 60);
        }
        assert!(window.seconds.is_empty());
        assert_eq!(window.base, at(5, 1));
    }
}
