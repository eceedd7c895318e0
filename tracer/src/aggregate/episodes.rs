//! Since when something fails: an episode begins with the first failure of its kind and ends with
//! five minutes without one. The last episode of each kind stays known, so that what is over can
//! be told too.

use std::time::{Duration, SystemTime};

use super::window::{Attempts, Window};

/// Calm that ends an episode. Longer than the minute of a cron job, so that what fails with each
/// of its runs is one episode.
const CALM: Duration = Duration::from_mins(5);

/// What fails, and of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// `dns`, `neighbour`, `served`, `receive`, `connect`.
    pub signal: &'static str,
    /// Why: one of the signal's causes.
    pub cause: &'static str,
}

/// Totals of one kind: `failed` for its cause, `all` of its signal.
#[derive(Clone, Copy, Debug)]
pub struct Observation {
    /// Which.
    pub kind: Kind,
    /// Since counting began.
    pub totals: Attempts,
}

/// Failures of one kind without a gap of five minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Episode {
    /// What fails.
    pub kind: Kind,
    /// First failure, to the second.
    pub since: SystemTime,
    /// Last failure, likewise.
    pub last: SystemTime,
    /// From the first failure to the last look.
    pub whole: Attempts,
    /// In the window of the ratios.
    pub recent: Attempts,
}

#[derive(Debug)]
struct Track {
    kind: Kind,
    /// As of the last reading.
    totals: Attempts,
    window: Window,
    failed: Option<Failed>,
}

/// An episode so far.
#[derive(Clone, Copy, Debug)]
struct Failed {
    first: SystemTime,
    last: SystemTime,
    /// The same in the seconds of the windows: somebody may set the clock in between.
    last_second: u64,
    /// The totals before the first.
    base: Attempts,
}

/// The episodes of one owner, or of the node.
#[derive(Debug, Default)]
pub struct Episodes {
    tracks: Vec<Track>,
}

impl Episodes {
    /// Takes a reading over.
    pub fn note(
        &mut self,
        observations: impl IntoIterator<Item = Observation>,
        (second, span): (u64, u64),
        now: SystemTime,
    ) {
        for (place, Observation { kind, totals }) in observations.into_iter().enumerate() {
            // They come in the same order each time.
            let is_it = |track: &Track| track.kind == kind;
            let index = if self.tracks.get(place).is_some_and(is_it) {
                Some(place)
            } else {
                self.tracks.iter().position(is_it)
            };
            let index = index.unwrap_or_else(|| {
                self.tracks.push(Track {
                    kind,
                    totals: Attempts::default(),
                    window: Window::default(),
                    failed: None,
                });
                self.tracks.len() - 1
            });
            let track = &mut self.tracks[index];
            if totals.failed > track.totals.failed {
                let lasts =
                    |failed: &Failed| second.saturating_sub(failed.last_second) < CALM.as_secs();
                let (first, base) = match track.failed.filter(lasts) {
                    Some(failed) => (failed.first, failed.base),
                    None => (now, track.totals),
                };
                track.failed = Some(Failed {
                    first,
                    last: now,
                    last_second: second,
                    base,
                });
            }
            track.window.note(second, totals, span);
            track.totals = totals;
        }
    }

    /// The last episode of each kind that has failed.
    pub fn all(&self) -> impl Iterator<Item = Episode> {
        self.tracks.iter().filter_map(|track| {
            let failed = track.failed?;
            let base = failed.base;
            Some(Episode {
                kind: track.kind,
                since: failed.first,
                last: failed.last,
                whole: Attempts {
                    all: track.totals.all.saturating_sub(base.all),
                    failed: track.totals.failed.saturating_sub(base.failed),
                },
                recent: track.window.counts(),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Kind = Kind {
        signal: "neighbour",
        cause: "ipv4_table_full",
    };

    fn note(episodes: &mut Episodes, second: u64, all: u64, failed: u64) {
        let totals = Attempts { all, failed };
        let observation = Observation { kind: FULL, totals };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        episodes.note([observation], (second, 60), now);
    }

    fn only(episodes: &Episodes) -> Option<(u64, u64, Attempts, Attempts)> {
        let seconds = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let all: Vec<Episode> = episodes.all().collect();
        assert!(all.len() <= 1);
        let one = all.first()?;
        Some((seconds(one.since), seconds(one.last), one.whole, one.recent))
    }

    fn counts(all: u64, failed: u64) -> Attempts {
        Attempts { all, failed }
    }

    #[test]
    fn an_episode_has_a_beginning_and_what_failed_since() {
        let mut episodes = Episodes::default();
        note(&mut episodes, 10, 50, 0);
        assert_eq!(only(&episodes), None);
        note(&mut episodes, 20, 60, 3);
        note(&mut episodes, 50, 70, 5);
        assert_eq!(
            only(&episodes),
            Some((20, 50, counts(20, 5), counts(70, 5)))
        );
        // The window forgets, the episode does not.
        note(&mut episodes, 200, 70, 5);
        assert_eq!(only(&episodes), Some((20, 50, counts(20, 5), counts(0, 0))));
    }

    #[test]
    fn setting_the_clock_ends_none() {
        let mut episodes = Episodes::default();
        let observe = |episodes: &mut Episodes, second, clock, failed| {
            let totals = counts(10 * failed, failed);
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(clock);
            episodes.note([Observation { kind: FULL, totals }], (second, 60), now);
        };
        observe(&mut episodes, 1, 10_000, 1);
        observe(&mut episodes, 2, 5_000, 2);
        observe(&mut episodes, 3, 90_000, 3);
        let (since, last, whole, _) = only(&episodes).unwrap();
        assert_eq!((since, last, whole), (10_000, 90_000, counts(30, 3)));
        // Nor does it make one of two.
        observe(&mut episodes, 303, 90_001, 4);
        assert_eq!(only(&episodes).map(|e| e.0), Some(90_001));
    }

    #[test]
    fn five_minutes_of_calm_end_it() {
        let mut episodes = Episodes::default();
        note(&mut episodes, 1, 10, 1);
        note(&mut episodes, 300, 20, 2);
        assert_eq!(only(&episodes).map(|e| (e.0, e.1)), Some((1, 300)));
        note(&mut episodes, 600, 30, 3);
        assert_eq!(
            only(&episodes),
            Some((600, 600, counts(10, 1), counts(10, 1)))
        );
    }
}
