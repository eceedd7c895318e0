//! Waiting for a condition instead of sleeping and hoping.

use std::fmt::Display;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// Waits until `condition` gives `Ok` and returns its value; panics after `deadline` with the last
/// reason it gave.
pub fn eventually<T, E: Display>(
    deadline: Duration,
    mut condition: impl FnMut() -> Result<T, E>,
) -> T {
    let end = Instant::now() + deadline;
    loop {
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
