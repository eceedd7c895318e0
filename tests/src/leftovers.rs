//! What tracer has in the kernel, and what it must not leave there.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use crate::wait::{ensure, eventually};

/// Programs by name (the kernel keeps 15 characters); everything else hangs on them.
const PROGRAMS: [&str; 14] = [
    "neigh_create",
    "neigh_cleanup",
    "neigh_settle",
    "tables",
    "walk",
    "dns_egress",
    "dns_ingress",
    "dns_age",
    "kfree_skb",
    "tcp_state",
    "tcp_reset",
    "tcp_error",
    "tcp_retransmit",
    "tcp_age",
];

/// Where a clean stop may leave something by design, and only with a state folder.
const BPFFS: &str = "/sys/fs/bpf/tracer";

/// tracer's programs in the kernel, and its pins.
#[derive(Debug)]
pub struct Leftovers {
    programs: BTreeSet<u32>,
    pinned: bool,
}

impl Leftovers {
    /// What is there now: take it before an agent starts.
    pub fn now() -> Self {
        Self {
            programs: programs(),
            pinned: Path::new(BPFFS).exists(),
        }
    }

    /// Panics unless all that came since is gone again, with a moment for the kernel, which frees
    /// programs after a grace period.
    pub fn assert_none_new(&self) {
        eventually(Duration::from_secs(3), || {
            let new: Vec<u32> = programs().difference(&self.programs).copied().collect();
            ensure(new.is_empty(), || format!("programs are left: ids {new:?}"))
        });
        let pinned = Path::new(BPFFS).exists();
        assert!(pinned <= self.pinned, "{BPFFS} was made and is left");
    }
}

/// Ids of tracer's programs. A program that is not attached goes when its loader ends, so one that
/// outlives the agent is attached or pinned.
pub fn programs() -> BTreeSet<u32> {
    aya::programs::loaded_programs()
        // A program may go between being listed and being asked.
        .filter_map(Result::ok)
        .filter(|program| {
            program
                .name_as_str()
                .is_some_and(|name| PROGRAMS.contains(&name))
        })
        .map(|program| program.id())
        .collect()
}
