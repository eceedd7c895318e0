//! Requests that nobody answers on a connection that is well: the kernel notes how much a
//! socket has received and how much of what it sent the other end has, so nothing has to look at packets
//! or at system calls.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_ktime_get_ns, generated::bpf_for_each_map_elem};
use tracer_common::{
    ClientMap,
    quota::TALKING_PER_CLIENT,
    tcp::{GIVEN_UP_NS, MAX_SILENT_PORTS, Outcome, REQUEST, Talking, UPLOAD},
};

use super::{CLOSE, LISTEN, count};
use crate::{
    layout::*,
    maps::TALKING,
    quota::{at, is_used_up},
    ring,
    util::{add, read, sub},
};

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

/// Follows a connection from now on, for a client with that place of `QUOTAS`. Out of line: its stack is its own.
#[inline(never)]
pub fn begin(sk: u64, quota: u32) -> u64 {
    over(sk); // one whose end was not seen
    let Some(mine) = at(quota) else {
        return 0;
    };
    let talking = Talking {
        quota,
        ..Talking::default()
    };
    if is_used_up(mine.talking, TALKING_PER_CLIENT) || TALKING.insert(sk, talking, 0).is_err() {
        ring::count_full(ClientMap::Talking);
    } else {
        add(&mut mine.talking, 1);
    }
    0
}

/// Follows it no more, if it does. Out of line: as above.
#[inline(never)]
pub fn over(sk: u64) -> u64 {
    if let Some(talking) = TALKING.get_ptr(sk) {
        // SAFETY: a map's value.
        let quota = unsafe { (*talking).quota };
        // Whoever removes it gives it back.
        if TALKING.remove(sk).is_ok()
            && let Some(mine) = at(quota)
        {
            sub(&mut mine.talking, 1);
        }
    }
    0
}

/// For how long an end that is being closed has waited for the first answer; `None` where it got one, asked
/// nothing, accepted the connection, or does not wait. Nanoseconds.
#[inline(always)]
pub fn in_vain(sk: u64) -> Option<u64> {
    if OFF_TCP_SOCK_MSTAMP.load() == ABSENT
        || OFF_TCP_SOCK_DATA_SEGS_OUT.load() == ABSENT
        || OFF_SOCK_MAX_ACK_BACKLOG.load() == ABSENT
    {
        return None;
    }
    if read::<u64>(sk, OFF_TCP_SOCK_BYTES_RECEIVED.load())? != 0
        || read::<u32>(sk, OFF_TCP_SOCK_DATA_SEGS_OUT.load())? == 0
        || read::<u32>(sk, OFF_SOCK_ERR.load())? != 0
        // A server's socket is a copy of the one that listens, this included.
        || read::<u32>(sk, OFF_SOCK_MAX_ACK_BACKLOG.load())? != 0
    {
        return None;
    }
    // Microseconds of CLOCK_MONOTONIC: the last packet of either end.
    let spoken_ns = read::<u64>(sk, OFF_TCP_SOCK_MSTAMP.load())? * 1000;
    // SAFETY: the helper has no precondition.
    let waited_ns = unsafe { bpf_ktime_get_ns() }.saturating_sub(spoken_ns);
    (waited_ns >= GIVEN_UP_NS).then_some(waited_ns)
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

/// Looks at one of them.
#[inline(always)]
pub fn age_one(sk: u64) {
    if let Some(talking) = TALKING.get_ptr_mut(sk) {
        // SAFETY: a map's value; the fields written are the ageing program's alone.
        let _ = try_look(sk, unsafe { &mut *talking }); // the socket is going away
    }
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
    // An agent before may have watched other ports: what it left is of no use, and may be another socket by now.
    let port = u16::from_be(read(sk, OFF_SOCK_DPORT.load())?);
    let state = read::<u8>(sk, OFF_SOCK_STATE.load())? as u32;
    if !is_silent_port(port) || matches!(state, CLOSE | LISTEN) {
        over(sk);
        return None;
    }
    let received = read::<u64>(sk, OFF_TCP_SOCK_BYTES_RECEIVED.load())?;
    let acked = read::<u64>(sk, OFF_TCP_SOCK_BYTES_ACKED.load())?;
    // SAFETY: the helper has no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let since_ns = now_ns - talking.looked_ns;
    talking.looked_ns = now_ns;
    if received != talking.received {
        // What was sent before this look may have been answered by it: it is let pass.
        talking.received = received;
        talking.answered = acked;
        talking.acked = acked;
        talking.asked_ns = 0;
        talking.told = 0;
        return None;
    }
    // Whoever still sends (an upload) does not wait yet.
    let is_quiet = acked == talking.acked;
    talking.acked = acked;
    // What is not even acknowledged is told by its retransmissions. The SYN counts as one.
    let enough = if received == 0 { 2 } else { REQUEST };
    if talking.told != 0 || acked.wrapping_sub(talking.answered) < enough {
        return None;
    }
    if talking.asked_ns == 0 {
        talking.asked_ns = now_ns;
        talking.quiet_ns = 0;
        return None;
    }
    if is_quiet {
        talking.quiet_ns += since_ns;
    } else if acked.wrapping_sub(talking.answered) > UPLOAD {
        talking.quiet_ns = 0;
    }
    if talking.quiet_ns < SILENT_AFTER_NS.load() {
        return None;
    }
    talking.told = 1;
    count::happened(sk, Outcome::Silent, now_ns - talking.asked_ns);
    None
}
