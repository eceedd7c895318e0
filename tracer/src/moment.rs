//! Moments that outlive the process: an [`Instant`] as nanoseconds of `CLOCK_MONOTONIC`, which goes on
//! from one process to the next until the machine boots again. For serde's `with`.

use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::kernel::monotonic;

fn to_ns(moment: Instant) -> u64 {
    let (now, clock) = (Instant::now(), monotonic());
    let at = match now.checked_duration_since(moment) {
        Some(age) => clock.saturating_sub(age),
        None => clock + moment.duration_since(now),
    };
    u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)
}

fn from_ns(ns: u64) -> Instant {
    let (now, clock) = (Instant::now(), monotonic());
    let age = clock.saturating_sub(Duration::from_nanos(ns));
    now.checked_sub(age).unwrap_or(now)
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
        let moment = Instant::now()
            .checked_sub(Duration::from_millis(1500))
            .expect("the machine has run for longer");
        let back = from_ns(to_ns(moment));
        let off = back.max(moment).duration_since(back.min(moment));
        assert!(off < Duration::from_millis(100), "{off:?}");
    }
}
