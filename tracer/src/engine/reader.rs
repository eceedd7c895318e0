//! Reads the ring, attributes each record and publishes it as an event.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;

use super::{Engine, lock};
use crate::{
    export::events::{Details, Event, Pod},
    hooks::{self, Record},
    kernel::{self, load::Ring, sys},
    pods::{Ask, Owner, When},
};

/// How long an event may wait for its pod's name. Shorter than the counters' wait: an event is news.
const HOLD: Duration = Duration::from_secs(2);
/// How often those that wait are looked at.
const RETRY: Duration = Duration::from_millis(100);
/// How many may wait; then the oldest goes out without a name.
const MAX_WAITING: usize = 10_000;
/// How old the knowledge of addresses may be. Each asking enters every namespace.
const ADDRESSES_AGE: Duration = Duration::from_millis(200);
/// Records read before others get a turn on the runtime.
const BATCH: usize = 256;

struct Reader {
    engine: Arc<Engine>,
    waiting: VecDeque<(Instant, Record)>,
}

/// The reader's task.
pub(super) fn run(engine: Arc<Engine>, ring: Ring) -> Result<impl Future<Output = ()>> {
    let mut ring = sys::async_ring(ring).context("cannot wait for the eBPF ring")?;
    let stop = engine.stopping();
    let mut reader = Reader {
        engine,
        waiting: VecDeque::new(),
    };
    Ok(async move {
        let mut retry = tokio::time::interval(RETRY);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = retry.tick() => reader.retry(),
                ready = ring.readable_mut() => {
                    let Ok(mut ready) = ready else { break };
                    if reader.drain(ready.get_inner_mut()) {
                        // Edge-triggered: only an empty ring may be waited for.
                        ready.clear_ready();
                    }
                    tokio::task::yield_now().await;
                }
            }
        }
        // What is still there is told before the end.
        while !reader.drain(ring.get_mut()) {}
        reader.flush();
    })
}

impl Reader {
    /// Reads a batch. True if the ring is empty.
    fn drain(&mut self, ring: &mut Ring) -> bool {
        for _ in 0..BATCH {
            let Some(item) = ring.next() else {
                return true;
            };
            let bytes = Bytes::copy_from_slice(&item);
            drop(item); // gives the room back to the kernel
            match hooks::decode(&bytes, &self.engine.reasons) {
                Ok(mut record) => {
                    // Here, before anything holds it.
                    if self.engine.config.redact_names {
                        record.details.redact();
                    }
                    self.take(record);
                }
                Err(error) => {
                    if self.engine.undecodable.fetch_add(1, Ordering::Relaxed) == 0 {
                        tracing::error!("cannot decode: {error:#}");
                    }
                }
            }
        }
        false
    }

    fn take(&mut self, record: Record) {
        if let Some(owner) = self.owner(&record) {
            self.publish(&owner, record);
            return;
        }
        if self.waiting.len() == MAX_WAITING
            && let Some((_, oldest)) = self.waiting.pop_front()
        {
            self.publish(&Owner::unknown(), oldest);
        }
        self.waiting.push_back((Instant::now(), record));
    }

    fn owner(&self, record: &Record) -> Option<Arc<Owner>> {
        let mut resolver = lock(&self.engine.resolver);
        if record.identity.source.is_some()
            && resolver
                .age_of_addresses()
                .is_none_or(|age| age > ADDRESSES_AGE)
        {
            // An address may have moved.
            resolver.refresh(Ask::Addresses);
        }
        let when = When::at(moment(record));
        resolver.resolve(&record.identity, when).or_else(|| {
            // Somebody new; the sources may know by now.
            resolver.refresh(Ask::Unknown);
            resolver.resolve(&record.identity, when)
        })
    }

    /// Another try for those that wait, in their order.
    fn retry(&mut self) {
        for _ in 0..self.waiting.len() {
            let Some((since, record)) = self.waiting.pop_front() else {
                break;
            };
            match self.owner(&record) {
                Some(owner) => self.publish(&owner, record),
                None if since.elapsed() >= HOLD => self.publish(&Owner::unknown(), record),
                None => self.waiting.push_back((since, record)),
            }
        }
    }

    fn flush(&mut self) {
        while let Some((_, record)) = self.waiting.pop_front() {
            let owner = self.owner(&record).unwrap_or_else(Owner::unknown);
            self.publish(&owner, record);
        }
    }

    fn publish(&self, owner: &Owner, mut record: Record) {
        self.name_destination(&mut record.details);
        let age = age(&record);
        let in_context = record.pid != 0;
        let event = Event {
            time: humantime::format_rfc3339_micros(before(SystemTime::now(), age)).to_string(),
            node: self.engine.config.node.clone(),
            pod: Pod {
                namespace: owner.namespace.clone(),
                name: owner.pod.clone(),
                uid: owner.uid.clone(),
            },
            netns: record.identity.netns,
            comm: in_context.then_some(record.comm),
            pid: in_context.then_some(record.pid),
            details: record.details,
        };
        let now = Instant::now();
        self.engine
            .hub
            .publish(now.checked_sub(age).unwrap_or(now), &event);
    }
}

impl Reader {
    /// Says who had the address that a failed connection asked.
    fn name_destination(&self, details: &mut Details) {
        let Details::ConnectFailure {
            destination,
            backend,
            last_owner,
            owner_gone_since,
            ..
        } = details
        else {
            return;
        };
        let asked = backend.as_ref().unwrap_or(destination);
        let Ok(asked) = asked.parse::<SocketAddr>() else {
            return;
        };
        let tenant = lock(&self.engine.resolver).tenant(&asked.ip());
        *last_owner = tenant.owner.map(|owner| owner.to_string());
        *owner_gone_since = tenant.until.map(time_of);
    }
}

/// A moment as the world tells it, RFC 3339.
pub(super) fn time_of(moment: Instant) -> String {
    let at = before(SystemTime::now(), moment.elapsed());
    humantime::format_rfc3339_millis(at).to_string()
}

/// The time of day so long before `now`. The age is by the kernel's clock that nobody sets: whoever sets
/// the time of day changes what an event's time is called, by the clock in force when it is told, never
/// how old it is. Clocks may be set to before 1970 or after 9999, where no RFC 3339 reaches.
fn before(now: SystemTime, age: Duration) -> SystemTime {
    const END: Duration = Duration::from_secs(253_402_300_799);
    let at = now.checked_sub(age).unwrap_or(now);
    let since_epoch = at.duration_since(SystemTime::UNIX_EPOCH);
    SystemTime::UNIX_EPOCH + since_epoch.unwrap_or_default().min(END)
}

/// How long ago the kernel saw it.
fn age(record: &Record) -> Duration {
    kernel::monotonic().saturating_sub(Duration::from_nanos(record.ktime_ns))
}

fn moment(record: &Record) -> Instant {
    let now = Instant::now();
    now.checked_sub(age(record)).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_of_day_can_be_told() {
        let told = |now: SystemTime, age| {
            let at = before(now, Duration::from_secs(age));
            humantime::format_rfc3339_micros(at).to_string()
        };
        let epoch = SystemTime::UNIX_EPOCH;
        assert_eq!(
            told(epoch + Duration::from_secs(10), 3),
            "1970-01-01T00:00:07.000000Z"
        );
        // A machine without a battery starts there.
        assert_eq!(told(epoch, 3), "1970-01-01T00:00:00.000000Z");
        let far = epoch + Duration::from_secs(400_000_000_000);
        assert_eq!(told(far, 0), "9999-12-31T23:59:59.000000Z");
    }
}
