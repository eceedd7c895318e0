//! What a node loses to tracer, and what it loses to the tools that people use instead: the same load
//! beside each of them, in turn, in one run. `cargo xtask bench beside` runs it. All traffic stays in
//! network namespaces, and what it makes is removed also after a panic or a signal.

mod load;
mod report;
mod watcher;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use tests::Lab;
use tests::bench::{Interrupt, Spread};

use crate::load::{Load, Loads};
use crate::report::{Report, Row};
use crate::watcher::Watcher;

/// Each with every watcher.
const ROUNDS: usize = 7;

fn measure(interrupt: &Interrupt) -> Result<Vec<Row>> {
    let lab = Lab::new();
    let client = lab.pod("client", 1, 1);
    let mut loads = Loads::new(&lab, &client)?;
    let watchers: Vec<Watcher> = Watcher::ALL
        .into_iter()
        .filter(|watcher| watcher.is_here())
        .collect();
    for load in Load::ALL {
        loads.run(load)?; // warms up
    }
    // By watcher, by load: what each round gave.
    let mut rates = vec![[const { Vec::new() }; Load::ALL.len()]; watchers.len()];
    for round in 0..ROUNDS {
        // Another comes first each time, so that a trend of the machine favours none.
        for turn in 0..watchers.len() {
            let number = (round + turn) % watchers.len();
            let running = watchers[number].start(&lab)?;
            for (place, load) in rates[number].iter_mut().zip(Load::ALL) {
                interrupt.check()?;
                place.push(loads.run(load)?);
            }
            running.stop().with_context(|| {
                format!("not all was measured beside {}", watchers[number].name())
            })?;
        }
        eprintln!("round {} of {ROUNDS}", round + 1);
    }
    let alone = rates[0].clone();
    let spread = |figures: Vec<f64>| Spread::of(figures.into_iter()).context("no rounds");
    watchers
        .iter()
        .zip(rates)
        .map(|(watcher, rates)| {
            let mut row = Row::of(*watcher);
            for ((load, rates), alone) in Load::ALL.into_iter().zip(rates).zip(&alone) {
                let ratio = rates
                    .iter()
                    .zip(alone)
                    .map(|(with, without)| with / without);
                row.ratios.insert(load, spread(ratio.collect())?);
                row.rates.insert(load, spread(rates)?);
            }
            Ok(row)
        })
        .collect()
}

fn run() -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let report = Report {
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        missing: Watcher::ALL
            .into_iter()
            .filter(|watcher| !watcher.is_here())
            .map(Watcher::name)
            .collect(),
        rows: measure(&interrupt)?,
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
