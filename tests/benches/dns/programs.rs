//! Time of each program, from the kernel's own statistics (`BPF_ENABLE_STATS`, 5.8): they are on as
//! long as a file descriptor lives, whatever `kernel.bpf_stats_enabled` says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context as _, Result, ensure};
use aya::programs::{ProgramInfo, loaded_programs};
use aya::sys::{Stats, enable_stats};
use serde::Serialize;
use tests::netns::Pod;
use tests::{Agent, Lab, process, stack};

use crate::Interrupt;
use crate::load::{Kind, Load};
use crate::report::Spread;

const ROUNDS: usize = 7;
/// Fewer runs than this for each exchange belong to something else.
const FEW: f64 = 0.01;

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

/// Cost of one program under one kind of load.
#[derive(Debug, Serialize)]
pub struct Cost {
    /// Runs for each exchange; for each second at rest.
    pub runs: f64,
    /// Time of a run, nanoseconds.
    pub ns: Spread,
}

/// Runs and nanoseconds of each program.
type Times = BTreeMap<u32, (u64, u64)>;

/// Runs the agent under each kind of load.
pub fn measure(lab: &Lab, client: &Pod, interrupt: &Interrupt) -> Result<Vec<Program>> {
    let before: BTreeSet<u32> = loaded_programs()
        .filter_map(Result::ok)
        .map(|program| program.id())
        .collect();
    let agent = Agent::start(&[]);
    let labels = [("hook", "dns"), ("state", "attached")];
    let attached = agent.metrics().sum("tracer_hook_state", &labels);
    ensure!(
        attached > 0.0,
        "the hook dns is not attached; see `tracer doctor`"
    );
    let ours = |program: &ProgramInfo| !before.contains(&program.id());
    let programs: Vec<ProgramInfo> = loaded_programs()
        .filter_map(Result::ok)
        .filter(ours)
        .collect();
    let _statistics = enable_stats(Stats::RunTime).context("the kernel gives no statistics")?;
    let mut load = Load::start(lab, client)?;
    let mut samples: BTreeMap<(u32, Kind), Vec<(u64, u64)>> = BTreeMap::new();
    for round in 0..=ROUNDS {
        for kind in Kind::ALL {
            interrupt.check()?;
            let before = times(&programs)?;
            load.run(kind)?;
            let after = times(&programs)?;
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
    for program in &programs {
        let name = program.name_as_str().context("a program has no name")?;
        let stack = stacks
            .get(name)
            .with_context(|| format!("{name} is not in the binary"))?;
        let costs = Kind::ALL.into_iter().filter_map(|kind| {
            let cost = cost(kind, samples.get(&(program.id(), kind))?)?;
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
    Ok(report)
}

fn times(programs: &[ProgramInfo]) -> Result<Times> {
    let mut times = Times::new();
    for program in programs {
        // Asked anew: an answer does not change.
        let id = program.id();
        let now = loaded_programs()
            .filter_map(Result::ok)
            .find(|now| now.id() == id)
            .context("a program is gone: has the agent ended?")?;
        times.insert(id, (now.run_count(), now.run_time().as_nanos() as u64));
    }
    Ok(times)
}

fn cost(kind: Kind, samples: &[(u64, u64)]) -> Option<Cost> {
    let runs: u64 = samples.iter().map(|(runs, _)| runs).sum();
    let runs = runs as f64 / samples.len() as f64 / f64::from(kind.count());
    let ran = samples.iter().filter(|(runs, _)| *runs > 0);
    let ns = Spread::of(ran.map(|(runs, ns)| *ns as f64 / *runs as f64))?;
    (runs >= FEW).then_some(Cost { runs, ns })
}
