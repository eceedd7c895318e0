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

use crate::{moment, pods::Owner};

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

    /// Keys that nobody counts in any more, by `is_over(key, owner)`, and idle for so long: they
    /// may leave the kernel. One that comes back is counted anew, and its owner's figure goes on. Figures of
    /// owners that `has_ended` end with their last key.
    pub fn retire(
        &mut self,
        now: Instant,
        idle: Duration,
        mut is_over: impl FnMut(&K, &Owner) -> bool,
        has_ended: impl Fn(&Owner) -> bool,
    ) -> Vec<K> {
        let over: Vec<K> = self
            .keys
            .iter()
            .filter(|(key, entry)| {
                now.duration_since(entry.changed) >= idle
                    && entry
                        .owner
                        .as_ref()
                        .is_some_and(|owner| is_over(key, owner))
            })
            .map(|(key, _)| *key)
            .collect();
        self.decisions += over.len() as u64;
        for key in &over {
            if let Some(entry) = self.keys.remove(key)
                && let Some(owner) = &entry.owner
            {
                self.settled.take(owner, &entry);
            }
        }
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
mod tests {
    use super::*;

    fn total(ledger: &Ledger<u32, u64>, name: &str) -> Option<u64> {
        ledger
            .totals()
            .iter()
            .find(|(owner, _)| owner.pod == name)
            .map(|(_, n)| *n)
    }

    #[test]
    fn counts_wait_for_a_name_and_then_stay() {
        let mut ledger = Ledger::default();
        let start = Instant::now();
        ledger.update([(1, 5)], start, |_, _| None, |o| o);
        assert_eq!(ledger.pending(), 5);
        assert!(ledger.totals().is_empty());
        ledger.update([(1, 7)], start, |_, _| Some(Owner::new("shop", "a")), |o| o);
        assert_eq!((ledger.pending(), total(&ledger, "a")), (0, Some(7)));
        // Not known for a moment: still the same.
        ledger.update([(1, 9)], start, |_, _| None, |o| o);
        assert_eq!(total(&ledger, "a"), Some(9));
        // A new owner gets what comes from now on.
        ledger.update(
            [(1, 12)],
            start,
            |_, _| Some(Owner::new("shop", "b")),
            |o| o,
        );
        assert_eq!(
            (total(&ledger, "a"), total(&ledger, "b")),
            (Some(9), Some(3))
        );
    }

    #[test]
    fn the_nameless_are_unknown_after_the_hold_and_for_good() {
        let mut ledger = Ledger::default();
        let start = Instant::now();
        ledger.update([(1, 5)], start, |_, _| None, |o| o);
        ledger.update([(1, 5)], start + HOLD, |_, _| None, |o| o);
        assert_eq!(
            (ledger.pending(), total(&ledger, "(unknown)")),
            (0, Some(5))
        );
        // A name that comes too late gets what comes from then on.
        ledger.update(
            [(1, 6)],
            start + HOLD,
            |_, _| Some(Owner::new("shop", "a")),
            |o| o,
        );
        assert_eq!(
            (total(&ledger, "(unknown)"), total(&ledger, "a")),
            (Some(5), Some(1))
        );
    }

    #[test]
    fn an_address_that_nobody_has_waits_for_its_next_owner() {
        let mut ledger = Ledger::of_reused_keys();
        let start = Instant::now();
        let at = |n| start + Duration::from_secs(n);
        ledger.update([(1, 5)], at(0), |_, _| Some(Owner::new("shop", "a")), |o| o);
        ledger.update([(1, 5)], at(1), |_, _| None, |o| o);
        assert_eq!((ledger.pending(), total(&ledger, "a")), (0, Some(5)));
        ledger.update([(1, 7)], at(2), |_, _| None, |o| o);
        assert_eq!((ledger.pending(), total(&ledger, "a")), (2, Some(5)));
        // Asked for what came after the reading at 1, though there was one since.
        let mut asked = None;
        let next = |_: &u32, since| {
            asked = since;
            Some(Owner::new("shop", "b"))
        };
        ledger.update([(1, 8)], at(3), next, |o| o);
        assert_eq!(asked, Some(at(1)));
        assert_eq!(
            (total(&ledger, "a"), total(&ledger, "b")),
            (Some(5), Some(3))
        );
    }

    #[test]
    fn an_address_stays_whose_it_was_until_all_have_spoken() {
        let mut ledger = Ledger::of_reused_keys();
        let start = Instant::now();
        let at = |n| start + Duration::from_secs(n);
        ledger.update([(1, 5)], at(0), |_, _| Some(Owner::new("shop", "a")), |o| o);
        ledger.trust(false);
        ledger.update([(1, 9)], at(1), |_, _| None, |o| o);
        assert_eq!((ledger.pending(), total(&ledger, "a")), (0, Some(9)));
        ledger.trust(true);
        ledger.update([(1, 12)], at(2), |_, _| None, |o| o);
        assert_eq!((ledger.pending(), total(&ledger, "a")), (3, Some(9)));
    }

    #[test]
    fn what_an_agent_told_after_it_wrote_stays_whose_it_was() {
        let mut ledger = Ledger::of_reused_keys();
        let start = Instant::now();
        let named = |name: &'static str| move |_: &u32, _| Some(Owner::new("shop", name));
        ledger.update([(1, 5)], start, named("a"), |o| o);
        let mut written = Vec::new();
        rmp_serde::encode::write_named(&mut written, &ledger).unwrap();
        // Told, and not written again: nothing was decided.
        ledger.update([(1, 9)], start, named("a"), |o| o);
        assert_eq!(total(&ledger, "a"), Some(9));
        let mut next: Ledger<u32, u64> = rmp_serde::from_slice(&written).unwrap();
        next.update([(1, 9)], start, named("b"), |o| o);
        assert_eq!((total(&next, "a"), total(&next, "b")), (Some(9), None));
        next.update([(1, 12)], start, named("b"), |o| o);
        assert_eq!((total(&next, "a"), total(&next, "b")), (Some(9), Some(3)));
    }

    #[test]
    fn a_key_that_left_while_nobody_wrote_is_counted_anew() {
        let counts = |created, table_full| {
            let of_family = tracer_common::neigh::Counts {
                created,
                table_full,
                ..Default::default()
            };
            [of_family, tracer_common::neigh::Counts::default()]
        };
        let mut ledger = Ledger::default();
        let now = Instant::now();
        let name = |_: &u32, _| Some(Owner::new("shop", "a"));
        ledger.update([(1, counts(5, 90))], now, name, |o| o);
        let mut written = Vec::new();
        rmp_serde::encode::write_named(&mut written, &ledger).unwrap();
        let mut next: Ledger<u32, crate::aggregate::figures::NeighCounts> =
            rmp_serde::from_slice(&written).unwrap();
        // More than there was, and not what there was.
        next.update([(1, counts(200, 2))], now, name, |o| o);
        let totals = next.totals();
        assert_eq!(totals[&Owner::new("shop", "a")], counts(205, 92));
    }

    #[test]
    fn a_pod_that_is_gone_ends_and_what_is_no_pod_stays() {
        let mut ledger = Ledger::default();
        let start = Instant::now();
        let name = |key: &u32, _| {
            Some(if *key == 1 {
                Owner::new("shop", "a")
            } else {
                Owner::unknown()
            })
        };
        ledger.update([(1, 5), (2, 3)], start, name, |o| o);
        let ended = |o: &Owner| !o.namespace.starts_with('(');
        assert!(ledger.retire(start, GRACE, |_, _| true, ended).is_empty());
        let mut gone = ledger.retire(start + GRACE, GRACE, |_, _| true, ended);
        gone.sort_unstable();
        assert_eq!(gone, [1, 2]);
        assert_eq!(
            (total(&ledger, "a"), total(&ledger, "(unknown)")),
            (None, Some(3))
        );
    }

    #[test]
    fn a_figure_ends_with_the_owners_last_key_and_does_not_fall_before() {
        let mut ledger = Ledger::default();
        let start = Instant::now();
        let name = |_: &u32, _| Some(Owner::new("shop", "a"));
        ledger.update([(1, 5), (2, 1)], start, name, |o| o);
        let later = start + GRACE;
        ledger.update([(1, 5), (2, 2)], later, name, |o| o);
        // Gone, and a process of its goes on.
        let ended = |_: &Owner| true;
        assert_eq!(ledger.retire(later, GRACE, |_, _| true, ended), [1]);
        assert_eq!(total(&ledger, "a"), Some(7));
        let left = ledger.retire(later + GRACE, GRACE, |_, _| true, ended);
        assert_eq!((left, total(&ledger, "a")), (vec![2], None));
    }

    #[test]
    fn who_waited_for_a_name_when_the_agent_ended_waits_anew() {
        let mut ledger = Ledger::default();
        let start = Instant::now();
        ledger.update([(1, 5)], start, |_, _| None, |o| o);
        let mut written = Vec::new();
        rmp_serde::encode::write_named(&mut written, &ledger).unwrap();
        let mut next: Ledger<u32, u64> = rmp_serde::from_slice(&written).unwrap();
        let later = start + HOLD;
        next.give_up(later, |_| Some(Owner::other()));
        next.update([(1, 5)], later, |_, _| None, |o| o);
        assert_eq!((next.pending(), next.totals().len()), (5, 0));
        let name = |_: &u32, _| Some(Owner::new("shop", "a"));
        next.update([(1, 6)], later + HOLD / 2, name, |o| o);
        assert_eq!(total(&next, "a"), Some(6));
    }

    #[test]
    fn who_has_waited_long_enough_is_guessed() {
        let mut ledger = Ledger::default();
        let start = Instant::now();
        let name = |_: &u32, _| Some(Owner::new("shop", "a"));
        let of_one = |key: &u32| (*key == 1).then(|| Owner::new("shop", "b"));
        ledger.update([(1, 5), (2, 7)], start, |_, _| None, |o| o);
        ledger.give_up(start + HOLD / 2, of_one);
        assert_eq!((ledger.pending(), ledger.decisions()), (12, 0));
        ledger.give_up(start + HOLD, of_one);
        assert_eq!((ledger.pending(), ledger.decisions()), (7, 1));
        assert_eq!(total(&ledger, "b"), Some(5));
        ledger.update([(2, 7)], start, name, |o| o);
        assert_eq!(ledger.decisions(), 2);
        // Nothing is decided by what is known already.
        ledger.update([(2, 8)], start, name, |o| o);
        assert_eq!((total(&ledger, "a"), ledger.decisions()), (Some(8), 2));
        // It had left the kernel.
        ledger.update([(2, 1)], start, name, |o| o);
        assert_eq!((total(&ledger, "a"), ledger.decisions()), (Some(9), 3));
    }

    #[test]
    fn a_key_that_left_for_want_of_room_comes_back() {
        let mut ledger = Ledger::default();
        let start = Instant::now();
        let name = |_: &u32, _| Some(Owner::new("shop", "a"));
        ledger.update([(1, 5), (2, 1)], start, name, |o| o);
        let later = start + CROWDED_GRACE;
        ledger.update([(1, 5), (2, 2)], later, name, |o| o);
        // The pod lives, and one of its keys is in use.
        let left = ledger.retire(later, CROWDED_GRACE, |_, _| true, |_| false);
        assert_eq!((left, total(&ledger, "a")), (vec![1], Some(7)));
        ledger.update([(1, 1), (2, 2)], later, name, |o| o);
        assert_eq!(total(&ledger, "a"), Some(8));
    }

    #[test]
    fn who_finds_no_room_is_charged_to_another() {
        let mut ledger = Ledger::default();
        let now = Instant::now();
        ledger.update(
            [(1, 5)],
            now,
            |_, _| Some(Owner::new("shop", "a")),
            |_| Owner::other(),
        );
        assert_eq!(total(&ledger, "(other)"), Some(5));
    }
}
