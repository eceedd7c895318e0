//! The figures, as a table or as JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use tests::bench::Spread;

use crate::load::Load;
use crate::watcher::Watcher;

/// All that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// `uname -r`.
    pub kernel: String,
    /// Watchers that are not on this machine.
    pub missing: Vec<&'static str>,
    pub rows: Vec<Row>,
}

/// One watcher.
#[derive(Debug, Serialize)]
pub struct Row {
    pub watcher: Watcher,
    /// In a second.
    pub rates: BTreeMap<Load, Spread>,
    /// Of the rate in the same round while nobody watched.
    pub ratios: BTreeMap<Load, Spread>,
}

impl Row {
    pub fn of(watcher: Watcher) -> Self {
        Self {
            watcher,
            rates: BTreeMap::new(),
            ratios: BTreeMap::new(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Linux {}", self.kernel)?;
        write!(f, "{:32}", "who watches")?;
        for load in Load::ALL {
            write!(f, "  {:>12}  {:<20}", load.unit().0, "× (lowest–highest)")?;
        }
        writeln!(f)?;
        for row in &self.rows {
            write!(f, "{:32}", row.watcher.name())?;
            for load in Load::ALL {
                let (rate, ratio) = (row.rates[&load], row.ratios[&load]);
                let rate = rate.median / load.unit().1;
                let digits = if rate < 1000.0 { 2 } else { 0 };
                let ratio = format!(
                    "{:.2} ({:.2}–{:.2})",
                    ratio.median, ratio.lowest, ratio.highest
                );
                write!(f, "  {rate:>12.digits$}  {ratio:<20}")?;
            }
            writeln!(f)?;
        }
        for name in &self.missing {
            writeln!(f, "not on this machine: {name}")?;
        }
        Ok(())
    }
}
