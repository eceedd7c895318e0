//! Requests that nobody answers on a connection that is well: the kernel notes how much a
//! socket has received and how much of what it sent the other end has, so nothing has to look at packets
//! or at system calls.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_ktime_get_ns, generated::bpf_for_each_map_elem};
use tracer_common::tcp::{MAX_SILENT_PORTS, Outcome, REQUEST, Talking};

use super::count;
use crate::{layout::*, maps::TALKING, util::read};

/// Is it one of `--silent-port`?
#[inline(always)]
pub fn is_silent_port(port: u16) -> bool {
    let ports = SILENT_PORTS.load();
    let mut i = 0;
    while i < MAX_SILENT_PORTS {
        if ports[i] != 0 && ports[i] == port {
            return true;
        }
        i += 1;
    }
    false
}

/// Looks at all connections to those ports.
#[inline(always)]
pub fn age() {
    let map: *const c_void = (&raw const TALKING).cast();
    let callback: unsafe extern "C" fn(*mut c_void, *const u64, *mut Talking, *mut c_void) -> i64 =
        look;
    // SAFETY: the helper (5.13) calls back with pointers to a key and a value of that map.
    unsafe {
        bpf_for_each_map_elem(
            map.cast_mut(),
            callback as *mut c_void,
            core::ptr::null_mut(),
            0,
        )
    };
}

unsafe extern "C" fn look(
    _map: *mut c_void,
    sk: *const u64,
    talking: *mut Talking,
    _context: *mut c_void,
) -> i64 {
    // SAFETY: the kernel calls with valid pointers; the fields written are this program's alone.
    let (sk, talking) = unsafe { (*sk, &mut *talking) };
    let _ = try_look(sk, talking); // the socket is going away
    0
}

#[inline(always)]
fn try_look(sk: u64, talking: &mut Talking) -> Option<()> {
    let received = read::<u64>(sk, OFF_TCP_SOCK_BYTES_RECEIVED.load())?;
    let acked = read::<u64>(sk, OFF_TCP_SOCK_BYTES_ACKED.load())?;
    if received != talking.received {
        // What was sent before the next look may have been answered by it: it is let pass.
        talking.received = received;
        talking.acked = acked;
        talking.waiting_ns = 0;
        talking.told = 0;
        return None;
    }
    // What is not even acknowledged is told by its retransmissions. The SYN counts as one.
    let enough = if received == 0 { 2 } else { REQUEST };
    if talking.told != 0 || acked.wrapping_sub(talking.acked) < enough {
        return None;
    }
    // SAFETY: the helper has no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    if talking.waiting_ns == 0 {
        talking.waiting_ns = now_ns;
        return None;
    }
    let waited_ns = now_ns - talking.waiting_ns;
    if waited_ns < SILENT_AFTER_NS.load() {
        return None;
    }
    talking.told = 1;
    count::happened(sk, Outcome::Silent, waited_ns)
}
