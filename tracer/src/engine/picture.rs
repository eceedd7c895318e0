//! The figures in the forms that leave the house: metrics and snapshot.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use anyhow::Result;
use tracer_common::{Hook, dns, neigh};

use super::{Engine, lock};
use crate::{
    aggregate::{
        Figures,
        episodes::Episode,
        history::{STEP, Sample},
        window::Attempts,
    },
    export::{
        metrics::{self, View, served},
        snapshot::{self, Snapshot},
    },
    hooks::FAMILY_NAMES,
    kernel::conntrack::Conntrack,
};

impl Engine {
    /// The text that Prometheus scrapes.
    pub fn metrics(&self) -> Result<Vec<u8>> {
        let (picture, taken) = self.picture();
        let hooks = self.hooks();
        let (sources, gone) = {
            let resolver = lock(&self.resolver);
            (resolver.sources(), resolver.gone_addresses())
        };
        metrics::render(&View {
            node: &self.config.node,
            dns_ports: &self.config.dns_ports,
            picture: &picture,
            tables: taken.tables,
            entries: taken.entries,
            peaks: taken.peaks,
            seconds_until_full: taken.seconds_until_full,
            conntrack: taken.conntrack,
            hooks: &hooks,
            misses: &taken.misses,
            fillings: &taken.fillings,
            sources: &sources,
            gone: &gone,
            peers: &lock(&self.peers).failures(),
            reasons: &self.reasons.names_of_failures(),
            read_errors: self.read_errors.load(Ordering::Relaxed),
            undecodable: self.undecodable.load(Ordering::Relaxed),
        })
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
                    mechanism: status.mechanism.to_owned(),
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
            window_seconds: self.config.window.as_secs_f64(),
            tables,
            conntrack: taken.conntrack.map(conntrack),
            history: history(&taken.history),
            hooks,
            sources,
            total: snapshot::Figures {
                drops: self.drops(&picture.drops),
                ..figures(&picture.node, picture.dns_pending())
            },
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
                    figures: figures(of, of.dns.started.saturating_sub(of.dns.ended())),
                })
                .collect(),
        })
    }

    fn drops(&self, dropped: &[(u32, u64)]) -> BTreeMap<String, u64> {
        let names = self.reasons.names_of_failures();
        let mut drops = BTreeMap::new();
        for (number, name) in names {
            if let Some((_, n)) = dropped.iter().find(|(of, n)| *of == number && *n > 0) {
                drops.insert(name, *n);
            }
        }
        drops
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

fn figures(of: &Figures, pending: u64) -> snapshot::Figures {
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
    for (signal, ratio) in [("dns", of.dns_ratio), ("neighbour", of.neigh_ratio)] {
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
            serving: dns.serving(),
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
        failure_ratio,
        receive_drops: of.receive_drops.iter().sum(),
        episodes: of.episodes.iter().map(episode).collect(),
        ..snapshot::Figures::default()
    }
}
