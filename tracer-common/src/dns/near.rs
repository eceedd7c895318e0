//! Where lookups wait: a table with one place for each of many keys, and a hash map (`PENDING`, `SERVED`) for keys
//! whose place is another's. An entry that lives for a millisecond costs a hash map ten times as much as a place.
//!
//! A place is taken, and given back, by an atomic exchange of its state: whoever succeeds has it alone.

use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::{LookupKey, MIX, ServedKey};

/// Places of a table: more than wait at once on a node whose servers answer.
pub const PLACES: u32 = 4096;

/// Who has a place: value of the maps `PENDING_PLACES` and `SERVED_PLACES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout)]
pub struct Place<K> {
    /// 0: nobody. Odd: it is being taken or given back by the key with this mark ([`PlaceKey::moving`]). Else
    /// `key`, which took it at half of this, `CLOCK_MONOTONIC` nanoseconds: so no two are ever the same.
    pub state: u64,
    /// Who, or who was last.
    pub key: K,
    /// With it a place is in one line of a cache, or two places are.
    pub _line: u64,
}

const _: () = assert!(size_of::<Place<LookupKey>>() == 32);
const _: () = assert!(size_of::<Place<ServedKey>>() == 64);

impl<K> Place<K> {
    /// May `key` be read?
    #[inline(always)]
    pub const fn is_taken(state: u64) -> bool {
        state != 0 && state & 1 == 0
    }

    /// The state of a place that is taken at that time.
    #[inline(always)]
    pub const fn taken(now_ns: u64) -> u64 {
        now_ns << 1
    }
}

/// A key that may have a place.
pub trait PlaceKey: Copy {
    /// All of it that is hardly the same in two.
    fn mixed(&self) -> u64;

    /// Word by word: `==` would be a call to `bcmp`, which BPF does not have.
    fn is(&self, other: &Self) -> bool;

    /// Is it one that is looked for in the table at all?
    fn has_place(&self) -> bool;

    /// Which place.
    #[inline(always)]
    fn place(&self) -> u32 {
        (self.mixed() >> 48) as u32 % PLACES
    }

    /// State of its place while it takes it or gives it back.
    #[inline(always)]
    fn moving(&self) -> u64 {
        self.mixed() | 1
    }
}

impl PlaceKey for LookupKey {
    #[inline(always)]
    fn mixed(&self) -> u64 {
        (self.socket ^ ((self.id as u64) << 48)).wrapping_mul(MIX)
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

impl PlaceKey for ServedKey {
    #[inline(always)]
    fn mixed(&self) -> u64 {
        let [a, b, c, d] = self.client;
        let end = self.client_port as u64 | (self.id as u64) << 16;
        let client = (a ^ b ^ c ^ d) as u64;
        let mixed = (self.net_cookie ^ client << 32 ^ end).wrapping_mul(MIX);
        (mixed ^ mixed >> 32).wrapping_mul(MIX)
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

    #[test]
    fn lookups_of_one_socket_have_places_of_their_own() {
        let mut taken = [false; PLACES as usize];
        let mut shared = 0;
        for id in 0..400 {
            let key = LookupKey {
                socket: 7,
                id: id * 163,
                ..LookupKey::default()
            };
            let place = &mut taken[key.place() as usize];
            shared += u32::from(*place);
            *place = true;
        }
        // By chance it would be 20 of 400.
        assert!(shared < 40, "{shared}");
    }

    #[test]
    fn queries_of_one_client_have_places_of_their_own() {
        let mut taken = [false; PLACES as usize];
        let mut shared = 0;
        for n in 0..400u16 {
            let key = ServedKey {
                net_cookie: 3,
                client: [0x0a0a_0a0a, 0, 0, 0],
                server: Server::default(),
                client_port: 40_000 + n % 4,
                id: n,
            };
            let place = &mut taken[key.place() as usize];
            shared += u32::from(*place);
            *place = true;
        }
        assert!(shared < 40, "{shared}");
    }

    #[test]
    fn a_place_is_nobodys_its_owners_or_on_the_move() {
        let key = LookupKey {
            socket: 1,
            ..LookupKey::default()
        };
        assert!(!Place::<LookupKey>::is_taken(0));
        assert!(!Place::<LookupKey>::is_taken(key.moving()));
        assert!(Place::<LookupKey>::is_taken(Place::<LookupKey>::taken(1)));
        let second = LookupKey { slot: 1, ..key };
        assert!(!second.is(&key) && key.is(&key));
        assert!(key.has_place() && !second.has_place());
    }
}
