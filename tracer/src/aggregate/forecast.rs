//! When a table will be full, from the trend of its last minutes.
//!
//! Garbage collection makes a saw-tooth of the table: a rise from a trough back to the last peak
//! says nothing about the limit. So the trend is that of the **crest**, the highest of the last
//! 20 s; and of its latest straight stretch, as long as it goes: short after a change, so that the
//! forecast follows, long in a slow fill, so that noise does not matter.
//!
//! What it cannot know is the future: below gc_thresh2 the forced garbage collection has not yet
//! begun, and may keep a table from filling that was on its way.

use std::collections::VecDeque;

/// How far a trend looks back.
const MEMORY: u64 = 300;

/// Periodic garbage collection comes every 15 s, forced every 5 s (above gc_thresh2): the highest
/// of so many seconds holds a peak of either.
const CREST: u64 = 20;

/// The stretches tried for a trend, longest first: each so much shorter that a fill that began in
/// between bends the line by no more than a fifth.
const SPANS: [f64; 21] = [
    300.0, 240.0, 190.0, 150.0, 120.0, 96.0, 77.0, 61.0, 49.0, 39.0, 31.0, 25.0, 20.0, 16.0, 13.0,
    10.0, 8.0, 7.0, 6.0, 5.0, 4.0,
];

/// No trend from fewer samples than this, or from a shorter time in seconds.
const SHORTEST: u8 = 4;

/// Waves of so long ago still make a short trend suspicious: three periods of garbage collection
/// and some.
const WAVES: f64 = 60.0;

/// The fill of one table over time.
#[derive(Clone, Debug, Default)]
pub struct Forecast {
    /// At most one a second, of the last `MEMORY + CREST` seconds.
    samples: VecDeque<(u64, u32)>,
}

impl Forecast {
    /// Notes the entries in a second; the highest of several counts. Seconds may be missing; one
    /// before the last is ignored.
    pub fn note(&mut self, second: u64, entries: u32) {
        match self.samples.back_mut() {
            Some((last, _)) if *last > second => return,
            Some((last, highest)) if *last == second => *highest = entries.max(*highest),
            _ => self.samples.push_back((second, entries)),
        }
        while let Some((oldest, _)) = self.samples.front()
            && oldest + MEMORY + CREST < second
        {
            self.samples.pop_front();
        }
    }

    /// Seconds from the last sample until the table holds `limit` entries; 0 where it does,
    /// infinity without a rising trend. A limit of 0 is a table that does not exist: infinity.
    pub fn seconds_until(&self, limit: u32) -> f64 {
        let Some(&(_, entries)) = self.samples.back() else {
            return f64::INFINITY;
        };
        if limit == 0 {
            return f64::INFINITY;
        }
        if entries >= limit {
            return 0.0;
        }
        // Half a per cent of the table either way is noise, and so are three entries.
        let noise = (f64::from(limit) / 200.0).max(3.0);
        let points = self.points(noise);
        let crest = points.last().map_or(0.0, |point| point.crest);
        // The crest may have been at the limit: room for one, for the table is below it now.
        let room = (f64::from(limit) - crest).max(1.0);
        trend(&points, noise).map_or(f64::INFINITY, |slope| room / slope)
    }

    fn points(&self, noise: f64) -> Vec<Point> {
        let now = self.samples.back().map_or(0, |(second, _)| *second);
        let mut points = Vec::with_capacity(self.samples.len());
        // Those of the window that nothing later has reached: the first is the highest.
        let mut highest: VecDeque<(u64, u32)> = VecDeque::new();
        for &(second, entries) in &self.samples {
            highest.retain(|&(at, n)| at + CREST > second && n > entries);
            highest.push_back((second, entries));
            let crest = f64::from(highest[0].1);
            points.push(Point {
                at: -((now - second) as f64),
                crest,
                below: f64::from(entries) < crest - 2.0 * noise,
            });
        }
        points
    }
}

#[derive(Clone, Copy, Debug)]
struct Point {
    /// Seconds from now: 0 or less.
    at: f64,
    /// The highest of the last seconds.
    crest: f64,
    /// Whether the table is clearly below its crest.
    below: bool,
}

/// Entries a second along the longest straight stretch that ends now; `None` where it is flat or
/// falls, or nothing is straight.
fn trend(points: &[Point], noise: f64) -> Option<f64> {
    for span in SPANS {
        let latest = since(points, span);
        let length = -latest.first()?.at;
        if latest.len() < usize::from(SHORTEST) || length < f64::from(SHORTEST) {
            return None;
        }
        let line = Line::through(latest)?;
        let rise = line.slope * length;
        let wave = longest_wave(since(points, span.max(WAVES)));
        let deviation = line.deviation(latest);
        // A crest that climbs from wave to wave does so in stairs, half a step off its line. Random
        // arrivals stray in proportion to the rise.
        if deviation > noise + 0.07 * rise.abs() + 0.6 * line.slope.abs() * wave {
            continue;
        }
        if rise < 2.0 * noise {
            return None;
        }
        // A step (a burst, then flat) lies a third of its fitted rise off the line: no trend. Less
        // than four waves show the climb of a wave, not that of the crest.
        if deviation <= 0.25 * rise && length >= 4.0 * wave {
            return Some(line.slope);
        }
    }
    None
}

fn since(points: &[Point], span: f64) -> &[Point] {
    &points[points.partition_point(|point| point.at < -span)..]
}

/// The longest time below a crest that was then reached again, or still may be. A crest that was
/// given up (it left the window before the table came back to it) makes no wave.
fn longest_wave(points: &[Point]) -> f64 {
    let mut longest = 0.0_f64;
    let mut began = None;
    let mut crest = 0.0;
    for point in points {
        if point.crest < crest {
            began = None;
        }
        crest = point.crest;
        match (point.below, began) {
            (true, None) => began = Some(point.at),
            (false, Some(at)) => {
                longest = longest.max(point.at - at);
                began = None;
            }
            _ => {}
        }
    }
    began.map_or(longest, |at: f64| longest.max(-at))
}

/// Least squares.
struct Line {
    slope: f64,
    now: f64,
}

impl Line {
    fn through(points: &[Point]) -> Option<Self> {
        let n = points.len() as f64;
        let mean_at = points.iter().map(|p| p.at).sum::<f64>() / n;
        let mean = points.iter().map(|p| p.crest).sum::<f64>() / n;
        let (mut above, mut below) = (0.0, 0.0);
        for point in points {
            above += (point.at - mean_at) * (point.crest - mean);
            below += (point.at - mean_at).powi(2);
        }
        let slope = above / below;
        slope.is_finite().then_some(Self {
            slope,
            now: mean - slope * mean_at,
        })
    }

    fn deviation(&self, points: &[Point]) -> f64 {
        points
            .iter()
            .map(|p| (p.crest - self.now - self.slope * p.at).abs())
            .fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u32 = 1024;

    /// The forecast in each second of a series.
    fn forecasts(limit: u32, entries: impl IntoIterator<Item = f64>) -> Vec<f64> {
        let mut forecast = Forecast::default();
        (0..)
            .zip(entries)
            .map(|(second, entries)| {
                forecast.note(second, entries.max(0.0) as u32);
                forecast.seconds_until(limit)
            })
            .collect()
    }

    fn finite(forecasts: &[f64]) -> usize {
        forecasts.iter().filter(|t| t.is_finite()).count()
    }

    /// Even between -1 and 1, always the same.
    fn noise(seed: u64) -> impl Iterator<Item = f64> {
        let mut state = seed;
        std::iter::repeat_with(move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as f64 / f64::from(1_u32 << 30) - 1.0
        })
    }

    /// Flat for a while, then full within `fill` seconds: the second of the fill from which the
    /// forecast stays within a fifth, until a tenth of the time is left.
    fn learned(flat: usize, fill: usize, spread: f64) -> usize {
        let rate = f64::from(LIMIT - 100) / fill as f64;
        let series = (0..flat + fill)
            .map(|second| 100.0 + rate * second.saturating_sub(flat) as f64)
            .zip(noise(7))
            .map(|(entries, noise)| entries + spread * noise);
        let forecasts = forecasts(LIMIT, series);
        let off = |second: &usize| {
            let left = (fill - second) as f64;
            let error = forecasts[flat + second] - left;
            error.is_nan() || error.abs() > 0.2 * left
        };
        (0..fill * 9 / 10)
            .rev()
            .find(off)
            .map_or(0, |last| last + 1)
    }

    #[test]
    fn linear_fills_are_forecast_within_a_fifth() {
        for (fill, from_start, after_flat, noisy) in [
            (20, 4, 5, 8),
            (60, 4, 10, 20),
            (300, 10, 25, 60),
            (1800, 30, 100, 180),
        ] {
            let measured = [(0, 0.0), (600, 0.0), (600, 5.0)]
                .map(|(flat, spread)| learned(flat, fill, spread));
            let within =
                measured[0] <= from_start && measured[1] <= after_flat && measured[2] <= noisy;
            assert!(within, "full in {fill} s: learned after {measured:?} s");
        }
    }

    #[test]
    fn nothing_is_said_from_less_than_four_seconds() {
        let forecasts = forecasts(LIMIT, (0..8).map(|s| f64::from(s) * 50.0));
        assert_eq!(finite(&forecasts[..4]), 0);
        assert_eq!(finite(&forecasts[4..]), 4);
    }

    #[test]
    fn at_the_limit_is_full() {
        let mut forecast = Forecast::default();
        assert!(forecast.seconds_until(LIMIT).is_infinite());
        forecast.note(0, LIMIT);
        assert!(forecast.seconds_until(LIMIT) <= 0.0);
        assert!(forecast.seconds_until(LIMIT + 1).is_infinite());
        assert!(forecast.seconds_until(0).is_infinite());
    }

    #[test]
    fn flat_noisy_and_falling_tables_have_no_forecast() {
        for spread in [0.0, 2.0, 5.0, 10.0] {
            let series = noise(3).take(3600).map(|noise| 400.0 + spread * noise);
            assert_eq!(finite(&forecasts(LIMIT, series)), 0, "noise of {spread}");
        }
        let falling = (0..400).map(|s| 900.0 - 2.0 * f64::from(s));
        assert_eq!(finite(&forecasts(LIMIT, falling)), 0);
    }

    #[test]
    fn a_burst_is_no_trend_once_it_is_over() {
        for lasts in [1, 2, 5, 8, 12] {
            for begins in [8, 600] {
                let series = (0..begins + 600).map(|s: usize| {
                    400.0 + 100.0 * s.saturating_sub(begins).min(lasts) as f64 / lasts as f64
                });
                let forecasts = forecasts(LIMIT, series);
                assert_eq!(finite(&forecasts[..begins]), 0);
                let after = finite(&forecasts[begins + lasts..]);
                assert!(after <= 5, "burst of {lasts} s: {after} s after it");
                assert!(lasts > 2 || finite(&forecasts) == 0);
            }
        }
    }

    #[test]
    fn garbage_collection_is_no_trend() {
        for (rate, period) in [(10.0, 15), (30.0, 15), (5.0, 15), (20.0, 5), (60.0, 5)] {
            let series = (0..1800).map(|s| 400.0 + rate * f64::from(s % period));
            // The first rise may be one: nothing else has been seen.
            let first = finite(&forecasts(LIMIT, series)[25..]);
            assert_eq!(first, 0, "{rate} a second, every {period} s");

            // Where the waves are not all as high, their crests may climb for a while.
            let series = (0..1800)
                .zip(noise(5))
                .map(|(s, noise)| 400.0 + rate * f64::from(s % period) * (1.0 + 0.1 * noise));
            let rare = finite(&forecasts(LIMIT, series)[25..]);
            assert!(rare <= 36, "{rate} a second, every {period} s: {rare} s");
        }
    }

    #[test]
    fn a_climbing_saw_tooth_is_forecast_by_its_crest() {
        // 10 a second, of which garbage collection takes 5: crests climb by 5 a second.
        let series = (0..190).map(|s| 100.0 + 10.0 * f64::from(s) - 75.0 * f64::from(s / 15));
        let forecasts = forecasts(LIMIT, series);
        // It is full at the crest at or before second 170.
        for (second, forecast) in forecasts.iter().enumerate().take(140).skip(60) {
            let left = 170.0 - second as f64;
            let error = (forecast - left).abs() / left;
            assert!(error < 0.25, "in second {second}: {forecast}, not {left}");
        }
    }

    #[test]
    fn a_crest_that_is_gone_does_not_hide_the_next_fill() {
        let flushed = (0..500).map(|s: i32| match s - 400 {
            ..0 => 900.0,
            filling => 10.0 * f64::from(filling),
        });
        let forecasts = forecasts(LIMIT, flushed);
        assert_eq!(finite(&forecasts[..420]), 0);
        for (second, forecast) in forecasts.iter().enumerate().skip(425) {
            let left = 502.4 - second as f64;
            assert!(
                (forecast - left).abs() < 1.0,
                "in second {second}: {forecast}"
            );
        }
    }

    #[test]
    fn another_limit_counts_at_once() {
        let mut forecast = Forecast::default();
        for second in 0..=30 {
            forecast.note(second, 10 * second as u32);
        }
        for (limit, expected) in [(600, 30.0), (1024, 72.4), (400, 10.0), (300, 0.0)] {
            let seconds = forecast.seconds_until(limit);
            assert!((seconds - expected).abs() < 0.1, "limit {limit}: {seconds}");
        }
    }

    #[test]
    fn gaps_repeats_and_a_clock_that_goes_back_do_no_harm() {
        let mut forecast = Forecast::default();
        for second in (0..=60).filter(|s| s % 7 != 3 && !(20..35).contains(s)) {
            forecast.note(second, 5 * second as u32);
            forecast.note(second, 0);
            forecast.note(second / 2, 900);
        }
        assert!((forecast.seconds_until(LIMIT) - 144.8).abs() < 1.0);
        // After a long gap nothing is known of the trend.
        forecast.note(10_000, 400);
        assert!(forecast.seconds_until(LIMIT).is_infinite());
        assert_eq!(forecast.samples.len(), 1);
        for second in 10_000..20_000 {
            forecast.note(second, 400);
        }
        assert!(forecast.samples.len() as u64 <= MEMORY + CREST + 1);
    }
}
