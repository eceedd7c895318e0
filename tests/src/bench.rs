//! What the benchmarks share: the spread of figures, the time of tracer's programs, the wish to stop.

pub mod dnsperf;
pub mod growth;
pub mod hooks;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::{ProgramInfo, loaded_programs};
use aya::sys::{Stats, enable_stats};
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// The middle of some figures, and the ends.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    /// Half of them are below.
    pub median: f64,
    /// The least.
    pub lowest: f64,
    /// The greatest.
    pub highest: f64,
}

impl Spread {
    /// None without figures.
    pub fn of(figures: impl Iterator<Item = f64>) -> Option<Self> {
        let mut figures: Vec<f64> = figures.collect();
        figures.sort_by(f64::total_cmp);
        let middle = figures.len() / 2;
        let upper = *figures.get(middle)?;
        Some(Self {
            median: if figures.len().is_multiple_of(2) {
                f64::midpoint(figures[middle - 1], upper)
            } else {
                upper
            },
            lowest: *figures.first()?,
            highest: *figures.last()?,
        })
    }
}

/// Whether somebody wants it to end. Looked at between steps of a few seconds; what was made is then
/// removed on the way out.
#[derive(Debug)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on signals do not kill.
    pub fn listen() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&flag))?;
        }
        Ok(Self(flag))
    }

    /// An error once a signal came.
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }
}

/// Runs and nanoseconds of each program, by its id.
pub type Times = BTreeMap<u32, (u64, u64)>;

/// Programs whose time the kernel takes (`BPF_ENABLE_STATS`, 5.8), as long as this lives, whatever
/// `kernel.bpf_stats_enabled` says.
#[derive(Debug)]
pub struct Programs {
    /// The programs.
    pub all: Vec<ProgramInfo>,
    _statistics: OwnedFd,
}

/// Ids of all that are loaded.
pub fn loaded() -> BTreeSet<u32> {
    loaded_programs()
        .filter_map(Result::ok)
        .map(|program| program.id())
        .collect()
}

impl Programs {
    /// Those that were not among `before`.
    pub fn since(before: &BTreeSet<u32>) -> Result<Self> {
        let all: Vec<ProgramInfo> = loaded_programs()
            .filter_map(Result::ok)
            .filter(|program| !before.contains(&program.id()))
            .collect();
        ensure!(!all.is_empty(), "no program was loaded");
        let statistics = enable_stats(Stats::RunTime).context("the kernel gives no statistics")?;
        Ok(Self {
            all,
            _statistics: statistics,
        })
    }

    /// What each has taken so far.
    pub fn times(&self) -> Result<Times> {
        let mut times = Times::new();
        for program in &self.all {
            // Asked anew: an answer does not change.
            let id = program.id();
            let now = loaded_programs()
                .filter_map(Result::ok)
                .find(|now| now.id() == id)
                .context("a program is gone: has the agent ended?")?;
            times.insert(id, (now.run_count(), now.run_time().as_nanos() as u64));
        }
        Ok(times)
    }

    /// What all have taken so far, seconds.
    pub fn seconds(&self) -> Result<f64> {
        let all: u64 = self.times()?.values().map(|(_, ns)| ns).sum();
        Ok(all as f64 / 1e9)
    }
}

/// Cost of one program under one kind of load.
#[derive(Debug, Serialize)]
pub struct Cost {
    /// Runs for each thing of that kind.
    pub runs: f64,
    /// Time of a run, nanoseconds.
    pub ns: Spread,
}

impl Cost {
    /// From runs and nanoseconds of some rounds with `count` things each. None for a program that
    /// hardly ran: its few runs belong to something else.
    pub fn of(samples: &[(u64, u64)], count: u16) -> Option<Self> {
        const FEW: f64 = 0.01;
        let runs: u64 = samples.iter().map(|(runs, _)| runs).sum();
        let runs = runs as f64 / samples.len() as f64 / f64::from(count);
        let ran = samples.iter().filter(|(runs, _)| *runs > 0);
        let ns = Spread::of(ran.map(|(runs, ns)| *ns as f64 / *runs as f64))?;
        (runs >= FEW).then_some(Self { runs, ns })
    }
}
