//! Hook `dns`: lookups over UDP, followed from the client's query to the answer or the deadline.
//!
//! cgroup_skb at the root of cgroup2 sees each packet once at each socket's end, on the way out
//! before the neighbour is resolved: a query that dies of a full neighbour table is seen here and
//! by no tap on a device. All counting is done here; user space only runs `dns_age` now and then.

mod end;
mod message;

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_NOEXIST,
    helpers::{
        bpf_get_current_task, bpf_ktime_get_ns,
        generated::{bpf_get_socket_cookie, bpf_skb_cgroup_id, bpf_skb_load_bytes},
    },
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use tracer_common::{
    ClientMap,
    dns::{Key, LATE_NS, LookupKey, Outcome, Server},
};

pub use self::end::take_back;
use self::{
    end::{client, count_arrived, end, node},
    message::{HEADER, Header, bounded_len},
};
use crate::{
    layout::*,
    maps::{ANSWERED, LATE, LOOKUP_ZERO, PACKETS, PENDING},
    packet::{self, Udp},
    ring,
    util::{add, read},
};

#[cgroup_skb(egress)]
pub fn dns_egress(ctx: SkBuffContext) -> i32 {
    if let Some(udp) = packet::dns_datagram(&ctx) {
        let _ = query(&ctx, &udp); // what cannot be read is no query
    }
    1 // pass, always
}

#[cgroup_skb(ingress)]
pub fn dns_ingress(ctx: SkBuffContext) -> i32 {
    if let Some(udp) = packet::dns_datagram(&ctx) {
        let _ = answer(&ctx, &udp); // what cannot be read is no answer
    }
    1 // pass, always
}

/// The socket at this end of the packet.
struct Socket {
    key: Key,
    netns: u32,
    cookie: u64,
    /// The `sk_buff`'s address: the context points at it.
    packet: u64,
}

impl Socket {
    #[inline(always)]
    fn of(ctx: &SkBuffContext) -> Option<Self> {
        let packet = ctx.as_ptr() as u64;
        let sk = read::<u64>(packet, OFF_SK_BUFF_SK.load())?;
        let net = read::<u64>(sk, OFF_SOCK_NET.load())?;
        Some(Self {
            key: Key {
                // SAFETY: the helper takes the context.
                cgroup_id: unsafe { bpf_skb_cgroup_id(ctx.skb.skb) },
                net_cookie: read(net, OFF_NET_NET_COOKIE.load())?,
            },
            netns: read(net, OFF_NET_NS_INUM.load())?,
            // SAFETY: the helper takes the context.
            cookie: unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) },
            packet,
        })
    }
}

/// A query leaves a socket.
#[inline(always)]
fn query(ctx: &SkBuffContext, udp: &Udp) -> Option<()> {
    if !packet::is_dns_port(udp.destination_port) {
        return None;
    }
    let header = Header::load(ctx, udp)?;
    if header.is_response() {
        return None;
    }
    let socket = Socket::of(ctx)?;
    let server = Server {
        address: udp.address(ctx, true)?,
        port: udp.destination_port,
        family: udp.family,
    };
    let question = header.question(ctx, udp);
    let value = client(socket.key, socket.netns)?;
    let node = node()?;
    // SAFETY: the verifier knows the context's fields.
    let segments = unsafe { (*ctx.skb.skb).gso_segs } as u64;
    if segments > 1 {
        // One packet here, many on the wire (UDP_SEGMENT): only the first is followed.
        add(&mut value.counts.queries, segments);
        add(&mut node.queries, segments);
        add(&mut value.counts.untracked, segments - 1);
        add(&mut node.untracked, segments - 1);
    } else {
        add(&mut value.counts.queries, 1);
        add(&mut node.queries, 1);
    }

    // SAFETY: the helper has no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let mut key = LookupKey {
        socket: socket.cookie,
        id: header.id,
        slot: 0,
        _pad: 0,
    };
    let mut free = None;
    let mut slot = 0;
    while slot < 2 {
        key.slot = slot;
        match PENDING.get_ptr_mut(key) {
            None => free = Some(slot),
            Some(lookup) => {
                // SAFETY: NO_PREALLOC elements outlive the program's RCU section; a reader at the
                // same time may see a lookup that just ended, which the removal below settles.
                let lookup = unsafe { &mut *lookup };
                if lookup.answered_ns != 0 {
                    // Answered; nobody has counted it yet.
                    end(&key, lookup, lookup.outcome, lookup.answered_ns);
                    free = Some(slot);
                } else if lookup.started_ns == 0 || !lookup.expired(now_ns, DNS_TIMEOUT_NS.load()) {
                    if lookup.started_ns == 0 || lookup.question_hash == question {
                        // Asked again, perhaps elsewhere: one more query, no new lookup.
                        lookup.asked(server);
                        let _ = PACKETS.insert(socket.packet, key, 0);
                        return Some(());
                    }
                    // Another question under the same id: nobody waits for the old one any more.
                    end(&key, lookup, Outcome::Timeout as u8, now_ns);
                    free = Some(slot);
                }
            }
        }
        slot += 1;
    }

    let Some(slot) = free else {
        add(&mut value.counts.untracked, 1);
        add(&mut node.untracked, 1);
        return Some(());
    };
    key.slot = slot;
    if value.pending >= DNS_PENDING_PER_CLIENT.load() {
        add(&mut value.counts.untracked, 1);
        add(&mut node.untracked, 1);
        return Some(());
    }
    let zero = LOOKUP_ZERO.get_ptr(0)?;
    // SAFETY: an array's value that nobody writes.
    match PENDING.insert(key, unsafe { &*zero }, BPF_NOEXIST as u64) {
        Ok(()) => {}
        // Another CPU just started the very same lookup.
        Err(EEXIST) => return Some(()),
        Err(_) => {
            ring::count_full(ClientMap::Pending);
            add(&mut value.counts.untracked, 1);
            add(&mut node.untracked, 1);
            return Some(());
        }
    }
    let lookup = PENDING.get_ptr_mut(key)?;
    // SAFETY: as above; nobody touches an entry whose start is 0.
    let lookup = unsafe { &mut *lookup };
    lookup.key = socket.key;
    lookup.question_hash = question;
    let start = udp.payload() + HEADER;
    let len = bounded_len(start, ctx.len());
    if question != 0 && len > 0 {
        // SAFETY: the field has room for QUESTION_LEN bytes, and `len` is no more.
        unsafe {
            bpf_skb_load_bytes(
                ctx.skb.skb.cast(),
                start,
                lookup.question.as_mut_ptr().cast(),
                len,
            )
        };
    }
    lookup.netns = socket.netns;
    lookup.asked(server);
    // A datagram leaves a socket in the context of the process that sends it.
    // SAFETY: the helper has no precondition.
    let task = unsafe { bpf_get_current_task() };
    lookup.pid = read(task, OFF_TASK_TGID.load()).unwrap_or_default();
    lookup.comm = read(task, OFF_TASK_COMM.load()).unwrap_or_default();
    add(&mut value.counts.started, 1);
    add(&mut node.started, 1);
    add(&mut value.pending, 1);
    let started: *mut u64 = &mut lookup.started_ns;
    // SAFETY: a valid place; volatile, so that it is written last.
    unsafe { started.write_volatile(now_ns) };
    let _ = PACKETS.insert(socket.packet, key, 0);
    Some(())
}

const EEXIST: i32 = -17;

/// An answer reaches a socket.
#[inline(always)]
fn answer(ctx: &SkBuffContext, udp: &Udp) -> Option<()> {
    if !packet::is_dns_port(udp.source_port) {
        return None;
    }
    let header = Header::load(ctx, udp)?;
    if !header.is_response() {
        return None;
    }
    count_arrived();
    let socket = Socket::of(ctx)?;
    let server = Server {
        address: udp.address(ctx, false)?,
        port: udp.source_port,
        family: udp.family,
    };
    let question = header.question(ctx, udp);
    // SAFETY: the helper has no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let mut key = LookupKey {
        socket: socket.cookie,
        id: header.id,
        slot: 0,
        _pad: 0,
    };
    let mut slot = 0;
    while slot < 2 {
        key.slot = slot;
        if let Some(lookup) = PENDING.get_ptr_mut(key) {
            // SAFETY: as in `query`.
            let lookup = unsafe { &mut *lookup };
            // Some servers answer FORMERR without the question.
            let fits = lookup.started_ns != 0
                && (header.questions == 0 || lookup.question_hash == question)
                && (lookup.was_asked(&server) || is_nat_reply(socket.packet));
            if lookup.answered_ns != 0 {
                // Answered before; this one is to nothing asked, unless it fits the other slot.
                end(&key, lookup, lookup.outcome, lookup.answered_ns);
            } else if fits {
                if !lookup.expired(now_ns, DNS_TIMEOUT_NS.load()) {
                    // It counts when it has not been dropped behind this hook: see `count_arrived`.
                    lookup.outcome = header.outcome() as u8;
                    lookup.answered_ns = now_ns;
                    // SAFETY: a per-CPU array's value; answers come in softirqs, which do not
                    // interrupt each other.
                    let answered = unsafe { &mut *ANSWERED.get_ptr_mut(0)? };
                    answered.key = key;
                    answered.packet = socket.packet;
                    return Some(());
                }
                if lookup.late == 0 {
                    lookup.late = 1;
                    return late(&socket);
                }
            }
        }
        slot += 1;
    }
    key.slot = 0;
    if let Some(expired) = LATE.get_ptr(key) {
        // SAFETY: a map's value; torn reads of an evicted entry would make one answer unmatched.
        let expired = unsafe { *expired };
        let fits = header.questions == 0 || expired.question_hash == question;
        if fits && now_ns < expired.deadline_ns + LATE_NS && LATE.remove(key).is_ok() {
            return late(&socket);
        }
    }
    add(&mut client(socket.key, socket.netns)?.counts.unmatched, 1);
    add(&mut node()?.unmatched, 1);
    Some(())
}

#[inline(always)]
fn late(socket: &Socket) -> Option<()> {
    add(&mut client(socket.key, socket.netns)?.counts.late, 1);
    add(&mut node()?.late, 1);
    Some(())
}

/// Is the packet the reply direction of a connection that conntrack follows? Then its source may
/// differ from the address the query left for: DNAT in OUTPUT comes before this hook on the way
/// out, its reversal before it on the way in. `_nfct` is a pointer with `enum ip_conntrack_info`
/// in its low three bits (include/linux/skbuff.h); 3 and 4 are the reply direction.
#[inline(always)]
fn is_nat_reply(packet: u64) -> bool {
    if OFF_SK_BUFF_NFCT.load() == ABSENT {
        return false;
    }
    let nfct = read::<u64>(packet, OFF_SK_BUFF_NFCT.load()).unwrap_or_default();
    nfct & !7 != 0 && matches!(nfct & 7, 3 | 4)
}
