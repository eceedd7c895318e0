//! What one client may take of the maps that all clients share, so that one that fills its part leaves the
//! others theirs.

use crate::dns::Key;

/// Places of the map `QUOTAS`. A client's goes by its key; two that meet there share what one may have.
pub const QUOTAS: u32 = 4096;

/// Of `CONNECTING`, a quarter.
pub const CONNECTING_PER_CLIENT: u64 = 16_384;

/// Of `TALKING`, a quarter.
pub const TALKING_PER_CLIENT: u64 = 8_192;

/// New entries of `PEERS` that one client may make in [`NEW_PEERS_NS`].
pub const NEW_PEERS: u64 = 256;
/// Nanoseconds.
pub const NEW_PEERS_NS: u64 = 60_000_000_000;

/// What a client has of them: value of the map `QUOTAS`. Not by client, but by place, and each entry remembers the
/// place that it was taken from: so it is given back exactly, whatever becomes of the client's counters meanwhile.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Quota {
    /// Entries in `CONNECTING`.
    pub connecting: u64,
    /// Entries in `TALKING`.
    pub talking: u64,
    /// When the present span of [`NEW_PEERS_NS`] began, `CLOCK_MONOTONIC` nanoseconds.
    pub span_ns: u64,
    /// Entries of `PEERS` made in it.
    pub peers: u64,
}

/// The place of a client, below [`QUOTAS`].
#[inline(always)]
pub const fn place(client: &Key) -> u32 {
    // Both are given out in order: multiplied by odd numbers without a pattern (of the golden ratio, and of e), the
    // upper bits tell neighbours apart.
    let mixed = client.cgroup_id.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ client.net_cookie.wrapping_mul(0xadf8_5458_a2bb_4a9b);
    (mixed >> (u64::BITS - QUOTAS.trailing_zeros())) as u32
}

/// Maps whose keys are addresses that a pod may make up: an index of the map `STRANGERS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ByAddress {
    /// `NEIGH_FORWARDED`.
    Forwarded = 0,
    /// `DROPS`.
    Drops = 1,
}

impl ByAddress {
    /// How many there are.
    pub const COUNT: u32 = 2;

    /// Entries for addresses that are not known to be a pod's of this node: half of the map. The kernel counts what
    /// it enters, user space what is there, at each reading; between two of them a few more may get in.
    pub const fn strangers(self) -> u64 {
        match self {
            Self::Forwarded => 4_096,
            Self::Drops => 8_192,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_of_a_node_seldom_meet() {
        // 250 pods of three containers, as a kernel numbers them.
        let mut taken = [0_u8; QUOTAS as usize];
        for pod in 0..250 {
            for container in 0..3 {
                let client = Key {
                    cgroup_id: 4_000 + pod * 40 + container * 9,
                    net_cookie: 20 + pod,
                };
                taken[place(&client) as usize] += 1;
            }
        }
        let met = taken.iter().filter(|clients| **clients > 1).count();
        // By chance 63 of 750.
        assert!(met < 90, "{met} places have two");
        assert!(taken.iter().all(|clients| *clients < 5));
    }
}
