//! What following lookups, neighbours and drops costs on this kernel: the programs' own time and size, and
//! what a busy resolver loses. `cargo xtask bench` runs it. All traffic stays in network namespaces, and
//! what it makes is removed also after a panic or a signal. The neighbour table's limits are the machine's:
//! they are changed for parts of a second and restored.

mod busy;
mod load;
mod others;
mod programs;
mod report;

use std::process::ExitCode;

use anyhow::Result;
use tests::Lab;
use tests::bench::Interrupt;

use crate::report::Report;

fn run() -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let mut lab = Lab::new();
    let client = lab.pod("client", 1, 1);
    let report = Report {
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        programs: programs::measure(&mut lab, &client, &interrupt)?,
        busy: busy::measure(&lab, &client, &interrupt)?,
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
