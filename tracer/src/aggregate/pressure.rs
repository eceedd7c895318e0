//! How close a table is to its limit, as a state that changes seldom.

/// Share of the limit, in per cent, from which the table is under pressure whatever the trend.
const RISING: u64 = 70;
/// The same for [`PressureState::Critical`].
const CRITICAL: u64 = 90;
/// Below this share the pressure may end.
const CALM: u64 = 60;

/// Seconds until full below which the trend is pressure.
const RISING_FORECAST: f64 = 600.0;
/// The same for [`PressureState::Critical`].
const CRITICAL_FORECAST: f64 = 60.0;

/// Share from which a forecast may raise an alarm. A pod that starts and talks to its first peers
/// is a trend too, and most tables are small and grow by bursts. What it costs is small: of a
/// steady fill that takes T from empty, 0.7 T is left at this share, so the omen of a fill of one
/// minute comes some 35 s before the first drop, that of five minutes 210 s, and a fill of more
/// than 15 minutes has less than 600 s left only above this share anyway.
const FORECAST_COUNTS: u64 = 30;
/// Share below which a forecast is not even looked at. Lower than where it raises an alarm, so
/// that a table flushed while its filler goes on does not end the pressure for a moment.
const FORECAST_IGNORED: u64 = 15;

/// Seconds that a trend must have lasted before its forecast raises an alarm: longer than a burst,
/// and than the rise between two periodic garbage collections (15 s, and some until it shows that
/// it is over), which looks like a fill to an agent that has just started.
const TREND_HOLDS: u64 = 20;
/// Seconds that a forecast must then be below its threshold: a burst on top of a slow trend is
/// over.
const FORECAST_HOLDS: u64 = 5;
/// Seconds of calm that end the pressure.
const CALM_FOR: u64 = 30;

/// Pressure on a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PressureState {
    /// Room enough.
    #[default]
    Normal,
    /// 0.7 of the limit, or full in less than 600 s.
    Rising,
    /// 0.9 of the limit, or full in less than 60 s.
    Critical,
}

impl PressureState {
    /// As in events: `normal`, `rising`, `critical`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Rising => "rising",
            Self::Critical => "critical",
        }
    }
}

/// The pressure on one table over time.
///
/// It rises at once with the entries, and with a forecast that holds. It falls to normal only,
/// after 30 s of calm: below 0.6 of the limit and without a forecast of less than 600 s. Never from
/// critical to rising: a table that goes up and down between the two would tell of each wave, and
/// an episode would end with "rising". So an episode has two or three changes at most.
#[derive(Clone, Debug, Default)]
pub struct Pressure {
    state: PressureState,
    /// Since when there has been a forecast at all, without a break.
    trend: Option<u64>,
    /// Since when it has been below [`RISING_FORECAST`].
    soon: Option<u64>,
    /// The same for [`CRITICAL_FORECAST`].
    imminent: Option<u64>,
    calm: Option<u64>,
}

impl Pressure {
    /// The present state.
    pub fn state(&self) -> PressureState {
        self.state
    }

    /// Takes a reading over, about once a second; the new state where it changed. A limit of 0 is
    /// a table that does not exist: normal.
    pub fn update(
        &mut self,
        second: u64,
        entries: u32,
        limit: u32,
        seconds_until_full: f64,
    ) -> Option<PressureState> {
        let before = self.state;
        if limit == 0 {
            *self = Self::default();
        } else {
            self.step(second, entries, limit, seconds_until_full);
        }
        (self.state != before).then_some(self.state)
    }

    fn step(&mut self, second: u64, entries: u32, limit: u32, seconds_until_full: f64) {
        let from = |share: u64| u64::from(entries) * 100 >= u64::from(limit) * share;
        let full_within = |seconds| from(FORECAST_IGNORED) && seconds_until_full < seconds;
        let soon = full_within(RISING_FORECAST);

        let trend_for = lasted(&mut self.trend, second, full_within(f64::INFINITY));
        let soon_for = lasted(&mut self.soon, second, soon);
        let imminent_for = lasted(&mut self.imminent, second, full_within(CRITICAL_FORECAST));
        let calm_for = lasted(&mut self.calm, second, !from(CALM) && !soon);

        // `None` is less than any number.
        let trend = from(FORECAST_COUNTS) && trend_for >= Some(TREND_HOLDS);
        let forecast = |below_for: Option<u64>| trend && below_for >= Some(FORECAST_HOLDS);
        let now = if from(CRITICAL) || forecast(imminent_for) {
            PressureState::Critical
        } else if from(RISING) || forecast(soon_for) {
            PressureState::Rising
        } else {
            PressureState::Normal
        };
        if now > self.state || calm_for >= Some(CALM_FOR) {
            self.state = now;
        }
    }
}

/// For how long something has been so, if it is; `began` remembers.
fn lasted(began: &mut Option<u64>, second: u64, is_so: bool) -> Option<u64> {
    *began = is_so.then(|| began.unwrap_or(second));
    began.map(|began| second.saturating_sub(began))
}

#[cfg(test)]
mod tests {
    use super::{super::forecast::Forecast, PressureState::*, *};

    const NEVER: f64 = f64::INFINITY;

    /// Changes while one reading is repeated, from a second to another.
    fn hold(
        pressure: &mut Pressure,
        seconds: std::ops::Range<u64>,
        (entries, limit, until_full): (u32, u32, f64),
    ) -> Vec<(u64, PressureState)> {
        seconds
            .filter_map(|s| Some((s, pressure.update(s, entries, limit, until_full)?)))
            .collect()
    }

    #[test]
    fn entries_alarm_at_once() {
        let mut pressure = Pressure::default();
        assert_eq!(pressure.update(0, 699, 1000, NEVER), None);
        assert_eq!(pressure.update(1, 700, 1000, NEVER), Some(Rising));
        assert_eq!(pressure.update(2, 899, 1000, NEVER), None);
        assert_eq!(pressure.update(3, 900, 1000, NEVER), Some(Critical));
        assert_eq!(pressure.state(), Critical);
        assert_eq!(
            Pressure::default().update(0, 5000, 1000, 0.0),
            Some(Critical)
        );
    }

    #[test]
    fn calm_of_30_seconds_ends_it() {
        let mut pressure = Pressure::default();
        hold(&mut pressure, 0..1, (950, 1000, NEVER));
        assert_eq!(hold(&mut pressure, 1..30, (599, 1000, NEVER)), []);
        // Once more at 0.6: the calm begins anew.
        assert_eq!(hold(&mut pressure, 30..31, (600, 1000, NEVER)), []);
        assert_eq!(
            hold(&mut pressure, 31..90, (599, 1000, NEVER)),
            [(61, Normal)]
        );
    }

    #[test]
    fn no_change_from_critical_to_rising() {
        let mut pressure = Pressure::default();
        let mut changes = Vec::new();
        for second in 0..600 {
            let entries = 620 + 20 * (second % 15) as u32;
            changes.extend(pressure.update(second, entries, 1000, NEVER));
        }
        assert_eq!(changes, [Rising, Critical]);
    }

    #[test]
    fn a_forecast_alarms_once_it_holds() {
        let mut pressure = Pressure::default();
        assert_eq!(hold(&mut pressure, 0..20, (400, 1000, 20.0)), []);
        hold(&mut pressure, 20..21, (400, 1000, NEVER));
        assert_eq!(
            hold(&mut pressure, 21..50, (400, 1000, 599.0)),
            [(41, Rising)]
        );
        // A burst on top, then for good.
        assert_eq!(hold(&mut pressure, 50..55, (400, 1000, 59.0)), []);
        assert_eq!(hold(&mut pressure, 55..60, (400, 1000, 60.0)), []);
        assert_eq!(
            hold(&mut pressure, 60..80, (400, 1000, 59.0)),
            [(65, Critical)]
        );
        // It goes on below 0.6: no calm.
        assert_eq!(hold(&mut pressure, 80..200, (400, 1000, 300.0)), []);
        assert_eq!(
            hold(&mut pressure, 200..300, (400, 1000, 601.0)),
            [(230, Normal)]
        );
    }

    #[test]
    fn a_forecast_from_a_small_table_is_no_alarm() {
        let mut pressure = Pressure::default();
        assert_eq!(hold(&mut pressure, 0..100, (299, 1000, 10.0)), []);
        assert_eq!(pressure.update(100, 300, 1000, 10.0), Some(Critical));
        // Between the two shares it does not alarm, but holds.
        assert_eq!(hold(&mut pressure, 101..200, (150, 1000, 500.0)), []);
        assert_eq!(
            hold(&mut pressure, 200..300, (149, 1000, 10.0)),
            [(230, Normal)]
        );
    }

    #[test]
    fn a_new_limit_counts_at_once() {
        let mut pressure = Pressure::default();
        assert_eq!(pressure.update(0, 500, 1000, NEVER), None);
        assert_eq!(pressure.update(1, 500, 550, NEVER), Some(Critical));
        assert_eq!(
            hold(&mut pressure, 2..60, (500, 4096, NEVER)),
            [(32, Normal)]
        );
        pressure.update(60, 500, 500, 0.0);
        assert_eq!(pressure.update(61, 0, 0, 0.0), Some(Normal));
        assert_eq!(pressure.update(62, 0, 0, NEVER), None);
    }

    /// Changes of a table that is forecast second by second.
    fn changes(limit: u32, entries: impl Iterator<Item = f64>) -> Vec<(u64, PressureState)> {
        let (mut forecast, mut pressure) = (Forecast::default(), Pressure::default());
        (0..)
            .zip(entries)
            .filter_map(|(second, entries)| {
                let entries = entries as u32;
                forecast.note(second, entries);
                let until_full = forecast.seconds_until(limit);
                Some((second, pressure.update(second, entries, limit, until_full)?))
            })
            .collect()
    }

    #[test]
    fn the_omen_comes_before_the_table_is_full() {
        // Full after so many seconds; at least so many before it: the first word, and critical.
        for (fill, first, critical) in [(20, 5, 1), (60, 35, 35), (300, 200, 45), (1800, 580, 45)] {
            let rate = 924.0 / f64::from(fill);
            let series = (0..600 + fill).map(|s| 100.0 + rate * f64::from((s - 600).max(0)));
            let changes = changes(1024, series);
            let left = |i: usize| (600 + fill) as u64 - changes[i].0;
            let last = changes.len() - 1;
            assert!(last <= 1, "{fill} s: {changes:?}");
            assert_eq!(changes[last].1, Critical, "{fill} s");
            assert!(left(0) >= first && left(last) >= critical, "{changes:?}");
        }
    }

    #[test]
    fn bursts_and_garbage_collection_are_no_omen() {
        for (rate, period) in [(10.0, 15), (5.0, 15), (20.0, 5)] {
            let series = (0..1800).map(|s| 400.0 + rate * f64::from(s % period));
            assert_eq!(changes(1024, series), [], "{rate} a second, {period} s");
        }
        for lasts in [1, 3, 6, 10] {
            let series = (0..600)
                .map(|s| 400.0 + 100.0 * f64::from((s - 300).clamp(0, lasts)) / f64::from(lasts));
            assert_eq!(changes(1024, series), [], "burst of {lasts} s");
        }
    }

    #[test]
    fn names_are_those_of_the_contract() {
        assert_eq!(
            [Normal, Rising, Critical].map(PressureState::name),
            ["normal", "rising", "critical"]
        );
    }
}
