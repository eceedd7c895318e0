//! What a guest said on its serial lines: results by test, and the kernel's own complaints.

use std::{collections::BTreeMap, fmt};

/// Marks the guest script's own lines.
pub const MARK: &str = "tracer-vm: ";

/// The first of them.
pub const UP: &str = "tracer-vm: up";

/// Before the exit status of a test binary.
pub const EXIT: &str = "exit ";

/// On the console: how a program ended.
pub const STATUS: &str = "tracer-vm: status ";

/// libtest's own exit status where a test failed (`ERROR_EXIT_CODE` of library/test/src/lib.rs).
const FAILURE: i32 = 101;

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed,
    Ignored,
    /// It began, and the guest ended or hung in it.
    Unfinished,
    /// It was to run and never began.
    Missing,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "ok",
            Self::Failed => "FAILED",
            Self::Ignored => "ignored",
            Self::Unfinished => "DID NOT END",
            Self::Missing => "DID NOT RUN",
        })
    }
}

/// Results as they come, line by line.
#[derive(Debug)]
pub struct Results {
    /// File, test, and how it ended so far.
    pub tests: Vec<(String, String, Outcome)>,
    file: String,
    current: Option<usize>,
    /// How each binary ended, by file.
    exits: BTreeMap<String, i32>,
    /// The guest's script came to its end.
    pub finished: bool,
}

impl Results {
    /// What is to run.
    pub fn expecting(tests: impl IntoIterator<Item = (String, String)>) -> Self {
        Self {
            tests: tests
                .into_iter()
                .map(|(file, test)| (file, test, Outcome::Missing))
                .collect(),
            file: String::new(),
            current: None,
            exits: BTreeMap::new(),
            finished: false,
        }
    }

    /// Reads one line of the tests' serial line, without its end; also a line that has only begun,
    /// for libtest writes a test's name before it runs.
    pub fn line(&mut self, line: &str) {
        if let Some(words) = line.strip_prefix(MARK) {
            if let Some(file) = words.strip_prefix("file ") {
                file.clone_into(&mut self.file);
                self.current = None;
            } else if let Some(status) = words.strip_prefix(EXIT) {
                self.current = None;
                if let Ok(status) = status.parse() {
                    self.exits.insert(self.file.clone(), status);
                }
            } else if words == "end" {
                self.finished = true;
            }
            return;
        }
        if let Some(rest) = line.strip_prefix("test ")
            && let Some((name, end)) = rest.split_once(" ... ")
            && let Some(index) = self.find(name.split(" - ").next().unwrap_or(name))
        {
            self.current = Some(index);
            self.tests[index].2 = outcome(end).unwrap_or(Outcome::Unfinished);
        } else if line == "failures:" || line.starts_with("test result: ") {
            // What libtest kept of each test follows, and may hold any word.
            self.current = None;
        } else if let Some(index) = self.current
            // What a test writes past libtest's capture stands between its name and its end: the last word is
            // libtest's own, an earlier one may be that of a program that the test runs.
            && let Some(ended) = outcome(line)
        {
            self.tests[index].2 = ended;
        }
    }

    /// Where a binary's exit status and what was read of its tests say different things.
    pub fn faults(&self) -> Vec<String> {
        let mut files: Vec<&str> = self.tests.iter().map(|test| test.0.as_str()).collect();
        files.dedup();
        let faults = files.into_iter().filter_map(|file| {
            let failed = self
                .tests
                .iter()
                .any(|test| test.0 == file && test.2 == Outcome::Failed);
            match (self.exits.get(file), failed) {
                (Some(0), false) | (Some(&FAILURE), true) => None,
                (Some(0), true) => Some(format!("{file}: exit status 0, although a test failed")),
                (Some(status), true) => Some(format!(
                    "{file}: exit status {status}, and {FAILURE} is that of a failed test"
                )),
                (Some(status), false) => Some(format!(
                    "{file}: exit status {status}, although no test failed"
                )),
                // Else the machine's end says it.
                (None, _) => self
                    .finished
                    .then(|| format!("{file}: it did not say how it ended")),
            }
        });
        faults.collect()
    }

    /// The test that is running.
    pub fn running(&self) -> Option<&str> {
        let (_, name, outcome) = &self.tests[self.current?];
        (*outcome == Outcome::Unfinished).then_some(name)
    }

    /// How many ended so.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.tests.iter().filter(|test| test.2 == outcome).count()
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.tests
            .iter()
            .position(|(file, test, _)| *file == self.file && test == name)
    }
}

fn outcome(end: &str) -> Option<Outcome> {
    match end.trim().split(',').next()?.split(" <").next()? {
        "ok" => Some(Outcome::Passed),
        "FAILED" => Some(Outcome::Failed),
        "ignored" => Some(Outcome::Ignored),
        _ => None,
    }
}

/// What kernels before 6.1 say once of each tracing program with maps that allocate; it is meant for
/// programs inside the allocator (docs/kernels.md).
const HARMLESS: &str = "trace type BPF program uses run-time allocation";

/// The lines of the kernel's console that mean that something is wrong with the kernel, whoever did
/// it: a panic, or a check of its own that failed.
pub fn complaints(console: &str) -> Vec<&str> {
    const SIGNS: &[&str] = &[
        "Kernel panic",
        "BUG:",
        "WARNING:",
        "Oops",
        "general protection fault",
        "Call Trace:",
        // As arm64 says it.
        "Call trace:",
        "tracer-vm: cannot",
    ];
    let mut is_harmless = false;
    let mut complaints = Vec::new();
    for line in console.lines() {
        // The kernel's own marks of a warning's end and beginning; its text comes first.
        if line.contains("[ cut here ]") || line.contains("[ end trace") {
            is_harmless = false;
        } else if line.contains(HARMLESS) {
            is_harmless = true;
        } else if !is_harmless && SIGNS.iter().any(|sign| line.contains(sign)) {
            complaints.push(line);
        }
    }
    complaints
}

/// How a program ended, by the console.
pub fn status(console: &str) -> Option<u8> {
    let mut lines = console.lines().rev();
    let number = lines.find_map(|line| line.split_once(STATUS))?.1;
    number.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(output: &str) -> Results {
        let wanted = [("neigh", "a"), ("neigh", "b"), ("gc", "a"), ("gc", "c")];
        let mut results =
            Results::expecting(wanted.map(|(file, test)| (file.to_owned(), test.to_owned())));
        for line in output.lines() {
            results.line(line);
        }
        results
    }

    fn outcomes(results: &Results) -> Vec<Outcome> {
        results.tests.iter().map(|test| test.2).collect()
    }

    #[test]
    fn results_are_kept_by_file_and_name() {
        use Outcome::{Failed, Ignored, Passed};
        let results = results(
            "tracer-vm: file neigh
test a ... ok
test b - should panic ... FAILED
test result: FAILED. 1 passed; 1 failed
tracer-vm: file gc
test a ... ignored, not here
test c ... a line past the capture
ok
tracer-vm: end",
        );
        assert_eq!(outcomes(&results), [Passed, Failed, Ignored, Passed]);
        assert!(results.finished);
    }

    #[test]
    fn a_guest_that_stops_leaves_tests_unfinished() {
        use Outcome::{Missing, Passed, Unfinished};
        let results = results("tracer-vm: file neigh\ntest a ... ok\ntest b ... ");
        assert_eq!(outcomes(&results), [Passed, Unfinished, Missing, Missing]);
        assert_eq!(results.running(), Some("b"));
        assert!(!results.finished);
    }

    #[test]
    fn the_last_word_on_a_test_is_libtests() {
        use Outcome::{Failed, Missing, Passed};
        let results = results(
            "tracer-vm: file neigh
test a ... a program of the test
ok
FAILED
test b ... ok

failures:

---- a stdout ----
ok
test result: FAILED. 1 passed; 1 failed
ok",
        );
        assert_eq!(outcomes(&results), [Failed, Passed, Missing, Missing]);
    }

    #[test]
    fn a_binarys_exit_status_must_fit_its_tests() {
        let of = |neigh: &str, gc: &str| {
            results(&format!(
                "tracer-vm: file neigh\ntest a ... ok\ntest b ... FAILED\n{neigh}
tracer-vm: file gc\ntest a ... ok\ntest c ... ok\n{gc}\ntracer-vm: end"
            ))
            .faults()
        };
        assert!(of("tracer-vm: exit 101", "tracer-vm: exit 0").is_empty());
        assert_eq!(
            of("tracer-vm: exit 0", "tracer-vm: exit 101"),
            [
                "neigh: exit status 0, although a test failed",
                "gc: exit status 101, although no test failed"
            ]
        );
        assert_eq!(
            of("tracer-vm: exit 139", ""),
            [
                "neigh: exit status 139, and 101 is that of a failed test",
                "gc: it did not say how it ended"
            ]
        );
    }

    #[test]
    fn the_kernels_complaints_are_found() {
        let console = "[    1.0] Linux version 6.1
[    2.0] WARNING: CPU: 0 PID: 7 at net/core/neighbour.c:100 neigh_x
[    3.0] Kernel panic - not syncing: Fatal exception";
        assert_eq!(complaints(console).len(), 2);
        assert!(complaints("[    1.0] all is well").is_empty());
        let console = format!(
            "[   28.5] ------------[ cut here ]------------
[   28.5] {HARMLESS}
[   28.5] WARNING: CPU: 1 PID: 132 at kernel/bpf/verifier.c:10519 bpf_check+0x2f8e/0x3470
[   28.5] Call Trace:
[   28.5] ---[ end trace 3e74032a44ca65d6 ]---
[   29.1] BUG: kernel NULL pointer dereference"
        );
        let [complaint] = complaints(&console)[..] else {
            panic!("{:?}", complaints(&console))
        };
        assert!(complaint.contains("BUG:"));
    }

    #[test]
    fn a_programs_end_is_found_among_the_kernels_words() {
        let console = "[    1.0] Linux\ntracer-vm: status 130\r\n[    9.0] sysrq: Power Off";
        assert_eq!(status(console), Some(130));
        assert_eq!(status("[    1.0] Linux"), None);
    }
}
