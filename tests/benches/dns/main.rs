//! What following lookups costs on this kernel: the programs' own time and size, and what a busy
//! resolver loses. `cargo xtask bench` runs it. All traffic stays in network namespaces, and what it
//! makes is removed also after a panic or a signal.

mod busy;
mod load;
mod programs;
mod report;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tests::Lab;

use crate::report::Report;

/// Whether somebody wants it to end. Looked at between steps of a few seconds; what was made is then
/// removed on the way out.
struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    fn listen() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&flag))?;
        }
        Ok(Self(flag))
    }

    fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }
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
        programs: programs::measure(&lab, &client, &interrupt)?,
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
