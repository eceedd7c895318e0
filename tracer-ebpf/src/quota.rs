//! What one client has of the maps that all clients share; see [`tracer_common::quota`].

use aya_ebpf::helpers::bpf_ktime_get_ns;
use tracer_common::quota::{ByAddress, NEW_PEERS, NEW_PEERS_NS, Quota};

use crate::{
    maps::{POD_ADDRESSES, QUOTAS, STRANGERS},
    util::add,
};

/// What the clients of a place have.
#[inline(always)]
pub fn at(place: u32) -> Option<&'static mut Quota> {
    // SAFETY: an array's value, added to atomically.
    QUOTAS
        .get_ptr_mut(place)
        .map(|quota| unsafe { &mut *quota })
}

/// Has the client as many as it may? What others gave back too often counts as none.
#[inline(always)]
pub fn is_used_up(has: u64, limit: u64) -> bool {
    has.cast_signed() >= limit.cast_signed()
}

/// May the clients of a place enter one more peer? Not 0: they may, and it is counted. Out of line: its stack is its own.
#[inline(never)]
pub fn enters_peer(place: u32) -> u64 {
    let Some(quota) = at(place) else {
        return 0;
    };
    // SAFETY: the helper has no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    // Races between CPUs let a few more or less in, which is fine: it is a limit.
    if now_ns.wrapping_sub(quota.span_ns) >= NEW_PEERS_NS {
        quota.span_ns = now_ns;
        quota.peers = 0;
    }
    if quota.peers >= NEW_PEERS {
        return 0;
    }
    quota.peers += 1;
    1
}

/// May a new entry of this map be made for an address? Always for a pod's of this node, else while there is room for
/// strangers.
#[inline(always)]
pub fn enters(map: ByAddress, address: &[u32; 4]) -> bool {
    if POD_ADDRESSES.get_ptr(address).is_some() {
        return true;
    }
    let Some(strangers) = STRANGERS.get_ptr_mut(map as u32) else {
        return false;
    };
    // SAFETY: an array's value.
    let strangers = unsafe { &mut *strangers };
    if *strangers >= map.strangers() {
        return false;
    }
    add(strangers, 1);
    true
}
