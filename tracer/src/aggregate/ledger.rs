//! From counters by kernel key to counters by owner.
//!
//! The kernel's maps count by what identifies a pod in the kernel; the ledger decides to whom each
//! key belongs. A key without an owner waits for [`HOLD`], then what it has counted is `(unknown)` for
//! good. Where a key gets another owner (a stronger source caught up, an address was given to a new
//! pod), what was counted stays with the old one: an owner's figure never falls, and nothing moves.
//! What is counted under an address while nobody has it waits for a name anew.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{kernel::maps::Left, moment, pods::Owner};

/// How long a key may wait for a name.
pub const HOLD: Duration = Duration::from_secs(30);
/// How long an owner that is gone keeps its series, and a key that is idle its place in the kernel.
pub const GRACE: Duration = Duration::from_mins(5);

/// The same for a key, whoever's it is, where the kernel is short of room: one pod may make keys by the
/// thousand (network namespaces of its own), and the next pod needs one too. Longer than a lookup may wait,
/// for the kernel counts those that wait under the key.
pub const CROWDED_GRACE: Duration = Duration::from_mins(2);

/// Counters that add up.
pub trait Tally: Copy + Default + PartialEq {
    /// Adds another's.
    fn plus(&mut self, other: &Self);
    /// What was counted since `earlier`; 0 where `earlier` has more.
    #[must_use]
    fn since(&self, earlier: &Self) -> Self;
    /// Has `earlier` more of something?
    fn is_below(&self, earlier: &Self) -> bool {
        let mut back = self.since(earlier);
        back.plus(earlier);
        back != *self
    }
    /// How many events it stands for.
    fn events(&self) -> u64;
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry<C> {
    owner: Option<Arc<Owner>>,
    /// What had been counted when the owner got the key.
    base: C,
    seen: C,
    /// What had been counted when this agent first read it.
    #[serde(skip)]
    found: C,
    /// Since when it waits for a name.
    #[serde(with = "moment")]
    waits: Instant,
    /// The reading before the one that first had what waits; `None`: there was none.
    #[serde(with = "moment::option")]
    since: Option<Instant>,
    #[serde(with = "moment")]
    changed: Instant,
}

impl<C: Tally> Entry<C> {
    fn share(&self) -> C {
        self.seen.since(&self.base)
    }

    /// What of it was there when this agent began.
    fn before(&self) -> C {
        self.found.since(&self.base)
    }
}

/// What owners had counted under keys that are gone, or another's now.
#[derive(Debug, Serialize, Deserialize)]
#[serde(
    transparent,
    bound(serialize = "C: Serialize", deserialize = "C: Deserialize<'de>")
)]
struct Settled<C> {
    all: HashMap<Arc<Owner>, C>,
    /// What of it was there when this agent began.
    #[serde(skip)]
    before: HashMap<Arc<Owner>, C>,
}

impl<C: Tally> Settled<C> {
    fn take(&mut self, owner: &Arc<Owner>, entry: &Entry<C>) {
        let add = |to: &mut HashMap<Arc<Owner>, C>, share: C| {
            to.entry(owner.clone()).or_default().plus(&share);
        };
        add(&mut self.all, entry.share());
        add(&mut self.before, entry.before());
    }
}

/// Who owns which key, and what the keys that are gone had counted.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound(
    serialize = "K: Serialize, C: Serialize",
    deserialize = "K: Deserialize<'de> + Eq + Hash, C: Deserialize<'de> + Default"
))]
pub struct Ledger<K, C> {
    keys: HashMap<K, Entry<C>>,
    settled: Settled<C>,
    /// Do keys change hands?
    reused: bool,
    /// May those who would know the owner of a key not have spoken yet?
    #[serde(skip)]
    unheard: bool,
    #[serde(skip, default = "resumed")]
    stage: Stage,
    #[serde(with = "moment::option")]
    read: Option<Instant>,
    /// How often it has been decided whose something is.
    #[serde(skip)]
    decisions: u64,
}

/// What this agent has told a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing: it is empty.
    New,
    /// Nothing: it is what an agent before has written.
    Resumed,
    /// Counters.
    Read,
}

const fn resumed() -> Stage {
    Stage::Resumed
}

impl<K, C> Default for Ledger<K, C> {
    fn default() -> Self {
        Self {
            keys: HashMap::new(),
            settled: Settled {
                all: HashMap::new(),
                before: HashMap::new(),
            },
            reused: false,
            unheard: false,
            stage: Stage::New,
            read: None,
            decisions: 0,
        }
    }
}

impl<K, C> Ledger<K, C> {
    /// For keys that are given to others, such as addresses.
    pub fn of_reused_keys() -> Self {
        Self {
            reused: true,
            ..Self::default()
        }
    }
}

impl<K: Copy + Eq + Hash, C: Tally> Ledger<K, C> {
    /// Takes a reading over. `resolve` names a key's owner if it can, for what was counted from a
    /// moment (`None`: ever) until now; `admit` bounds the owners.
    pub fn update(
        &mut self,
        reading: impl IntoIterator<Item = (K, C)>,
        now: Instant,
        mut resolve: impl FnMut(&K, Option<Instant>) -> Option<Arc<Owner>>,
        mut admit: impl FnMut(Arc<Owner>) -> Arc<Owner>,
    ) {
        let resumed = self.stage == Stage::Resumed;
        for (key, counts) in reading {
            let entry = self.keys.entry(key).or_insert_with(|| Entry {
                owner: None,
                base: C::default(),
                seen: C::default(),
                found: C::default(),
                waits: now,
                since: self.read,
                changed: now,
            });
            if resumed && entry.owner.is_none() {
                // While no agent ran nobody could have named it.
                entry.waits = now;
            }
            let since = match entry.owner {
                Some(_) => self.read,
                None => entry.since,
            };
            let owner = resolve(&key, since).map(&mut admit);
            // Where the agent before was killed as it took the key out, more may have come than it knew of.
            let began_anew =
                counts.events() < entry.seen.events() || resumed && counts.is_below(&entry.seen);
            if began_anew {
                // It had left the kernel, which has begun to count it anew.
                if let Some(old) = &entry.owner {
                    self.settled.take(old, entry);
                }
                entry.base = C::default();
                entry.seen = C::default();
                entry.found = C::default();
                self.decisions += 1;
            }
            let grown = entry.seen != counts;
            let had = entry.owner.is_some();
            match (&entry.owner, owner) {
                // What came after it was written may have been told already: it stays whose it was.
                (Some(_), _) if resumed => {}
                (Some(old), Some(new)) if *old != new => {
                    // What came since the last reading is the new one's.
                    self.settled.take(old, entry);
                    entry.base = entry.seen;
                    entry.owner = Some(new);
                    self.decisions += 1;
                }
                (Some(old), None) if self.reused && grown && !self.unheard => {
                    // The old one was gone before it came.
                    self.settled.take(old, entry);
                    entry.base = entry.seen;
                    entry.owner = None;
                    entry.waits = now;
                    entry.since = self.read;
                }
                (None, Some(new)) => entry.owner = Some(new),
                (None, None) if now.duration_since(entry.waits) >= HOLD => {
                    entry.owner = Some(Owner::unknown());
                }
                _ => {}
            }
            self.decisions += u64::from(had != entry.owner.is_some());
            if grown {
                entry.seen = counts;
                entry.changed = now;
            }
        }
        self.read = Some(now);
        if self.stage != Stage::Read {
            self.stage = Stage::Read;
            // Those too that have left the kernel meanwhile.
            for entry in self.keys.values_mut() {
                entry.found = entry.seen;
            }
            self.settled.before.clone_from(&self.settled.all);
        }
    }

    /// Decides for keys that have waited for [`HOLD`] in vain, where a guess that was not good enough
    /// before is better than none.
    pub fn give_up(&mut self, now: Instant, mut guess: impl FnMut(&K) -> Option<Arc<Owner>>) {
        if self.stage == Stage::Resumed {
            return; // as in `update`
        }
        for (key, entry) in &mut self.keys {
            if entry.owner.is_none() && now.duration_since(entry.waits) >= HOLD {
                entry.owner = guess(key);
                self.decisions += u64::from(entry.owner.is_some());
            }
        }
    }

    /// Whose key it is, once that is decided.
    pub fn owner(&self, key: &K) -> Option<&Arc<Owner>> {
        self.keys.get(key)?.owner.as_ref()
    }

    /// While those who would know have not all spoken, a key stays whose it was.
    pub fn trust(&mut self, heard: bool) {
        self.unheard = !heard;
    }

    /// How often it has been decided whose something is: a memory from before one is out of date.
    pub fn decisions(&self) -> u64 {
        self.decisions
    }

    /// Figures by owner.
    pub fn totals(&self) -> HashMap<Arc<Owner>, C> {
        let mut totals = self.settled.all.clone();
        for entry in self.keys.values() {
            if let Some(owner) = &entry.owner {
                let share = entry.share();
                totals.entry(owner.clone()).or_default().plus(&share);
            }
        }
        totals
    }

    /// The same, without what was there when this agent began: nobody knows when that came.
    pub fn grown(&self) -> HashMap<Arc<Owner>, C> {
        let mut grown = self.totals();
        for (owner, share) in &mut grown {
            if let Some(before) = self.settled.before.get(owner) {
                *share = share.since(before);
            }
        }
        for entry in self.keys.values() {
            if let Some(owner) = &entry.owner
                && let Some(share) = grown.get_mut(owner)
            {
                *share = share.since(&entry.before());
            }
        }
        grown
    }

    /// Events that wait for a name.
    pub fn pending(&self) -> u64 {
        self.keys
            .values()
            .filter(|entry| entry.owner.is_none())
            .map(|entry| entry.share().events())
            .sum()
    }

    /// Keys that nobody counts in any more, by `is_over(key, owner)`, and idle for so long, leave the kernel:
    /// `leave` takes them out, and says what had been counted by then, for somebody may have begun again. Gives
    /// those that left, and whose they were. One that comes back is counted anew, and its owner's figure goes on.
    /// Figures of owners that `has_ended` end with their last key.
    pub fn retire(
        &mut self,
        now: Instant,
        idle: Duration,
        mut is_over: impl FnMut(&K, &Owner) -> bool,
        has_ended: impl Fn(&Owner) -> bool,
        mut leave: impl FnMut(&K) -> Left<C>,
    ) -> Vec<(K, Arc<Owner>)> {
        let mut over = Vec::new();
        let settled = &mut self.settled;
        self.keys.retain(|key, entry| {
            let Some(owner) = &entry.owner else {
                return true;
            };
            if now.duration_since(entry.changed) < idle || !is_over(key, owner) {
                return true;
            }
            match leave(key) {
                Left::With(last) if !last.is_below(&entry.seen) => entry.seen = last,
                Left::With(_) | Left::Before => {}
                Left::Stays => return true,
            }
            let owner = owner.clone();
            settled.take(&owner, entry);
            over.push((*key, owner));
            false
        });
        self.decisions += over.len() as u64;
        let holders: HashSet<Arc<Owner>> = self.holders().cloned().collect();
        let stays = |owner: &Arc<Owner>| !has_ended(owner) || holders.contains(owner);
        self.settled.all.retain(|owner, _| stays(owner));
        self.settled.before.retain(|owner, _| stays(owner));
        over
    }

    /// The owners of its keys.
    pub fn holders(&self) -> impl Iterator<Item = &Arc<Owner>> {
        self.keys.values().filter_map(|entry| entry.owner.as_ref())
    }
}

#[cfg(test)]
mod tests;
