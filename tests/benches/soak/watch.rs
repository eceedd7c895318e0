//! Who looks at the agent while the load goes on: a scraper, somebody with a live view, followers of events.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use tests::memory::resident;
use tests::{Agent, Family, Metrics, http};

use crate::load::{POD_CREATES, refused};

/// As most scrapers do, only more often.
const SCRAPES: Duration = Duration::from_secs(1);

/// All that was seen, of all agents.
#[derive(Debug, Default)]
pub struct Seen {
    /// Agents that were killed.
    pub kills: u64,
    /// Resident bytes over seconds, of each agent.
    pub lives: Vec<Vec<(f64, u64)>>,
    /// Counters that fell, from one scrape to the next, restarts included.
    pub fell: Vec<String>,
    /// Scrapes and snapshots.
    pub scrapes: u64,
    /// The slowest scrape.
    pub slowest: Duration,
    /// Events that a follower got, by kind.
    pub events: BTreeMap<String, u64>,
    /// Warnings and errors in the agents' logs, without their times.
    pub log: BTreeMap<String, u64>,
    /// Scrapes that failed.
    pub failed: Vec<String>,
    /// Refusals that pods had when their series ended, by family: a Prometheus would still have them.
    pub ended: Arc<[AtomicU64; 2]>,
    last: Option<Metrics>,
}

/// Looks at one agent.
pub struct Watch {
    stop: Arc<AtomicBool>,
    scraper: JoinHandle<Seen>,
    follower: JoinHandle<BTreeMap<String, u64>>,
    /// Asked for events, and never read.
    _stuck: UnixStream,
}

impl Watch {
    pub fn start(agent: &Agent, mut seen: Seen) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut stuck = UnixStream::connect(agent.socket()).expect("the agent listens");
        stuck
            .write_all(b"GET /api/v1/events?since=10m HTTP/1.1\r\nhost: lab\r\n\r\n")
            .expect("the agent reads");
        let follower = std::thread::spawn({
            let (stop, mut events) = (Arc::clone(&stop), agent.events());
            move || {
                let mut kinds = BTreeMap::new();
                while !stop.load(Ordering::Relaxed) {
                    events.listen(Duration::from_millis(200));
                    for event in events.seen.drain(..) {
                        *kinds.entry(event.text("kind").to_owned()).or_default() += 1;
                    }
                }
                kinds
            }
        });
        let (pid, listen, socket) = (agent.pid(), agent.listen(), agent.socket());
        let scraper = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                seen.lives.push(Vec::new());
                let born = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    match http::tcp(listen, "GET", "/metrics") {
                        Ok(answer) if answer.status == 200 => seen.scrape(&answer.body),
                        Ok(answer) => seen.failed.push(format!("status {}", answer.status)),
                        Err(error) => seen.failed.push(error.to_string()),
                    }
                    seen.slowest = seen.slowest.max(begun.elapsed());
                    if let Err(error) = http::unix(&socket, "GET", "/api/v1/snapshot") {
                        seen.failed.push(format!("snapshot: {error}"));
                    }
                    let at = born.elapsed().as_secs_f64();
                    if let Some(life) = seen.lives.last_mut() {
                        life.push((at, resident(pid)));
                    }
                    std::thread::sleep(SCRAPES.saturating_sub(begun.elapsed()));
                }
                seen
            }
        });
        Self {
            stop,
            scraper,
            follower,
            _stuck: stuck,
        }
    }

    /// The agent still runs.
    pub fn stop(self, agent: &Agent) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let mut seen = self
            .scraper
            .join()
            .map_err(|_| anyhow!("the scraper panicked"))?;
        let kinds = self.follower.join();
        for (kind, n) in kinds.map_err(|_| anyhow!("the follower of events panicked"))? {
            *seen.events.entry(kind).or_default() += n;
        }
        for line in agent.stderr().lines() {
            for level in [" WARN ", " ERROR "] {
                if let Some((_, text)) = line.split_once(level) {
                    let text = format!("{}: {text}", level.trim());
                    *seen.log.entry(text).or_default() += 1;
                }
            }
        }
        Ok(seen)
    }
}

impl Seen {
    fn scrape(&mut self, text: &str) {
        self.scrapes += 1;
        let metrics = Metrics::parse(text);
        if let Some(last) = &self.last {
            // What a process counts of itself begins anew with it.
            let is_counter = |name: &String| {
                name.starts_with("tracer_")
                    && metrics
                        .types
                        .get(name)
                        .is_some_and(|kind| kind == "counter")
            };
            let mut known: BTreeSet<&str> = BTreeSet::new();
            for ((name, labels), now) in metrics.samples.iter().filter(|((n, _), _)| is_counter(n))
            {
                known.insert(name);
                let before = last.samples.get(&(name.clone(), labels.clone()));
                if let Some(before) = before.filter(|before| now < *before) {
                    self.fell
                        .push(format!("{name} {labels:?} fell from {before} to {now}"));
                }
            }
            for (family, ended) in Family::ALL.into_iter().zip(&*self.ended) {
                for (labels, n) in last.matching(POD_CREATES, &refused(family)) {
                    let series = (POD_CREATES.to_owned(), labels.clone());
                    if !metrics.samples.contains_key(&series) {
                        ended.fetch_add(n as u64, Ordering::Relaxed);
                    }
                }
            }
            if known.is_empty() {
                self.failed.push("a scrape has no counter".to_owned());
            }
        }
        self.last = Some(metrics);
    }
}
