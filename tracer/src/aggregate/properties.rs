//! What holds of the figures whatever happens, the agent's end and its successor's beginning included: tried
//! with made-up histories.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::{collection::vec, option, prelude::*};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    forecast::Forecast,
    ledger::{HOLD, Ledger},
    shares::Shares,
    window::{Attempts, Window},
};
use crate::kernel::maps::Left;
use crate::pods::Owner;

/// As the next agent finds it.
fn remembered<T: Serialize + DeserializeOwned>(state: &T) -> T {
    let mut bytes = Vec::new();
    rmp_serde::encode::write_named(&mut bytes, state).unwrap();
    rmp_serde::from_slice(&bytes).unwrap()
}

/// What may happen to keys.
#[derive(Clone, Debug)]
enum Event {
    /// The kernel counts under a key.
    Count(u8, u64),
    /// From now on a key is known to be somebody's, or nobody's.
    Own(u8, Option<u8>),
    /// Time goes by.
    Wait(u64),
    /// The agent reads.
    Read,
    /// It decides about those that have waited long enough.
    GiveUp,
    /// Keys that are idle leave the kernel.
    Retire,
    /// The agent is killed; the next one knows what was written last, and at first nobody tells it
    /// whose keys are.
    Restart,
    /// All who know have spoken.
    Hear,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..4_u8, 1..100_u64).prop_map(|(key, n)| Event::Count(key, n)),
        3 => (0..4_u8, option::of(0..3_u8)).prop_map(|(key, owner)| Event::Own(key, owner)),
        2 => (0..40_u64).prop_map(Event::Wait),
        6 => Just(Event::Read),
        1 => Just(Event::GiveUp),
        1 => Just(Event::Retire),
        1 => Just(Event::Restart),
        1 => Just(Event::Hear),
    ]
}

/// A kernel that counts, sources that know, and the agent between them.
struct Node {
    ledger: Ledger<u8, u64>,
    kernel: BTreeMap<u8, u64>,
    counted: u64,
    known: BTreeMap<u8, Option<u8>>,
    heard: bool,
    now: Instant,
    /// What was written last: it is whenever something was decided.
    written: Ledger<u8, u64>,
    decisions: u64,
}

fn owner(number: u8) -> Arc<Owner> {
    Owner::new("shop", &format!("pod-{number}"))
}

impl Node {
    fn new(reused: bool) -> Self {
        let new = || {
            if reused {
                Ledger::of_reused_keys()
            } else {
                Ledger::default()
            }
        };
        Self {
            ledger: new(),
            kernel: BTreeMap::new(),
            counted: 0,
            known: BTreeMap::new(),
            heard: true,
            now: Instant::now(),
            written: new(),
            decisions: 0,
        }
    }

    fn write_where_decided(&mut self) {
        if self.ledger.decisions() != self.decisions {
            self.decisions = self.ledger.decisions();
            self.written = remembered(&self.ledger);
        }
    }

    /// True where the agent has read.
    fn happens(&mut self, event: &Event) -> bool {
        match event {
            Event::Count(key, n) => {
                *self.kernel.entry(*key).or_default() += n;
                self.counted += n;
            }
            Event::Own(key, owner) => {
                self.known.insert(*key, *owner);
            }
            Event::Wait(seconds) => self.now += Duration::from_secs(*seconds),
            Event::Read => {
                let reading: Vec<(u8, u64)> = self.kernel.iter().map(|(k, n)| (*k, *n)).collect();
                let (known, heard) = (&self.known, self.heard);
                self.ledger.trust(heard);
                let resolve = |key: &u8, _| known.get(key).copied().flatten().map(owner);
                self.ledger.update(
                    reading,
                    self.now,
                    |key, since| if heard { resolve(key, since) } else { None },
                    |owner| owner,
                );
                self.write_where_decided();
                return true;
            }
            Event::GiveUp => {
                self.ledger.give_up(self.now, |key| Some(owner(*key)));
                self.write_where_decided();
            }
            Event::Retire => {
                let kernel = &mut self.kernel;
                let leave = |key: &u8| kernel.remove(key).map_or(Left::Before, Left::With);
                self.ledger
                    .retire(self.now, HOLD, |_, _| true, |_| false, leave);
                self.write_where_decided();
            }
            Event::Restart => {
                self.ledger = remembered(&self.written);
                self.decisions = self.ledger.decisions();
                self.heard = false;
            }
            Event::Hear => self.heard = true,
        }
        false
    }
}

proptest! {
    #[test]
    fn no_counter_falls_and_nothing_is_lost_or_counted_twice(
        reused in any::<bool>(),
        events in vec(event(), 0..60),
    ) {
        let mut node = Node::new(reused);
        let mut before: HashMap<Arc<Owner>, u64> = HashMap::new();
        for event in events {
            // What has left the kernel is read first, as the engine does.
            if matches!(event, Event::Retire | Event::Restart) {
                node.happens(&Event::Read);
            }
            if !node.happens(&event) {
                continue;
            }
            let totals = node.ledger.totals();
            let sum: u64 = totals.values().sum();
            prop_assert_eq!(sum + node.ledger.pending(), node.counted);
            for (owner, n) in &before {
                let now = totals.get(owner).copied().unwrap_or_default();
                prop_assert!(now >= *n, "{} fell from {} to {}", owner, n, now);
            }
            before = totals;
        }
    }

    #[test]
    fn the_unnamed_wait_no_longer_than_the_hold(
        counts in vec(1..100_u64, 1..10),
        step in 1..10_u64,
    ) {
        let mut ledger: Ledger<u8, u64> = Ledger::default();
        let start = Instant::now();
        let mut total = 0;
        for (index, n) in (0..).zip(counts) {
            let now = start + Duration::from_secs(index * step);
            total += n;
            ledger.update([(1, total)], now, |_, _| None, |owner| owner);
            let waits = index * step < HOLD.as_secs();
            prop_assert_eq!(ledger.pending(), if waits { total } else { 0 });
        }
    }

    #[test]
    fn shares_add_up_whoever_has_a_name(
        most in 0..4_usize,
        events in vec((0..6_u16, 0..3_u8, 0..50_u64, 0..8_u8), 0..80),
    ) {
        let mut shares: Shares<u16, u8, u16> = Shares::new(most);
        let mut kernel = [0; 6];
        let mut counted = [0; 3];
        let mut second = 0;
        for (key, owner, n, what) in events {
            match what {
                0 => shares.forget_label(&key),
                1 => second += n,
                2 => shares = remembered(&shares),
                3 => {
                    // It leaves the kernel, and comes back.
                    shares.forget_key(&key);
                    kernel[usize::from(key)] = 0;
                }
                _ => {}
            }
            kernel[usize::from(key)] += n;
            counted[usize::from(owner)] += n;
            let label = (what != 4).then_some(key);
            let before: Vec<(u8, u16, u64)> = named(&shares);
            shares.take(key, kernel[usize::from(key)], &owner, label);
            shares.settle(second);
            for (owner, expected) in (0..).zip(&counted) {
                let of = shares.all().find(|(o, _)| **o == owner);
                let sum: u64 = of.map_or(0, |(_, counts)| counts.values().sum());
                prop_assert_eq!(sum, *expected, "of {}", owner);
            }
            prop_assert!(shares.named().count() <= most);
            let after = named(&shares);
            for (owner, label, n) in before {
                let kept = shares.named().any(|l| *l == label);
                let now = after.iter().find(|(o, l, _)| (*o, *l) == (owner, label));
                match now {
                    Some((_, _, now)) => prop_assert!(*now >= n),
                    None => prop_assert!(!kept, "{} lost what it had", label),
                }
            }
        }
    }

    #[test]
    fn a_window_counts_what_came_in_it(
        span in 1..20_u64,
        steps in vec((0..8_u64, 0..5_u64, 0..5_u64), 1..60),
    ) {
        let mut window = Window::default();
        let (mut second, mut totals) = (0, Attempts::default());
        let mut all = vec![(0, totals)];
        for (wait, well, failed) in steps {
            second += wait;
            totals.all += well + failed;
            totals.failed += failed;
            window.note(second, totals, span);
            all.push((second, totals));
            // The last that is as old as the window is long.
            let last_before = |second: u64| {
                let old = all.iter().rev().find(|(at, _)| at + span <= second);
                old.map_or(Attempts::default(), |(_, totals)| *totals)
            };
            let base = last_before(second);
            let expected = Attempts {
                all: totals.all - base.all,
                failed: totals.failed - base.failed,
            };
            prop_assert_eq!(window.counts(), expected);
            let ratio = window.ratio();
            prop_assert_eq!(ratio.is_some(), expected.all > 0);
            prop_assert!(ratio.is_none_or(|ratio| (0.0..=1.0).contains(&ratio)));
        }
    }

    #[test]
    fn a_forecast_is_a_time_whatever_the_table_does(
        limit in 0..5_000_u32,
        steps in vec((0..30_u64, 0..6_000_u32), 0..200),
    ) {
        let mut forecast = Forecast::default();
        let (mut second, mut last) = (0, (0, 0));
        for (wait, entries) in steps {
            second += wait;
            forecast.note(second, entries);
            // The highest of a second counts.
            last = (second, if wait == 0 { entries.max(last.1) } else { entries });
            let until = forecast.seconds_until(limit);
            prop_assert!(until >= 0.0, "{}", until);
            prop_assert_eq!(until == 0.0, limit > 0 && last.1 >= limit, "{:?}", last);
        }
    }

    #[test]
    fn a_steady_fill_is_forecast(
        rate in 1..50_u32,
        start in 0..200_u32,
        seconds in 30..120_u32,
    ) {
        // The limit is large against the noise that is let pass, which grows with it.
        let limit = start + rate * (seconds + 60);
        let mut forecast = Forecast::default();
        for second in 0..=seconds {
            forecast.note(second.into(), start + rate * second);
        }
        let until = forecast.seconds_until(limit);
        prop_assert!((until - 60.0).abs() <= 6.0, "{} s for 60", until);
    }
}

fn named(shares: &Shares<u16, u8, u16>) -> Vec<(u8, u16, u64)> {
    let all = shares.all().flat_map(|(owner, counts)| {
        let counts = counts.iter();
        counts.filter_map(|(label, n)| Some((*owner, (*label)?, *n)))
    });
    all.collect()
}
