//! What following connections costs on this kernel: the programs' own time for each, and how many
//! fewer there are in a second. `cargo xtask bench connect` runs it. All traffic stays in network
//! namespaces, and what it makes is removed also after a panic or a signal.

mod load;
mod report;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::bench::{Cost, Interrupt, Programs, Spread, loaded};
use tests::netns::Pod;
use tests::{Agent, Lab};

use crate::load::{Kind, Load};
use crate::report::{Rate, Report};

/// Rounds in which the programs' time is taken.
const ROUNDS: usize = 7;
/// Pairs of runs, with and without the agent.
const PAIRS: usize = 11;
/// How long each run takes.
const RUN: Duration = Duration::from_secs(2);

/// Costs of each program, by its name.
fn programs(
    lab: &Lab,
    client: &Pod,
    interrupt: &Interrupt,
) -> Result<BTreeMap<String, BTreeMap<Kind, Cost>>> {
    let before = loaded();
    let agent = Agent::start(&[]);
    let labels = [("hook", "tcp"), ("state", "attached")];
    let attached = agent.metrics().sum("tracer_hook_state", &labels);
    ensure!(
        attached > 0.0,
        "the hook tcp is not attached; see `tracer doctor`"
    );
    let programs = Programs::since(&before)?;
    let load = Load::start(lab, client)?;
    let mut samples: BTreeMap<(u32, Kind), Vec<(u64, u64)>> = BTreeMap::new();
    for round in 0..=ROUNDS {
        for kind in Kind::ALL {
            interrupt.check()?;
            let before = programs.times()?;
            load.run(kind)?;
            // The first round warms up.
            for (id, (runs, ns)) in programs.times()?.into_iter().filter(|_| round > 0) {
                let (runs_before, ns_before) = before[&id];
                let sample = (runs - runs_before, ns - ns_before);
                samples.entry((id, kind)).or_default().push(sample);
            }
        }
    }
    drop(load);
    agent.stop_cleanly();
    let mut all = BTreeMap::new();
    for program in &programs.all {
        let name = program.name_as_str().context("a program has no name")?;
        let costs: BTreeMap<Kind, Cost> = Kind::ALL
            .into_iter()
            .filter_map(|kind| {
                let samples = samples.get(&(program.id(), kind))?;
                Some((kind, Cost::of(samples, kind.count())?))
            })
            .collect();
        if !costs.is_empty() {
            all.insert(name.to_owned(), costs);
        }
    }
    Ok(all)
}

/// Pairs of runs; which comes first changes, so that a trend of the machine favours none.
fn rate(lab: &Lab, client: &Pod, interrupt: &Interrupt) -> Result<Rate> {
    let load = Load::start(lab, client)?;
    load.rate(RUN)?; // warms up
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        for agent in [pair % 2 == 0, pair % 2 != 0] {
            interrupt.check()?;
            if agent {
                let agent = Agent::start(&[]);
                with.push(load.rate(RUN)?);
                agent.stop_cleanly();
            } else {
                without.push(load.rate(RUN)?);
            }
        }
    }
    let ratio = with.iter().zip(&without).map(|(w, o)| w / o);
    Ok(Rate {
        ratio: Spread::of(ratio).context("no rounds")?,
        without: Spread::of(without.iter().copied()).context("no rounds")?,
        with: Spread::of(with.iter().copied()).context("no rounds")?,
    })
}

fn run() -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let lab = Lab::new();
    let client = lab.pod("client", 1, 1);
    let report = Report {
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        programs: programs(&lab, &client, &interrupt)?,
        rate: rate(&lab, &client, &interrupt)?,
    };
    if std::env::args().any(|argument| argument == "--output=json") {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
