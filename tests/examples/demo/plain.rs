//! For a pipe or a file: captions, with a table of `tracer top --once` below each.

use std::time::{Duration, Instant};

use tests::incident::{Audience, Moment, Printed};
use tests::process::{run, tracer};

/// Of a table: its head and the pods that stand above.
const LINES: usize = 12;

/// Prints to stdout.
#[derive(Debug, Default)]
pub struct Plain {
    top: Option<Vec<String>>,
    begun: Option<Instant>,
}

impl Audience for Plain {
    fn top(&mut self, arguments: &[&str]) {
        self.top = Some(arguments.iter().map(ToString::to_string).collect());
    }

    fn caption(&mut self, moment: &Moment) {
        let begun = *self.begun.get_or_insert(moment.at);
        let seconds = moment.at.saturating_duration_since(begun).as_secs_f64();
        let label = moment.stage.label();
        let label = if label.is_empty() {
            String::new()
        } else {
            format!("{label}: ")
        };
        println!("\n### {seconds:.1} s  {label}{}\n", moment.text);
        let Some(arguments) = &self.top else { return };
        let mut top = tracer();
        top.args(["top", "--once"]).args(arguments);
        let table = run(&mut top, Duration::from_secs(10)).stdout;
        for line in table.lines().take(LINES) {
            println!("{line}");
        }
    }

    fn printed(&mut self, printed: &Printed) {
        println!("\n$ {}\n{}", printed.command, printed.output.trim_end());
    }
}
