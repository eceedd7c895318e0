//! The figures in the forms that leave the house: metrics and snapshot.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use anyhow::Result;
use tracer_common::{Hook, dns, neigh, tcp};

use super::{Engine, Taken, lock, reader::time_of};
use crate::{
    aggregate::{
        Figures, Picture,
        dead::DeadEndpoint,
        episodes::Episode,
        history::{STEP, Sample},
        window::Attempts,
    },
    export::{
        exposition::Exposition,
        metrics::{self, View, dns::served},
        negotiate::Format,
        snapshot::{self, Snapshot},
    },
    hooks::FAMILY_NAMES,
    kernel::{conntrack::Conntrack, state::StateDir},
};

impl Engine {
    /// What Prometheus scrapes.
    pub fn metrics(&self, format: Format) -> Result<Arc<Exposition>> {
        let (picture, taken) = self.picture();
        self.exposition
            .of(taken.at, format, || self.render(&picture, &taken, format))
    }

    fn render(&self, picture: &Picture, taken: &Taken, format: Format) -> Result<String> {
        let hooks = self.hooks();
        let (sources, gone) = {
            let resolver = lock(&self.resolver);
            (resolver.sources(), resolver.gone_addresses())
        };
        let view = View {
            node: &self.config.node,
            dns_ports: &self.config.dns_ports,
            picture,
            tables: taken.tables,
            entries: taken.entries,
            peaks: taken.peaks,
            seconds_until_full: taken.seconds_until_full,
            conntrack: taken.conntrack,
            hooks: &hooks,
            misses: &taken.misses,
            fillings: &taken.fillings,
            sources: &sources,
            watched: self.started.elapsed(),
            gone: &gone,
            peers: &lock(&self.peers).failures(),
            reasons: &self.reasons.names_of_failures(),
            read_errors: self.read_errors.load(Ordering::Relaxed),
            undecodable: self.undecodable.load(Ordering::Relaxed),
            state_resets: self.state.as_ref().map_or(0, StateDir::resets),
        };
        metrics::render(&view, format)
    }

    /// All that `top` shows.
    pub fn snapshot_now(&self) -> Result<Snapshot> {
        let (picture, taken) = self.picture();
        let mut tables = Vec::new();
        for (index, family) in FAMILY_NAMES.iter().enumerate() {
            if let Some(table) = taken.tables[index] {
                tables.push(snapshot::Table {
                    family: (*family).to_owned(),
                    entries: taken.entries[index].map(u64::from),
                    entries_peak: taken.peaks[index]
                        .max(taken.entries[index].unwrap_or_default())
                        .into(),
                    entries_peak_since_start: taken.highest[index].into(),
                    time_until_full_seconds: Some(taken.seconds_until_full[index])
                        .filter(|seconds| seconds.is_finite()),
                    pressure: taken.pressures[index].name().to_owned(),
                    limits: table.limits.map(u64::from),
                    table_fulls: table.table_fulls,
                    gc_forced: table.gc_forced,
                    gc_periodic: table.gc_periodic,
                });
            }
        }
        let hooks = self
            .hooks()
            .into_iter()
            .map(|status| {
                let ring = picture.ring[status.hook as usize];
                snapshot::Hook {
                    name: status.hook.name().to_owned(),
                    state: status.state.name().to_owned(),
                    mechanism: status.mechanism,
                    reason: status.reason,
                    events: ring.sent,
                    lost: ring.lost,
                    suppressed: ring.suppressed,
                }
            })
            .collect();
        let sources = lock(&self.resolver)
            .sources()
            .into_iter()
            .map(|source| snapshot::Source {
                name: source.name.to_owned(),
                pods: source.pods as u64,
                age_seconds: source.age.map(|age| age.as_secs_f64()),
                reason: source.reason,
                idle: source.idle,
            })
            .collect();
        Ok(Snapshot {
            time: humantime::format_rfc3339_micros(std::time::SystemTime::now()).to_string(),
            node: self.config.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            since: humantime::format_rfc3339_micros(self.since).to_string(),
            watched_since: humantime::format_rfc3339_micros(self.watched_since).to_string(),
            read_age_seconds: lock(&self.read_at)
                .map_or_else(|| self.started.elapsed(), |at| at.elapsed())
                .as_secs_f64(),
            window_seconds: self.config.window.as_secs_f64(),
            tables,
            conntrack: taken.conntrack.map(conntrack),
            history: history(&taken.history),
            hooks,
            sources,
            total: self.total(&picture),
            dead_endpoints: picture.dead_endpoints.iter().map(dead_endpoint).collect(),
            peers: self.snapshot_peers(),
            unattributed_pending: Hook::ALL
                .iter()
                .map(|hook| (hook.name().to_owned(), picture.pending[*hook as usize]))
                .collect(),
            pods: picture
                .owners
                .iter()
                .map(|(owner, of)| snapshot::Pod {
                    namespace: owner.namespace.clone(),
                    pod: owner.pod.clone(),
                    figures: self.figures(
                        of,
                        &picture.dead_endpoints,
                        of.dns.started.saturating_sub(of.dns.ended()),
                    ),
                })
                .collect(),
        })
    }
}

fn history(samples: &[Sample]) -> snapshot::History {
    let by_signal = |count: fn(Attempts) -> u64| {
        BTreeMap::from([
            (
                "dns".to_owned(),
                samples.iter().map(|s| count(s.dns)).collect(),
            ),
            (
                "neighbour".to_owned(),
                samples.iter().map(|s| count(s.neighbour)).collect(),
            ),
            (
                "connect".to_owned(),
                samples.iter().map(|s| count(s.connect)).collect(),
            ),
        ])
    };
    snapshot::History {
        step_seconds: STEP,
        entries: FAMILY_NAMES
            .iter()
            .enumerate()
            .map(|(index, family)| {
                let column = samples.iter().map(|s| s.entries[index].into());
                ((*family).to_owned(), column.collect())
            })
            .collect(),
        attempts: by_signal(|a| a.all),
        failed: by_signal(|a| a.failed),
    }
}

fn episode(of: &Episode) -> snapshot::Episode {
    let time = |at| humantime::format_rfc3339_seconds(at).to_string();
    snapshot::Episode {
        signal: of.kind.signal.to_owned(),
        cause: of.kind.cause.to_owned(),
        since: time(of.since),
        last: time(of.last),
        failed: of.whole.failed,
        attempts: of.whole.all,
        recent_failed: of.recent.failed,
        recent_attempts: of.recent.all,
    }
}

fn conntrack(of: Conntrack) -> snapshot::Conntrack {
    snapshot::Conntrack {
        entries: of.entries.into(),
        limit: of.limit.into(),
        insert_failed: of.counters.map(|counters| counters.insert_failed),
        drops: of.counters.map(|counters| counters.drops),
        early_drops: of.counters.map(|counters| counters.early_drops),
    }
}

/// What has no figure of its own.
fn other() -> String {
    "(other)".to_owned()
}

fn dead_endpoint(dead: &DeadEndpoint) -> snapshot::DeadEndpoint {
    let tenant = &dead.tenant;
    snapshot::DeadEndpoint {
        destination: dead.destination.clone(),
        last_owner: tenant.owner.as_ref().map(ToString::to_string),
        owner_gone_since: tenant.until.map(time_of),
        since: time_of(dead.since),
        attempts: dead.attempts,
    }
}

/// The dead destinations that an owner calls, most attempts first.
fn called(of: &Figures, dead: &[DeadEndpoint]) -> Vec<snapshot::DeadEndpoint> {
    let mut called: Vec<_> = of
        .dead_attempts
        .iter()
        .map(|(destination, attempts)| {
            let known = dead
                .iter()
                .find(|dead| Some(&dead.destination) == destination.as_ref());
            snapshot::DeadEndpoint {
                destination: destination.clone().unwrap_or_else(other),
                attempts: *attempts,
                ..known.map(dead_endpoint).unwrap_or_default()
            }
        })
        .collect();
    called.sort_by_key(|dead| std::cmp::Reverse(dead.attempts));
    called
}

impl Engine {
    fn total(&self, picture: &Picture) -> snapshot::Figures {
        let mut total = self.figures(&picture.node, &[], picture.dns_pending());
        let failures = self.reasons.names_of_failures();
        total.drops = picture
            .drops
            .iter()
            .filter_map(|(number, dropped)| {
                let (_, name) = failures.iter().find(|(n, _)| n == number)?;
                Some((name.clone(), *dropped))
            })
            .collect();
        total
    }

    fn snapshot_peers(&self) -> Vec<snapshot::Peer> {
        let mut peers: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        for (kind, peer, failed) in lock(&self.peers).failures() {
            if failed > 0 {
                let failures = peers.entry(peer).or_default();
                failures.insert(kind.name().to_owned(), failed);
            }
        }
        peers
            .into_iter()
            .map(|(peer, failures)| snapshot::Peer { peer, failures })
            .collect()
    }

    fn figures(&self, of: &Figures, dead: &[DeadEndpoint], pending: u64) -> snapshot::Figures {
        let neighbour = FAMILY_NAMES
            .iter()
            .zip(&of.neigh)
            .zip(of.entries)
            .map(|((family, counts), entries)| {
                (
                    (*family).to_owned(),
                    snapshot::Neighbour {
                        created: counts.created,
                        table_full: counts.table_full,
                        no_memory: counts.no_memory,
                        kernel_full: counts.kernel_full,
                        evictions: neigh::Gc::ALL
                            .iter()
                            .zip(counts.evictions)
                            .map(|(gc, n)| (gc.name().to_owned(), n))
                            .collect(),
                        forced_gc: counts.forced_gc,
                        recreated: counts.recreated,
                        entries: entries.into(),
                    },
                )
            })
            .collect();
        let mut failure_ratio = BTreeMap::new();
        for (signal, ratio) in [
            ("dns", of.dns_ratio),
            ("neighbour", of.neigh_ratio),
            ("connect", of.connect_ratio),
        ] {
            if let Some(ratio) = ratio {
                failure_ratio.insert(signal.to_owned(), ratio);
            }
        }
        let dns = &of.dns;
        snapshot::Figures {
            neighbour,
            dns: snapshot::Dns {
                queries: dns.queries,
                started: dns.started,
                pending,
                outcomes: dns::Outcome::ALL
                    .iter()
                    .zip(dns.outcomes)
                    .map(|(outcome, n)| (outcome.name().to_owned(), n))
                    .collect(),
                causes: dns::Cause::ALL
                    .iter()
                    .zip(dns.causes)
                    .map(|(cause, n)| (cause.name().to_owned(), n))
                    .collect(),
                late: dns.late,
                unmatched: dns.unmatched,
                untracked: dns.untracked,
                received: dns.received,
                served: served(dns)
                    .map(|(outcome, n)| (outcome.to_owned(), n))
                    .collect(),
                serving: dns.serving().max(0).cast_unsigned(),
                answered: dns.answered(),
                duration_sum_seconds: dns.duration_ns as f64 / 1e9,
                p50_seconds: dns.quantile(0.5),
                p99_seconds: dns.quantile(0.99),
                buckets: if dns.answered() > 0 {
                    dns.buckets.to_vec()
                } else {
                    Vec::new()
                },
            },
            connects: tcp::Outcome::RESULTS
                .iter()
                .zip(of.tcp.results)
                .filter(|_| of.tcp.ended() > 0)
                .map(|(result, n)| (result.name().to_owned(), n))
                .collect(),
            retransmits: of.tcp.retransmits,
            resets: of.tcp.resets,
            silent: of.tcp.silent,
            unanswered: of.tcp.unanswered,
            drops: of
                .drops
                .iter()
                .map(|(reason, n)| (self.reasons.name(*reason), *n))
                .collect(),
            receive_drops: of.receive_drops.values().sum(),
            receive_drops_by_port: of
                .receive_drops
                .iter()
                .map(|(port, n)| (port.map_or_else(other, |port| port.to_string()), *n))
                .collect(),
            dead_endpoints: called(of, dead),
            episodes: of.episodes.iter().map(episode).collect(),
            failure_ratio,
        }
    }
}
