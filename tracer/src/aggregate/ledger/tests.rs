//! Whose what becomes.

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

/// Takes out what is idle, whoever's it is; nothing was counted since the last reading.
fn retire(
    ledger: &mut Ledger<u32, u64>,
    now: Instant,
    idle: Duration,
    ended: impl Fn(&Owner) -> bool,
) -> Vec<u32> {
    let left = ledger.retire(now, idle, |_, _| true, ended, |_| Left::Before);
    left.into_iter().map(|(key, _)| key).collect()
}

/// Whoever was idle may begin again before the kernel has let the key go.
#[test]
fn what_is_counted_while_a_key_leaves_is_its_owners() {
    let mut ledger = Ledger::default();
    let start = Instant::now();
    let name = |_: &u32, _| Some(Owner::new("shop", "a"));
    ledger.update([(1, 5), (2, 1), (3, 1)], start, name, |o| o);
    let left = ledger.retire(
        start + GRACE,
        GRACE,
        |_, _| true,
        |_| false,
        |key| match key {
            1 => Left::With(7),
            2 => Left::Stays,
            _ => Left::Before,
        },
    );
    assert_eq!(left.len(), 2);
    assert_eq!(total(&ledger, "a"), Some(9));
    // What could not be taken out is not counted twice.
    ledger.update([(2, 4)], start + GRACE, name, |o| o);
    assert_eq!(total(&ledger, "a"), Some(12));
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
    assert!(retire(&mut ledger, start, GRACE, ended).is_empty());
    let mut gone = retire(&mut ledger, start + GRACE, GRACE, ended);
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
    assert_eq!(retire(&mut ledger, later, GRACE, ended), [1]);
    assert_eq!(total(&ledger, "a"), Some(7));
    let left = retire(&mut ledger, later + GRACE, GRACE, ended);
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
    let left = retire(&mut ledger, later, CROWDED_GRACE, |_| false);
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
