//! Where lookups wait: a table with [`WAYS`] places for each key, and a hash map (`PENDING`, `SERVED`) for keys whose
//! places are others'. With the hash map alone a lookup costs two and a half times as much (`docs/kernels.md`).
//!
//! A place is taken, and given back, by an atomic exchange of its state: whoever succeeds has it alone.

use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::{Lookup, LookupKey, MIX, Served, ServedKey};

/// Places of a table, in sets of [`WAYS`]: more than wait at once on a node whose servers answer, and few enough that a
/// CPU has those in use in its cache.
pub const PLACES: u32 = 2048;
/// Places that a key may have: the first that is free.
pub const WAYS: u32 = 2;

/// An entry, and whose it is: value of the maps `PENDING_NEAR` and `SERVED_NEAR`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout)]
pub struct Place<K, V> {
    /// 0: nobody's. Odd: it is being taken by the key with this mark ([`PlaceKey::moving`]). Else that of `key`, which
    /// took it at half of this, `CLOCK_MONOTONIC` nanoseconds: so no two are ever the same.
    pub state: u64,
    /// Whose it is, or was last.
    pub key: K,
    /// The entry.
    pub value: V,
}

const _: () = assert!(size_of::<Place<LookupKey, Lookup>>() == 7 * 64);
const _: () = assert!(size_of::<Place<ServedKey, Served>>() == 2 * 64);

/// Is a place in this state somebody's, so that its key may be read?
#[inline(always)]
pub const fn is_taken(state: u64) -> bool {
    state != 0 && state & 1 == 0
}

/// The state of a place that is taken at that time.
#[inline(always)]
pub const fn taken(now_ns: u64) -> u64 {
    now_ns << 1
}

/// When a place in this state was taken.
#[inline(always)]
pub const fn taken_ns(state: u64) -> u64 {
    state >> 1
}

/// The first of the places of what has this hash.
#[inline(always)]
const fn set(hash: u64) -> u32 {
    (hash >> 48) as u32 % (PLACES / WAYS) * WAYS
}

/// A key that may have a place.
pub trait PlaceKey: Copy {
    /// The first of its places.
    fn set(&self) -> u32;

    /// State of its place while it takes it.
    fn moving(&self) -> u64;

    /// Word by word: `==` would be a call to `bcmp`, which BPF does not have.
    fn is(&self, other: &Self) -> bool;

    /// Is it one that is looked for in the table at all?
    fn has_place(&self) -> bool;
}

impl LookupKey {
    /// The first place of a lookup whose socket has that port: what its packets say is enough to find it.
    #[inline(always)]
    pub const fn set_of(port: u16, id: u16) -> u32 {
        set((port as u64 | (id as u64) << 16).wrapping_mul(MIX))
    }
}

impl PlaceKey for LookupKey {
    #[inline(always)]
    fn set(&self) -> u32 {
        Self::set_of(self.port, self.id)
    }

    #[inline(always)]
    fn moving(&self) -> u64 {
        self.mixed() | 1
    }

    #[inline(always)]
    fn is(&self, other: &Self) -> bool {
        self.socket == other.socket && self.id == other.id && self.slot == other.slot
    }

    /// Second slots are rare.
    #[inline(always)]
    fn has_place(&self) -> bool {
        self.slot == 0
    }
}

impl ServedKey {
    #[inline(always)]
    const fn mixed(&self) -> u64 {
        let [a, b, c, d] = self.client;
        let end = self.client_port as u64 | (self.id as u64) << 16;
        let client = (a ^ b ^ c ^ d) as u64;
        let [a, b, c, d] = self.server.address;
        let server = (a ^ b ^ c ^ d) as u64 | (self.server.port as u64) << 32;
        let mixed = (self.net_cookie ^ client << 32 ^ end).wrapping_mul(MIX);
        (mixed ^ mixed >> 32 ^ server).wrapping_mul(MIX)
    }
}

impl PlaceKey for ServedKey {
    #[inline(always)]
    fn set(&self) -> u32 {
        set(self.mixed())
    }

    #[inline(always)]
    fn moving(&self) -> u64 {
        self.mixed() | 1
    }

    #[inline(always)]
    fn is(&self, other: &Self) -> bool {
        self.net_cookie == other.net_cookie
            && self.client_port == other.client_port
            && self.id == other.id
            && self.client[0] == other.client[0]
            && self.client[1] == other.client[1]
            && self.client[2] == other.client[2]
            && self.client[3] == other.client[3]
            && self.server.is(&other.server)
    }

    #[inline(always)]
    fn has_place(&self) -> bool {
        true
    }
}

/// The hash maps beside the tables: index in the map `FAR`, which says how many entries they have. At 0 nobody looks.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Far {
    /// `PENDING`.
    Pending = 0,
    /// `SERVED`.
    Served = 1,
}

impl Far {
    /// How many there are.
    pub const COUNT: u32 = 2;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::Server;

    /// How many of 100 keys find both places of their set taken. By chance it would be less than one.
    fn without_place(keys: impl Iterator<Item = u32>) -> u32 {
        let mut taken = [0; PLACES as usize];
        let mut without = 0;
        for set in keys.take(100) {
            assert!(set + WAYS <= PLACES && set.is_multiple_of(WAYS), "{set}");
            let held = &mut taken[set as usize];
            *held += 1;
            without += u32::from(*held > WAYS);
        }
        without
    }

    #[test]
    fn lookups_have_places_of_their_own() {
        let key = |port, id| LookupKey {
            id,
            port,
            ..LookupKey::default()
        };
        for (ports, ids) in [(1, 1), (1, 163), (0, 1), (7, 40_503)] {
            let keys = (0..).map(|n: u16| key(33_000 + n * ports, n.wrapping_mul(ids)).set());
            assert!(without_place(keys) < 8, "{ports} {ids}");
        }
    }

    #[test]
    fn queries_have_places_of_their_own() {
        for ports in [0, 1, 7] {
            let keys = (0..).map(|n: u16| {
                let key = ServedKey {
                    net_cookie: 3,
                    client: [0x0a0a_0a0a, 0, 0, 0],
                    server: Server::default(),
                    client_port: 40_000 + n * ports,
                    id: n,
                };
                key.set()
            });
            assert!(without_place(keys) < 8, "{ports}");
        }
    }

    #[test]
    fn a_place_is_nobodys_somebodys_or_on_the_move() {
        let key = LookupKey {
            socket: 1,
            ..LookupKey::default()
        };
        assert!(!is_taken(0));
        assert!(!is_taken(key.moving()));
        assert!(is_taken(taken(1)) && taken_ns(taken(u64::MAX >> 1)) == u64::MAX >> 1);
        let second = LookupKey { slot: 1, ..key };
        assert!(!second.is(&key) && key.is(&key));
        assert!(key.has_place() && !second.has_place());
    }
}
