//! The figures, as a table or as JSON.

use std::fmt;

use serde::Serialize;
use tests::bench::Spread;

use crate::busy::Busy;
use crate::load::Kind;
use crate::programs::{Program, Programs};

/// All that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// `uname -r`.
    pub kernel: String,
    #[serde(flatten)]
    pub programs: Programs,
    pub busy: Busy,
}

/// Programs and what they cost under some kinds of load, and the sum.
fn write_costs(f: &mut fmt::Formatter<'_>, programs: &[&Program], kinds: &[Kind]) -> fmt::Result {
    write!(f, "{:15} {:>8} {:>9}", "program", "verified", "stack")?;
    for kind in kinds {
        write!(f, "  {:>24}", kind.name())?;
    }
    writeln!(f)?;
    for program in programs {
        let stack = format!("{}/{}", program.stack_bytes, program.stack_bytes_before_6_9);
        write!(
            f,
            "{:15} {:>8} {stack:>9}",
            program.name, program.verified_instructions
        )?;
        for kind in kinds {
            let cell = program.costs.get(kind).map_or_else(String::new, |cost| {
                let ns = cost.ns;
                format!(
                    "{:.0} ({:.0} to {:.0}) × {:.2}",
                    ns.median, ns.lowest, ns.highest, cost.runs
                )
            });
            write!(f, "  {cell:>24}")?;
        }
        writeln!(f)?;
    }
    write!(f, "{:34}", "all, nanoseconds")?;
    for kind in kinds {
        let costs = programs.iter().filter_map(|p| p.costs.get(kind));
        let all: f64 = costs.map(|cost| cost.ns.median * cost.runs).sum();
        write!(f, "  {all:>24.0}")?;
    }
    writeln!(f)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Linux {}", self.kernel)?;
        for missing in &self.programs.missing {
            writeln!(f, "not in the figures: {missing}")?;
        }
        writeln!(
            f,
            "nanoseconds of a run (lowest to highest of the rounds' means) × runs, by the kernel's \
             statistics, which read the clock twice in each run"
        )?;
        let mut programs: Vec<&Program> = self.programs.programs.iter().collect();
        write_costs(f, &programs, &Kind::FINE)?;
        writeln!(
            f,
            "verified: instructions that the verifier walked through; stack: bytes of {}, on kernels \
             from 6.9 on and before; a lookup and an exchange are two packets, each seen on its way \
             out and in",
            tests::stack::LIMIT
        )?;
        writeln!(f)?;
        programs.retain(|program| {
            Kind::OTHER
                .iter()
                .any(|kind| program.costs.contains_key(kind))
        });
        write_costs(f, &programs, &Kind::OTHER)?;
        writeln!(
            f,
            "a neighbour is a datagram to an address that nobody has, with its own way out; a dropped packet \
             came to a port where nobody listens; refusals beyond `--event-rate`, as most here, are counted \
             and told no further"
        )?;
        writeln!(f)?;
        let Busy {
            without,
            with,
            ratio,
            followed,
        } = self.busy;
        writeln!(f, "dnsperf against dnsmasq      median   lowest  highest")?;
        for (what, spread, digits) in [
            ("queries/s without the agent", without, 0),
            ("queries/s with the agent", with, 0),
            ("with ÷ without", ratio, 3),
            ("lookups followed ÷ answered", followed, 4),
        ] {
            let Spread {
                median,
                lowest,
                highest,
            } = spread;
            writeln!(
                f,
                "{what:27} {median:8.digits$} {lowest:8.digits$} {highest:8.digits$}"
            )?;
        }
        Ok(())
    }
}
