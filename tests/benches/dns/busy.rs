//! A resolver as busy as it can be: dnsperf asks dnsmasq, with and without the agent in turn.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;
use tests::bench::dnsperf::DnsPerf;
use tests::bench::{Interrupt, Spread};
use tests::netns::Pod;
use tests::{Agent, Lab};

const ROUNDS: usize = 9;
/// Of one run of dnsperf, seconds.
const SECONDS: &str = "3";

/// What came out.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Busy {
    /// Queries a second without the agent.
    pub without: Spread,
    /// Queries a second with it.
    pub with: Spread,
    /// With ÷ without, of the two neighbouring runs of a round.
    pub ratio: Spread,
    /// Lookups that the agent saw end well ÷ queries that dnsperf saw answered.
    pub followed: Spread,
}

/// Rounds of two runs each; which comes first changes, so that a trend of the machine favours none.
pub fn measure(lab: &Lab, client: &Pod, interrupt: &Interrupt) -> Result<Busy> {
    let mut scene = DnsPerf::new(lab, client, ["-l", SECONDS])?;
    scene.run(client)?; // warms up
    let (mut without, mut with, mut followed) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        for agent in [round % 2 == 0, round % 2 != 0] {
            interrupt.check()?;
            if !agent {
                without.push(scene.run(client)?.per_second);
                continue;
            }
            let agent = Agent::start(&[]);
            let run = scene.run(client)?;
            // An answer may wait a quarter of a second for the proof that it was not dropped.
            std::thread::sleep(Duration::from_millis(500));
            let ended = agent
                .metrics()
                .sum("tracer_node_dns_lookups_total", &[("outcome", "noerror")]);
            agent.stop_cleanly();
            followed.push(ended / run.completed);
            with.push(run.per_second);
        }
    }
    let ratio = with
        .iter()
        .zip(&without)
        .map(|(with, without)| with / without);
    Ok(Busy {
        ratio: Spread::of(ratio).context("no rounds")?,
        without: Spread::of(without.iter().copied()).context("no rounds")?,
        with: Spread::of(with.iter().copied()).context("no rounds")?,
        followed: Spread::of(followed.iter().copied()).context("no rounds")?,
    })
}
