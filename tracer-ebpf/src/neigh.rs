//! Hook `neigh`: creations of neighbour entries, and those the kernel refused.
//!
//! Raw tracepoint `neigh_create`, since 5.3 (include/trace/events/neigh.h, the same to 6.18):
//! `TP_PROTO(struct neigh_table *tbl, struct net_device *dev, const void *pkey,
//!           const struct neighbour *n, bool exempt_from_gc)`.
//! `n` is NULL where the kernel refused: neigh_alloc() found the table full, or no memory
//! (net/core/neighbour.c, ___neigh_create). A BTF tracepoint would not do: the verifier takes its
//! `n` for never NULL and deletes the check.
//!
//! The node's refusal is counted at once; the pod's waits in `REFUSED` for the packet that is
//! dropped for it on this CPU, which says who wanted the entry (`drops.rs` calls [`settle`]).

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_NOEXIST,
    helpers::{bpf_ktime_get_ns, generated::bpf_jiffies64},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use tracer_common::{
    AF_INET, ClientMap, Hook, event, family_index,
    neigh::{
        EvictedKey, ForwardedKey, Key, Overflow, PEAK_SECONDS, REFUSED_NS, THRASH_NS, Value,
        WANTED_BY_KERNEL, WANTED_BY_POD, WANTED_BY_SOURCE,
    },
    quota::ByAddress,
};

use crate::{
    layout::*,
    maps::{
        DROPS_WATCHED, EVICTED, FORCED, NEIGH, NEIGH_FORWARDED, NEIGH_LAST_FULL, NEIGH_NODE,
        NEIGH_PEAK, REFUSED,
    },
    quota, ring,
    util::{add, exchange, is_active, net_cookie, read},
};

const SECOND_NS: u64 = 1_000_000_000;

#[raw_tracepoint(tracepoint = "neigh_create")]
pub fn neigh_create(ctx: RawTracePointContext) -> i32 {
    if is_active() {
        let _ = try_neigh_create(&ctx); // nothing to do about a table of another family
    }
    0
}

/// What became of a creation.
enum Fate {
    Created,
    TableFull,
    NoMemory,
}

#[inline(always)]
fn try_neigh_create(ctx: &RawTracePointContext) -> Option<()> {
    // The refusal before this one on this CPU was for no packet.
    settle(WANTED_BY_KERNEL, &[0; 4], &Waiting::NOBODY, true);

    let table: u64 = ctx.arg(0);
    let device: u64 = ctx.arg(1);
    let primary_key: u64 = ctx.arg(2);
    let neighbour: u64 = ctx.arg(3);
    // A bool in a 64-bit slot: only the low byte is defined.
    let exempt = ctx.arg::<u64>(4) & 0xff != 0;

    let family = read::<u32>(table, OFF_NEIGH_TABLE_FAMILY.load())? as u16;
    let index = family_index(family)?;
    let entries = read::<u32>(table, OFF_NEIGH_TABLE_GC_ENTRIES.load())?;
    let limit = read::<u32>(table, OFF_NEIGH_TABLE_GC_THRESH3.load())?;
    let fate = if neighbour != 0 {
        Fate::Created
    } else if exempt || !was_full(table, entries, limit) {
        Fate::NoMemory
    } else {
        Fate::TableFull
    };
    // SAFETY: the helper has no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    note_peak(index, now_ns, entries);

    let net = read::<u64>(device, OFF_NET_DEVICE_ND_NET.load())?;
    let net_cookie = net_cookie(net)?;
    let netns = read::<u32>(net, OFF_NET_NS_INUM.load())?;
    let ifindex = read::<u32>(device, OFF_NET_DEVICE_IFINDEX.load())?;
    let destination = address(family, primary_key);

    // SAFETY: array values; the counters are only added to atomically.
    let node = unsafe { &mut *NEIGH_NODE.get_ptr_mut(index)? };
    let key = Key {
        net_cookie,
        family: family as u32,
        _pad: 0,
    };
    let value = client(key, netns)?;
    // Entries that the collection which this creation forced threw out just before.
    // SAFETY: a per-CPU array's value, written by the tracing programs of this CPU only.
    let forced = unsafe { &mut *FORCED.get_ptr_mut(index)? };
    if *forced != 0 {
        add(&mut node.forced_gc, *forced);
        add(&mut value.counts.forced_gc, *forced);
        *forced = 0;
    }
    match fate {
        Fate::Created => {
            add(&mut node.created, 1);
            add(&mut value.counts.created, 1);
            if was_evicted(net_cookie, ifindex, family, destination, now_ns) {
                add(&mut node.recreated, 1);
                add(&mut value.counts.recreated, 1);
            }
        }
        Fate::NoMemory => {
            add(&mut node.no_memory, 1);
            add(&mut value.counts.no_memory, 1);
        }
        Fate::TableFull => {
            add(&mut node.table_full, 1);
            if let Some(last) = NEIGH_LAST_FULL.get_ptr_mut(index) {
                // SAFETY: an array's value; either CPU's time will do.
                unsafe { *last = now_ns };
            }
            // SAFETY: a per-CPU array's value; the time, which makes it valid, is written last.
            let refused = unsafe { &mut *REFUSED.get_ptr_mut(0)? };
            refused.net_cookie = net_cookie;
            refused.destination = destination;
            refused.device = read(device, OFF_NET_DEVICE_NAME.load()).unwrap_or_default();
            refused.ifindex = ifindex;
            refused.family = family as u32;
            refused.netns = netns;
            refused.entries = entries;
            refused.limit = limit;
            let ktime_ns: *mut u64 = &mut refused.ktime_ns;
            // SAFETY: a valid place.
            unsafe { ktime_ns.write_volatile(now_ns) };
            // SAFETY: an array's value.
            let is_seen = DROPS_WATCHED
                .get_ptr(0)
                .is_some_and(|watched| unsafe { *watched != 0 });
            if !is_seen {
                settle(WANTED_BY_POD, &[0; 4], &Waiting::NOBODY, true);
            }
        }
    }
    Some(())
}

/// A neighbour's address, network byte order; IPv4 in the first word.
#[inline(always)]
pub fn address(family: u16, primary_key: u64) -> [u32; 4] {
    let mut address = [0u32; 4];
    if family == AF_INET {
        address[0] = read(primary_key, 0).unwrap_or_default();
    } else {
        address = read(primary_key, 0).unwrap_or_default();
    }
    address
}

/// A forced collection this many jiffies ago (0.25 s to 2.5 s, by CONFIG_HZ) was ours.
const RECENT_TICKS: u64 = 250;

/// Tells the two reasons of a refusal apart, as neigh_alloc() had them a moment ago: a full table
/// has `gc_entries` at the limit, or, where another CPU freed some since, a forced collection that
/// just ended. Neither holds where memory ran out below the limit.
#[inline(always)]
fn was_full(table: u64, entries: u32, limit: u32) -> bool {
    if entries >= limit {
        return true;
    }
    let Some(last_flush) = read::<u64>(table, OFF_NEIGH_TABLE_LAST_FLUSH.load()) else {
        return false;
    };
    // SAFETY: the helper has no precondition.
    let now = unsafe { bpf_jiffies64() };
    now.wrapping_sub(last_flush) < RECENT_TICKS
}

#[inline(always)]
pub fn note_peak(index: u32, now_ns: u64, entries: u32) {
    let second = now_ns / SECOND_NS;
    let slot = index * PEAK_SECONDS + (second % PEAK_SECONDS as u64) as u32;
    if let Some(peak) = NEIGH_PEAK.get_ptr_mut(slot) {
        // SAFETY: a per-CPU array's value, written by this program only.
        let peak = unsafe { &mut *peak };
        if peak.second != second {
            peak.second = second;
            peak.entries = entries as u64;
        } else if peak.entries < entries as u64 {
            peak.entries = entries as u64;
        }
    }
}

/// Was the very entry thrown out by a forced collection a moment ago?
#[inline(always)]
fn was_evicted(net_cookie: u64, ifindex: u32, family: u16, address: [u32; 4], now_ns: u64) -> bool {
    let key = EvictedKey {
        net_cookie,
        ifindex,
        family: family as u32,
        address,
    };
    match EVICTED.get_ptr(key) {
        // SAFETY: a map's value.
        Some(at) => now_ns.wrapping_sub(unsafe { *at }) < THRASH_NS,
        None => false,
    }
}

/// The counters of a namespace and family; those of the rest key where the map is full.
#[inline(always)]
pub fn client(key: Key, netns: u32) -> Option<&'static mut Value> {
    if let Some(value) = NEIGH.get_ptr_mut(key) {
        // SAFETY: entries are removed only long after their namespace is gone.
        return Some(unsafe { &mut *value });
    }
    new_client(key, netns)
}

/// Out of line: the fresh value is a good part of the stack.
#[inline(never)]
fn new_client(key: Key, netns: u32) -> Option<&'static mut Value> {
    let fresh = Value {
        netns,
        ..Default::default()
    };
    // EEXIST: another CPU was faster, which is as good.
    let _ = NEIGH.insert(key, fresh, BPF_NOEXIST as u64);
    let value = NEIGH.get_ptr_mut(key).or_else(|| {
        ring::count_full(ClientMap::Neigh);
        NEIGH.get_ptr_mut(Key::rest(key.family as u16))
    })?;
    // SAFETY: as above.
    Some(unsafe { &mut *value })
}

/// The entry that a packet on this CPU wanted.
#[repr(C)]
pub struct Waiting {
    pub net_cookie: u64,
    pub ifindex: u32,
    pub family: u32,
    /// The neighbour's address.
    pub destination: [u32; 4],
    /// Address of the namespace to charge, `struct net`; 0: the device's.
    pub whose: u64,
    /// Family of a forwarded packet's source.
    pub source_family: u32,
    /// Verifiers want all of it to have been written.
    _pad: u32,
}

impl Waiting {
    /// Where no packet died.
    const NOBODY: Self = Self {
        net_cookie: 0,
        ifindex: 0,
        family: 0,
        destination: [0; 4],
        whose: 0,
        source_family: 0,
        _pad: 0,
    };
}

/// The refusal that waits on this CPU for its packet, if one does.
#[inline(always)]
pub fn waiting() -> Option<Waiting> {
    let refused = REFUSED.get_ptr(0)?;
    // SAFETY: a per-CPU array's value.
    let refused = unsafe { &*refused };
    if refused.ktime_ns == 0 {
        return None;
    }
    Some(Waiting {
        net_cookie: refused.net_cookie,
        ifindex: refused.ifindex,
        family: refused.family,
        destination: refused.destination,
        ..Waiting::NOBODY
    })
}

/// Charges the refusal that waits on this CPU, if one does, to who wanted the entry, for good: the device's namespace,
/// the kernel (no packet died of it, or a solicitation), or the source of a forwarded packet. `is_sure`: a packet that
/// dies for want of an entry (`NEIGH_CREATEFAIL`, 5.18) can only be of the last refusal. One that dies without a reason
/// is so only if it dies at once: else the refusal waits on, and the answer is `false`.
#[inline(always)]
pub fn settle(wanted_by: u32, source: &[u32; 4], waiting: &Waiting, is_sure: bool) -> bool {
    let Some(refused) = REFUSED.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: a per-CPU array's value.
    let ktime: *mut u64 = unsafe { &raw mut (*refused).ktime_ns };
    // SAFETY: as above; a softirq may take it in the midst of this.
    let ktime_ns = unsafe { ktime.read_volatile() };
    if ktime_ns == 0 {
        return false;
    }
    // SAFETY: the helper has no precondition.
    if !is_sure && unsafe { bpf_ktime_get_ns() }.wrapping_sub(ktime_ns) >= REFUSED_NS {
        return false;
    }
    // Who sets it to 0 charges it.
    match exchange(ktime, ktime_ns, 0) {
        there if there == ktime_ns => {}
        // SAFETY: as above. No instruction for it: see [`exchange`].
        1 => unsafe { ktime.write_volatile(0) },
        _ => return false,
    }
    charge(wanted_by, source, waiting, ktime_ns);
    true
}

/// Out of line: several callers, and a stack of its own.
#[inline(never)]
fn charge(wanted_by: u32, source: &[u32; 4], waiting: &Waiting, ktime_ns: u64) -> u64 {
    let _ = try_charge(wanted_by, source, waiting, ktime_ns); // without the maps there is nothing to count
    0
}

#[inline(always)]
fn try_charge(wanted_by: u32, source: &[u32; 4], waiting: &Waiting, ktime_ns: u64) -> Option<()> {
    // SAFETY: a per-CPU array's value.
    let refused = unsafe { &*REFUSED.get_ptr(0)? };
    // SAFETY: the helper has no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let (mut net, mut netns) = (refused.net_cookie, refused.netns);
    if waiting.whose != 0 {
        net = net_cookie(waiting.whose)?;
        netns = read(waiting.whose, OFF_NET_NS_INUM.load())?;
    }
    let value = if wanted_by == WANTED_BY_SOURCE {
        forwarded(ForwardedKey {
            source: *source,
            net_cookie: refused.net_cookie,
            family: refused.family,
            source_family: waiting.source_family,
        })?
    } else {
        client(
            Key {
                net_cookie: net,
                family: refused.family,
                _pad: 0,
            },
            netns,
        )?
    };
    add(&mut value.counts.table_full, 1);
    if wanted_by == WANTED_BY_KERNEL {
        add(&mut value.counts.kernel_full, 1);
        let index = family_index(refused.family as u16)?;
        // SAFETY: a per-CPU array's value, added to atomically.
        add(
            unsafe { &mut (*NEIGH_NODE.get_ptr_mut(index)?).kernel_full },
            1,
        );
    }
    let mut entry = ring::reserve::<Overflow>(Hook::Neigh, now_ns, &mut value.event_second)?;
    let record = entry.as_mut_ptr();
    // SAFETY: the ring gave this room; every field is written before it is submitted.
    unsafe {
        (*record).header = event::Header {
            kind: event::KIND_NEIGHBOUR_OVERFLOW,
            version: event::VERSION,
            netns,
            ktime_ns,
            net_cookie: net,
            cgroup_id: 0,
            // The current task may just have been interrupted: it decides nothing here.
            pid: 0,
            _pad: 0,
            comm: [0; 16],
        };
        (*record).refused = *refused;
        (*record).source = *source;
        (*record).wanted_by = wanted_by;
        (*record).source_family = waiting.source_family;
    }
    entry.submit(0);
    Some(())
}

/// The counters of a source of forwarded packets; those of the rest key where there is no room for it.
#[inline(always)]
fn forwarded(key: ForwardedKey) -> Option<&'static mut Value> {
    if let Some(value) = NEIGH_FORWARDED.get_ptr_mut(key) {
        // SAFETY: entries are removed only long after the last packet.
        return Some(unsafe { &mut *value });
    }
    new_forwarded(key)
}

/// Out of line, as [`new_client`].
#[inline(never)]
fn new_forwarded(key: ForwardedKey) -> Option<&'static mut Value> {
    if quota::enters(ByAddress::Forwarded, &key.source) {
        // EEXIST: another CPU was faster, which is as good.
        let _ = NEIGH_FORWARDED.insert(key, Value::default(), BPF_NOEXIST as u64);
    }
    let value = NEIGH_FORWARDED.get_ptr_mut(key).or_else(|| {
        ring::count_full(ClientMap::NeighForwarded);
        NEIGH.get_ptr_mut(Key::rest(key.family as u16))
    })?;
    // SAFETY: as above.
    Some(unsafe { &mut *value })
}

/// Not attached: user space runs it on a CPU where a refusal has waited for too long.
#[raw_tracepoint(tracepoint = "neigh_create")]
pub fn neigh_settle(ctx: RawTracePointContext) -> i32 {
    let _ = ctx.as_ptr();
    // It may be another by now, which has its time.
    let since = REFUSED.get_ptr(0).map_or(0, |refused| {
        // SAFETY: a per-CPU array's value; the helper has no precondition.
        unsafe { bpf_ktime_get_ns().wrapping_sub((*refused).ktime_ns) }
    });
    if since >= REFUSED_NS {
        settle(WANTED_BY_KERNEL, &[0; 4], &Waiting::NOBODY, true);
    }
    0
}
