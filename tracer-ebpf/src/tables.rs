//! The neighbour tables themselves: how full they are, and whose entries fill them.
//!
//! Both programs are attached to nothing: user space runs them (BPF_PROG_TEST_RUN) for fresh
//! figures, one at a time.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_current_task, bpf_ktime_get_ns, generated::bpf_loop},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use tracer_common::{
    AF_INET, AF_INET6,
    neigh::{Key, Table, Walk},
};

use crate::{
    layout::*,
    maps::{TABLES, WALK},
    neigh::{client, note_peak},
    util::{forget, net_cookie, read},
};

/// Reads the tables' heads. It reaches them from the caller's namespace: lo -> ip_ptr -> arp_parms
/// -> tbl, and ip6_ptr -> nd_parms -> tbl. A table's own default parameters belong to `init_net`
/// (neigh_table_init): that names the host's namespace, whatever namespace the caller is in.
#[raw_tracepoint(tracepoint = "neigh_create")]
pub fn tables(ctx: RawTracePointContext) -> i32 {
    let _ = ctx.as_ptr();
    let _ = try_tables(); // a table that cannot be reached stays as it was
    0
}

#[inline(always)]
fn try_tables() -> Option<()> {
    // SAFETY: the helper has no precondition.
    let task = unsafe { bpf_get_current_task() };
    let nsproxy = read::<u64>(task, OFF_TASK_NSPROXY.load())?;
    let net = read::<u64>(nsproxy, OFF_NSPROXY_NET_NS.load())?;
    let lo = read::<u64>(net, OFF_NET_LOOPBACK_DEV.load())?;
    let _ = store_table(
        0,
        lo,
        OFF_NET_DEVICE_IP_PTR.load(),
        OFF_IN_DEVICE_ARP_PARMS.load(),
    );
    let _ = store_table(
        1,
        lo,
        OFF_NET_DEVICE_IP6_PTR.load(),
        OFF_INET6_DEV_ND_PARMS.load(),
    );
    Some(())
}

#[inline(always)]
fn store_table(index: u32, device: u64, family_ptr: u32, parms_offset: u32) -> Option<()> {
    let family_device = read::<u64>(device, family_ptr)?;
    let parms = read::<u64>(family_device, parms_offset)?;
    let table = read::<u64>(parms, OFF_NEIGH_PARMS_TBL.load())?;
    let init_net = read::<u64>(table, OFF_NEIGH_TABLE_PARMS_NET.load())?;
    let fresh = Table {
        address: table,
        periodic_work: read(table, OFF_NEIGH_TABLE_GC_WORK_FUNC.load())?,
        init_net_cookie: net_cookie(init_net)?,
        init_netns: read(init_net, OFF_NET_NS_INUM.load())?,
        gc_entries: read(table, OFF_NEIGH_TABLE_GC_ENTRIES.load())?,
        entries: read(table, OFF_NEIGH_TABLE_ENTRIES.load())?,
        gc_thresh1: read(table, OFF_NEIGH_TABLE_GC_THRESH1.load())?,
        gc_thresh2: read(table, OFF_NEIGH_TABLE_GC_THRESH2.load())?,
        gc_thresh3: read(table, OFF_NEIGH_TABLE_GC_THRESH3.load())?,
    };
    // A table that stands still has a peak too.
    // SAFETY: the helper has no precondition.
    note_peak(index, unsafe { bpf_ktime_get_ns() }, fresh.gc_entries);
    let place = TABLES.get_ptr_mut(index)?;
    // SAFETY: an array's value; only this program writes it.
    unsafe { *place = fresh };
    Some(())
}

/// Buckets and entries that one walk may look at: a table of half a million.
const MAX_STEPS: u32 = 1 << 20;

/// Walks both tables and counts the entries of each namespace, however old. Needs 5.17 (bpf_loop);
/// before, user space runs [`walk_round`].
#[raw_tracepoint(tracepoint = "neigh_create")]
pub fn walk(ctx: RawTracePointContext) -> i32 {
    let _ = ctx.as_ptr();
    let _ = walk_table(0, AF_INET); // a table that cannot be reached has no walk
    let _ = walk_table(1, AF_INET6);
    0
}

/// A new walk of a table, and the place of its last one.
#[inline(always)]
fn begin(index: u32, family: u16) -> Option<(Walk, &'static mut Walk)> {
    // SAFETY: array values; only these programs write them.
    let (table, last) = unsafe { (&*TABLES.get_ptr(index)?, &mut *WALK.get_ptr_mut(index)?) };
    let hash = read::<u64>(table.address, OFF_NEIGH_TABLE_NHT.load())?;
    let shift = read::<u32>(hash, OFF_NEIGH_HASH_TABLE_SHIFT.load())?;
    let walk = Walk {
        buckets: read(hash, OFF_NEIGH_HASH_TABLE_BUCKETS.load())?,
        entry: 0,
        len: 1 << (shift & 31),
        bucket: 0,
        generation: last.generation.wrapping_add(1),
        seen: 0,
        complete: 0,
        family: family as u32,
    };
    Some((walk, last))
}

/// Once more where the table has grown meanwhile: then its entries have moved to other buckets under the walk.
#[inline(always)]
fn walk_table(index: u32, family: u16) -> Option<()> {
    let hash = hash_table(index)?;
    walk_once(index, family);
    if hash_table(index)? != hash {
        walk_once(index, family);
    }
    Some(())
}

/// Address of the table's `struct neigh_hash_table`.
#[inline(always)]
fn hash_table(index: u32) -> Option<u64> {
    // SAFETY: an array's value; only these programs write it.
    let table = unsafe { &*TABLES.get_ptr(index)? };
    read(table.address, OFF_NEIGH_TABLE_NHT.load())
}

/// Out of line: called twice.
#[inline(never)]
fn walk_once(index: u32, family: u16) -> u64 {
    let _ = try_walk(index, family); // as above
    0
}

#[inline(always)]
fn try_walk(index: u32, family: u16) -> Option<()> {
    let (mut state, last) = begin(index, family)?;
    // Verifiers before 6.7 walk through a callback once, as if each call found what the first one finds:
    // with a 0 that they know, no entry would ever be looked at, and no walk end.
    state.entry = forget(0, state.buckets);
    state.bucket = forget(0, state.buckets) as u32;
    let callback: unsafe extern "C" fn(u32, *mut Walk) -> i64 = step;
    // SAFETY: the helper calls back with an index and the pointer it was given.
    unsafe {
        bpf_loop(
            MAX_STEPS,
            callback as *mut c_void,
            (&raw mut state).cast(),
            0,
        )
    };
    *last = state;
    Some(())
}

/// One bucket's head, or one entry. One that is made or removed while the walk goes on is counted or not.
unsafe extern "C" fn step(_index: u32, walk: *mut Walk) -> i64 {
    // SAFETY: the kernel passes what it was given.
    let walk = unsafe { &mut *walk };
    if walk.entry == 0 {
        if walk.bucket >= walk.len {
            walk.complete = 1;
            return 1;
        }
        walk.entry = read(walk.buckets, walk.bucket.wrapping_mul(8)).unwrap_or_default();
        walk.bucket += 1;
        return 0;
    }
    // Since 6.13 buckets are hlists through `neighbour.hash`; before, entries point at each other.
    let neighbour = walk.entry - OFF_NEIGHBOUR_NODE.load() as u64;
    walk.entry = read(neighbour, OFF_NEIGHBOUR_NEXT.load()).unwrap_or_default();
    walk.seen += 1;
    let _ = count(neighbour, walk.family, walk.generation); // an entry that is going away
    0
}

#[inline(always)]
fn count(neighbour: u64, family: u32, generation: u32) -> Option<()> {
    let device = read::<u64>(neighbour, OFF_NEIGHBOUR_DEV.load())?;
    let net = read::<u64>(device, OFF_NET_DEVICE_ND_NET.load())?;
    let key = Key {
        net_cookie: net_cookie(net)?,
        family,
        _pad: 0,
    };
    let value = client(key, read(net, OFF_NET_NS_INUM.load())?)?;
    // Only this program writes these two.
    if value.live_generation == generation {
        value.live += 1;
    } else {
        value.live = 1;
        value.live_generation = generation;
    }
    Some(())
}

/// Steps of one round.
const ROUND_STEPS: u32 = 64;
/// No bucket is begun with fewer steps left: a round ends between two of them, for an entry may be
/// gone when the next begins. The kernel doubles a table that has more entries than buckets.
const BUCKET_STEPS: u32 = 24;

/// The same walk where the kernel has no bpf_loop: user space runs it until `WALK` says that both are complete.
/// Its first argument is not 0 where a walk begins.
#[raw_tracepoint(tracepoint = "neigh_create")]
pub fn walk_round(ctx: RawTracePointContext) -> i32 {
    let fresh = ctx.arg::<u64>(0) != 0;
    let _ = walk_some(0, AF_INET, fresh); // a table that cannot be reached has no walk
    let _ = walk_some(1, AF_INET6, fresh);
    0
}

#[inline(always)]
fn walk_some(index: u32, family: u16, fresh: bool) -> Option<()> {
    let (new, walk) = begin(index, family)?;
    if fresh || walk.buckets != new.buckets {
        // A table that has grown since the last round has moved its entries.
        *walk = new;
    }
    let mut left = ROUND_STEPS;
    while left > 0 {
        if walk.complete != 0 || (walk.entry == 0 && left < BUCKET_STEPS) {
            break;
        }
        // SAFETY: as bpf_loop would call it.
        unsafe { step(0, walk) };
        left -= 1;
    }
    walk.entry = 0;
    Some(())
}
