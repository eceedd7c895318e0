//! How long it takes from the start of the process until it counts and says so.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde::Serialize;
use tests::Agent;
use tests::bench::{Interrupt, Spread};
use tests::bpffs::BpfFs;

const ROUNDS: usize = 9;
/// No start takes longer.
const LIMIT: Duration = Duration::from_secs(30);

/// Milliseconds until `/readyz` says yes: all hooks are attached by then, and the counters read once.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Starts {
    /// Nothing is there.
    pub fresh: Spread,
    /// The agent before has left its programs in the state folder.
    pub again: Spread,
}

fn start(arguments: &[&str]) -> Result<f64> {
    let begun = Instant::now();
    let mut agent = Agent::launch(&[], arguments);
    loop {
        let ready = tests::http::tcp(agent.listen(), "GET", "/readyz");
        if ready.is_ok_and(|response| response.status == 200) {
            break;
        }
        ensure!(begun.elapsed() < LIMIT, "not ready: {}", agent.stderr());
        sleep(Duration::from_millis(2));
    }
    let took = begun.elapsed();
    agent.stop(Signal::TERM);
    Ok(took.as_secs_f64() * 1e3)
}

pub fn measure(interrupt: &Interrupt) -> Result<Starts> {
    let bpffs = BpfFs::mount();
    let state = bpffs.join("tracer");
    let flags = ["--state-dir", state.to_str().context("path is text")?];
    start(&flags)?;
    let (mut fresh, mut again) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        interrupt.check()?;
        fresh.push(start(&[])?);
        again.push(start(&flags)?);
    }
    Ok(Starts {
        fresh: Spread::of(fresh.into_iter()).context("no rounds")?,
        again: Spread::of(again.into_iter()).context("no rounds")?,
    })
}
