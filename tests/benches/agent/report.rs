//! The figures, as tables or as JSON.

use std::fmt;

use serde::Serialize;
use tests::bench::Spread;
use tests::bench::growth::{Growth, Point, Table};

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
    /// [`growth`] of these.
    pub growth: Vec<Growth>,
}

/// How costs grow, from one measured load to the next.
pub fn growth(pods: &[Pods], lookups: &[Load], failures: &[Load]) -> Vec<Growth> {
    let of_pods = |what, cost: fn(&Pods) -> f64| {
        let points: Vec<Point> = pods
            .iter()
            .map(|pods| (pods.number.into(), cost(pods)))
            .collect();
        Growth::above_first(what, "pods", &points)
    };
    let mut all = of_pods("resident memory above 0 pods'", |pods| pods.resident);
    all.extend(of_pods("scrape above 0 pods'", |pods| pods.scrape.median));
    all.extend(of_pods("processor at rest above 0 pods'", |pods| {
        pods.at_rest
    }));
    for (with, loads) in [("lookups", lookups), ("failures", failures)] {
        let mut steps = |what, cost: fn(&Load) -> f64| {
            let points: Vec<Point> = loads.iter().map(|load| (load.count, cost(load))).collect();
            all.extend(Growth::steps(what, with, &points));
        };
        steps("processor", |load| load.processor);
        steps("kernel time of the programs", |load| load.kernel);
        steps("resident memory, all of it", |load| load.resident);
    }
    all
}

fn write_loads(f: &mut fmt::Formatter<'_>, what: &str, loads: &[Load]) -> fmt::Result {
    writeln!(
        f,
        "\n{what:>10} {:>11} {:>12} {:>12} {:>9} {:>12} {:>9} {:>10} {:>9} {:>9} {:>7}",
        "a second",
        "processor s",
        "µs for each",
        "kernel s",
        "ns for each",
        "counted",
        "events",
        "withheld",
        "lost",
        "MiB"
    )?;
    for load in loads {
        let count = load.count as f64;
        let [told, lost, withheld] = load.events;
        writeln!(
            f,
            "{:>10} {:>11.0} {:>12.2} {:>12.2} {:>9.3} {:>12.0} {:>9.5} {told:>10} {withheld:>9} \
             {lost:>9} {:>7.1}",
            load.count,
            load.per_second,
            load.processor,
            load.processor * 1e6 / count,
            load.kernel,
            load.kernel * 1e9 / count,
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
            "processor: the agent's own; kernel: its programs', by the kernel's statistics, which read the \
             clock twice in each run; by program it is `bench dns` and `bench connect`. What runs each \
             second is in both: the shorter the load, the more of them"
        )?;
        write!(f, "\n{}", Table(&self.growth))
    }
}
