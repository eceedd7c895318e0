//! How lookups end: by an answer that arrived, by the deadline, or by another question; and where
//! they are counted.

use core::{ffi::c_void, hint::black_box};

use aya_ebpf::{
    EbpfContext as _, bindings::BPF_NOEXIST, helpers::bpf_ktime_get_ns, macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use tracer_common::{
    ClientMap, Hook,
    dns::{
        AGE_MARGIN_NS, ARRIVED_NS, Cause, Counts, Detail, Drop, Ended, Failure, Key, Lookup,
        LookupKey, Outcome, Place, Served, ServedKey, Value, bucket, is_taken, taken_ns,
    },
    event, peers, quota,
};

use super::{
    endpoints,
    near::{SERVING, WAITING, state},
    served,
};
use crate::{
    layout::DNS_TIMEOUT_NS,
    maps::{ANSWERED, ANSWERS, DNS, DNS_NODE, DNS_ZERO, EXPIRED},
    peer, ring,
    util::add,
};

/// The counters of a client; those of the rest key where the map is full.
#[inline(always)]
pub fn client(key: Key, netns: u32) -> Option<&'static mut Value> {
    if let Some(value) = DNS.get_ptr_mut(key) {
        // SAFETY: entries are removed only long after their client is gone.
        return Some(unsafe { &mut *value });
    }
    let zero = DNS_ZERO.get_ptr(0)?;
    // EEXIST: another CPU was faster, which is as good.
    // SAFETY: an array's value that nobody writes.
    let _ = DNS.insert(key, unsafe { &*zero }, BPF_NOEXIST as u64);
    let value = match DNS.get_ptr_mut(key) {
        Some(value) => {
            // SAFETY: as above.
            unsafe { (*value).netns = netns };
            value
        }
        None => {
            ring::count_full(ClientMap::Dns);
            DNS.get_ptr_mut(Key::default())?
        }
    };
    // SAFETY: as above.
    Some(unsafe { &mut *value })
}

#[inline(always)]
pub fn node() -> Option<&'static mut Counts> {
    // SAFETY: a per-CPU array's value, added to atomically.
    DNS_NODE.get_ptr_mut(0).map(|node| unsafe { &mut *node })
}

/// Ends the lookup of the answer before this one on this CPU: it was not dropped.
#[inline(always)]
pub fn count_arrived() {
    let Some(answered) = ANSWERED.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: as in `answer`.
    let answered = unsafe { &mut *answered };
    if answered.packet == 0 {
        return;
    }
    answered.packet = 0;
    let key = answered.key;
    if let Some(lookup) = WAITING.find(&key) {
        // SAFETY: as in `query`.
        let lookup = unsafe { &mut *lookup };
        if lookup.answered_ns != 0 {
            end_answered(&key, lookup);
        }
    }
}

/// Ends a lookup whose answer has arrived.
#[inline(always)]
pub fn end_answered(key: &LookupKey, lookup: &Lookup) {
    dns_remember(key, lookup);
    dns_end(key, lookup, lookup.outcome as u32, lookup.answered_ns);
}

/// Remembers a lookup that was answered. Global: see [`crate::util`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn dns_remember(key: *const LookupKey, lookup: *const Lookup) -> u64 {
    // SAFETY: a caller's.
    let (Some(key), Some(lookup)) = (unsafe { key.as_ref() }, unsafe { lookup.as_ref() }) else {
        return 0;
    };
    if let Some(place) = ANSWERS.get_ptr_mut(key.answers_place()) {
        // Whoever was there before goes; the same question again is a new lookup then.
        // SAFETY: an array's value.
        unsafe {
            (*place).socket = key.socket;
            (*place).id = key.id as u64;
            (*place).deadline_ns = lookup.started_ns + DNS_TIMEOUT_NS.load();
            (*place).question_hash = lookup.question_hash;
        }
    }
    0
}

#[inline(always)]
fn ended(lookup: &Lookup) -> Ended {
    Ended {
        deadline_ns: lookup.started_ns + DNS_TIMEOUT_NS.load(),
        question_hash: lookup.question_hash,
    }
}

/// The hook `drops` saw that an answer with this mark ([`Answered::mark`](tracer_common::dns::Answered::mark)) was
/// dropped. True if it is the one that this CPU saw last at a socket's filter, and the socket did not get it: then it is
/// no answer.
///
/// The mark says that it is that packet, and none that came into the same memory after it was read, which a process
/// could send on purpose.
///
/// A socket that is closed frees what nobody has read, and that had arrived: the kernel says no reason for it, and
/// before 5.17 never says one.
#[inline(always)]
pub fn take_back(mark: u64, id: u16, drop: Drop) -> bool {
    // Behind the filter come the checksum, the socket's own filter and its receive buffer.
    if !matches!(drop.cause, SOCKET_BUFFER_FULL | DROPPED) {
        return false;
    }
    let Some(answered) = ANSWERED.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: as in `answer`.
    let answered = unsafe { &mut *answered };
    if answered.packet != mark || answered.key.id != id {
        return false;
    }
    answered.packet = 0;
    let key = answered.key;
    if let Some(lookup) = WAITING.find(&key) {
        // SAFETY: as in `query`.
        let lookup = unsafe { &mut *lookup };
        // SAFETY: the helper has no precondition.
        let age_ns = unsafe { bpf_ktime_get_ns() }.wrapping_sub(lookup.answered_ns);
        if lookup.answered_ns != 0 && (drop.detail != NO_REASON || age_ns <= ARRIVED_NS) {
            lookup.answered_ns = 0;
            lookup.dropped(true, drop);
        }
    }
    true
}

/// Ends a lookup. Whoever removes it counts it: everybody else's removal fails.
///
/// Out of line, for it has several callers, and its stack is its own. Global: see [`crate::util`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn dns_end(
    key: *const LookupKey,
    lookup: *const Lookup,
    outcome: u32,
    now_ns: u64,
) -> u64 {
    // SAFETY: a caller's.
    if let (Some(key), Some(lookup)) = (unsafe { key.as_ref() }, unsafe { lookup.as_ref() }) {
        let _ = try_end(key, lookup, outcome as u8, now_ns); // without the maps there is nothing to count
    }
    0
}

#[inline(always)]
fn try_end(key: &LookupKey, lookup: &Lookup, outcome: u8, now_ns: u64) -> Option<()> {
    let key = *key;
    let timeout = outcome == Outcome::Timeout as u8;
    // Once, and after what the caller has read: where another lookup has come in its place since, that one began later
    // than this one ended.
    // SAFETY: a map's value.
    let started_ns = unsafe { (&raw const lookup.started_ns).read_volatile() };
    if started_ns == 0 {
        return None;
    }
    let waited_ns = now_ns.checked_sub(started_ns)?;
    if lookup.is_noted != 0 {
        endpoints::forget(lookup.endpoint, &key);
    }
    let failed = timeout || !matches!(outcome, OK | NO_DATA | NX_DOMAIN);
    let cause = if !timeout {
        Cause::Server as u8
    } else if lookup.drop_reason == 0 {
        Cause::NoAnswer as u8
    } else {
        lookup.drop_cause
    };
    let value = client(lookup.key, lookup.netns)?;
    let node = node()?;
    let place = quota::place(&lookup.key);
    let peer = peers::Key {
        address: lookup.servers[0].address,
        family: lookup.servers[0].family,
        kind: peers::Kind::Dns as u16,
    };

    if failed {
        // The rate goes by the time of telling.
        // SAFETY: the helper has no precondition.
        let told_ns = unsafe { bpf_ktime_get_ns() };
        let record = ring::reserve::<Failure>(Hook::Dns, told_ns, &mut value.event_second);
        if let Some(mut record) = record {
            // Written before the removal: the entry's memory may be another's right after.
            fill(
                record.as_mut_ptr(),
                &key,
                lookup,
                outcome,
                cause,
                waited_ns,
                now_ns,
            );
            if !WAITING.remove(&key, started_ns) {
                record.discard(0);
                ring::unsend(Hook::Dns);
                return None;
            }
            record.submit(0);
        } else if !WAITING.remove(&key, started_ns) {
            return None;
        }
    } else if !WAITING.remove(&key, started_ns) {
        return None;
    }

    // black_box: LLVM checks one register and indexes with another, which the verifier does not
    // follow.
    let outcome = black_box(outcome as usize);
    let cause = black_box(cause as usize);
    if outcome < Outcome::ALL.len() {
        add(&mut value.counts.outcomes[outcome], 1);
        add(&mut node.outcomes[outcome], 1);
    }
    if failed && cause < Cause::ALL.len() {
        add(&mut value.counts.causes[cause], 1);
        add(&mut node.causes[cause], 1);
        peer::count_here(&peer, peers::Kind::Dns, 1, place);
    }
    if !timeout {
        let bucket = bucket(waited_ns);
        if bucket < node.buckets.len() {
            add(&mut value.counts.buckets[bucket], 1);
            add(&mut node.buckets[bucket], 1);
        }
        add(&mut value.counts.duration_ns, waited_ns);
        add(&mut node.duration_ns, waited_ns);
    }
    Some(())
}

const SOCKET_BUFFER_FULL: u8 = Cause::SocketBufferFull as u8;
const DROPPED: u8 = Cause::Dropped as u8;
const NO_REASON: u8 = Detail::NoReason as u8;
const OK: u8 = Outcome::NoError as u8;
const NO_DATA: u8 = Outcome::NoData as u8;
const NX_DOMAIN: u8 = Outcome::NxDomain as u8;

#[inline(always)]
fn fill(
    record: *mut Failure,
    key: &LookupKey,
    lookup: &Lookup,
    outcome: u8,
    cause: u8,
    waited_ns: u64,
    now_ns: u64,
) {
    // SAFETY: the ring gave this room; every field is written.
    unsafe {
        (*record).header = event::Header {
            kind: event::KIND_DNS_FAILURE,
            version: event::VERSION,
            netns: lookup.netns,
            ktime_ns: now_ns,
            net_cookie: lookup.key.net_cookie,
            cgroup_id: lookup.key.cgroup_id,
            pid: lookup.pid,
            _pad: 0,
            comm: lookup.comm,
        };
        (*record).waited_ns = waited_ns;
        (*record).server = lookup.servers[0];
        (*record).id = key.id;
        (*record).outcome = outcome;
        (*record).cause = cause;
        let timeout = outcome == Outcome::Timeout as u8;
        (*record).drop_reason = if timeout { lookup.drop_reason } else { 0 };
        (*record).question_len = lookup.question_len;
        (*record).drop_detail = if timeout { lookup.drop_detail } else { 0 };
        (*record)._pad = [0; 7];
        // The ring's memory is no map's: no need of a `memmove`, which goes byte by byte.
        (&raw mut (*record).question).copy_from_nonoverlapping(&raw const lookup.question, 1);
    }
}

/// Not attached: user space runs it (BPF_PROG_TEST_RUN) to end the lookups past their deadline, and
/// the queries that a server has not answered by then.
#[raw_tracepoint(tracepoint = "neigh_create")]
pub fn dns_age(ctx: RawTracePointContext) -> i32 {
    let _ = ctx.as_ptr();
    WAITING.for_each(age_near, age);
    SERVING.for_each(age_served_near, age_served);
    0
}

/// Not attached: the same for one lookup, or one query at a server, where the kernel has no
/// bpf_for_each_map_elem. Arguments: not 0 for a query at a server; then the words of the key.
#[raw_tracepoint(tracepoint = "neigh_create")]
pub fn dns_age_one(ctx: RawTracePointContext) -> i32 {
    let words = [
        ctx.arg::<u64>(1),
        ctx.arg::<u64>(2),
        ctx.arg::<u64>(3),
        ctx.arg::<u64>(4),
        ctx.arg::<u64>(5),
        ctx.arg::<u64>(6),
    ];
    let key = words.as_ptr();
    if ctx.arg::<u64>(0) != 0 {
        let key: *const ServedKey = key.cast();
        // SAFETY: six words are such a key.
        if let Some((served, taken_ns)) = SERVING.find_taken(unsafe { &*key }) {
            // SAFETY: a map's value.
            unsafe { age_taken(key, served, taken_ns) };
        }
    } else {
        let key: *const LookupKey = key.cast();
        // SAFETY: the first two words are such a key.
        if let Some(lookup) = WAITING.find(unsafe { &*key }) {
            // SAFETY: as bpf_for_each_map_elem would call it.
            unsafe { age(core::ptr::null_mut(), key, lookup, core::ptr::null_mut()) };
        }
    }
    0
}

unsafe extern "C" fn age_near(
    map: *mut c_void,
    _index: *const u32,
    place: *mut Place<LookupKey, Lookup>,
    context: *mut c_void,
) -> i64 {
    if is_taken(state(place)) {
        // SAFETY: as the kernel would call it.
        unsafe {
            let key = (*place).key;
            age(map, &raw const key, &raw mut (*place).value, context);
        }
    }
    0
}

unsafe extern "C" fn age_served_near(
    _map: *mut c_void,
    _index: *const u32,
    place: *mut Place<ServedKey, Served>,
    _context: *mut c_void,
) -> i64 {
    let state = state(place);
    if is_taken(state) {
        // SAFETY: as above.
        unsafe {
            let key = (*place).key;
            age_taken(&raw const key, &raw mut (*place).value, taken_ns(state));
        }
    }
    0
}

unsafe extern "C" fn age_served(
    _map: *mut c_void,
    key: *const ServedKey,
    served: *mut Served,
    _context: *mut c_void,
) -> i64 {
    // SAFETY: the kernel calls with valid pointers.
    unsafe { age_taken(key, served, 0) };
    0
}

/// # Safety
///
/// The pointers are valid.
#[inline(always)]
unsafe fn age_taken(key: *const ServedKey, served: *mut Served, taken_ns: u64) {
    // SAFETY: the helper has no precondition; the caller's pointers.
    let (now_ns, key, served) = unsafe { (bpf_ktime_get_ns(), *key, *served) };
    let _ = served::age(&key, &served, taken_ns, now_ns); // not over yet, or somebody else ended it
}

unsafe extern "C" fn age(
    _map: *mut c_void,
    key: *const LookupKey,
    lookup: *mut Lookup,
    _context: *mut c_void,
) -> i64 {
    // SAFETY: the helper has no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the kernel calls with valid pointers.
    let (key, lookup) = unsafe { (*key, &*lookup) };
    let timeout_ns = DNS_TIMEOUT_NS.load();
    if lookup.answered_ns != 0 {
        if now_ns.wrapping_sub(lookup.answered_ns) > ARRIVED_NS {
            end_answered(&key, lookup);
        }
        return 0;
    }
    if lookup.started_ns == 0 || !lookup.expired(now_ns, timeout_ns + AGE_MARGIN_NS) {
        return 0;
    }
    if lookup.late == 0 {
        // Full: the least recently used goes; a late answer to that one counts as unmatched.
        let _ = EXPIRED.insert(LookupKey { slot: 0, ..key }, ended(lookup), 0);
    }
    // It was over at its deadline, however late user space comes to look.
    let deadline_ns = lookup.started_ns + timeout_ns;
    dns_end(&key, lookup, Outcome::Timeout as u32, deadline_ns);
    0
}
