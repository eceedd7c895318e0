//! The way of details to user space: within a rate, and with every loss counted.

use aya_ebpf::maps::ring_buf::RingBufEntry;
use tracer_common::{ClientMap, Hook};

use crate::{
    layout::EVENT_RATE,
    maps::{FULL, RATE, RING, RING_STATS},
    util::{add, sub},
};

const SECOND_NS: u64 = 1_000_000_000;

/// Room for one record, or `None` (counted) where the rate or the ring says no.
///
/// A client's first record of a second always passes, so that a flood by one pod does not silence
/// the others; `event_second` is where the client remembers it. The rest share the hook's budget.
#[inline(always)]
pub fn reserve<T: 'static>(
    hook: Hook,
    now_ns: u64,
    event_second: &mut u64,
) -> Option<RingBufEntry<T>> {
    let stats = RING_STATS.get_ptr_mut(hook as u32)?;
    // SAFETY: a per-CPU array's value; the counters in it are only added to atomically.
    let stats = unsafe { &mut *stats };
    let second = now_ns / SECOND_NS;
    if *event_second == second {
        let window = RATE.get_ptr_mut(hook as u32)?;
        // SAFETY: an array's value; a lost update between CPUs lets a few more details through.
        let window = unsafe { &mut *window };
        if window.second != second {
            window.second = second;
            window.used = 0;
        }
        if window.used >= EVENT_RATE.load() {
            add(&mut stats.suppressed, 1);
            return None;
        }
        window.used += 1;
    } else {
        *event_second = second;
    }
    // Asked once whether there is one: at a second question the verifiers of 6.1 and before walk into
    // the branch without it still holding it, for memory of a ring is not on their list of what is
    // never null (kernel/bpf/verifier.c, reg_type_not_null). LLVM joins no branches with assembly in
    // them, which `add` is.
    if let Some(entry) = RING.reserve::<T>(0) {
        add(&mut stats.sent, 1);
        Some(entry)
    } else {
        add(&mut stats.lost, 1);
        None
    }
}

/// A new key found its map full.
#[inline(always)]
pub fn count_full(map: ClientMap) {
    if let Some(full) = FULL.get_ptr_mut(map as u32) {
        // SAFETY: a per-CPU array's value, added to atomically.
        add(unsafe { &mut *full }, 1);
    }
}

/// A record was taken back after [`reserve`] counted it.
#[inline(always)]
pub fn unsend(hook: Hook) {
    if let Some(stats) = RING_STATS.get_ptr_mut(hook as u32) {
        // SAFETY: a per-CPU array's value, added to atomically.
        sub(unsafe { &mut (*stats).sent }, 1);
    }
}
