//! The figures, as a table or as JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use tests::bench::{Cost, Spread};

use crate::load::Kind;

/// All that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// `uname -r`.
    pub kernel: String,
    /// By program: what it costs, where it runs.
    pub programs: BTreeMap<String, BTreeMap<Kind, Cost>>,
    pub rate: Rate,
}

/// Connections one after the other, as fast as they go.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Rate {
    /// Connections a second without the agent.
    pub without: Spread,
    /// Connections a second with it.
    pub with: Spread,
    /// With ÷ without, of the two neighbouring runs of a round.
    pub ratio: Spread,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Linux {}", self.kernel)?;
        writeln!(
            f,
            "nanoseconds of a run (lowest to highest of the rounds' means) × runs, by the kernel's \
             statistics, which read the clock twice in each run"
        )?;
        write!(f, "{:20}", "program")?;
        for kind in Kind::ALL {
            write!(f, "  {:>26}", kind.name())?;
        }
        writeln!(f)?;
        for (name, costs) in &self.programs {
            write!(f, "{name:20}")?;
            for kind in Kind::ALL {
                let cell = costs.get(&kind).map_or_else(String::new, |cost| {
                    let ns = cost.ns;
                    format!(
                        "{:.0} ({:.0} to {:.0}) × {:.2}",
                        ns.median, ns.lowest, ns.highest, cost.runs
                    )
                });
                write!(f, "  {cell:>26}")?;
            }
            writeln!(f)?;
        }
        write!(f, "{:20}", "all, nanoseconds")?;
        for kind in Kind::ALL {
            let costs = self.programs.values().filter_map(|costs| costs.get(&kind));
            let all: f64 = costs.map(|cost| cost.ns.median * cost.runs).sum();
            write!(f, "  {all:>26.0}")?;
        }
        writeln!(
            f,
            "\na connection is both ends' of it: the lab is one node\n"
        )?;
        writeln!(f, "one connection at a time       median   lowest  highest")?;
        for (what, spread, digits) in [
            ("connections/s without agent", self.rate.without, 0),
            ("connections/s with the agent", self.rate.with, 0),
            ("with ÷ without", self.rate.ratio, 3),
        ] {
            let Spread {
                median,
                lowest,
                highest,
            } = spread;
            writeln!(
                f,
                "{what:29} {median:8.digits$} {lowest:8.digits$} {highest:8.digits$}"
            )?;
        }
        Ok(())
    }
}
