//! The figures, for people, and whether all is well.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use tests::Metrics;

use crate::watch::Seen;

/// Some virtual machines hide from BPF what interrupts their supervisor ([`tests::unseen`]): of 10,000
/// connections up to 16. So much may be missing, of a thousand.
const HIDDEN: u64 = 2;
/// Growth that counts, in bytes a minute, of an agent that has warmed up.
const LEAK: f64 = 512.0 * 1024.0;
/// First an agent fills its store of events, and keeps pods that are gone for five minutes.
const WARM: f64 = 6.0 * 60.0;
/// So long a warm life tells something.
const TELLING: f64 = 3.0;

/// A figure that is known, and what tracer says.
#[derive(Debug)]
pub struct Row {
    what: String,
    truth: u64,
    tracer: u64,
    /// What tracer did not see makes this figure greater.
    may_be_more: bool,
}

impl Row {
    pub fn new(what: String, truth: u64, tracer: u64) -> Self {
        Self {
            what,
            truth,
            tracer,
            may_be_more: false,
        }
    }

    /// Of lookups with one outcome: one whose answer is hidden is counted with another outcome.
    pub fn of_outcome(what: String, truth: u64, tracer: u64) -> Self {
        Self {
            may_be_more: true,
            ..Self::new(what, truth, tracer)
        }
    }

    pub fn is_equal(&self) -> bool {
        self.truth == self.tracer
    }

    /// As far as it can be on a machine that hides something.
    fn is_well(&self) -> bool {
        let allowed = (self.truth * HIDDEN).div_ceil(1000);
        // What did not happen is counted by no machine.
        let more = if self.may_be_more { allowed } else { 0 };
        self.tracer <= self.truth + more && self.truth <= self.tracer + allowed
    }
}

/// What a hook had to say of its details.
#[derive(Debug)]
pub struct Details {
    hook: String,
    sent: u64,
    lost: u64,
    suppressed: u64,
    missed: u64,
}

/// Of all hooks.
pub fn details(metrics: &Metrics) -> Vec<Details> {
    let hooks = metrics.matching("tracer_events_total", &[]);
    let hooks = hooks.map(|(labels, _)| labels["hook"].clone());
    hooks
        .map(|hook| {
            let of = |name: &str| metrics.count(name, &[("hook", &hook)]);
            Details {
                sent: of("tracer_events_total"),
                lost: of("tracer_events_lost_total"),
                suppressed: of("tracer_events_suppressed_total"),
                missed: of("tracer_program_misses_total"),
                hook,
            }
        })
        .collect()
}

/// How many pods have series.
pub fn pods(metrics: &Metrics) -> usize {
    let labels = metrics.samples.keys().map(|(_, labels)| labels);
    let names = labels.filter_map(|labels| Some((labels.get("namespace")?, labels.get("pod")?)));
    names.collect::<BTreeSet<_>>().len()
}

/// All that was measured.
#[derive(Debug)]
pub struct Report {
    pub took: Duration,
    pub rounds: u64,
    pub rows: Vec<Row>,
    pub details: Vec<Details>,
    pub pods: usize,
    pub seen: Seen,
}

impl Report {
    /// Nothing fell, failed or went wrong, and the figures are right.
    pub fn is_well(&self) -> bool {
        self.faults().is_empty()
    }

    fn faults(&self) -> Vec<String> {
        let seen = &self.seen;
        let mut faults: Vec<String> = [("counter", &seen.fell), ("scrape", &seen.failed)]
            .into_iter()
            .flat_map(|(what, all)| all.iter().take(5).map(move |one| format!("{what}: {one}")))
            .collect();
        let wrong = self.rows.iter().filter(|row| !row.is_well());
        faults.extend(wrong.map(|row| format!("figure: {}", row.what)));
        let errors = seen.log.keys().filter(|line| line.starts_with("ERROR"));
        faults.extend(errors.map(|line| format!("log: {line}")));
        for (number, life) in (1..).zip(&seen.lives) {
            if let Some(slope) = slope(life).filter(|slope| *slope > LEAK) {
                faults.push(format!(
                    "memory: agent {number} grew by {} a minute",
                    kib(slope)
                ));
            }
        }
        faults
    }
}

/// Bytes a minute once it is warm; `None` of a life that was too short to tell.
fn slope(life: &[(f64, u64)]) -> Option<f64> {
    let warm: Vec<(f64, f64)> = life
        .iter()
        .filter(|(at, _)| *at >= WARM)
        .map(|(at, bytes)| (at / 60.0, *bytes as f64))
        .collect();
    let span = warm.last()?.0 - warm.first()?.0;
    let n = warm.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| warm.iter().map(of).sum::<f64>() / n;
    let (at, bytes) = (mean(|p| p.0), mean(|p| p.1));
    let above: f64 = warm.iter().map(|p| (p.0 - at) * (p.1 - bytes)).sum();
    let below: f64 = warm.iter().map(|p| (p.0 - at).powi(2)).sum();
    (span >= TELLING).then_some(above / below)
}

fn kib(bytes: f64) -> String {
    format!("{:.0} KiB", bytes / 1024.0)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = &self.seen;
        writeln!(
            f,
            "{:.1} minutes, {} rounds of load, {} agents killed; {} scrapes, the slowest {:.0} ms",
            self.took.as_secs_f64() / 60.0,
            self.rounds,
            seen.kills,
            seen.scrapes,
            seen.slowest.as_secs_f64() * 1e3,
        )?;
        writeln!(
            f,
            "\nresident memory, KiB   first     last      max   a minute, once warm"
        )?;
        for (number, life) in (1..).zip(&seen.lives) {
            let [first, last] = [life.first(), life.last()].map(|p| p.map_or(0, |p| p.1 >> 10));
            let most = life.iter().map(|p| p.1 >> 10).max().unwrap_or_default();
            let slope =
                slope(life).map_or_else(|| "-".to_owned(), |s| format!("{:+.0}", s / 1024.0));
            let minutes = life.last().map_or(0.0, |p| p.0 / 60.0);
            writeln!(
                f,
                "agent {number:2}, {minutes:4.1} min    {first:8} {last:8} {most:8}   {slope:>8}"
            )?;
        }
        writeln!(f, "pods with series at the end: {}", self.pods)?;
        writeln!(f, "\ndetails        sent     lost  held back  runs missed")?;
        for d in &self.details {
            writeln!(
                f,
                "{:9} {:9} {:8} {:10} {:12}",
                d.hook, d.sent, d.lost, d.suppressed, d.missed
            )?;
        }
        let events: Vec<String> = seen
            .events
            .iter()
            .map(|(k, n)| format!("{k} {n}"))
            .collect();
        writeln!(f, "events that a follower got: {}", events.join(", "))?;
        writeln!(
            f,
            "\n{:36} {:>10} {:>10} {:>6}",
            "figure", "truth", "tracer", "off"
        )?;
        for row in &self.rows {
            let off = i128::from(row.tracer) - i128::from(row.truth);
            writeln!(
                f,
                "{:36} {:>10} {:>10} {off:>6}",
                row.what, row.truth, row.tracer
            )?;
        }
        writeln!(
            f,
            "\nwarnings and errors in the log: {}",
            seen.log.values().sum::<u64>()
        )?;
        for (line, n) in &seen.log {
            writeln!(f, "{n:6} × {line}")?;
        }
        let faults = self.faults();
        if faults.is_empty() {
            return writeln!(f, "\nall is well");
        }
        writeln!(f, "\nwhat is wrong:")?;
        faults.iter().try_for_each(|fault| writeln!(f, "  {fault}"))
    }
}
