//! Queries that never became a packet: `udp_sendmsg()` and `udpv6_sendmsg()` (net/ipv4/udp.c,
//! net/ipv6/udp.c) gave up before IP output, for want of a route, or refused by a program at
//! `BPF_CGROUP_UDP4_SENDMSG`. Only the application knows, by the error that it gets.
//!
//! fexit at both (5.5; x86, arm64 from 6.4): `(struct sock *sk, struct msghdr *msg, size_t len)` and the
//! result. Where the kernel has no such trampolines, these queries are not seen.
//!
//! A send may fail behind IP output too, after its query was counted there or by its drop: whoever
//! counts a query notes so in `SENT`, under the task that sends and the socket, until the send is over.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_current_task, bpf_probe_read_user},
    macros::fexit,
    programs::FExitContext,
};
use tracer_common::{
    AF_INET, AF_INET6,
    dns::{Cause, Detail, Drop, Sent, Server},
};

use super::{
    message::HEADER,
    near::WAITING,
    refused::{FROM_SEND, FROM_SEND6, Refused, refused},
};
use crate::{
    layout::*,
    maps::{SENDS_WATCHED, SENT},
    packet::is_dns_port,
    util::{is_active, read},
};

#[fexit(function = "udp_sendmsg")]
pub fn udp_sent(ctx: FExitContext) -> i32 {
    if is_active() {
        sent::<FROM_SEND>(&ctx);
    }
    0
}

#[fexit(function = "udpv6_sendmsg")]
pub fn udpv6_sent(ctx: FExitContext) -> i32 {
    if is_active() {
        sent::<FROM_SEND6>(&ctx);
    }
    0
}

/// Notes that the query which this task is sending on that socket is counted. Out of line: its stack
/// is its own.
#[inline(never)]
pub fn note(sk: u64) -> u64 {
    let Some(watched) = SENDS_WATCHED.get_ptr(0) else {
        return 0;
    };
    // SAFETY: an array's value.
    if unsafe { *watched } != 0 {
        // SAFETY: the helper has no precondition.
        let task = unsafe { bpf_get_current_task() };
        if let Some(place) = SENT.get_ptr_mut(Sent::place(task)) {
            // SAFETY: an array's value.
            unsafe { *place = Sent { task, sk } };
        }
    }
    0
}

#[inline(always)]
fn sent<const PLACE: u32>(ctx: &FExitContext) {
    // SAFETY: the helper has no precondition.
    let task = unsafe { bpf_get_current_task() };
    let Some(place) = SENT.get_ptr_mut(Sent::place(task)) else {
        return;
    };
    // SAFETY: an array's value.
    let place = unsafe { &mut *place };
    let result: i32 = ctx.arg(3);
    // Most sends: no query, and no failure.
    if place.task != task && result >= 0 {
        return;
    }
    // Through memory: the verifier takes the arguments for pointers that nobody may compute with.
    let arguments = ctx.as_ptr() as u64;
    let Some(sk) = read::<u64>(arguments, 0) else {
        return;
    };
    if place.task != task || place.sk != sk {
        if result >= 0 {
            return;
        }
        let msg = read::<u64>(arguments, 8).unwrap_or_default();
        let _ = count::<PLACE>(sk, msg, result.wrapping_neg()); // no query, or none that failed
    }
    // udpv6_sendmsg() hands what is meant for IPv4 to udp_sendmsg(), and ends after it.
    if PLACE == FROM_SEND && read(sk, OFF_SOCK_FAMILY.load()) == Some(AF_INET6) {
        return;
    }
    if place.task == task {
        place.task = 0;
    }
}

/// One query, and one lookup unless the same is asked already.
#[inline(always)]
fn count<const PLACE: u32>(sk: u64, msg: u64, error: i32) -> Option<()> {
    let cause = meaning(error)?;
    let mut server = Server::default();
    destination::<PLACE>(sk, msg, &mut server)?;
    if !is_dns_port(server.port) {
        return None;
    }
    let (start, len) = payload(msg)?;
    if len < HEADER as u64 {
        return None;
    }
    // SAFETY: the helper checks the address itself.
    let [id, flags, questions] = unsafe { bpf_probe_read_user(start as *const [u16; 3]) }.ok()?;
    // A query, opcode QUERY only.
    if u16::from_be(flags) & 0xf800 != 0 {
        return None;
    }
    let key = refused::<PLACE>(&Refused {
        sk,
        id: u16::from_be(id),
        server,
        has_question: questions != 0,
        start: start + HEADER as u64,
        len: len as u32 - HEADER,
    })?;
    // SAFETY: as in `lookups::follow`; the fields written are no keys and no counters.
    let lookup = unsafe { &mut *WAITING.find(&key)? };
    if lookup.started_ns != 0 && lookup.answered_ns == 0 {
        let drop = Drop {
            reason: error as u16,
            cause: cause as u8,
            detail: Detail::SendError as u8,
        };
        lookup.dropped(false, drop);
    }
    Some(())
}

/// What an error means to a lookup (include/uapi/asm-generic/errno.h); `None` for those with which
/// the application is told to try again, or that it has made a mistake.
#[inline(always)]
fn meaning(error: i32) -> Option<Cause> {
    match error {
        // ENETUNREACH, EHOSTUNREACH; EACCES and EINVAL are what routes of the kinds prohibit and
        // blackhole say.
        101 | 113 | 13 | 22 => Some(Cause::NoRoute),
        // ECONNREFUSED: what a port said to an earlier query.
        111 => Some(Cause::PortUnreachable),
        // EPERM, ENOMEM, ENODEV, EADDRNOTAVAIL, ENETDOWN, ENOBUFS, EHOSTDOWN.
        1 | 12 | 19 | 99 | 100 | 105 | 112 => Some(Cause::Dropped),
        _ => None,
    }
}

/// Where the datagram was to go: `msg_name` (`struct sockaddr_in`, `sockaddr_in6`), else whom the
/// socket is connected to.
#[inline(always)]
fn destination<const PLACE: u32>(sk: u64, msg: u64, server: &mut Server) -> Option<()> {
    let name = read::<u64>(msg, OFF_MSGHDR_NAME.load())?;
    let is_ipv6 = PLACE == FROM_SEND6;
    server.family = if is_ipv6 { AF_INET6 } else { AF_INET };
    if name == 0 {
        server.port = u16::from_be(read(sk, OFF_SOCK_DPORT.load())?);
        if is_ipv6 {
            server.address = read(sk, OFF_SOCK_V6_DADDR.load())?;
        } else {
            server.address[0] = read(sk, OFF_SOCK_DADDR.load())?;
        }
        return Some(());
    }
    let [family, port] = read::<[u16; 2]>(name, 0)?;
    server.port = u16::from_be(port);
    if is_ipv6 {
        if family != AF_INET6 {
            return None; // handed to udp_sendmsg(), which has counted it
        }
        server.address = read(name, 8)?;
    } else {
        server.address[0] = read(name, 4)?;
    }
    Some(())
}

/// Where the datagram is in the application's memory, and its length; `None` where it is in several
/// pieces.
#[inline(always)]
fn payload(msg: u64) -> Option<(u64, u64)> {
    let iter = msg + OFF_MSGHDR_ITER.load() as u64;
    let kind =
        (read::<u8>(iter, OFF_IOV_ITER_TYPE.load())? & IOV_ITER_TYPE_MASK.load() as u8) as u32;
    let start = if kind == ITER_UBUF.load() {
        read::<u64>(iter, OFF_IOV_ITER_UBUF.load())?
    } else if kind == ITER_IOVEC.load() && read::<u64>(iter, OFF_IOV_ITER_NR_SEGS.load())? == 1 {
        read::<u64>(read(iter, OFF_IOV_ITER_IOV.load())?, 0)? // iov_base
    } else {
        return None;
    };
    let offset = read::<u64>(iter, OFF_IOV_ITER_OFFSET.load())?;
    let len = read::<u64>(iter, OFF_IOV_ITER_COUNT.load())?;
    Some((start.wrapping_add(offset), len))
}
