//! The one way through the house: kernel → ring and maps → decode → attribute → aggregate →
//! export. `tracer agent` runs it behind its services, `tracer top` by itself where no agent answers.

mod collect;
pub(crate) mod memory;
mod picture;
mod pressure;
mod reader;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracer_common::Hook;

use crate::{
    aggregate::{
        Aggregate,
        forecast::Forecast,
        history::{History, Sample},
        pressure::{Pressure, PressureState},
    },
    config::Config,
    export::{
        events::{Follower, Hub},
        exposition::Latest,
    },
    hooks::cgroups::Names,
    kernel::{
        self,
        btf::{self, Btf},
        conntrack::{self, Conntrack},
        load::{self, HookStatus, Loaded, Parameters},
        maps::{Filling, Maps},
        neighbour_tables::NeighbourTable,
        offsets::Offsets,
        reasons::Reasons,
        state::StateDir,
    },
    pods::{Ask, Resolver, SourceStatus, peers::Peers},
};

/// How often the pod sources are asked whether anything has changed.
const WATCH_INTERVAL: Duration = Duration::from_millis(50);
/// How often lookups past their deadline are looked for.
const AGE_INTERVAL: Duration = Duration::from_millis(200);
/// How often the counters are read while nobody scrapes.
const COLLECT_INTERVAL: Duration = Duration::from_secs(1);
/// A reading serves another scraper too until it is so many times as old as it took: reading takes at
/// most a tenth of one CPU, however many pods there are and however often somebody scrapes.
const SERVES: u32 = 10;
/// It serves at least this long.
const SERVES_MIN: Duration = Duration::from_millis(100);
/// Older readings make the agent unready: nobody should rely on its figures.
const READ_AGE: Duration = Duration::from_secs(30);
/// How often keys that are over are looked for.
const RETIRE_INTERVAL: Duration = Duration::from_secs(30);

/// tracer at work. Dropping it takes the programs out of the kernel, unless there is a state folder.
pub struct Engine {
    config: Config,
    since: SystemTime,
    epoch: Instant,
    /// When this agent began to look.
    watched_since: SystemTime,
    started: Instant,
    reasons: Reasons,
    loaded: Mutex<Loaded>,
    maps: Mutex<Maps>,
    resolver: Mutex<Resolver>,
    peers: Mutex<Peers>,
    aggregate: Mutex<Aggregate>,
    collected: Mutex<Collected>,
    hub: Arc<Hub>,
    exposition: Latest,
    /// When the counters were last read in full.
    read_at: Mutex<Option<Instant>>,
    read_errors: AtomicU64,
    undecodable: AtomicU64,
    /// What outlives the agent is written there.
    state: Option<StateDir>,
    remembered: Mutex<memory::Remembered>,
    host_netns: AtomicU32,
    stop: CancellationToken,
    /// Has a worker ended? Each does at the end, or by a fault of tracer's own.
    worker_ended: CancellationToken,
    workers: Mutex<Workers>,
}

#[derive(Default)]
struct Workers {
    reader: Option<JoinHandle<()>>,
    ticker: Option<thread::JoinHandle<()>>,
}

/// What was read beside the counters, and when.
#[derive(Default)]
struct Collected {
    at: Option<Instant>,
    /// How long the reading took.
    took: Duration,
    tables: [Option<NeighbourTable>; 2],
    entries: [Option<u32>; 2],
    peaks: [u32; 2],
    highest: [u32; 2],
    /// Refusals for forwarded packets, and dropped packets without a socket.
    forwarded: u64,
    seconds_until_full: [f64; 2],
    forecasts: [Forecast; 2],
    pressures: [Pressure; 2],
    history: History,
    conntrack: Option<Conntrack>,
    conntrack_reader: conntrack::Reader,
    fillings: Vec<Filling>,
    misses: Vec<(Hook, u64)>,
    retired: Option<Instant>,
}

/// What of it leaves the house.
struct Taken {
    at: Instant,
    tables: [Option<NeighbourTable>; 2],
    entries: [Option<u32>; 2],
    peaks: [u32; 2],
    highest: [u32; 2],
    seconds_until_full: [f64; 2],
    pressures: [PressureState; 2],
    history: Vec<Sample>,
    conntrack: Option<Conntrack>,
    fillings: Vec<Filling>,
    misses: Vec<(Hook, u64)>,
}

/// A lock whose holder panicked still guards plain figures.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// Loads, attaches and begins to count, or goes on where another agent left the state folder. Needs a
    /// tokio runtime.
    pub fn start(config: &Config, mut state: Option<StateDir>) -> Result<Arc<Self>> {
        kernel::capabilities::check()?;
        // What is configured wrongly is told before anything that takes long.
        let mut resolver = Resolver::new(config)?;
        let functions = load::functions();
        let btf = Btf::open(btf::VMLINUX)?;
        let offsets = Offsets::resolve(&btf);
        let mut reasons = Reasons::resolve(&btf).unwrap_or_default(); // the hook drops says why
        for name in reasons.change(&config.drop_reasons.0) {
            tracing::warn!("drop-reasons: this kernel knows no reason {name}");
        }
        drop(btf);
        let memory = state.as_mut().and_then(memory::recall);
        // Pods first: the programs begin to count into a house that knows its guests.
        resolver.refresh(Ask::Regularly);
        let (loaded, mut maps) = Loaded::load(
            &parameters(config),
            &offsets,
            &reasons,
            functions,
            true,
            state.as_ref(),
        )?;
        for status in &loaded.hooks {
            if !status.reason.is_empty() {
                tracing::warn!(
                    "hook {} is {}: {}",
                    status.hook.name(),
                    status.state.name(),
                    status.reason
                );
            }
        }
        if loaded.is_attached(Hook::Cgroups)
            && let Some(names) = maps.take_cgroups()
        {
            resolver.follow_cgroups(Names::of(names));
        }
        if !loaded.counts() {
            let why: Vec<_> = loaded
                .hooks
                .iter()
                .map(|s| format!("{}: {}", s.hook.name(), s.reason))
                .collect();
            bail!(
                "no hook can run on this node ({}); see `tracer doctor`",
                why.join("; ")
            );
        }
        let ring = maps.take_ring().context("the eBPF ring is taken already")?;
        let (watched_since, started) = (SystemTime::now(), Instant::now());
        let (mut since, mut epoch) = (watched_since, started);
        let mut aggregate = Aggregate::new(config.window, config.max_pods);
        let mut peers = Peers::start(&config.pods, &config.node)?;
        let mut collected = Collected::default();
        if let Some(memory) = memory {
            (since, epoch) = (memory.since, memory.epoch);
            aggregate = memory.aggregate.restored(config.window, config.max_pods);
            peers.remember(memory.tally);
            resolver.remember(memory.gone);
            collected.highest = memory.highest;
        }
        let engine = Arc::new(Self {
            config: config.clone(),
            since,
            epoch,
            watched_since,
            started,
            reasons,
            loaded: Mutex::new(loaded),
            maps: Mutex::new(maps),
            resolver: Mutex::new(resolver),
            peers: Mutex::new(peers),
            aggregate: Mutex::new(aggregate),
            collected: Mutex::new(collected),
            hub: Arc::default(),
            exposition: Latest::default(),
            read_at: Mutex::default(),
            read_errors: AtomicU64::new(0),
            undecodable: AtomicU64::new(0),
            state,
            remembered: Mutex::default(),
            host_netns: AtomicU32::new(0),
            stop: CancellationToken::new(),
            worker_ended: CancellationToken::new(),
            workers: Mutex::default(),
        });
        engine.collect(Duration::ZERO);
        let mut workers = lock(&engine.workers);
        let (reading, ended) = (
            reader::run(engine.clone(), ring)?,
            engine.worker_ended.clone(),
        );
        workers.reader = Some(tokio::spawn(async move {
            let _ended = ended.drop_guard();
            reading.await;
        }));
        let (ticking, ended) = (engine.clone(), engine.worker_ended.clone());
        workers.ticker = Some(
            thread::Builder::new()
                .name("tracer-tick".to_owned())
                .spawn(move || {
                    let _ended = ended.drop_guard();
                    ticking.tick();
                })
                .context("cannot start a thread")?,
        );
        drop(workers);
        // Reading the kernel's types took what the allocator would keep for nothing.
        kernel::sys::trim_memory();
        Ok(engine)
    }

    /// Ends; the programs leave the kernel, unless there is a state folder.
    pub async fn stop(self: Arc<Self>) {
        self.stop.cancel();
        let (reader, ticker) = {
            let mut workers = lock(&self.workers);
            (workers.reader.take(), workers.ticker.take())
        };
        if let Some(reader) = reader
            && let Err(error) = reader.await
        {
            tracing::error!("the ring's reader ended badly: {error}");
        }
        if let Some(ticker) = ticker {
            ticker.thread().unpark();
            if ticker.join().is_err() {
                tracing::error!("the collector ended badly");
            }
        }
        if self.state.is_some() {
            self.collect(Duration::ZERO);
            self.remember(&lock(&self.collected), Duration::ZERO);
        }
        lock(&self.loaded).detach();
    }

    /// The node's name.
    pub fn node(&self) -> &str {
        &self.config.node
    }

    /// Returns when the engine can go on no more: a worker of it has panicked, which the log tells.
    pub async fn broken(&self) {
        self.worker_ended.cancelled().await;
    }

    /// Cancelled when the engine stops.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// The hooks as they came up.
    pub fn hooks(&self) -> Vec<HookStatus> {
        lock(&self.loaded).hooks.clone()
    }

    /// Why the engine is not ready, if it is not: no pod source has answered yet, or the kernel's
    /// counters have not been read for long.
    pub fn not_ready(&self) -> Option<String> {
        let read = lock(&self.read_at).map_or_else(|| self.started.elapsed(), |at| at.elapsed());
        if read > READ_AGE {
            return Some(format!(
                "the kernel's counters could not be read for {} s; the log says why",
                read.as_secs()
            ));
        }
        let silent: Vec<SourceStatus> = lock(&self.resolver)
            .sources()
            .into_iter()
            .filter(|source| source.age.is_none() && !source.idle)
            .collect();
        let first = silent.first()?;
        Some(format!("pod source {}: {}", first.name, first.reason))
    }

    /// A reader of the events of the last `since` that are still held, and of all new ones.
    pub fn follow(&self, since: Option<Duration>) -> Follower {
        self.hub.follow(since)
    }
}

/// What the programs are told.
pub fn parameters(config: &Config) -> Parameters {
    Parameters {
        event_rate: config.event_rate,
        dns_ports: config.dns_ports.clone(),
        dns_timeout: config.dns_timeout,
        silent_ports: config.silent_ports.clone(),
        silent_after: config.silent_after,
    }
}
