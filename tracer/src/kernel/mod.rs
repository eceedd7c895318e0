//! Everything that touches the kernel: what it offers, the programs in it, their maps.

pub mod btf;
pub mod capabilities;
pub mod cgroup;
pub mod conntrack;
mod elf;
mod exchange;
pub mod features;
pub mod kallsyms;
mod linkage;
pub mod load;
pub mod maps;
pub mod mechanisms;
pub mod memlock;
pub mod neighbour_tables;
pub mod offsets;
pub mod only;
pub mod reasons;
pub mod refusal;
mod run;
pub mod sends;
pub mod state;
pub mod sys;
pub mod without;

use std::time::Duration;

/// The kernel's release, as `uname -r` says.
pub fn release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

/// `CLOCK_MONOTONIC`, as `bpf_ktime_get_ns` has it.
pub fn monotonic() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // Never negative: the clock counts from boot.
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
