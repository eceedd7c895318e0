//! Hook `tcp`: connection attempts and how they ended, what was sent again, resets, silence.
//!
//! Raw tracepoints on changes only, never on a packet that goes well. All are attributed by the
//! socket: most run in softirqs, where the current task is anybody's.
//!
//! - `inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)`
//!   (include/trace/events/sock.h): begin and end of an attempt, end of a connection.
//! - `tcp_receive_reset(struct sock *sk)` (include/trace/events/tcp.h).
//! - `inet_sk_error_report(const struct sock *sk)` (include/trace/events/sock.h): before the end on
//!   kernels up to 6.9, behind it since.
//! - `tcp_retransmit_skb(const struct sock *sk, const struct sk_buff *skb)`, on success only; since 6.17 always, with `int err`.

mod count;
mod silence;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::{bpf_get_current_task, bpf_ktime_get_ns},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use tracer_common::{
    AF_INET, AF_INET6, ClientMap,
    peers::{self, Kind},
    quota::{self, CONNECTING_PER_CLIENT},
    tcp::{Connecting, Ends, Key, Outcome, SILENT_RUN},
};

use crate::{
    dns::cgroup_id,
    layout::*,
    maps::{CONNECTING, TURNS},
    peer,
    quota::{at, is_used_up},
    ring,
    util::{add, is_active, is_watched, net_cookie, read, sub},
};

const IPPROTO_TCP: u16 = 6;

// include/net/tcp_states.h
const ESTABLISHED: u32 = 1;
const SYN_SENT: u32 = 2;
const SYN_RECV: u32 = 3;
const FIN_WAIT1: u32 = 4;
const TIME_WAIT: u32 = 6;
const CLOSE: u32 = 7;
const LISTEN: u32 = 10;
const NEW_SYN_RECV: u32 = 12;

// include/uapi/asm-generic/errno.h
const ENOPROTOOPT: u32 = 92;
const EACCES: u32 = 13;
const ENONET: u32 = 64;
const ENETUNREACH: u32 = 101;
const ETIMEDOUT: u32 = 110;
const ECONNREFUSED: u32 = 111;
const EHOSTDOWN: u32 = 112;
const EHOSTUNREACH: u32 = 113;

/// Of `sk_shutdown` (include/net/sock.h).
const RCV_SHUTDOWN: u8 = 1;

/// Of a map where there is no such key.
const ENOENT: i32 = -2;

/// Marks an error in [`Connecting::error`] that does not end the attempt.
const SOFT: u32 = 1 << 31;

/// Stand for what happens to a socket once, where [`Turn::counts`] asks; not numbers of segments.
const SILENT_KEY: u64 = u64::MAX;
/// As [`SILENT_KEY`].
const RESET_KEY: u64 = u64::MAX - 1;
/// As [`SILENT_KEY`].
const UNANSWERED_KEY: u64 = u64::MAX - 2;
/// As [`SILENT_KEY`].
const FULL_KEY: u64 = u64::MAX - 3;

/// Two of each: since 6.1 the kernel keeps a program from running on a CPU where it is at work already
/// (`bpf_prog.active`), and a softirq may interrupt a task in the midst of one. The first of a pair
/// does the work and leaves a note; the second, which runs right after it, does what the first was kept
/// from. Softirqs do not interrupt each other, so one of the two always runs.
macro_rules! pair {
    ($first:ident, $second:ident, $tracepoint:literal, $body:path) => {
        #[raw_tracepoint(tracepoint = $tracepoint)]
        pub fn $first(ctx: RawTracePointContext) -> i32 {
            if is_active() {
                let _ = $body(&ctx, Turn::First); // what cannot be read is no connection
            }
            0
        }

        #[raw_tracepoint(tracepoint = $tracepoint)]
        pub fn $second(ctx: RawTracePointContext) -> i32 {
            if is_active() {
                let _ = $body(&ctx, Turn::Second); // as above
            }
            0
        }
    };
}

pair!(tcp_state, tcp_state_again, "inet_sock_set_state", try_state);
pair!(tcp_reset, tcp_reset_again, "tcp_receive_reset", try_reset);
pair!(
    tcp_error,
    tcp_error_again,
    "inet_sk_error_report",
    try_error
);
pair!(
    tcp_retransmit,
    tcp_retransmit_again,
    "tcp_retransmit_skb",
    try_retransmit
);

/// Which of a pair runs.
#[derive(Clone, Copy)]
enum Turn {
    First,
    Second,
}

impl Turn {
    /// Is it this one's turn to count what the key stands for?
    #[inline(always)]
    fn counts(self, a: u64, b: u64) -> bool {
        let key = [a, b];
        match self {
            Self::First => {
                // Full: the least recently used goes, whose second has long run.
                let _ = TURNS.insert(key, 1, BPF_ANY as u64);
                true
            }
            // A map that was at work on this CPU refuses too (`-EBUSY`, 5.11 to 6.6): the first has counted then.
            Self::Second => TURNS.remove(key) == Err(ENOENT),
        }
    }
}

#[inline(always)]
fn try_state(ctx: &RawTracePointContext, turn: Turn) -> Option<()> {
    let (sk, old, new): (u64, u32, u32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    if read::<u16>(sk, OFF_SOCK_PROTOCOL.load())? != IPPROTO_TCP {
        return None;
    }
    match (old, new) {
        (_, SYN_SENT) => {
            begin(sk, turn);
            None
        }
        // Both ends connected at the same moment (RFC 9293 3.5): not over yet.
        (SYN_SENT, SYN_RECV) => None,
        (SYN_SENT | SYN_RECV, _) => {
            // SAFETY: a map's value; entries outlive the program's RCU section.
            let connecting = CONNECTING.get_ptr(sk).map(|c| unsafe { *c });
            if let Some(connecting) = &connecting {
                // Whoever removes it counts it.
                CONNECTING.remove(sk).ok()?;
                sub(&mut at(connecting.quota)?.connecting, 1);
                add(&mut count::node()?.over, 1);
            } else if old == SYN_RECV || matches!(turn, Turn::Second) {
                return None; // a server's side; or the first of the pair has counted it
            }
            // None: begun before the hook was, or the map was full.
            end(sk, new, connecting.unwrap_or_default())
        }
        (ESTABLISHED, FIN_WAIT1) if hears_no_more(sk) => give_up(sk, turn),
        (ESTABLISHED.., CLOSE) if old != LISTEN && old != CLOSE => {
            if old == ESTABLISHED {
                give_up(sk, turn);
            }
            close(sk, turn)
        }
        _ => None,
    }
}

/// Out of line: its stack is its own.
#[inline(never)]
fn begin(sk: u64, turn: Turn) -> u64 {
    let _ = try_begin(sk, turn); // not followed, and counted so
    0
}

#[inline(always)]
fn try_begin(sk: u64, turn: Turn) -> Option<()> {
    // SAFETY: a map's value.
    let there = CONNECTING
        .get_ptr(sk)
        .map(|there| unsafe { (*there).quota });
    if there.is_some() && matches!(turn, Turn::Second) {
        return None; // the first of the pair has made it
    }
    let (key, _) = owner(sk)?;
    let place = quota::place(&key);
    let mine = at(place)?;
    // SAFETY: the helpers have no precondition.
    let (task, now_ns) = unsafe { (bpf_get_current_task(), bpf_ktime_get_ns()) };
    // connect() runs in the context of the process that asks.
    let connecting = Connecting {
        started_ns: now_ns,
        pid: read(task, OFF_TASK_TGID.load()).unwrap_or_default(),
        error: 0,
        comm: read(task, OFF_TASK_COMM.load()).unwrap_or_default(),
        quota: place,
        _pad: 0,
    };
    let may = there.is_some() || !is_used_up(mine.connecting, CONNECTING_PER_CLIENT);
    // One that is there is of an attempt whose end was not seen: its place is this one's.
    if !may || CONNECTING.insert(sk, connecting, BPF_ANY as u64).is_err() {
        // The end is counted all the same; who asked and since when is not known then.
        if turn.counts(sk, FULL_KEY) {
            ring::count_full(ClientMap::Connecting);
        }
        return None;
    }
    add(&mut mine.connecting, 1);
    match there {
        Some(old) => sub(&mut at(old)?.connecting, 1),
        None => add(&mut count::node()?.begun, 1),
    }
    None
}

/// An attempt is over.
#[inline(always)]
fn end(sk: u64, state: u32, connecting: Connecting) -> Option<()> {
    let outcome = if state == ESTABLISHED {
        Outcome::Established
    } else {
        why(sk, &connecting)
    };
    count::ended(sk, outcome, &connecting);
    None
}

/// Why an attempt failed: by the error that the application gets.
#[inline(always)]
fn why(sk: u64, connecting: &Connecting) -> Outcome {
    let error = match read::<u32>(sk, OFF_SOCK_ERR.load()) {
        Some(error) if error != 0 => error,
        _ if connecting.error & SOFT == 0 => connecting.error, // the application has taken it
        // Whoever polls takes the soft error and gives up; whoever blocks never hears of it.
        _ if read::<u32>(sk, OFF_SOCK_ERR_SOFT.load()) == Some(0) => connecting.error & !SOFT,
        _ => 0,
    };
    match error {
        ECONNREFUSED => Outcome::Refused,
        ETIMEDOUT => Outcome::Timeout,
        EHOSTUNREACH | ENETUNREACH | EHOSTDOWN | ENONET | ENOPROTOOPT | EACCES => {
            Outcome::Unreachable
        }
        // The application gave up; or nothing could be sent at all, for want of a port.
        0 if has_sent(sk) => Outcome::Timeout,
        _ => Outcome::Other,
    }
}

/// Has a SYN left? Where not, the other end has nothing to do with it.
#[inline(always)]
fn has_sent(sk: u64) -> bool {
    read::<u32>(sk, OFF_TCP_SOCK_SEGS_OUT.load()).unwrap_or(1) > 0
}

/// Does this end read no more? One that has only said all that it has to say (`shutdown(SHUT_WR)`) still waits.
#[inline(always)]
fn hears_no_more(sk: u64) -> bool {
    OFF_SOCK_SHUTDOWN.load() == ABSENT
        || read::<u8>(sk, OFF_SOCK_SHUTDOWN.load()).is_none_or(|how| how & RCV_SHUTDOWN != 0)
}

/// This end closes or aborts an established connection: has it waited in vain?
#[inline(always)]
fn give_up(sk: u64, turn: Turn) -> Option<()> {
    let waited_ns = silence::in_vain(sk)?;
    if turn.counts(sk, UNANSWERED_KEY) {
        count::happened(sk, Outcome::Unanswered, waited_ns);
    }
    None
}

/// An established connection is over.
#[inline(always)]
fn close(sk: u64, turn: Turn) -> Option<()> {
    let port = u16::from_be(read(sk, OFF_SOCK_DPORT.load())?);
    if silence::is_silent_port(port) {
        silence::over(sk);
    }
    // Retransmissions tell of it long before; keepalive and window probes do not.
    if read::<u32>(sk, OFF_SOCK_ERR.load())? == ETIMEDOUT
        && read::<u8>(sk, OFF_ICSK_RETRANSMITS.load())? < SILENT_RUN
        && turn.counts(sk, SILENT_KEY)
    {
        count::happened(sk, Outcome::Silent, 0);
    }
    None
}

#[inline(always)]
fn try_reset(ctx: &RawTracePointContext, turn: Turn) -> Option<()> {
    let sk: u64 = ctx.arg(0);
    match read::<u8>(sk, OFF_SOCK_STATE.load())? as u32 {
        SYN_SENT | SYN_RECV => {
            // The application may take the error before the state changes.
            // SAFETY: a map's value that only this socket's programs write.
            let connecting = unsafe { &mut *CONNECTING.get_ptr_mut(sk)? };
            connecting.error = ECONNREFUSED;
            None
        }
        CLOSE | LISTEN => None,
        _ => {
            if turn.counts(sk, RESET_KEY) {
                count::happened(sk, Outcome::Reset, 0);
            }
            None
        }
    }
}

#[inline(always)]
fn try_error(ctx: &RawTracePointContext, _turn: Turn) -> Option<()> {
    let sk: u64 = ctx.arg(0);
    if read::<u8>(sk, OFF_SOCK_STATE.load())? as u32 != SYN_SENT {
        return None;
    }
    let error = match read::<u32>(sk, OFF_SOCK_ERR.load())? {
        0 => icmp_error(sk)? | SOFT,
        error => error,
    };
    // SAFETY: as above.
    let connecting = unsafe { &mut *CONNECTING.get_ptr_mut(sk)? };
    connecting.error = error;
    None
}

/// What an ICMP error said that came while connect() held the socket: the kernel goes on trying, but
/// whoever polls gets the error and gives up (net/ipv4/ip_sockglue.c, ip_icmp_error).
#[inline(always)]
fn icmp_error(sk: u64) -> Option<u32> {
    let queue = sk + OFF_SOCK_ERROR_QUEUE_TAIL.load() as u64; // its member `prev`
    let tail = read::<u64>(queue, 0)?;
    // An empty queue points at itself, by `next`, right before `prev`.
    if tail == 0 || tail + 8 == queue {
        return None;
    }
    read(tail, OFF_SK_BUFF_CB.load() + OFF_SOCK_EXTERR_ERRNO.load())
}

#[inline(always)]
fn try_retransmit(ctx: &RawTracePointContext, turn: Turn) -> Option<()> {
    let sk: u64 = ctx.arg(0);
    let skb: u64 = ctx.arg(1);
    let state = read::<u8>(sk, OFF_SOCK_STATE.load())? as u32;
    if matches!(state, SYN_SENT | SYN_RECV) {
        return None; // an attempt
    }
    // It has grown by this packet's segments already: never the same twice.
    if !turn.counts(
        sk,
        read::<u32>(sk, OFF_TCP_SOCK_TOTAL_RETRANS.load())? as u64,
    ) {
        return None;
    }
    // The kernel counts timeouts in a row, back to 0 when anything is acknowledged.
    if read::<u8>(sk, OFF_ICSK_RETRANSMITS.load())? == SILENT_RUN {
        count::happened(sk, Outcome::Silent, 0);
    }
    if ARG_RETRANSMIT_ERROR.load() != ABSENT {
        // Through memory, as in the hook `drops`.
        let error = read::<i32>(ctx.as_ptr() as u64, ARG_RETRANSMIT_ERROR.load() * 8)?;
        if error != 0 {
            return None; // it was not sent; older kernels do not tell of these
        }
    }
    let segments =
        read::<u16>(skb, OFF_SK_BUFF_CB.load() + OFF_TCP_SKB_CB_GSO_SEGS.load())?.max(1) as u64;
    let mut ends = Ends::default();
    if ends_of(sk, &mut ends) == 0 {
        return None;
    }
    let (key, netns) = owner(sk)?;
    add(
        &mut count::client(&key, netns)?.counts.retransmits,
        segments,
    );
    add(&mut count::node()?.retransmits, segments);
    peer::count(
        &peers::Key {
            address: ends.destination,
            family: ends.family,
            kind: Kind::Retransmit as u16,
        },
        Kind::Retransmit,
        segments,
        quota::place(&key),
    );
    None
}

/// Both ends of a socket's connection; 0 where they cannot be read. Out of line: its stack is its own.
#[inline(never)]
fn ends_of(sk: u64, ends: &mut Ends) -> u64 {
    try_ends(sk, ends).map_or(0, |()| 1)
}

#[inline(always)]
fn try_ends(sk: u64, ends: &mut Ends) -> Option<()> {
    ends.source_port = u16::from_be(read(sk, OFF_INET_SOCK_SPORT.load())?);
    ends.destination_port = u16::from_be(read(sk, OFF_SOCK_DPORT.load())?);
    ends.family = read(sk, OFF_SOCK_FAMILY.load())?;
    if ends.family == AF_INET6 {
        ends.destination = read(sk, OFF_SOCK_V6_DADDR.load())?;
        let [a, b, c, d] = ends.destination;
        if a != 0 || b != 0 || u32::from_be(c) != 0xffff {
            ends.source = read(sk, OFF_SOCK_V6_RCV_SADDR.load())?;
            return Some(());
        }
        // An IPv6 socket that speaks IPv4 (RFC 4291 2.5.5.2).
        ends.destination = [d, 0, 0, 0];
        ends.family = AF_INET;
    } else {
        ends.destination = [read(sk, OFF_SOCK_DADDR.load())?, 0, 0, 0];
    }
    ends.source = [read(sk, OFF_SOCK_RCV_SADDR.load())?, 0, 0, 0];
    Some(())
}

/// Whose a socket is. Not for those that are no whole `struct sock`.
#[inline(always)]
fn owner(sk: u64) -> Option<(Key, u32)> {
    let net = read::<u64>(sk, OFF_SOCK_NET.load())?;
    let netns = read(net, OFF_NET_NS_INUM.load())?;
    if !is_watched(netns) {
        return None;
    }
    let key = Key {
        cgroup_id: cgroup_id(sk),
        net_cookie: net_cookie(net)?,
    };
    Some((key, netns))
}

/// Is it a whole `struct sock`, or one of the short ones that stand for it?
#[inline(always)]
pub fn is_whole(sk: u64) -> bool {
    read::<u8>(sk, OFF_SOCK_STATE.load())
        .is_some_and(|state| !matches!(state as u32, TIME_WAIT | NEW_SYN_RECV))
}

/// Not attached: user space runs it (BPF_PROG_TEST_RUN) to find the requests that nobody answers.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn tcp_age(ctx: RawTracePointContext) -> i32 {
    let _ = ctx.as_ptr();
    silence::age();
    0
}

/// Not attached: the same for one connection, where the kernel has no bpf_for_each_map_elem. Its
/// argument is the address of the `struct sock`.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn tcp_age_one(ctx: RawTracePointContext) -> i32 {
    silence::age_one(ctx.arg(0));
    0
}

/// Inserts only what is not there yet.
const NEW: u64 = BPF_NOEXIST as u64;
