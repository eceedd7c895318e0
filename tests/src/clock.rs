//! The wall clock, of which no figure may depend.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

/// The machine's wall clock is off by so much while it lives. Everything on the machine sees it: for virtual machines.
#[derive(Debug)]
pub struct Stepped {
    seconds: i64,
}

impl Stepped {
    /// Sets it forward, or back.
    pub fn by(seconds: i64) -> Self {
        step(seconds);
        Self { seconds }
    }
}

impl Drop for Stepped {
    fn drop(&mut self) {
        step(-self.seconds);
    }
}

fn step(seconds: i64) {
    let now = clock_gettime(ClockId::Realtime);
    let then = Timespec {
        tv_sec: now.tv_sec + seconds,
        ..now
    };
    clock_settime(ClockId::Realtime, then).expect("root may set the clock");
}

/// Seconds since midnight, UTC, by the wall clock.
pub fn second_of_day() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("it is after 1970").as_secs_f64() % 86_400.0
}
