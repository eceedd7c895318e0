//! An incident played on the real kernel: what happened when, when tracer named it, and what tracer
//! printed. Tests assert on it, `cargo xtask demo` shows it, `docs/incidents/` holds one of each.

pub mod dead_endpoint;
pub mod overflow;
pub mod page;
pub mod pods;
pub mod sick_node;

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::agent::Agent;
use crate::process::{run, tracer};
use crate::wait::patient;

/// A culprit is to have a name by then.
pub const NAMED_WITHIN: Duration = Duration::from_mins(1);

/// What a moment is in the course of an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Something goes on.
    Step,
    /// It begins; nothing need fail yet.
    Onset,
    /// tracer warns, and nothing has failed yet.
    Omen,
    /// The first failure, by who was hit or by the kernel, not by tracer.
    Failure,
    /// tracer names who is hit or guilty, and why.
    Named,
    /// Nothing fails any more, and tracer says so.
    Over,
}

impl Stage {
    /// In a table.
    pub fn label(self) -> &'static str {
        match self {
            Self::Step => "",
            Self::Onset => "onset",
            Self::Omen => "first omen",
            Self::Failure => "first failure",
            Self::Named => "named",
            Self::Over => "over",
        }
    }
}

/// One line of a timeline.
#[derive(Clone, Debug)]
pub struct Moment {
    /// When it was.
    pub at: Instant,
    /// What it is.
    pub stage: Stage,
    /// What happened, in a sentence.
    pub text: String,
}

/// Words of tracer.
#[derive(Clone, Debug)]
pub struct Printed {
    /// The command, such as `tracer why`.
    pub command: String,
    /// What it printed.
    pub output: String,
}

/// Who watches while it is played.
pub trait Audience {
    /// There is something to be seen now, by `tracer top` with these arguments.
    fn top(&mut self, arguments: &[&str]);
    /// This happens. May take its time, while the play's clients go on.
    fn caption(&mut self, moment: &Moment);
    /// tracer printed this.
    fn printed(&mut self, printed: &Printed);
    /// That was it; returns when the audience has seen enough.
    fn end(&mut self) {}
}

/// A test's: everything goes to stderr, at once.
#[derive(Clone, Copy, Debug)]
pub struct Log;

impl Audience for Log {
    fn top(&mut self, _arguments: &[&str]) {}

    fn caption(&mut self, moment: &Moment) {
        let label = moment.stage.label();
        // Not `eprintln!`, which the harness holds back.
        let _ = writeln!(std::io::stderr(), "{label:>13}  {}", moment.text);
    }

    fn printed(&mut self, printed: &Printed) {
        eprintln!("$ {}\n{}", printed.command, printed.output);
    }
}

/// The course of an incident.
pub struct Timeline {
    audience: Box<dyn Audience>,
    moments: Vec<Moment>,
    printed: Vec<Printed>,
}

impl std::fmt::Debug for Timeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text())
    }
}

impl Timeline {
    /// Nothing has happened.
    pub fn new(audience: impl Audience + 'static) -> Self {
        Self::with(Box::new(audience))
    }

    /// The same, where the audience is known at run time only.
    pub fn with(audience: Box<dyn Audience>) -> Self {
        Self {
            audience,
            moments: Vec::new(),
            printed: Vec::new(),
        }
    }

    /// A test's.
    pub fn of_test() -> Self {
        Self::new(Log)
    }

    /// That was it: whoever watches may look on for as long as all is still there.
    pub fn linger(&mut self) {
        self.audience.end();
    }

    /// There is an agent to be watched.
    pub fn watch(&mut self, agent: &Agent) {
        self.audience.top(&["--agent", &agent.address()]);
    }

    /// There are all nodes to be watched, by this Prometheus.
    pub fn watch_cluster(&mut self, prometheus: &str) {
        // More often than in a real cluster, where nothing is new within seconds.
        let interval = ["--interval", "2s"];
        self.audience
            .top(&[&["--prometheus", prometheus], &interval[..]].concat());
    }

    /// This happens now.
    pub fn now(&mut self, stage: Stage, text: impl Into<String>) {
        self.at(Instant::now(), stage, text);
    }

    /// This happened then; of each stage but [`Stage::Step`] the earliest counts.
    pub fn at(&mut self, at: Instant, stage: Stage, text: impl Into<String>) {
        let text = text.into();
        let moment = Moment { at, stage, text };
        let after = self.moments.partition_point(|earlier| earlier.at <= at);
        self.moments.insert(after, moment.clone());
        self.audience.caption(&moment);
    }

    /// Runs `tracer ARGUMENTS --agent …`, keeps what it printed and gives it.
    pub fn ask(&mut self, agent: &Agent, arguments: &[&str]) -> String {
        self.ask_head(agent, arguments, usize::MAX)
    }

    /// The same, of which only so many lines are kept and given.
    pub fn ask_head(&mut self, agent: &Agent, arguments: &[&str], lines: usize) -> String {
        let address = agent.address();
        let mut command = tracer();
        command.args(arguments).args(["--agent", &address]);
        let mut shown = format!("tracer {}", arguments.join(" "));
        if lines < usize::MAX {
            shown = format!("{shown} | head -{lines}");
        }
        self.show(&shown, &mut command, lines)
    }

    /// Runs a command of tracer, keeps so many lines of what it printed, under the name `shown`, and gives them.
    pub fn show(&mut self, shown: &str, command: &mut Command, lines: usize) -> String {
        let ended = run(command, Duration::from_secs(10));
        assert!(ended.status.success(), "{command:?}: {ended:#?}");
        let printed = Printed {
            command: shown.to_owned(),
            output: ended.stdout.split_inclusive('\n').take(lines).collect(),
        };
        self.audience.printed(&printed);
        self.printed.push(printed.clone());
        printed.output
    }

    /// When the stage was reached first.
    pub fn reached(&self, stage: Stage) -> Option<Instant> {
        let mut moments = self.moments.iter();
        moments.find(|moment| moment.stage == stage).map(|m| m.at)
    }

    /// From one stage to another; panics where one was not reached, or later than the other.
    pub fn between(&self, from: Stage, to: Stage) -> Duration {
        let [from_at, to_at] = [from, to].map(|stage| {
            self.reached(stage)
                .unwrap_or_else(|| panic!("{stage:?} was not reached:\n{}", self.text()))
        });
        to_at
            .checked_duration_since(from_at)
            .unwrap_or_else(|| panic!("{to:?} came before {from:?}:\n{}", self.text()))
    }

    /// Panics unless it had a name within [`NAMED_WITHIN`] of its onset; gives how long it took.
    pub fn assert_named(&self) -> Duration {
        let took = self.between(Stage::Onset, Stage::Named);
        assert!(
            took < patient(NAMED_WITHIN),
            "named after {took:?}:\n{}",
            self.text()
        );
        took
    }

    /// What tracer printed, by command; the last of each.
    pub fn output(&self, command: &str) -> Option<&str> {
        let mut printed = self.printed.iter().rev();
        let found = printed.find(|printed| printed.command == command)?;
        Some(&found.output)
    }

    /// Moments with seconds since the onset, else since the first of them.
    fn rows(&self) -> impl Iterator<Item = (f64, &Moment)> {
        let zero = self
            .reached(Stage::Onset)
            .or_else(|| self.moments.first().map(|moment| moment.at));
        self.moments.iter().map(move |moment| {
            let zero = zero.unwrap_or(moment.at);
            let seconds = match moment.at.checked_duration_since(zero) {
                Some(after) => after.as_secs_f64(),
                None => -(zero - moment.at).as_secs_f64(),
            };
            // No -0.0.
            let seconds = if seconds.abs() < 0.05 { 0.0 } else { seconds };
            (seconds, moment)
        })
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (seconds, moment) in self.rows() {
            let label = moment.stage.label();
            writeln!(text, "{seconds:>8.1} s  {label:<13}  {}", moment.text).expect("text grows");
        }
        text
    }

    /// As a table for a page.
    pub fn markdown(&self) -> String {
        let mut text = "| s | | |\n|---:|---|---|\n".to_owned();
        for (seconds, moment) in self.rows() {
            let label = moment.stage.label();
            let what = moment.text.replace('|', "\\|");
            writeln!(text, "| {seconds:.1} | {label} | {what} |").expect("text grows");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline() -> (Timeline, Instant) {
        let zero = Instant::now();
        let mut timeline = Timeline::of_test();
        timeline.at(zero + Duration::from_secs(3), Stage::Named, "by | name");
        timeline.at(zero, Stage::Step, "before");
        timeline.at(zero + Duration::from_secs(1), Stage::Onset, "it begins");
        timeline.at(zero + Duration::from_secs(9), Stage::Named, "again");
        (timeline, zero)
    }

    #[test]
    fn moments_stand_in_order_and_count_from_the_onset() {
        let (timeline, _) = timeline();
        assert_eq!(timeline.assert_named(), Duration::from_secs(2));
        let table = timeline.markdown();
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| -1.0 |  | before |",
                "| 0.0 | onset | it begins |",
                "| 2.0 | named | by \\| name |",
                "| 8.0 | named | again |",
            ]
        );
        assert!(timeline.text().contains("named          by | name"));
    }

    #[test]
    #[should_panic(expected = "named after 61s")]
    fn a_name_that_comes_late_is_a_failure() {
        let (mut timeline, zero) = timeline();
        timeline.moments.clear();
        timeline.at(zero, Stage::Onset, "");
        timeline.at(zero + Duration::from_secs(61), Stage::Named, "");
        timeline.assert_named();
    }

    #[test]
    #[should_panic(expected = "Omen was not reached")]
    fn a_stage_that_was_not_reached_is_a_failure() {
        timeline().0.between(Stage::Onset, Stage::Omen);
    }
}
