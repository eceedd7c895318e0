//! Tables of places, with a hash map for keys whose places are others': see `tracer-common/src/dns/near.rs`. To those
//! who look in one it is a hash map.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::generated::bpf_for_each_map_elem,
    maps::{Array, HashMap},
};
use tracer_common::dns::{
    Far, LEAVING, Lookup, LookupKey, Place, PlaceKey, Served, ServedKey, WAYS, is_taken, taken,
};

use crate::{
    maps::{FAR, PENDING, PENDING_NEAR, SERVED, SERVED_NEAR},
    util::{add, exchange, sub},
};

/// Lookups that wait for an answer.
pub const WAITING: Table<LookupKey, Lookup> = Table {
    near: &PENDING_NEAR,
    far: &PENDING,
    entries: Far::Pending,
};

/// Queries that wait for a server's answer.
pub const SERVING: Table<ServedKey, Served> = Table {
    near: &SERVED_NEAR,
    far: &SERVED,
    entries: Far::Served,
};

/// Both parts.
#[derive(Clone, Copy)]
pub struct Table<K: 'static, V: 'static> {
    near: &'static Array<Place<K, V>>,
    far: &'static HashMap<K, V>,
    entries: Far,
}

/// What became of the attempt to take a place.
pub enum Taken<K: 'static, V: 'static> {
    /// It is the key's. Its value is what was there before, and nobody finds it until [`show`] is called.
    Place(*mut Place<K, V>),
    /// The same key has one, or is taking it, since another CPU was faster.
    Same,
    /// All are others'.
    No,
}

/// What `bpf_for_each_map_elem` calls with an entry.
pub type Visit<K, V> = unsafe extern "C" fn(*mut c_void, *const K, *mut V, *mut c_void) -> i64;

impl<K: PlaceKey, V> Table<K, V> {
    /// The value of a key.
    #[inline(always)]
    pub fn find(&self, key: &K) -> Option<*mut V> {
        if let Some((place, _)) = self.place(key) {
            // SAFETY: an array's value.
            return Some(unsafe { &raw mut (*place).value });
        }
        if self.is_far_empty() {
            return None;
        }
        self.far.get_ptr_mut(key)
    }

    /// Takes one of a key's places.
    #[inline(always)]
    pub fn take(&self, key: &K) -> Taken<K, V> {
        if !key.has_place() {
            return Taken::No;
        }
        let mut free = WAYS;
        let mut way = WAYS;
        while way > 0 {
            way -= 1;
            match self.near.get_ptr_mut(key.set() + way) {
                Some(place) if state(place) == 0 => free = way,
                Some(place) if is_of(place, key) => return Taken::Same,
                _ => {}
            }
        }
        if free == WAYS {
            return Taken::No;
        }
        let moving = key.moving();
        let Some(place) = self.near.get_ptr_mut(key.set() + free) else {
            return Taken::No;
        };
        // SAFETY: array's values.
        unsafe {
            let state = &raw mut (*place).state;
            let there = exchange(state, 0, moving);
            if there != 0 {
                return if there == moving {
                    Taken::Same
                } else {
                    Taken::No
                };
            }
            // Another CPU with the same key may have found an earlier place free, since this one looked. Of the
            // two the later place gives way.
            let mut way = 0;
            while way < WAYS - 1 {
                if way < free
                    && let Some(earlier) = self.near.get_ptr_mut(key.set() + way)
                    && is_of(earlier, key)
                {
                    exchange(state, moving, 0);
                    return Taken::Same;
                }
                way += 1;
            }
            (*place).key = *key;
        }
        Taken::Place(place)
    }

    /// Puts a key whose places are others' into the hash map.
    #[inline(always)]
    pub fn put_far(&self, key: &K, value: &V) -> Result<(), i32> {
        let entries = self.entries().ok_or(0)?;
        // Before: nobody may miss what is there.
        add(entries, 1);
        let put = self.far.insert(key, value, BPF_NOEXIST as u64);
        if put.is_err() {
            sub(entries, 1);
        }
        put
    }

    /// Removes a key. Who is told that it was there removed it alone.
    #[inline(always)]
    pub fn remove(&self, key: &K) -> bool {
        if let Some((place, there)) = self.place(key) {
            // SAFETY: an array's value.
            unsafe {
                let state = &raw mut (*place).state;
                if exchange(state, there, LEAVING) != there {
                    return false;
                }
                // Read again, now that nobody writes it: a CPU may have read the key before the state.
                let is_own = (*place).key.is(key);
                exchange(state, LEAVING, if is_own { 0 } else { there });
                return is_own;
            }
        }
        if self.is_far_empty() || self.far.remove(key).is_err() {
            return false;
        }
        if let Some(entries) = self.entries() {
            sub(entries, 1);
        }
        true
    }

    /// Calls `near` for each place, and `far` for each entry of the hash map.
    #[inline(always)]
    pub fn for_each(&self, near: Visit<u32, Place<K, V>>, far: Visit<K, V>) {
        let none = core::ptr::null_mut();
        let places: *const c_void = core::ptr::from_ref(self.near).cast();
        // SAFETY: the helper (5.13) calls back with pointers to a key and a value of that map.
        unsafe { bpf_for_each_map_elem(places.cast_mut(), near as *mut c_void, none, 0) };
        if !self.is_far_empty() {
            let map: *const c_void = core::ptr::from_ref(self.far).cast();
            // SAFETY: as above.
            unsafe { bpf_for_each_map_elem(map.cast_mut(), far as *mut c_void, none, 0) };
        }
    }

    /// The place that a key has, and its state.
    #[inline(always)]
    fn place(&self, key: &K) -> Option<(*mut Place<K, V>, u64)> {
        if !key.has_place() {
            return None;
        }
        self.place_where(key.set(), |place| place.key.is(key))
    }

    /// The place in a set that is somebody's, and that fits; and its state.
    #[inline(always)]
    pub fn place_where(
        &self,
        set: u32,
        fits: impl Fn(&Place<K, V>) -> bool,
    ) -> Option<(*mut Place<K, V>, u64)> {
        let mut way = 0;
        while way < WAYS {
            let place = self.near.get_ptr_mut(set + way)?;
            let state = state(place);
            // SAFETY: an array's value; who writes it meanwhile has changed the state before.
            if is_taken(state) && fits(unsafe { &*place }) {
                return Some((place, state));
            }
            way += 1;
        }
        None
    }

    #[inline(always)]
    fn entries(&self) -> Option<&'static mut u64> {
        // SAFETY: an array's value.
        FAR.get_ptr_mut(self.entries as u32)
            .map(|entries| unsafe { &mut *entries })
    }

    #[inline(always)]
    fn is_far_empty(&self) -> bool {
        self.entries().is_none_or(|entries| *entries == 0)
    }
}

/// Lets others find what has been taken.
#[inline(always)]
pub fn show<K: PlaceKey, V>(place: *mut Place<K, V>, key: &K, now_ns: u64) {
    // SAFETY: a caller's, an array's value.
    unsafe { exchange(&raw mut (*place).state, key.moving(), taken(now_ns)) };
}

/// Is a place the key's, or will it be at once?
#[inline(always)]
fn is_of<K: PlaceKey, V>(place: *const Place<K, V>, key: &K) -> bool {
    let state = state(place);
    // SAFETY: a caller's, an array's value.
    state == key.moving() || (is_taken(state) && unsafe { (*place).key.is(key) })
}

/// State of a place.
#[inline(always)]
pub fn state<K, V>(place: *const Place<K, V>) -> u64 {
    // SAFETY: a caller's, an array's value. Volatile: others write it.
    unsafe { (&raw const (*place).state).read_volatile() }
}
