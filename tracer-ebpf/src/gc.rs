//! Hook `gc`: entries that were removed, by whom, and who forced it.
//!
//! Raw tracepoint `neigh_cleanup_and_release` (include/trace/events/neigh.h):
//! `TP_PROTO(struct neighbour *neigh, int rc)`, once for each entry that leaves the table. Who removes
//! it is on the stack: neigh_forced_gc() is inlined into ___neigh_create(), the periodic collection
//! is neigh_periodic_work(). Their addresses come from /proc/kallsyms (CAP_SYSLOG). Without them the
//! kernel threads at the periodic work item are remembered; forced collections are not told from
//! others then.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_current_task, bpf_ktime_get_ns, generated::bpf_get_stack},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use tracer_common::{
    family_index,
    neigh::{EvictedKey, Gc, Key},
};

use crate::{
    layout::*,
    maps::{EVICTED, FORCED, NEIGH_NODE, PERIODIC_TASKS, TABLES},
    neigh::{address, client},
    util::{add, is_active, net_cookie, read},
};

const FRAMES: usize = 12;

#[raw_tracepoint(tracepoint = "neigh_cleanup_and_release")]
pub fn neigh_cleanup(ctx: RawTracePointContext) -> i32 {
    if is_active() {
        let _ = try_neigh_cleanup(&ctx); // nothing to do about a table of another family
    }
    0
}

#[inline(always)]
fn try_neigh_cleanup(ctx: &RawTracePointContext) -> Option<()> {
    let neighbour: u64 = ctx.arg(0);
    let gc = by_whom(ctx);
    let table = read::<u64>(neighbour, OFF_NEIGHBOUR_TBL.load())?;
    let family = read::<u32>(table, OFF_NEIGH_TABLE_FAMILY.load())? as u16;
    let index = family_index(family)?;
    let device = read::<u64>(neighbour, OFF_NEIGHBOUR_DEV.load())?;
    let net = read::<u64>(device, OFF_NET_DEVICE_ND_NET.load())?;
    let net_cookie = net_cookie(net)?;
    let value = client(
        Key {
            net_cookie,
            family: family as u32,
            _pad: 0,
        },
        read(net, OFF_NET_NS_INUM.load())?,
    )?;
    // SAFETY: a per-CPU array's value, added to atomically.
    let node = unsafe { &mut *NEIGH_NODE.get_ptr_mut(index)? };
    match gc {
        Gc::Forced => {
            add(&mut node.evictions[Gc::Forced as usize], 1);
            add(&mut value.counts.evictions[Gc::Forced as usize], 1);
            // The creation that forced it is traced next on this CPU, and charged.
            // SAFETY: a per-CPU array's value, written by the tracing programs of this CPU only.
            unsafe { *FORCED.get_ptr_mut(index)? += 1 };
            let key = EvictedKey {
                net_cookie,
                ifindex: read(device, OFF_NET_DEVICE_IFINDEX.load())?,
                family: family as u32,
                address: address(family, neighbour + OFF_NEIGHBOUR_PRIMARY_KEY.load() as u64),
            };
            // SAFETY: the helper has no precondition.
            let now_ns = unsafe { bpf_ktime_get_ns() };
            // Full: the least recently used goes, and one that comes back may go unnoticed.
            let _ = EVICTED.insert(key, now_ns, 0);
        }
        Gc::Periodic => {
            add(&mut node.evictions[Gc::Periodic as usize], 1);
            add(&mut value.counts.evictions[Gc::Periodic as usize], 1);
        }
        Gc::Other => {
            add(&mut node.evictions[Gc::Other as usize], 1);
            add(&mut value.counts.evictions[Gc::Other as usize], 1);
        }
    }
    Some(())
}

/// The innermost frame that says it.
#[inline(always)]
fn by_whom(ctx: &RawTracePointContext) -> Gc {
    if NEIGH_CREATE_START.load() == 0 {
        // SAFETY: the helper has no precondition.
        let task = unsafe { bpf_get_current_task() };
        return match PERIODIC_TASKS.get_ptr(task) {
            Some(_) => Gc::Periodic,
            None => Gc::Other,
        };
    }
    let mut frames = [0u64; FRAMES];
    // SAFETY: `frames` has that many bytes; without flags it is the kernel's stack.
    let bytes = unsafe {
        bpf_get_stack(
            ctx.as_ptr(),
            frames.as_mut_ptr().cast(),
            (FRAMES * 8) as u32,
            0,
        )
    };
    if bytes <= 0 {
        return Gc::Other;
    }
    let (create, create_end) = (NEIGH_CREATE_START.load(), NEIGH_CREATE_END.load());
    let (periodic, periodic_end) = (NEIGH_PERIODIC_START.load(), NEIGH_PERIODIC_END.load());
    let mut i = 0;
    while i < FRAMES {
        let frame = frames[i];
        if frame >= create && frame < create_end {
            return Gc::Forced;
        }
        if frame >= periodic && frame < periodic_end {
            return Gc::Periodic;
        }
        i += 1;
    }
    Gc::Other
}

/// `workqueue_execute_start(struct work_struct *work)` (include/trace/events/workqueue.h).
#[raw_tracepoint(tracepoint = "workqueue_execute_start")]
pub fn work_start(ctx: RawTracePointContext) -> i32 {
    let function = read::<u64>(ctx.arg(0), OFF_WORK_STRUCT_FUNC.load()).unwrap_or_default();
    if is_periodic_work(function) {
        // SAFETY: the helper has no precondition.
        let task = unsafe { bpf_get_current_task() };
        let _ = PERIODIC_TASKS.insert(task, 1, 0); // full: its removals count as others
    }
    0
}

/// `workqueue_execute_end(struct work_struct *work, work_func_t function)`; the work item may be gone.
#[raw_tracepoint(tracepoint = "workqueue_execute_end")]
pub fn work_end(ctx: RawTracePointContext) -> i32 {
    if is_periodic_work(ctx.arg(1)) {
        // SAFETY: the helper has no precondition.
        let task = unsafe { bpf_get_current_task() };
        let _ = PERIODIC_TASKS.remove(task); // it began before the hook did
    }
    0
}

/// Both tables have the same function.
#[inline(always)]
fn is_periodic_work(function: u64) -> bool {
    let Some(table) = TABLES.get_ptr(0) else {
        return false;
    };
    // SAFETY: an array's value.
    function != 0 && function == unsafe { (*table).periodic_work }
}
