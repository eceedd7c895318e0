//! The figures, as tables or as JSON.

use std::fmt;

use serde::Serialize;
use tests::bench::Spread;

use crate::cost::{Load, Pods};
use crate::start::Starts;

/// All that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// `uname -r`.
    pub kernel: String,
    pub starts: Starts,
    pub pods: Vec<Pods>,
    pub lookups: Vec<Load>,
    pub failures: Vec<Load>,
}

/// How a cost grows from the step before: the exponent of the load, 1 where it is proportional.
fn exponent(loads: [f64; 2], costs: [f64; 2]) -> f64 {
    (costs[1] / costs[0]).ln() / (loads[1] / loads[0]).ln()
}

fn write_loads(f: &mut fmt::Formatter<'_>, what: &str, loads: &[Load]) -> fmt::Result {
    writeln!(
        f,
        "\n{what:>10} {:>11} {:>12} {:>16} {:>8} {:>9} {:>10} {:>9} {:>9} {:>7}",
        "a second",
        "processor s",
        "µs for each",
        "exponent",
        "counted",
        "events",
        "withheld",
        "lost",
        "MiB"
    )?;
    for (number, load) in loads.iter().enumerate() {
        let grows = number.checked_sub(1).map(|before| {
            let before = &loads[before];
            exponent(
                [before.count as f64, load.count as f64],
                [before.processor, load.processor],
            )
        });
        let grows = grows.map_or_else(String::new, |exponent| format!("{exponent:.2}"));
        let [told, lost, withheld] = load.events;
        writeln!(
            f,
            "{:>10} {:>11.0} {:>12.2} {:>16.2} {grows:>8} {:>9.5} {told:>10} {withheld:>9} {lost:>9} {:>7.1}",
            load.count,
            load.per_second,
            load.processor,
            load.processor * 1e6 / load.count as f64,
            load.counted,
            load.resident,
        )?;
    }
    Ok(())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Linux {}", self.kernel)?;
        for (what, spread) in [
            ("ready after, ms", self.starts.fresh),
            ("where programs were left, ms", self.starts.again),
        ] {
            let Spread {
                median,
                lowest,
                highest,
            } = spread;
            writeln!(f, "{what:30} {median:.0} ({lowest:.0}–{highest:.0})")?;
        }
        writeln!(
            f,
            "\n{:>6} {:>8} {:>22} {:>26}",
            "pods", "MiB", "scrape, ms", "processor ms a second"
        )?;
        for pods in &self.pods {
            let Spread {
                median,
                lowest,
                highest,
            } = pods.scrape;
            let scrape = format!("{median:.1} ({lowest:.1}–{highest:.1})");
            writeln!(
                f,
                "{:>6} {:>8.1} {scrape:>22} {:>26.1}",
                pods.number, pods.resident, pods.at_rest
            )?;
        }
        write_loads(f, "lookups", &self.lookups)?;
        write_loads(f, "failures", &self.failures)?;
        writeln!(
            f,
            "\nprocessor: the agent's own; what its programs take is `bench dns` and `bench connect`"
        )
    }
}
