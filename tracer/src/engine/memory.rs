//! What an agent knows and the kernel does not: whose the kernel's keys are, and what those that are gone had
//! counted. Written into the state folder whenever that changes, so that a restart is to the figures what
//! a pause would be. What it cannot tell is whose an address became while no agent ran (docs/install.md).

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::{Collected, Engine, SERVES, lock};
use crate::{
    aggregate::Aggregate,
    kernel::state::StateDir,
    moment,
    pods::{Gone, peers::Tally},
};

/// The version of what is written. Fields may be added, with `#[serde(default)]`; raised where one changes its meaning.
const FORMAT: u32 = 1;
/// How old it may get where nothing was decided meanwhile: the kernel has the counters themselves.
pub const STALE: Duration = Duration::from_secs(10);

/// What is read.
#[derive(Deserialize)]
pub struct Memory {
    /// When counting began.
    pub since: SystemTime,
    /// The zero of the seconds in `aggregate`.
    #[serde(with = "moment")]
    pub epoch: Instant,
    /// Highest `gc_entries`, by family.
    pub highest: [u32; 2],
    /// Owners and figures.
    pub aggregate: Aggregate,
    /// Failures by peer.
    pub tally: Tally,
    /// Addresses that pods have and had.
    pub gone: Gone,
}

/// The same to be written.
#[derive(Serialize)]
pub struct Written<'a> {
    pub since: SystemTime,
    #[serde(with = "moment")]
    pub epoch: Instant,
    pub highest: [u32; 2],
    pub aggregate: &'a Aggregate,
    pub tally: &'a Tally,
    pub gone: &'a Gone,
}

impl Memory {
    /// Reads what [`Written::to_bytes`] wrote.
    pub fn of(bytes: &[u8]) -> Result<Self> {
        let (format, rest) = bytes.split_first_chunk().context("it is empty")?;
        match u32::from_ne_bytes(*format) {
            FORMAT => rmp_serde::from_slice(rest).context("it cannot be read"),
            format => bail!("it is of format {format}, not {FORMAT}"),
        }
    }
}

impl Written<'_> {
    /// In MessagePack, with names: another version of tracer may have more fields.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = FORMAT.to_ne_bytes().to_vec();
        rmp_serde::encode::write_named(&mut bytes, self)?;
        Ok(bytes)
    }
}

/// What was last written for the next agent.
#[derive(Default)]
pub(super) struct Remembered {
    at: Option<Instant>,
    /// How long the writing took.
    took: Duration,
    decisions: u64,
    failed: bool,
}

impl Engine {
    /// Writes down what the next agent must know, where anything was decided or the last writing is too
    /// old.
    pub(super) fn remember(&self, collected: &Collected, age: Duration) {
        let Some(state) = &self.state else {
            return;
        };
        let mut remembered = lock(&self.remembered);
        let elapsed = remembered.at.map_or(Duration::MAX, |at| at.elapsed());
        // Where pods come and go without end, writing takes a tenth of one CPU at most.
        if elapsed < age.min(remembered.took * SERVES) {
            return;
        }
        let start = Instant::now();
        let resolver = lock(&self.resolver);
        let peers = lock(&self.peers);
        let aggregate = lock(&self.aggregate);
        let decisions = aggregate.decisions() + peers.decisions();
        if decisions == remembered.decisions && elapsed < age {
            return;
        }
        let written = Written {
            since: self.since,
            epoch: self.epoch,
            highest: collected.highest,
            aggregate: &aggregate,
            tally: peers.tally(),
            gone: resolver.gone(),
        }
        .to_bytes();
        drop((aggregate, peers, resolver));
        match written.and_then(|bytes| state.remember(&bytes)) {
            Ok(()) => {
                remembered.failed = false;
                remembered.decisions = decisions;
            }
            // Told once: the counters themselves are in the kernel.
            Err(error) if !remembered.failed => {
                remembered.failed = true;
                tracing::error!("cannot write down whose the counters are: {error:#}");
            }
            Err(_) => {}
        }
        remembered.at = Some(Instant::now());
        remembered.took = start.elapsed();
    }
}

/// What the agent before remembered.
pub(super) fn recall(state: &mut StateDir) -> Option<Memory> {
    let read = state
        .memory()
        .and_then(|bytes| bytes.map(|bytes| Memory::of(&bytes)).transpose());
    read.unwrap_or_else(|error| {
        tracing::warn!(
            "pods that are gone have lost their names and figures: cannot use the last agent's memory: {error:#}"
        );
        state.note_reset();
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_another_format_is_refused() {
        let aggregate = Aggregate::new(Duration::from_mins(1), 10);
        let tally = Tally::default();
        let gone = Gone::default();
        let written = Written {
            since: SystemTime::UNIX_EPOCH,
            epoch: Instant::now(),
            highest: [5, 7],
            aggregate: &aggregate,
            tally: &tally,
            gone: &gone,
        };
        let mut bytes = written.to_bytes().unwrap();
        let memory = Memory::of(&bytes).unwrap();
        assert_eq!(memory.highest, [5, 7]);
        assert_eq!(memory.since, SystemTime::UNIX_EPOCH);
        bytes.truncate(bytes.len() - 1);
        assert!(Memory::of(&bytes).is_err());
        bytes[0] ^= 0xff;
        let error = Memory::of(&bytes).err().unwrap().to_string();
        assert!(error.contains("format"), "{error}");
    }
}
