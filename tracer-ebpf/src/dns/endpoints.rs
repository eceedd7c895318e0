//! Lookups that wait, by the client's address, port and id. One that has a place is found there, for the place goes
//! by port and id. The others are in a small hash table of sets, for the kernel's own cost ten times as much. Two
//! CPUs that write one set at once may mix two lookups there; who finds one looks whether it fits the packet.

use tracer_common::dns::{ENDPOINT_SETS, ENDPOINT_WAYS, LookupKey, Way};

use super::near::{self, WAITING};
use crate::maps::ENDPOINTS;

#[inline(always)]
fn set(endpoint: u64) -> Option<&'static mut [Way; ENDPOINT_WAYS]> {
    let set = ENDPOINTS.get_ptr_mut(endpoint as u32 % ENDPOINT_SETS)?;
    // SAFETY: an array's value.
    Some(unsafe { &mut *set })
}

/// Puts a lookup in whose packets have that port, at its own place in the set, or a free one, or that of one that is
/// over, or one that the hash picks; unless it is found without. Out of line: its stack is its own.
///
/// One that is over took itself out, but for what it was asked from besides the first address.
#[inline(never)]
pub fn note(endpoint: u64, port: u16, lookup: &LookupKey) -> u64 {
    if near::of_endpoint(endpoint, port, lookup.id).is_some() {
        return 0;
    }
    let (Some(set), Some(noted)) = (set(endpoint), WAITING.find(lookup)) else {
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
        if held == 0 || WAITING.find(&set[i].lookup).is_none() {
            way = i;
        }
        i += 1;
    }
    let way = &mut set[core::hint::black_box(way) % ENDPOINT_WAYS];
    way.lookup = *lookup;
    way.endpoint = endpoint;
    // SAFETY: a map's value.
    unsafe { (*noted).is_noted = 1 };
    0
}

/// The lookup of an endpoint, whose packets have that port and id.
#[inline(always)]
pub fn find(endpoint: u64, port: u16, id: u16) -> Option<LookupKey> {
    if let Some(lookup) = near::of_endpoint(endpoint, port, id) {
        return Some(lookup);
    }
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

/// Takes a lookup out that is over, and was put in.
#[inline(always)]
pub fn forget(endpoint: u64, lookup: &LookupKey) {
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
