//! Lookups that wait, by the client's address, port and id: a small hash table of sets, for the kernel's own cost
//! ten times as much. Two CPUs that write one place at once may mix two lookups there; who finds one looks
//! whether it fits the packet.

use tracer_common::dns::{ENDPOINT_SETS, ENDPOINT_WAYS, LookupKey, Way};

use crate::maps::ENDPOINTS;

#[inline(always)]
fn set(endpoint: u64) -> Option<&'static mut [Way; ENDPOINT_WAYS]> {
    let set = ENDPOINTS.get_ptr_mut(endpoint as u32 % ENDPOINT_SETS)?;
    // SAFETY: an array's value.
    Some(unsafe { &mut *set })
}

/// Puts a lookup in, at its own place, or a free one, or one that the hash picks. Out of line: its stack is its
/// own.
#[inline(never)]
pub fn note(endpoint: u64, lookup: &LookupKey) -> u64 {
    let Some(set) = set(endpoint) else {
        return 0;
    };
    let mut way = (endpoint >> 32) as usize % ENDPOINT_WAYS;
    let mut i = 0;
    while i < ENDPOINT_WAYS {
        let held = set[i].endpoint;
        if held == endpoint {
            way = i;
            break;
        }
        if held == 0 {
            way = i;
        }
        i += 1;
    }
    let way = &mut set[core::hint::black_box(way) % ENDPOINT_WAYS];
    way.lookup = *lookup;
    way.endpoint = endpoint;
    0
}

/// The lookup of an endpoint.
#[inline(always)]
pub fn find(endpoint: u64) -> Option<LookupKey> {
    let set = set(endpoint)?;
    let mut i = 0;
    while i < ENDPOINT_WAYS {
        if set[i].endpoint == endpoint {
            return Some(set[i].lookup);
        }
        i += 1;
    }
    None
}

/// Takes a lookup out that is over.
#[inline(always)]
pub fn forget(endpoint: u64, lookup: &LookupKey) {
    if endpoint == 0 {
        return;
    }
    let Some(set) = set(endpoint) else {
        return;
    };
    let mut i = 0;
    while i < ENDPOINT_WAYS {
        let way = &mut set[i];
        if way.endpoint == endpoint
            && way.lookup.socket == lookup.socket
            && way.lookup.slot == lookup.slot
        {
            way.endpoint = 0;
        }
        i += 1;
    }
}
