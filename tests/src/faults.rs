//! What tracer did wrong in a scene: told as it is found, so that all of it is told, and counted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::panicking;

/// Faults so far. A field of a scene, and not its whole, so that the scene's other fields can be moved
/// out; panics on drop where there are some and nobody has asked for them.
#[derive(Debug, Default)]
pub struct Faults {
    count: u64,
    asked: AtomicBool,
}

impl Faults {
    /// Tells one.
    pub fn note(&mut self, what: &str) {
        eprintln!("{what}");
        self.count += 1;
        self.asked = AtomicBool::new(false);
    }

    /// How many there are; who asks is to judge them.
    pub fn count(&self) -> u64 {
        self.asked.store(true, Ordering::Relaxed);
        self.count
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        let judged = self.count == 0 || self.asked.load(Ordering::Relaxed);
        // A panic while another unwinds would end the process and with it the clean-up.
        assert!(
            judged || panicking(),
            "{} faults are told above",
            self.count
        );
    }
}

#[cfg(test)]
mod tests {
    use super::Faults;

    #[test]
    #[should_panic(expected = "1 faults")]
    fn a_fault_that_nobody_asks_for_is_a_panic() {
        let mut faults = Faults::default();
        assert_eq!(faults.count(), 0);
        faults.note("wrong, for a test");
    }

    #[test]
    fn who_asked_may_pass_over_it() {
        let mut faults = Faults::default();
        faults.note("wrong, for a test");
        assert_eq!(faults.count(), 1);
    }
}
