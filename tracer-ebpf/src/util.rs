//! Atomic adds and reads of kernel memory.
//!
//! **Global functions.** The verifier walks through a function of its own once for each state that a
//! program calls it in, but through a global one (`no_mangle`, so that LLVM leaves the symbol global)
//! only once, with arguments of which it knows no more than their types; its result is one state to the
//! caller. What it is given by address is as large as its type, has been written to the last byte, and
//! may be null: hence the checks that no caller needs. It is no key of a map either, before 6.2. Kernels before 5.12 take no such addresses;
//! user space makes the functions static there (`tracer/src/kernel/linkage.rs`).

use aya_ebpf::helpers::bpf_probe_read_kernel;

use crate::{
    layout::{ABSENT, BUILD, OFF_NET_HASH_MIX, OFF_NET_NET_COOKIE, OFF_NET_NS_INUM, ONLY_NETNS},
    maps::ACTIVE,
};

/// Is it this build that counts? While another takes its place, the programs of both are attached; user space
/// names the one that counts, in one moment for all of them. Asked by each program that the kernel runs, before it
/// counts.
#[inline(always)]
pub fn is_active() -> bool {
    // SAFETY: an array's value.
    ACTIVE
        .get_ptr(0)
        .is_some_and(|active| unsafe { *active } == BUILD.load())
}

/// Adds to a counter in a map, atomically.
///
/// Plain adds lose counts even in per-CPU maps: cgroup_skb programs run preemptible, and a softirq
/// may interrupt one and count in the same slot. `core`'s atomics do not exist for BPF
/// (rust-lang/rust#106796), so this is the instruction itself; every kernel with BPF maps has it.
#[inline(always)]
pub fn add(counter: &mut u64, n: u64) {
    let counter: *mut u64 = counter;
    // SAFETY: `counter` is a valid, aligned place in a map's value.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({counter} + 0) += {n}",
            counter = in(reg) counter,
            n = in(reg) n,
            options(nostack),
        );
    }
}

/// Takes from a counter in a map, atomically.
#[inline(always)]
pub fn sub(counter: &mut u64, n: u64) {
    add(counter, n.wrapping_neg());
}

/// Puts `new` there if `expected` is there, atomically; gives what was there. In order with all else that this CPU
/// reads and writes.
///
/// Kernels before 5.12 do not have the instruction, nor arm64's before 5.18: there user space puts another in its
/// place, as if 1 had been there (`tracer/src/kernel/exchange.rs`).
#[inline(always)]
pub fn exchange(place: *mut u64, expected: u64, new: u64) -> u64 {
    let mut there = expected;
    // SAFETY: a caller's: a valid, aligned place in a map's value.
    #[cfg(target_arch = "bpf")]
    unsafe {
        core::arch::asm!(
            "r0 = cmpxchg_64({place} + 0, r0, {new})",
            place = in(reg) place,
            new = in(reg) new,
            inout("r0") there,
            options(nostack),
        );
    }
    // Lints are for the host, which has no such register.
    #[cfg(not(target_arch = "bpf"))]
    {
        there ^= place as u64 ^ new;
    }
    there
}

/// The same value, of which the verifier knows nothing any more; `noise` is one that it does not know.
///
/// Where ways through a program meet again, a verifier goes on with each of them for which it
/// remembers another number. Before 6.4 it remembers all of them, once a program calls a function of
/// its own (kernel/bpf/verifier.c, `mark_all_scalars_precise`): on 6.1 that took more than a million
/// instructions where 6.12 takes twenty thousand.
#[inline(always)]
pub fn forget(value: u64, noise: u64) -> u64 {
    let mut value = value;
    // SAFETY: arithmetic on registers, which leaves what was there.
    unsafe {
        core::arch::asm!(
            "{value} += {noise}",
            "{value} -= {noise}",
            value = inout(reg) value,
            noise = in(reg) noise,
            options(pure, nomem, nostack),
        );
    }
    value
}

/// Reads a field of a kernel structure. A bad address gives `None`, never a fault.
#[inline(always)]
pub fn read<T>(base: u64, offset: u32) -> Option<T> {
    if base == 0 {
        return None;
    }
    // SAFETY: the helper checks the address itself.
    unsafe { bpf_probe_read_kernel((base + offset as u64) as *const T) }.ok()
}

/// What tells a namespace (`struct net`) from every other, those that are gone included. Before 5.12
/// the kernel gives it a cookie only when somebody asks for one; there it is the inode with the 32
/// random bits that each namespace is made with (`hash_mix`, since 5.1, net_namespace.c:setup_net).
#[inline(always)]
pub fn net_cookie(net: u64) -> Option<u64> {
    if OFF_NET_NET_COOKIE.load() != ABSENT {
        return read(net, OFF_NET_NET_COOKIE.load());
    }
    let inode = read::<u32>(net, OFF_NET_NS_INUM.load())?;
    let random = read::<u32>(net, OFF_NET_HASH_MIX.load())?;
    Some((inode as u64) << 32 | random as u64)
}

/// Is what happens in the namespace with this inode to be counted? Everything is, unless several nodes of
/// a lab share the kernel.
#[inline(always)]
pub fn is_watched(netns: u32) -> bool {
    ONLY_NETNS.load() == 0 || ONLY_NETNS.load() == netns
}

/// The same of a namespace by its address (`struct net`), which is read only where it matters.
#[inline(always)]
pub fn is_watched_net(net: u64) -> bool {
    ONLY_NETNS.load() == 0 || read(net, OFF_NET_NS_INUM.load()).is_some_and(is_watched)
}
