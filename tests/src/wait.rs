//! Waiting for a condition instead of sleeping and hoping.

use std::env;
use std::fmt::Display;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// How long to wait for what takes `limit` at most on hardware: `TRACER_PATIENCE` times that in an
/// emulated machine (`cargo xtask vm` sets it). For bounds only, never for a time that is measured
/// or that something is to take.
pub fn patient(limit: Duration) -> Duration {
    let factor = env::var("TRACER_PATIENCE").ok();
    limit
        * factor.map_or(1, |factor| {
            factor.parse().expect("TRACER_PATIENCE is a number")
        })
}

/// What a thread unwinds with when somebody wants it to end: what it made is removed on the way.
#[derive(Clone, Copy, Debug)]
pub struct Interrupted;

static INTERRUPT: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on whoever waits looks at this too; given once, by a program that ends on a signal.
pub fn end_on(interrupt: Arc<AtomicBool>) {
    INTERRUPT.set(interrupt).expect("it is given once");
}

/// Unwinds with [`Interrupted`] if somebody wants that, and no panic is under way.
pub fn check_interrupt() {
    let wanted = |flag: &Arc<AtomicBool>| flag.load(Ordering::Relaxed);
    if INTERRUPT.get().is_some_and(wanted) && !std::thread::panicking() {
        resume_unwind(Box::new(Interrupted));
    }
}

/// Is this an emulated machine? For how much a test asks for at once, where what answers must do so within
/// a measured time; never for what it compares.
pub fn is_emulated() -> bool {
    patient(Duration::from_secs(1)) > Duration::from_secs(1)
}

/// Waits until `condition` gives `Ok` and returns its value; panics after `deadline`
/// ([`patient`]) with the last reason it gave.
pub fn eventually<T, E: Display>(
    deadline: Duration,
    mut condition: impl FnMut() -> Result<T, E>,
) -> T {
    let deadline = patient(deadline);
    let end = Instant::now() + deadline;
    loop {
        check_interrupt();
        match condition() {
            Ok(value) => return value,
            Err(why) if Instant::now() >= end => panic!("after {deadline:?}: {why}"),
            Err(_) => sleep(INTERVAL),
        }
    }
}

/// `Ok` if `holds`, else the reason: glue for [`eventually`].
pub fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_as_soon_as_the_condition_holds() {
        let mut looks = 0;
        let value = eventually(Duration::from_secs(5), || {
            looks += 1;
            ensure(looks >= 3, || format!("{looks} looks")).map(|()| looks)
        });
        assert_eq!(value, 3);
    }

    #[test]
    #[should_panic(expected = "never so")]
    fn panics_with_the_last_reason() {
        eventually(Duration::from_millis(50), || Err::<(), _>("never so"));
    }
}
