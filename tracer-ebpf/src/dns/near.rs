//! Tables of places, with a hash map for keys whose places are others': see `tracer-common/src/dns/near.rs`. To those
//! who look in one it is a hash map.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::generated::bpf_for_each_map_elem,
    maps::{Array, HashMap},
};
use tracer_common::dns::{
    Far, Lookup, LookupKey, Place, PlaceKey, Served, ServedKey, WAYS, is_taken, taken, taken_ns,
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

/// A key whose table's places are looked through by global functions (see [`crate::util`]), which say a place as its
/// number, from one.
pub trait Sought: PlaceKey {
    /// Its place, or 0.
    fn sought(&self) -> u64;

    /// The place that it took, or 0, or [`SAME`].
    fn took(&self) -> u64;
}

impl Sought for LookupKey {
    #[inline(always)]
    fn sought(&self) -> u64 {
        dns_sought_waiting(self)
    }

    #[inline(always)]
    fn took(&self) -> u64 {
        dns_took_waiting(self)
    }
}

impl Sought for ServedKey {
    #[inline(always)]
    fn sought(&self) -> u64 {
        dns_sought_serving(self)
    }

    #[inline(always)]
    fn took(&self) -> u64 {
        dns_took_serving(self)
    }
}

/// Instead of a place: the same key has one, or is taking it.
const SAME: u64 = u64::MAX;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn dns_sought_waiting(key: *const LookupKey) -> u64 {
    // SAFETY: a caller's.
    unsafe { key.as_ref() }.map_or(0, |key| WAITING.seek(key))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn dns_sought_serving(key: *const ServedKey) -> u64 {
    // SAFETY: a caller's.
    unsafe { key.as_ref() }.map_or(0, |key| SERVING.seek(key))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn dns_took_waiting(key: *const LookupKey) -> u64 {
    // SAFETY: a caller's.
    unsafe { key.as_ref() }.map_or(0, |key| WAITING.try_take(key))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn dns_took_serving(key: *const ServedKey) -> u64 {
    // SAFETY: a caller's.
    unsafe { key.as_ref() }.map_or(0, |key| SERVING.try_take(key))
}

/// The place of the lookup whose packets have that endpoint, with this first place; or 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn dns_sought_endpoint(endpoint: u64, set: u32) -> u64 {
    WAITING.seek_where(set, |place| place.value.endpoint == endpoint)
}

/// The lookup whose packets have that endpoint, port and id, if it has a place.
#[inline(always)]
pub fn of_endpoint(endpoint: u64, port: u16, id: u16) -> Option<LookupKey> {
    let (place, state) = WAITING.at(dns_sought_endpoint(endpoint, LookupKey::set_of(port, id)))?;
    // Again: it may have become another's.
    // SAFETY: an array's value; who writes it meanwhile has changed the state before.
    (is_taken(state) && unsafe { (*place).value.endpoint == endpoint })
        .then(|| unsafe { (*place).key })
}

impl<K: Sought, V> Table<K, V> {
    /// The value of a key.
    #[inline(always)]
    pub fn find(&self, key: &K) -> Option<*mut V> {
        self.find_taken(key).map(|(value, _)| value)
    }

    /// The value of a key, and when it took its place; 0 where it has none.
    #[inline(always)]
    pub fn find_taken(&self, key: &K) -> Option<(*mut V, u64)> {
        if let Some((place, state)) = self.place(key) {
            // SAFETY: an array's value.
            return Some((unsafe { &raw mut (*place).value }, taken_ns(state)));
        }
        if self.is_far_empty() {
            return None;
        }
        self.far.get_ptr_mut(key).map(|value| (value, 0))
    }

    /// Takes one of a key's places.
    #[inline(always)]
    pub fn take(&self, key: &K) -> Taken<K, V> {
        match key.took() {
            SAME => Taken::Same,
            took => self
                .at(took)
                .map_or(Taken::No, |(place, _)| Taken::Place(place)),
        }
    }

    #[inline(always)]
    fn try_take(&self, key: &K) -> u64 {
        if !key.has_place() {
            return 0;
        }
        let mut free = WAYS;
        let mut way = WAYS;
        while way > 0 {
            way -= 1;
            match self.near.get_ptr_mut(key.set() + way) {
                Some(place) if state(place) == 0 => free = way,
                Some(place) if is_of(place, key) => return SAME,
                _ => {}
            }
        }
        if free == WAYS {
            return 0;
        }
        let moving = key.moving();
        let Some(place) = self.near.get_ptr_mut(key.set() + free) else {
            return 0;
        };
        // SAFETY: array's values.
        unsafe {
            let state = &raw mut (*place).state;
            let there = exchange(state, 0, moving);
            if there != 0 {
                return if there == moving { SAME } else { 0 };
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
                    return SAME;
                }
                way += 1;
            }
            (*place).key = *key;
        }
        (key.set() + free) as u64 + 1
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

    /// The value of a key that was put into the hash map just now. Not [`Self::find`], which may give a place that
    /// another CPU has taken for it since, and nobody would fill this one.
    #[inline(always)]
    pub fn far(&self, key: &K) -> Option<*mut V> {
        self.far.get_ptr_mut(key)
    }

    /// Removes a key that took its place at that time; 0: it has none. Who is told that it was there removed it alone,
    /// and no other that has come under the same key since: that one took the place later.
    #[inline(always)]
    pub fn remove(&self, key: &K, taken_ns: u64) -> bool {
        if taken_ns != 0
            && let Some((place, _)) = self.place(key)
        {
            let there = taken(taken_ns);
            // SAFETY: an array's value.
            return unsafe { exchange(&raw mut (*place).state, there, 0) == there };
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
        let (place, state) = self.at(key.sought())?;
        // Again: it may have become another's.
        // SAFETY: an array's value; who writes it meanwhile has changed the state before.
        (is_taken(state) && unsafe { (*place).key.is(key) }).then_some((place, state))
    }

    #[inline(always)]
    fn seek(&self, key: &K) -> u64 {
        if !key.has_place() {
            return 0;
        }
        self.seek_where(key.set(), |place| place.key.is(key))
    }

    /// The number of the place in a set that is somebody's, and that fits.
    #[inline(always)]
    fn seek_where(&self, set: u32, fits: impl Fn(&Place<K, V>) -> bool) -> u64 {
        let mut way = 0;
        while way < WAYS {
            // SAFETY: an array's value.
            if let Some(place) = self.near.get_ptr(set + way)
                && is_taken(state(place))
                && fits(unsafe { &*place })
            {
                return (set + way) as u64 + 1;
            }
            way += 1;
        }
        0
    }

    /// The place with that number, and its state.
    #[inline(always)]
    fn at(&self, number: u64) -> Option<(*mut Place<K, V>, u64)> {
        // Number 0 is no place, nor is the index that it gives.
        let place = self.near.get_ptr_mut((number as u32).wrapping_sub(1))?;
        Some((place, state(place)))
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
