//! Hook `neigh`: creations of neighbour entries, and those the kernel refused.
//!
//! Raw tracepoint `neigh_create`, since 5.3 (include/trace/events/neigh.h, the same to 6.18):
//! `TP_PROTO(struct neigh_table *tbl, struct net_device *dev, const void *pkey,
//!           const struct neighbour *n, bool exempt_from_gc)`.
//! `n` is NULL where the kernel refused: neigh_alloc() found the table full, or no memory
//! (net/core/neighbour.c, ___neigh_create). A BTF tracepoint would not do: the verifier takes its
//! `n` for never NULL and deletes the check.

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_NOEXIST,
    helpers::{
        bpf_get_current_task, bpf_ktime_get_ns, bpf_probe_read_kernel_buf, generated::bpf_jiffies64,
    },
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use tracer_common::{
    AF_INET, Hook, event, family_index,
    neigh::{Key, Overflow, Table, Value},
};

use crate::{
    layout::*,
    maps::{NEIGH, NEIGH_LAST_FULL, NEIGH_NODE, TABLES},
    ring,
    util::{add, read},
};

#[raw_tracepoint(tracepoint = "neigh_create")]
pub fn neigh_create(ctx: RawTracePointContext) -> i32 {
    let _ = try_neigh_create(&ctx); // nothing to do about a table of another family
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

    let net = read::<u64>(device, OFF_NET_DEVICE_ND_NET.load())?;
    let net_cookie = read::<u64>(net, OFF_NET_NET_COOKIE.load())?;
    let netns = read::<u32>(net, OFF_NET_NS_INUM.load())?;

    // SAFETY: array values; the counters are only added to atomically.
    let node = unsafe { &mut *NEIGH_NODE.get_ptr_mut(index)? };
    let value = client(
        Key {
            net_cookie,
            family: family as u32,
            _pad: 0,
        },
        netns,
    );
    match fate {
        Fate::Created => {
            add(&mut node.created, 1);
            if let Some(value) = value {
                add(&mut value.counts.created, 1);
            }
        }
        Fate::NoMemory => {
            add(&mut node.no_memory, 1);
            if let Some(value) = value {
                add(&mut value.counts.no_memory, 1);
            }
        }
        Fate::TableFull => {
            add(&mut node.table_full, 1);
            let value = value?;
            add(&mut value.counts.table_full, 1);
            // SAFETY: the helper has no precondition.
            let now_ns = unsafe { bpf_ktime_get_ns() };
            if let Some(last) = NEIGH_LAST_FULL.get_ptr_mut(index) {
                // SAFETY: an array's value; either CPU's time will do.
                unsafe { *last = now_ns };
            }
            tell(
                now_ns,
                family,
                device,
                primary_key,
                entries,
                limit,
                net_cookie,
                netns,
                value,
            );
        }
    }
    Some(())
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

/// The counters of a namespace and family; those of the rest key where the map is full.
#[inline(always)]
fn client(key: Key, netns: u32) -> Option<&'static mut Value> {
    if let Some(value) = NEIGH.get_ptr_mut(key) {
        // SAFETY: entries are removed only long after their namespace is gone.
        return Some(unsafe { &mut *value });
    }
    let fresh = Value {
        netns,
        ..Default::default()
    };
    // EEXIST: another CPU was faster, which is as good.
    let _ = NEIGH.insert(key, fresh, BPF_NOEXIST as u64);
    let value = NEIGH.get_ptr_mut(key).or_else(|| {
        ring::count_full(Hook::Neigh);
        NEIGH.get_ptr_mut(Key::rest(key.family as u16))
    })?;
    // SAFETY: as above.
    Some(unsafe { &mut *value })
}

#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "inlined; a struct would live on the stack"
)]
fn tell(
    now_ns: u64,
    family: u16,
    device: u64,
    primary_key: u64,
    entries: u32,
    limit: u32,
    net_cookie: u64,
    netns: u32,
    value: &mut Value,
) {
    let Some(mut entry) = ring::reserve::<Overflow>(Hook::Neigh, now_ns, &mut value.event_second)
    else {
        return;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the ring gave this room; every field is written before it is submitted. The key has
    // as many bytes as the family's addresses.
    unsafe {
        (*record).header = event::Header {
            kind: event::KIND_NEIGHBOUR_OVERFLOW,
            version: event::VERSION,
            netns,
            ktime_ns: now_ns,
            net_cookie,
            cgroup_id: 0,
            // The current task may just have been interrupted: it decides nothing here.
            pid: 0,
            _pad: 0,
            comm: [0; 16],
        };
        (*record).destination = [0; 16];
        let _ = if family == AF_INET {
            bpf_probe_read_kernel_buf(
                primary_key as *const u8,
                &mut (&mut (*record).destination)[..4],
            )
        } else {
            bpf_probe_read_kernel_buf(primary_key as *const u8, &mut (*record).destination)
        };
        (*record).device = read(device, OFF_NET_DEVICE_NAME.load()).unwrap_or_default();
        (*record).ifindex = read(device, OFF_NET_DEVICE_IFINDEX.load()).unwrap_or_default();
        (*record).family = family as u32;
        (*record).entries = entries;
        (*record).limit = limit;
    }
    entry.submit(0);
}

/// Not attached: user space runs it (BPF_PROG_TEST_RUN) for fresh figures. It reaches the tables
/// from the caller's namespace: lo -> ip_ptr -> arp_parms -> tbl, and ip6_ptr -> nd_parms -> tbl.
/// A table's own default parameters belong to `init_net` (neigh_table_init): that names the host's
/// namespace, whatever namespace the caller is in.
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
        init_net_cookie: read(init_net, OFF_NET_NET_COOKIE.load())?,
        init_netns: read(init_net, OFF_NET_NS_INUM.load())?,
        gc_entries: read(table, OFF_NEIGH_TABLE_GC_ENTRIES.load())?,
        entries: read(table, OFF_NEIGH_TABLE_ENTRIES.load())?,
        gc_thresh1: read(table, OFF_NEIGH_TABLE_GC_THRESH1.load())?,
        gc_thresh2: read(table, OFF_NEIGH_TABLE_GC_THRESH2.load())?,
        gc_thresh3: read(table, OFF_NEIGH_TABLE_GC_THRESH3.load())?,
    };
    let place = TABLES.get_ptr_mut(index)?;
    // SAFETY: an array's value; only this program writes it, run by one thread of the agent.
    unsafe { *place = fresh };
    Some(())
}
