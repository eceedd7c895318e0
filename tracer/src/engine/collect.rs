//! The readings: what is done now and then, and what is taken over from the kernel at each.

use std::{
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use aya::util::online_cpus;
use tracer_common::Hook;

use super::{
    AGE_INTERVAL, COLLECT_INTERVAL, Collected, Engine, RETIRE_INTERVAL, SERVES, SERVES_MIN, Taken,
    WATCH_INTERVAL, lock, memory,
};
use crate::{
    aggregate::{Picture, dead},
    hooks::{self, FAMILY_NAMES},
    kernel::{self, load::Loaded, maps::Maps, neighbour_tables},
    pods::{Ask, Moved},
};

impl Engine {
    /// Ages lookups often, reads the counters now and then, until stopped.
    pub(super) fn tick(&self) {
        let mut aged = Instant::now();
        let mut was_changing = false;
        while !self.stop.is_cancelled() {
            thread::park_timeout(WATCH_INTERVAL);
            let changing = lock(&self.resolver).has_changed();
            if changing && !was_changing {
                // What was counted until now belongs to those who were there until now.
                self.collect(Duration::ZERO);
            }
            if changing && lock(&self.resolver).refresh(Ask::Changed) == Some(Moved(true)) {
                // And what is counted from now on not to those who have just gone.
                self.collect(Duration::ZERO);
            }
            was_changing = changing;
            if aged.elapsed() < AGE_INTERVAL {
                continue;
            }
            aged = Instant::now();
            self.age_lookups();
            self.settle_refusals();
            lock(&self.loaded).flush_log();
            self.collect(COLLECT_INTERVAL);
        }
    }

    /// Ends the lookups that are over. The program walks the whole map (0.4 ms), so only where any
    /// wait.
    fn age_lookups(&self) {
        let waiting = lock(&self.maps).dns_waiting();
        match waiting {
            Ok(false) => {}
            Ok(true) => self.run(Hook::Dns, Loaded::age_lookups),
            Err(error) => self.failed(&error),
        }
    }

    fn run(&self, hook: Hook, run: impl Fn(&Loaded) -> Result<()>) {
        let loaded = lock(&self.loaded);
        if loaded.runs()
            && loaded.is_attached(hook)
            && let Err(error) = run(&loaded)
        {
            self.failed(&error);
        }
    }

    /// Refusals that have waited in vain for a packet on a CPU where nothing happens any more.
    fn settle_refusals(&self) {
        if !lock(&self.loaded).runs() {
            return;
        }
        let now_ns = kernel::monotonic().as_nanos() as u64;
        let stale = lock(&self.maps).stale_refusals(now_ns);
        match stale {
            Ok(cpus) if cpus.is_empty() => {}
            Ok(cpus) => {
                let loaded = lock(&self.loaded);
                // One that is offline keeps its own waiting until it comes back, and nobody else's.
                let online = online_cpus().unwrap_or_default();
                for cpu in cpus.into_iter().filter(|cpu| online.contains(cpu)) {
                    if let Err(error) = loaded.run_on("neigh_settle", Some(cpu)) {
                        self.failed(&error);
                    }
                }
            }
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&self, error: &anyhow::Error) {
        // The first, and ever fewer of the others; the metric counts them all.
        let errors = self.read_errors.fetch_add(1, Ordering::Relaxed) + 1;
        if errors.is_power_of_two() {
            tracing::error!("cannot read from the kernel: {error:#}");
        }
    }

    /// Reads the counters, unless the last reading is young enough to serve.
    fn collect_if_old(&self) {
        let took = lock(&self.collected).took;
        self.collect((took * SERVES).clamp(SERVES_MIN, COLLECT_INTERVAL));
    }

    /// Reads the counters, unless the last reading is younger than `age`.
    pub(super) fn collect(&self, age: Duration) {
        let mut collected = lock(&self.collected);
        if collected.at.is_some_and(|at| at.elapsed() < age) {
            return;
        }
        let start = Instant::now();
        match collected.conntrack_reader.read() {
            Ok(figures) => collected.conntrack = figures,
            Err(error) => self.failed(&error),
        }
        match self.try_collect(&mut collected) {
            Ok(()) => {
                *lock(&self.read_at) = Some(Instant::now());
                self.remember(&collected, memory::STALE);
            }
            Err(error) => self.failed(&error),
        }
        collected.took = start.elapsed();
        collected.at = Some(Instant::now());
    }

    fn try_collect(&self, collected: &mut Collected) -> Result<()> {
        match neighbour_tables::read() {
            Ok(tables) => collected.tables = tables,
            // What the programs count does not come from there.
            Err(error) => self.failed(&error),
        }
        self.age_lookups();
        self.settle_refusals();
        self.run(Hook::Neigh, |loaded| loaded.run("tables"));
        self.run(Hook::Neigh, Loaded::walk);
        self.run(Hook::Tcp, Loaded::age_connections);
        let now = Instant::now();
        let second = now.duration_since(self.epoch).as_secs();
        let mut maps = lock(&self.maps);
        let mut resolver = lock(&self.resolver);
        let neigh_attached = lock(&self.loaded).is_attached(Hook::Neigh);
        for (index, table) in maps.tables()?.iter().enumerate() {
            collected.entries[index] =
                (neigh_attached && table.address != 0).then_some(table.gc_entries);
            if table.init_net_cookie != 0 {
                resolver.set_host(table.init_net_cookie);
                self.host_netns.store(table.init_netns, Ordering::Relaxed);
            }
        }
        collected.peaks = maps.peaks(kernel::monotonic().as_secs())?;
        for family in 0..FAMILY_NAMES.len() {
            collected.highest[family] = collected.highest[family]
                .max(collected.peaks[family])
                .max(collected.entries[family].unwrap_or_default());
        }
        self.watch_pressure(collected, second);
        let reading = maps.read()?;
        resolver.refresh(Ask::Regularly);
        maps.tell_pod_addresses(resolver.addresses().map(hooks::words));
        maps.tell_strangers(&reading)?;
        {
            let mut peers = lock(&self.peers);
            peers.learn(&resolver);
            peers.update(&reading.peers, now, second);
        }
        let forwarded: u64 = reading
            .forwarded
            .iter()
            .map(|(_, v)| v.counts.table_full)
            .chain(
                reading
                    .drops
                    .iter()
                    .filter(|(key, _)| key.family != 0)
                    .map(|(_, value)| value.dropped),
            )
            .sum();
        if forwarded != collected.forwarded {
            resolver.refresh(Ask::Addresses);
            collected.forwarded = forwarded;
        }
        let mut aggregate = lock(&self.aggregate);
        aggregate.update(reading, &resolver, now, second);
        let picture = aggregate.picture();
        if picture.pending.iter().sum::<u64>() > 0 && resolver.refresh(Ask::Unknown).is_some() {
            // Somebody new: the sources know by now.
            aggregate.update(picture.reading.clone(), &resolver, now, second);
        }
        let entries = collected.entries.map(Option::unwrap_or_default);
        collected
            .history
            .note(second, entries, picture.node.totals());
        if collected
            .retired
            .is_none_or(|at| at.elapsed() >= RETIRE_INTERVAL)
        {
            aggregate.retire(&resolver, now, &mut *maps);
            forget(&aggregate.retire_attempts(), &mut maps);
            for key in lock(&self.peers).retire(now) {
                maps.forget_peer(&key);
            }
            collected.retired = Some(now);
        } else if aggregate.is_crowded_by_attempts() {
            forget(&aggregate.retire_attempts(), &mut maps);
        }
        collected.fillings = maps.fillings(&picture.reading, picture.dns_pending());
        collected.misses = lock(&self.loaded).misses();
        Ok(())
    }

    /// The figures, at most [`COLLECT_INTERVAL`] old.
    pub(super) fn picture(&self) -> (Arc<Picture>, Taken) {
        self.collect_if_old();
        let collected = lock(&self.collected);
        let taken = Taken {
            at: collected.at.unwrap_or(self.epoch),
            tables: collected.tables,
            entries: collected.entries,
            peaks: collected.peaks,
            highest: collected.highest,
            seconds_until_full: collected.seconds_until_full,
            pressures: [0, 1].map(|family| collected.pressures[family].state()),
            history: collected.history.samples().copied().collect(),
            conntrack: collected.conntrack,
            fillings: collected.fillings.clone(),
            misses: collected.misses.clone(),
        };
        drop(collected);
        (lock(&self.aggregate).picture(), taken)
    }
}

/// Takes out of the kernel's maps what can get no more.
fn forget(over: &dead::Over, maps: &mut Maps) {
    for key in &over.attempts {
        maps.forget_attempts(key);
    }
    for key in &over.destinations {
        maps.forget_destination(key);
    }
}
