//! Hook `cgroups`: what a cgroup is called, told when it is made, for its name goes with it.
//!
//! Raw tracepoint `cgroup_mkdir` (since 4.17, include/trace/events/cgroup.h):
//! `TP_PROTO(struct cgroup *cgrp, const char *path)`, for every hierarchy there is; neither is NULL.
//! The path is in a buffer of the kernel's, whose lock is held. It is from the hierarchy's root,
//! whatever cgroup namespace the one who makes it is in.

use aya_ebpf::{
    bindings::BPF_RB_NO_WAKEUP, helpers::generated::bpf_probe_read_kernel_str,
    macros::raw_tracepoint, programs::RawTracePointContext,
};
use tracer_common::{
    Hook,
    cgroups::{LONGEST, Made, SHORT},
};

use crate::{
    layout::*,
    maps::{CGROUPS, RING_STATS},
    util::{add, is_active, read},
};

/// `cgrp_dfl_root.hierarchy_id`: the hierarchy of cgroup2. Those of version 1 count from 1.
const CGROUP2: u32 = 0;

#[raw_tracepoint(tracepoint = "cgroup_mkdir")]
pub fn cgroup_mkdir(ctx: RawTracePointContext) -> i32 {
    if is_active() {
        let _ = try_cgroup_mkdir(&ctx); // what cannot be read is found by a walk, if it lives
    }
    0
}

#[inline(always)]
fn try_cgroup_mkdir(ctx: &RawTracePointContext) -> Option<()> {
    let cgroup: u64 = ctx.arg(0);
    let path: u64 = ctx.arg(1);
    let root = read::<u64>(cgroup, OFF_CGROUP_ROOT.load())?;
    if read::<u32>(root, OFF_CGROUP_ROOT_HIERARCHY_ID.load())? != CGROUP2 {
        return None;
    }
    let node = read::<u64>(cgroup, OFF_CGROUP_KN.load())?;
    let id = read::<u64>(node, OFF_KERNFS_NODE_ID.load())?;
    let stats = RING_STATS.get_ptr_mut(Hook::Cgroups as u32)?;
    // SAFETY: a per-CPU array's value; the counters in it are only added to atomically.
    let stats = unsafe { &mut *stats };
    let told = tell::<SHORT>(id, path).and_then(|fits| {
        if fits {
            Some(true)
        } else {
            tell::<LONGEST>(id, path)
        }
    });
    add(
        if told.is_some() {
            &mut stats.sent
        } else {
            &mut stats.lost
        },
        1,
    );
    Some(())
}

/// `None`: the ring is full; false: the path may be longer than the room.
#[inline(always)]
fn tell<const ROOM: usize>(id: u64, path: u64) -> Option<bool> {
    let mut entry = CGROUPS.reserve::<Made<ROOM>>(0)?;
    let made = entry.as_mut_ptr();
    // SAFETY: the entry is this program's until it is submitted, and as large as this; the helper
    // checks the path's address itself and writes no more than it is told.
    let len = unsafe {
        (*made).id = id;
        bpf_probe_read_kernel_str(
            (&raw mut (*made).path).cast(),
            ROOM as u32,
            path as *const _,
        )
    };
    // With the NUL, which is always there; as much as there is room where the path is cut off.
    let fits = len < ROOM as i64 || ROOM == LONGEST;
    // User space looks before it needs a name.
    if fits {
        entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    } else {
        entry.discard(u64::from(BPF_RB_NO_WAKEUP));
    }
    Some(fits)
}
