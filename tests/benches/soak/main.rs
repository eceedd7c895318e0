//! Mixed load on a real agent for as long as is asked for: does memory grow, is anything lost, does a counter
//! fall, are the figures what really happened? In the first half the agent is killed every few minutes; the
//! last one lives for the second half, for memory tells something of a long life only. `cargo xtask soak` runs it. All traffic stays in network namespaces, and what it makes is removed also after a panic or a signal.

mod load;
mod report;
mod watch;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use tests::bench::Interrupt;
use tests::bpffs::BpfFs;
use tests::{Agent, Lab};

use crate::load::Load;
use crate::report::Report;
use crate::watch::{Seen, Watch};

/// How often the agent is killed, at most.
const LIFE: Duration = Duration::from_mins(3);
/// How long the last figures may take: what happened in a namespace that nobody knows waits 30 s for a pod.
const SETTLE: Duration = Duration::from_secs(45);

fn start(state: &Path) -> Agent {
    let state = state.to_str().expect("the path is text");
    Agent::start(&["--dns-timeout", "1s", "--state-dir", state])
}

fn run(time: Duration) -> Result<Report> {
    let interrupt = Interrupt::listen()?;
    let bpffs = BpfFs::mount();
    let state = bpffs.join("tracer");
    let mut lab = Lab::new();
    let mut load = Load::new(&lab);
    // Two lives at least before the last.
    let life = LIFE.min(time / 4);
    let begun = Instant::now();
    let mut seen = Seen::default();
    let ended = Arc::clone(&seen.ended);
    let mut agent = start(&state);
    let mut watch = Watch::start(&agent, seen);
    load.begin();
    let mut born = Instant::now();
    let mut interrupted = false;
    while begun.elapsed() < time && !interrupted {
        load.round(&mut lab);
        interrupted = interrupt.check().is_err();
        if born.elapsed() >= life && begun.elapsed() < time / 2 + life / 2 {
            seen = watch.stop(&agent)?;
            agent.stop(Signal::KILL);
            seen.kills += 1;
            // Some of it while there is no agent.
            load.round(&mut lab);
            agent = start(&state);
            watch = Watch::start(&agent, seen);
            born = Instant::now();
        }
    }
    let settled = Instant::now();
    let rows = loop {
        let rows = load.compare(&agent.metrics(), &ended);
        if rows.iter().all(report::Row::is_equal) || settled.elapsed() > SETTLE {
            break rows;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    seen = watch.stop(&agent)?;
    let metrics = agent.metrics();
    let details = report::details(&metrics);
    let pods = report::pods(&metrics);
    agent.stop_cleanly();
    Ok(Report {
        took: begun.elapsed(),
        rounds: load.rounds(),
        rows,
        details,
        pods,
        seen,
    })
}

fn minutes() -> Result<Duration> {
    let text = std::env::args().find_map(|argument| {
        let text = argument.strip_prefix("--minutes=")?;
        Some(text.to_owned())
    });
    let text = text.as_deref().unwrap_or("30");
    let minutes: f64 = text
        .parse()
        .with_context(|| format!("{text} is no number of minutes"))?;
    ensure!(
        (0.2..=24.0 * 60.0).contains(&minutes),
        "from 0.2 minutes to a day, not {text}"
    );
    Ok(Duration::from_secs_f64(60.0 * minutes))
}

fn main() -> ExitCode {
    match minutes().and_then(run) {
        Ok(report) => {
            print!("{report}");
            if report.is_well() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
