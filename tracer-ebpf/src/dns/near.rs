//! Tables of places, with a hash map for keys whose place is another's: see `tracer-common/src/dns/near.rs`. To those
//! who look in one it is a hash map.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::generated::bpf_for_each_map_elem,
    maps::{Array, HashMap},
};
use tracer_common::dns::{Far, Lookup, LookupKey, Place, PlaceKey, Served, ServedKey};

use crate::{
    maps::{
        FAR, PENDING, PENDING_NEAR, PENDING_PLACES, SERVED, SERVED_NEAR, SERVED_PLACES,
    },
    util::{add, exchange, sub},
};

/// Lookups that wait for an answer.
pub const WAITING: Table<LookupKey, Lookup> = Table {
    places: &PENDING_PLACES,
    near: &PENDING_NEAR,
    far: &PENDING,
    entries: Far::Pending,
};

/// Queries that wait for a server's answer.
pub const SERVING: Table<ServedKey, Served> = Table {
    places: &SERVED_PLACES,
    near: &SERVED_NEAR,
    far: &SERVED,
    entries: Far::Served,
};

/// Both parts.
#[derive(Clone, Copy)]
pub struct Table<K: 'static, V: 'static> {
    places: &'static Array<Place<K>>,
    near: &'static Array<V>,
    far: &'static HashMap<K, V>,
    entries: Far,
}

/// What became of the attempt to take a place.
pub enum Taken<V: 'static> {
    /// It is the key's, and its value holds what was there before.
    Place(&'static mut V),
    /// The same key is taking it, or giving it back, on another CPU.
    Same,
    /// It is another's.
    No,
}

/// What `bpf_for_each_map_elem` calls with an entry.
pub type Visit<K, V> =
    unsafe extern "C" fn(*mut c_void, *const K, *mut V, *mut c_void) -> i64;

impl<K: PlaceKey, V> Table<K, V> {
    /// The value of a key.
    #[inline(always)]
    pub fn find(&self, key: &K) -> Option<*mut V> {
        if key.has_place()
            && let Some(place) = self.place(key)
            && Place::<K>::is_taken(state(place))
            // SAFETY: an array's value; who writes the key meanwhile has changed the state before.
            && unsafe { (*place).key.is(key) }
        {
            return self.near.get_ptr_mut(key.place());
        }
        if self.is_far_empty() {
            return None;
        }
        self.far.get_ptr_mut(key)
    }

    /// Takes a key's place. The value is to be valid when [`Self::show`] is called.
    #[inline(always)]
    pub fn take(&self, key: &K) -> Taken<V> {
        if !key.has_place() {
            return Taken::No;
        }
        let (Some(place), Some(value)) = (self.place(key), self.near.get_ptr_mut(key.place()))
        else {
            return Taken::No;
        };
        let moving = key.moving();
        // SAFETY: array's values.
        unsafe {
            match exchange(&raw mut (*place).state, 0, moving) {
                0 => {
                    (*place).key = *key;
                    Taken::Place(&mut *value)
                }
                there if there == moving => Taken::Same,
                _ => Taken::No,
            }
        }
    }

    /// Lets others find what has been taken.
    #[inline(always)]
    pub fn show(&self, key: &K, now_ns: u64) {
        if let Some(place) = self.place(key) {
            // SAFETY: an array's value.
            unsafe {
                exchange(
                    &raw mut (*place).state,
                    key.moving(),
                    Place::<K>::taken(now_ns),
                )
            };
        }
    }

    /// Puts a key whose place is another's into the hash map.
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
        if key.has_place()
            && let Some(place) = self.place(key)
        {
            let there = state(place);
            let moving = key.moving();
            // SAFETY: an array's value.
            unsafe {
                let place_state = &raw mut (*place).state;
                if Place::<K>::is_taken(there)
                    && (*place).key.is(key)
                    && exchange(place_state, there, moving) == there
                {
                    // Read again, now that nobody writes it: a CPU may have read the key before the state.
                    let is_own = (*place).key.is(key);
                    exchange(place_state, moving, if is_own { 0 } else { there });
                    return is_own;
                }
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
    pub fn for_each(&self, near: Visit<u32, Place<K>>, far: Visit<K, V>) {
        let none = core::ptr::null_mut();
        let places: *const c_void = core::ptr::from_ref(self.places).cast();
        // SAFETY: the helper (5.13) calls back with pointers to a key and a value of that map.
        unsafe { bpf_for_each_map_elem(places.cast_mut(), near as *mut c_void, none, 0) };
        if !self.is_far_empty() {
            let map: *const c_void = core::ptr::from_ref(self.far).cast();
            // SAFETY: as above.
            unsafe { bpf_for_each_map_elem(map.cast_mut(), far as *mut c_void, none, 0) };
        }
    }

    /// Key and value at a place, for what [`Self::for_each`] calls.
    ///
    /// # Safety
    ///
    /// `index` and `place` are what the helper gives.
    #[inline(always)]
    pub unsafe fn at(&self, index: *const u32, place: *const Place<K>) -> Option<(K, *mut V)> {
        // SAFETY: a caller's.
        let (index, key) = unsafe { (*index, (*place).key) };
        if !Place::<K>::is_taken(state(place)) {
            return None;
        }
        Some((key, self.near.get_ptr_mut(index)?))
    }

    #[inline(always)]
    fn place(&self, key: &K) -> Option<*mut Place<K>> {
        self.places.get_ptr_mut(key.place())
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

#[inline(always)]
fn state<K>(place: *const Place<K>) -> u64 {
    // SAFETY: a caller's, an array's value. Volatile: others write it.
    unsafe { (&raw const (*place).state).read_volatile() }
}
