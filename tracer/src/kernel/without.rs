//! `TRACER_WITHOUT`: what tracer is to do without although the kernel has it, so that tests can compare
//! one mechanism with the other on one kernel. Names, with commas between them: `fexit`,
//! `drop_reasons`, `cmpxchg` (the instruction), BPF helpers (`bpf_loop`, `bpf_for_each_map_elem`), tracepoints
//! (`inet_sk_error_report`), functions (`___neigh_create`), programs that the verifier is to refuse (`load:kfree_skb`). For tests only: it is no setting, and no file of `--config` has it.

use std::env;

const VARIABLE: &str = "TRACER_WITHOUT";

/// All of it, as given.
pub fn names() -> String {
    env::var(VARIABLE).unwrap_or_default()
}

/// Is tracer to do without it?
pub fn is_without(feature: &str) -> bool {
    names().split(',').any(|name| name.trim() == feature)
}
