//! Time of each program, from the kernel's own statistics.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use tests::bench::hooks::missing;
use tests::bench::{self, Cost, Interrupt, loaded};
use tests::netns::Pod;
use tests::{Agent, Lab, Thresholds, process, stack};

use crate::load::{Kind, Load};
use crate::others;

const ROUNDS: usize = 7;

/// One program.
#[derive(Debug, Serialize)]
pub struct Program {
    pub name: String,
    /// Instructions that the verifier walked through.
    pub verified_instructions: u32,
    /// Stack on the deepest chain of calls, bytes of 512.
    pub stack_bytes: u32,
    /// The same as kernels before 6.9 add it up.
    pub stack_bytes_before_6_9: u32,
    /// What it costs, where it runs.
    pub costs: BTreeMap<Kind, Cost>,
}

/// What came out.
#[derive(Debug, Serialize)]
pub struct Programs {
    pub programs: Vec<Program>,
    /// What of tracer is not in the figures, for it is not attached on this kernel.
    pub missing: Vec<String>,
}

/// Runs the agent under each kind of load.
pub fn measure(lab: &mut Lab, client: &Pod, interrupt: &Interrupt) -> Result<Programs> {
    let before = loaded();
    let agent = Agent::start(&[]);
    let labels = [("hook", "dns"), ("state", "attached")];
    let attached = agent.metrics().sum("tracer_hook_state", &labels);
    ensure!(
        attached > 0.0,
        "the hook dns is not attached; see `tracer doctor`"
    );
    let programs = bench::Programs::since(&before)?;
    let missing = missing(&agent.snapshot());
    let mut load = Load::start(lab, client)?;
    let mut samples: BTreeMap<(u32, Kind), Vec<(u64, u64)>> = BTreeMap::new();
    for round in 0..=ROUNDS {
        for kind in Kind::all() {
            interrupt.check()?;
            let limits = others::limits(kind).map(|limits| Thresholds::set(lab.lock(), limits));
            load.prepare(kind);
            let before = programs.times()?;
            load.run(kind)?;
            let after = programs.times()?;
            load.clear(kind);
            drop(limits);
            // The first round warms up.
            for (id, (runs, ns)) in after.into_iter().filter(|_| round > 0) {
                let (runs_before, ns_before) = before[&id];
                let sample = (runs - runs_before, ns - ns_before);
                samples.entry((id, kind)).or_default().push(sample);
            }
        }
    }
    drop(load);
    agent.stop_cleanly();

    let binary = process::tracer_path();
    let bytes = fs::read(&binary).with_context(|| format!("cannot read {}", binary.display()))?;
    let stacks = stack::of_programs(&bytes)?;
    let mut report = Vec::new();
    for program in &programs.all {
        let name = program.name_as_str().context("a program has no name")?;
        // The kernel keeps 15 characters of a name; a pair of programs differ behind them in an `_again`.
        let stack = stacks
            .get(name)
            .or_else(|| Some(stacks.iter().find(|(long, _)| long.starts_with(name))?.1))
            .with_context(|| format!("{name} is not in the binary"))?;
        let costs = Kind::all().filter_map(|kind| {
            let cost = Cost::of(samples.get(&(program.id(), kind))?, kind.count())?;
            Some((kind, cost))
        });
        report.push(Program {
            name: name.to_owned(),
            verified_instructions: program.verified_instruction_count().unwrap_or_default(),
            stack_bytes: stack.bytes,
            stack_bytes_before_6_9: stack.before_6_9,
            costs: costs.collect(),
        });
    }
    Ok(Programs {
        programs: report,
        missing,
    })
}
