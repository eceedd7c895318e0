//! Counters by owner and by something else of which there may be too many for a series each: ports,
//! peers, destinations. The busiest have a name, the others share the rest.
//!
//! Growth is counted under the name that is in force when it is read, so that no figure moves; and what
//! loses its name goes into the rest, so that the sum never falls.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
};

use serde::{Deserialize, Serialize};

/// A score falls to half in so many seconds.
const HALF_LIFE: f64 = 60.0;
/// Below this, nobody has been busy for long: forgotten, if it has no name.
const IDLE: f64 = 0.01;

#[derive(Debug, Serialize, Deserialize)]
struct Score {
    /// Growth, the older the less.
    score: f64,
    named: bool,
}

/// Counters by owner and label; `None` is the rest.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound(
    serialize = "K: Serialize, O: Serialize, L: Serialize",
    deserialize = "K: Deserialize<'de> + Eq + Hash, O: Deserialize<'de> + Eq + Hash, \
                   L: Deserialize<'de> + Eq + Hash + Ord"
))]
pub struct Shares<K, O, L> {
    most: usize,
    seen: HashMap<K, u64>,
    /// What has grown since names were given last.
    fresh: Vec<(O, Option<L>, u64)>,
    counts: HashMap<O, BTreeMap<Option<L>, u64>>,
    scores: HashMap<L, Score>,
    second: Option<u64>,
}

impl<K, O, L> Shares<K, O, L>
where
    K: Eq + Hash,
    O: Clone + Eq + Hash,
    L: Clone + Eq + Hash + Ord,
{
    /// With names for so many.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            seen: HashMap::new(),
            fresh: Vec::new(),
            counts: HashMap::new(),
            scores: HashMap::new(),
            second: None,
        }
    }

    /// Takes over what the kernel has counted under a key: what it has grown by is the owner's.
    /// Without a label it goes to the rest. It shows after [`Self::settle`].
    pub fn take(&mut self, key: K, total: u64, owner: &O, label: Option<L>) {
        let seen = self.seen.entry(key).or_default();
        // Less than before: it had left the kernel, which has begun to count it anew.
        let grown = total.checked_sub(*seen).unwrap_or(total);
        *seen = total;
        if grown == 0 {
            return;
        }
        if let Some(label) = &label {
            let score = self.scores.entry(label.clone()).or_insert(Score {
                score: 0.0,
                named: false,
            });
            score.score += grown as f64;
        }
        self.fresh.push((owner.clone(), label, grown));
    }

    /// Gives names, to those that have become busier by far than one that has a name too, and counts
    /// what was taken over under the names in force then. `second` counts up with time.
    pub fn settle(&mut self, second: u64) {
        self.give_names();
        for (owner, label, grown) in std::mem::take(&mut self.fresh) {
            let named = |label: &L| self.scores.get(label).is_some_and(|score| score.named);
            let label = label.filter(named);
            let counts = self.counts.entry(owner).or_default();
            *counts.entry(label).or_default() += grown;
        }
        let elapsed = self.second.map_or(0, |last| second.saturating_sub(last));
        self.second = Some(second);
        let factor = (-(elapsed as f64) / HALF_LIFE).exp2();
        for score in self.scores.values_mut() {
            score.score *= factor;
        }
        self.scores
            .retain(|_, score| score.named || score.score > IDLE);
    }

    fn give_names(&mut self) {
        let mut named = self.scores.values().filter(|score| score.named).count();
        while let Some((new, busy)) = self.busiest() {
            if named >= self.most {
                match self.idlest() {
                    Some((old, idle)) if busy > 2.0 * idle + 1.0 => self.forget_label(&old),
                    _ => return,
                }
            } else {
                named += 1;
            }
            if let Some(score) = self.scores.get_mut(&new) {
                score.named = true;
            }
        }
    }

    fn busiest(&self) -> Option<(L, f64)> {
        let unnamed = self.scores.iter().filter(|(_, score)| !score.named);
        let busiest = unnamed.max_by(|(_, a), (_, b)| a.score.total_cmp(&b.score))?;
        Some((busiest.0.clone(), busiest.1.score))
    }

    fn idlest(&self) -> Option<(L, f64)> {
        let named = self.scores.iter().filter(|(_, score)| score.named);
        let idlest = named.min_by(|(_, a), (_, b)| a.score.total_cmp(&b.score))?;
        Some((idlest.0.clone(), idlest.1.score))
    }

    /// A label is over: what was counted under it goes to the rest.
    pub fn forget_label(&mut self, label: &L) {
        self.scores.remove(label);
        let label = Some(label.clone());
        for counts in self.counts.values_mut() {
            if let Some(n) = counts.remove(&label) {
                *counts.entry(None).or_default() += n;
            }
        }
    }

    /// The kernel has a key no more.
    pub fn forget_key(&mut self, key: &K) {
        self.seen.remove(key);
    }

    /// Owners that are over.
    pub fn retain_owners(&mut self, mut stays: impl FnMut(&O) -> bool) {
        self.counts.retain(|owner, _| stays(owner));
        self.fresh.retain(|(owner, _, _)| stays(owner));
    }

    /// All figures.
    pub fn all(&self) -> impl Iterator<Item = (&O, &BTreeMap<Option<L>, u64>)> {
        self.counts.iter()
    }

    /// The labels that have a name.
    pub fn named(&self) -> impl Iterator<Item = &L> {
        let named = self.scores.iter().filter(|(_, score)| score.named);
        named.map(|(label, _)| label)
    }

    /// What the kernel had counted under a key when it was last taken over.
    pub fn seen(&self, key: &K) -> u64 {
        self.seen.get(key).copied().unwrap_or_default()
    }

    /// Lets pass what the kernel has counted under a key so far.
    pub fn skip(&mut self, key: K, total: u64) {
        self.seen.insert(key, total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Ports = Shares<u16, &'static str, u16>;

    fn of(ports: &Ports, label: Option<u16>) -> u64 {
        let counts = ports.counts.get("a").unwrap();
        counts.get(&label).copied().unwrap_or_default()
    }

    fn sum(ports: &Ports) -> u64 {
        ports.counts.values().flat_map(BTreeMap::values).sum()
    }

    #[test]
    fn the_busiest_have_names_and_the_sum_is_complete() {
        let mut ports = Ports::new(2);
        for (port, n) in [(1, 2), (2, 5), (3, 7), (4, 3)] {
            ports.take(port, n, &"a", Some(port));
        }
        ports.take(5, 7, &"a", None);
        ports.settle(0);
        let figures = [Some(1), Some(2), Some(3), Some(4), None].map(|port| of(&ports, port));
        assert_eq!(figures, [0, 5, 7, 0, 12]);
        assert_eq!(sum(&ports), 24);
    }

    #[test]
    fn one_that_is_busier_by_far_gets_the_name_of_an_idle_one_and_nothing_falls() {
        let mut ports = Ports::new(2);
        ports.take(1, 10, &"a", Some(1));
        ports.take(2, 10, &"a", Some(2));
        ports.settle(0);
        ports.take(3, 12, &"a", Some(3));
        ports.settle(1);
        assert_eq!(of(&ports, Some(3)), 0, "not by far");
        ports.take(1, 100, &"a", Some(1));
        ports.take(3, 60, &"a", Some(3));
        ports.settle(2);
        // What came before stays in the rest, and what lost its name joins it.
        assert_eq!((of(&ports, Some(3)), of(&ports, None)), (48, 22));
        assert_eq!(of(&ports, Some(2)), 0);
        assert_eq!(sum(&ports), 100 + 10 + 60);
    }

    #[test]
    fn the_idle_are_forgotten() {
        let mut ports = Ports::new(1);
        for port in 1..1000 {
            ports.take(port, 1, &"a", Some(port));
        }
        ports.settle(0);
        ports.settle(3600);
        assert_eq!((ports.scores.len(), sum(&ports)), (1, 999));
        ports.retain_owners(|_| false);
        assert_eq!(sum(&ports), 0);
    }
}
