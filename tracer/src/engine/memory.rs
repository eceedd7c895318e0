//! What an agent knows and the kernel does not: whose the kernel's keys are, and what those that are gone had
//! counted. Written into the state folder whenever that changes, so that a restart is to the figures what
//! a pause would be. What it cannot tell is whose an address became while no agent ran (docs/install.md).

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{
    aggregate::Aggregate,
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
