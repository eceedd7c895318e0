//! tracer's eBPF programs: one module for each hook.
//!
//! A hook counts first, in maps that lose nothing, and tells second, through a ring that may lose
//! and counts what it loses. Raw tracepoints and cgroup_skb carry every hook; fexit adds what only it sees,
//! where the kernel takes it.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "by value the zero templates would be copied onto the 512-byte stack"
)]

mod cgroups;
mod conntrack;
mod dns;
mod drops;
mod gc;
mod layout;
mod maps;
mod neigh;
mod packet;
mod peer;
mod quota;
mod ring;
mod tables;
mod tcp;
mod util;

/// The kernel gives `bpf_probe_read_kernel`, the ring buffer and others to GPL-compatible programs.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// A panic path that survives compilation makes the verifier refuse the program, as it should.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
