//! What the agent itself takes: its start, its memory, its processor time, and how each grows with the
//! load. `cargo xtask bench agent` runs it. All traffic stays in network namespaces, and what it makes is
//! removed also after a panic or a signal. The neighbour table's limits are the machine's: they are
//! lowered for some seconds and restored.

mod cost;
mod report;
mod start;

use std::process::ExitCode;

use anyhow::Result;
use tests::Lab;
use tests::bench::Interrupt;

use crate::report::Report;

fn run() -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let starts = start::measure(&interrupt)?;
    let pods = cost::of_pods(&interrupt)?;
    // One lab at a time: a temporary would live until the statement's end, and keep the next one waiting.
    let lookups = {
        let lab = Lab::new();
        cost::of_lookups(&lab, &interrupt)?
    };
    let failures = {
        let mut lab = Lab::new();
        cost::of_failures(&mut lab, &interrupt)?
    };
    let report = Report {
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        growth: report::growth(&pods, &lookups, &failures),
        starts,
        pods,
        lookups,
        failures,
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
