//! Moments that outlive the process: an [`Instant`] as nanoseconds of `CLOCK_MONOTONIC`, which goes on
//! from one process to the next until the machine boots again. For serde's `with`.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::kernel::monotonic;

/// The two clocks side by side. They go at one pace, so one look is enough, and two moments never change
/// places on the way. The narrowest of some looks: between its readings the process may have been off the CPU.
static ANCHOR: LazyLock<(Instant, Duration)> = LazyLock::new(|| {
    let look = || {
        let (before, clock, after) = (Instant::now(), monotonic(), Instant::now());
        (after - before, (before, clock))
    };
    let narrowest = (0..16).map(|_| look()).min_by_key(|(width, _)| *width);
    narrowest.expect("there are some").1
});

fn to_ns(moment: Instant) -> u64 {
    let (now, clock) = *ANCHOR;
    let at = match now.checked_duration_since(moment) {
        Some(age) => clock.saturating_sub(age),
        None => clock + moment.duration_since(now),
    };
    u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)
}

/// The moment of a `CLOCK_MONOTONIC` time in nanoseconds, as `bpf_ktime_get_ns` gives it; never one to come.
pub fn from_ns(ns: u64) -> Instant {
    let (now, clock) = *ANCHOR;
    let at = Duration::from_nanos(ns);
    let moment = if at < clock {
        now.checked_sub(clock.saturating_sub(at))
    } else {
        now.checked_add(at.saturating_sub(clock))
    };
    let now = Instant::now();
    moment.map_or(now, |moment| moment.min(now))
}

/// Writes one.
pub fn serialize<S: Serializer>(moment: &Instant, to: S) -> Result<S::Ok, S::Error> {
    to_ns(*moment).serialize(to)
}

/// Reads one.
pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Instant, D::Error> {
    u64::deserialize(from).map(from_ns)
}

/// The same where there may be none.
pub mod option {
    use super::{Deserialize, Deserializer, Instant, Serialize, Serializer, from_ns, to_ns};

    /// Writes one, or that there is none.
    pub fn serialize<S: Serializer>(moment: &Option<Instant>, to: S) -> Result<S::Ok, S::Error> {
        moment.map(to_ns).serialize(to)
    }

    /// Reads one, if there is one.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Instant>, D::Error> {
        Ok(Option::deserialize(from)?.map(from_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_comes_back() {
        let before = Instant::now();
        let moment = before
            .checked_sub(Duration::from_millis(1500))
            .expect("the machine has run for longer");
        assert_eq!(from_ns(to_ns(moment)), moment);
        assert_eq!(from_ns(to_ns(before)), before);
    }

    #[test]
    fn what_is_to_come_is_now() {
        let before = Instant::now();
        let moment = from_ns(to_ns(before + Duration::from_mins(1)));
        assert!(before <= moment && moment <= Instant::now());
        assert!(from_ns(u64::MAX) <= Instant::now());
    }
}
