//! Failures by the address at the other end, of every hook that knows one.

use aya_ebpf::bindings::BPF_NOEXIST;
use tracer_common::{
    ClientMap,
    peers::{Key, Kind},
};

use crate::{maps::PEERS, quota, ring, util::add};

/// As [`count_here`], out of line: its stack is its own.
#[inline(never)]
pub fn count(key: &Key, kind: Kind, n: u64, client: u32) -> u64 {
    count_here(key, kind, n, client);
    0
}

/// Counts failures towards a peer; under the kind's rest key where the map is full, or the client, by its place of
/// `QUOTAS`, has entered as many as it may.
#[inline(always)]
pub fn count_here(key: &Key, kind: Kind, n: u64, client: u32) {
    if PEERS.get_ptr(key).is_none()
        && quota::enters_peer(client) != 0
        // EEXIST: another CPU was faster, which is as good.
        && PEERS.insert(key, 0, BPF_NOEXIST as u64).is_err()
        && PEERS.get_ptr(key).is_none()
    {
        ring::count_full(ClientMap::Peers);
    }
    let failed = match PEERS.get_ptr_mut(key) {
        Some(failed) => failed,
        None => match PEERS.get_ptr_mut(Key::rest(kind)) {
            Some(failed) => failed,
            None => return,
        },
    };
    // SAFETY: entries are removed only long after their last failure.
    add(unsafe { &mut *failed }, n);
}
