//! Results of tests, as libtest prints them.

use std::{fmt, ops::AddAssign};

/// Results of tests, from the lines that each test binary prints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    pub ignored: u64,
    /// Names of those that failed.
    pub failures: Vec<String>,
    /// Names of those that failed at first, and passed when they were run again.
    pub flaky: Vec<String>,
    /// Test binaries that began, less those that told their results: one that crashed names nothing.
    pub open: u64,
    /// Within a list of failures.
    listing: bool,
}

impl Tally {
    /// Reads a line: of `test result: ok. 3 passed; 0 failed; 1 ignored; …` the figures, of the list
    /// under `failures:` the names; any other line counts nothing.
    pub fn read(&mut self, line: &str) {
        if line.starts_with("running ") && line.contains(" test") {
            self.open += 1;
        } else if let Some(results) = line.strip_prefix("test result: ") {
            self.open -= u64::from(self.open > 0);
            let words: Vec<&str> = results.split_whitespace().collect();
            for pair in words.windows(2) {
                let count: u64 = pair[0].parse().unwrap_or(0);
                match pair[1] {
                    "passed;" => self.passed += count,
                    "failed;" => self.failed += count,
                    "ignored;" => self.ignored += count,
                    _ => {}
                }
            }
        }
        // There are two such lists: what the tests wrote, and the names.
        if self.listing
            && let Some(name) = line.strip_prefix("    ")
            && is_name(name)
        {
            self.failures.push(name.to_owned());
        } else if !line.is_empty() || !self.listing {
            self.listing = line == "failures:";
        }
    }

    /// Takes in that what failed was run again, with these results.
    pub fn again(&mut self, again: &Self) {
        let failed = std::mem::take(&mut self.failures);
        let (flaky, failures) = failed
            .into_iter()
            .partition(|name| !again.failures.contains(name));
        self.flaky.extend::<Vec<_>>(flaky);
        self.failures = failures;
        self.failed = self.failures.len() as u64;
        self.passed += self.flaky.len() as u64;
    }
}

/// A path of Rust, and not a line of a message or of a backtrace.
fn is_name(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':'))
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.failures.extend(other.failures);
        self.flaky.extend(other.flaky);
        self.open += other.open;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "tests: {} passed, {} failed, {} ignored",
            self.passed, self.failed, self.ignored
        )?;
        for name in &self.flaky {
            write!(f, "\n  FLAKY   {name}: failed, and passed when run again")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(output: &str) -> Tally {
        let mut tally = Tally::default();
        output.lines().for_each(|line| tally.read(line));
        tally
    }

    const TWO_FILES: &str = "
running 4 tests
test a::b ... FAILED
test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s

failures:

---- a::b stdout ----

thread 'a::b' panicked at tests/tests/x.rs:1:1:
after 5s: node 117, peers 117
stack backtrace:
    0
   1: core::panicking::panic_fmt

failures:
    a::b
    c

test result: FAILED. 2 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
    d
";

    #[test]
    fn results_are_added_up_and_failures_named() {
        let tally = tally(TWO_FILES);
        assert_eq!((tally.passed, tally.failed, tally.ignored), (5, 2, 1));
        assert_eq!(tally.failures, ["a::b", "c"]);
        assert_eq!(tally.open, 0);
    }

    #[test]
    fn a_binary_that_crashes_stays_open() {
        let crashed = "running 1 test\ntest x ... ok\ntest result: ok. 1 passed;\n\nrunning 2 tests\ntest y ... ";
        assert_eq!(tally(crashed).open, 1);
    }

    #[test]
    fn what_passes_the_second_time_is_flaky() {
        let mut first = tally(TWO_FILES);
        first.again(&tally(
            "failures:\n    c\n\ntest result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured",
        ));
        assert_eq!((first.passed, first.failed), (6, 1));
        assert_eq!(first.failures, ["c"]);
        assert_eq!(first.flaky, ["a::b"]);
        assert!(first.to_string().contains("FLAKY   a::b:"));
    }
}
