//! Hook `dns`: lookups over UDP, followed from the client's query to the answer or the deadline.
//!
//! cgroup_skb at the root of cgroup2 sees each packet once at each socket's end, on the way out
//! before the neighbour is resolved: a query that dies of a full neighbour table is seen here and
//! by no tap on a device. All counting is done here; user space only runs `dns_age` now and then.

use core::{ffi::c_void, hint::black_box};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_NOEXIST},
    helpers::{
        bpf_get_current_task, bpf_ktime_get_ns,
        generated::{
            bpf_for_each_map_elem, bpf_get_socket_cookie, bpf_skb_cgroup_id, bpf_skb_load_bytes,
        },
    },
    macros::{cgroup_skb, raw_tracepoint},
    programs::{RawTracePointContext, SkBuffContext},
};
use tracer_common::{
    Hook,
    dns::{
        AGE_MARGIN_NS, ARRIVED_NS, Cause, Counts, Expired, Failure, Key, LATE_NS, Lookup,
        LookupKey, Outcome, QUESTION_LEN, Server, Value, bucket,
    },
    event,
};

use crate::{
    layout::*,
    maps::{ANSWERED, DNS, DNS_NODE, DNS_ZERO, LATE, LOOKUP_ZERO, PACKETS, PENDING},
    packet::{self, Udp},
    ring,
    util::{add, read, sub},
};

const HEADER: u32 = 12;
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x100_0000_01b3;

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

/// The DNS header's fields (RFC 1035 4.1.1).
struct Header {
    id: u16,
    flags: u16,
    questions: u16,
    answers: u16,
}

impl Header {
    #[inline(always)]
    fn load(ctx: &SkBuffContext, udp: &Udp) -> Option<Self> {
        let h = packet::load::<8>(ctx, udp.payload())?;
        // The rest of the header must be there too.
        if ctx.len() < udp.payload() + HEADER {
            return None;
        }
        let header = Self {
            id: u16::from_be_bytes([h[0], h[1]]),
            flags: u16::from_be_bytes([h[2], h[3]]),
            questions: u16::from_be_bytes([h[4], h[5]]),
            answers: u16::from_be_bytes([h[6], h[7]]),
        };
        // Opcode QUERY only.
        (header.flags & 0x7800 == 0).then_some(header)
    }

    #[inline(always)]
    fn is_response(&self) -> bool {
        self.flags & 0x8000 != 0
    }

    #[inline(always)]
    fn question(&self, ctx: &SkBuffContext, udp: &Udp) -> u64 {
        if self.questions == 0 {
            return 0;
        }
        question(ctx.skb.skb, udp.payload() + HEADER, ctx.len())
    }

    #[inline(always)]
    fn outcome(&self) -> Outcome {
        Outcome::of_answer(
            self.flags as u8 & 0xf,
            self.answers,
            self.flags & 0x200 != 0,
        )
    }
}

/// Hash of the first question, letter case folded; its length in the low 16 bits. 0 without one.
///
/// Out of line: the buffer is half the stack, and a per-CPU one would not do, for these programs
/// are preempted and interrupted by each other.
#[inline(never)]
fn question(skb: *mut __sk_buff, start: u32, packet_len: u32) -> u64 {
    let mut bytes = [0u8; QUESTION_LEN];
    let len = bounded_len(start, packet_len);
    if len == 0 {
        return 0;
    }
    // SAFETY: `bytes` has room for QUESTION_LEN bytes, and `len` is no more.
    if unsafe { bpf_skb_load_bytes(skb.cast(), start, bytes.as_mut_ptr().cast(), len) } != 0 {
        return 0;
    }
    // Name: labels, each behind its length, until the one of length 0; then type and class.
    let mut hash = FNV_OFFSET;
    let mut label = 0u8;
    let mut tail = 0u8;
    let mut i = 0usize;
    while i < QUESTION_LEN {
        let mut byte = bytes[i];
        let mut last = false;
        if tail > 0 {
            tail -= 1;
            last = tail == 0;
        } else if label > 0 {
            label -= 1;
            if byte.is_ascii_uppercase() {
                byte |= 0x20;
            }
        } else if byte == 0 {
            tail = 4;
        } else {
            label = byte;
        }
        hash = (hash ^ byte as u64).wrapping_mul(FNV_PRIME);
        i += 1;
        if last {
            break;
        }
    }
    let len = if (i as u32) < len { i as u32 } else { len };
    hash & !0xffff | len as u64
}

/// How many bytes from `start` a question may take: at most [`QUESTION_LEN`].
#[inline(always)]
fn bounded_len(start: u32, packet_len: u32) -> u32 {
    if packet_len <= start {
        return 0;
    }
    // black_box: LLVM knows that the length is in range and drops the check that the verifier needs
    // to see.
    let len = black_box(packet_len - start);
    if len > QUESTION_LEN as u32 {
        QUESTION_LEN as u32
    } else {
        len
    }
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

/// The counters of a client; those of the rest key where the map is full.
#[inline(always)]
fn client(key: Key, netns: u32) -> Option<&'static mut Value> {
    if let Some(value) = DNS.get_ptr_mut(key) {
        // SAFETY: entries are removed only long after their client is gone.
        return Some(unsafe { &mut *value });
    }
    let zero = DNS_ZERO.get_ptr(0)?;
    // EEXIST: another CPU was faster, which is as good.
    // SAFETY: an array's value that nobody writes.
    let _ = DNS.insert(key, unsafe { &*zero }, BPF_NOEXIST as u64);
    let value = match DNS.get_ptr_mut(key) {
        Some(value) => {
            // SAFETY: as above.
            unsafe { (*value).netns = netns };
            value
        }
        None => {
            ring::count_full(Hook::Dns);
            DNS.get_ptr_mut(Key::default())?
        }
    };
    // SAFETY: as above.
    Some(unsafe { &mut *value })
}

#[inline(always)]
fn node() -> Option<&'static mut Counts> {
    // SAFETY: a per-CPU array's value, added to atomically.
    DNS_NODE.get_ptr_mut(0).map(|node| unsafe { &mut *node })
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

/// Ends the lookup of the answer before this one on this CPU: it was not dropped.
#[inline(always)]
fn count_arrived() {
    let Some(answered) = ANSWERED.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: as in `answer`.
    let answered = unsafe { &mut *answered };
    if answered.packet == 0 {
        return;
    }
    answered.packet = 0;
    let key = answered.key;
    if let Some(lookup) = PENDING.get_ptr_mut(key) {
        // SAFETY: as in `query`.
        let lookup = unsafe { &mut *lookup };
        if lookup.answered_ns != 0 {
            end(&key, lookup, lookup.outcome, lookup.answered_ns);
        }
    }
}

/// The hook `drops` saw that a packet was dropped behind this hook, before its socket had it. True
/// if it was the answer that this CPU saw last: then it is no answer.
#[inline(always)]
pub fn take_back(packet: u64, reason: u16, cause: u8) -> bool {
    let Some(answered) = ANSWERED.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: as in `answer`.
    let answered = unsafe { &mut *answered };
    if answered.packet != packet {
        return false;
    }
    answered.packet = 0;
    let key = answered.key;
    if let Some(lookup) = PENDING.get_ptr_mut(key) {
        // SAFETY: as in `query`.
        let lookup = unsafe { &mut *lookup };
        if lookup.answered_ns != 0 {
            lookup.answered_ns = 0;
            lookup.dropped(true, reason, cause);
        }
    }
    true
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

/// Ends a lookup. Whoever removes it counts it: everybody else's removal fails.
///
/// Out of line, for it has several callers, and its stack is its own.
#[inline(never)]
fn end(key: &LookupKey, lookup: &Lookup, outcome: u8, now_ns: u64) -> u64 {
    let _ = try_end(key, lookup, outcome, now_ns); // without the maps there is nothing to count
    0
}

#[inline(always)]
fn try_end(key: &LookupKey, lookup: &Lookup, outcome: u8, now_ns: u64) -> Option<()> {
    let key = *key;
    let waited_ns = now_ns - lookup.started_ns;
    let timeout = outcome == Outcome::Timeout as u8;
    let failed = timeout || !matches!(outcome, OK | NO_DATA | NX_DOMAIN);
    let cause = if !timeout {
        Cause::Server as u8
    } else if lookup.drop_reason == 0 {
        Cause::NoAnswer as u8
    } else {
        lookup.drop_cause
    };
    let value = client(lookup.key, lookup.netns)?;
    let node = node()?;

    if failed {
        let record = ring::reserve::<Failure>(Hook::Dns, now_ns, &mut value.event_second);
        if let Some(mut record) = record {
            // Written before the removal: the entry's memory may be another's right after.
            fill(
                record.as_mut_ptr(),
                &key,
                lookup,
                outcome,
                cause,
                waited_ns,
                now_ns,
            );
            if PENDING.remove(key).is_err() {
                record.discard(0);
                ring::unsend(Hook::Dns);
                return None;
            }
            record.submit(0);
        } else if PENDING.remove(key).is_err() {
            return None;
        }
    } else if PENDING.remove(key).is_err() {
        return None;
    }

    // black_box: LLVM checks one register and indexes with another, which the verifier does not
    // follow.
    let outcome = black_box(outcome as usize);
    let cause = black_box(cause as usize);
    if outcome < Outcome::ALL.len() {
        add(&mut value.counts.outcomes[outcome], 1);
        add(&mut node.outcomes[outcome], 1);
    }
    if failed && cause < Cause::ALL.len() {
        add(&mut value.counts.causes[cause], 1);
        add(&mut node.causes[cause], 1);
    }
    if !timeout {
        let bucket = bucket(waited_ns);
        if bucket < node.buckets.len() {
            add(&mut value.counts.buckets[bucket], 1);
            add(&mut node.buckets[bucket], 1);
        }
        add(&mut value.counts.duration_ns, waited_ns);
        add(&mut node.duration_ns, waited_ns);
    }
    sub(&mut value.pending, 1);
    Some(())
}

const OK: u8 = Outcome::NoError as u8;
const NO_DATA: u8 = Outcome::NoData as u8;
const NX_DOMAIN: u8 = Outcome::NxDomain as u8;

#[inline(always)]
fn fill(
    record: *mut Failure,
    key: &LookupKey,
    lookup: &Lookup,
    outcome: u8,
    cause: u8,
    waited_ns: u64,
    now_ns: u64,
) {
    // SAFETY: the ring gave this room; every field is written.
    unsafe {
        (*record).header = event::Header {
            kind: event::KIND_DNS_FAILURE,
            version: event::VERSION,
            netns: lookup.netns,
            ktime_ns: now_ns,
            net_cookie: lookup.key.net_cookie,
            cgroup_id: lookup.key.cgroup_id,
            pid: lookup.pid,
            _pad: 0,
            comm: lookup.comm,
        };
        (*record).waited_ns = waited_ns;
        (*record).server = lookup.servers[0];
        (*record).id = key.id;
        (*record).outcome = outcome;
        (*record).cause = cause;
        (*record).drop_reason = if outcome == Outcome::Timeout as u8 {
            lookup.drop_reason
        } else {
            0
        };
        (*record).question_len = lookup.question_hash as u16;
        (*record).question = lookup.question;
    }
}

/// Not attached: user space runs it (BPF_PROG_TEST_RUN) to end the lookups past their deadline.
#[raw_tracepoint(tracepoint = "neigh_create")]
pub fn dns_age(ctx: RawTracePointContext) -> i32 {
    let _ = ctx.as_ptr();
    let map: *const c_void = (&raw const PENDING).cast();
    let callback: unsafe extern "C" fn(
        *mut c_void,
        *const LookupKey,
        *mut Lookup,
        *mut c_void,
    ) -> i64 = age;
    // SAFETY: the helper (5.13) calls back with pointers to a key and a value of that map.
    unsafe {
        bpf_for_each_map_elem(
            map.cast_mut(),
            callback as *mut c_void,
            core::ptr::null_mut(),
            0,
        )
    };
    0
}

unsafe extern "C" fn age(
    _map: *mut c_void,
    key: *const LookupKey,
    lookup: *mut Lookup,
    _context: *mut c_void,
) -> i64 {
    // SAFETY: the helper has no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the kernel calls with valid pointers.
    let (key, lookup) = unsafe { (*key, &*lookup) };
    let timeout_ns = DNS_TIMEOUT_NS.load();
    if lookup.answered_ns != 0 {
        if now_ns.wrapping_sub(lookup.answered_ns) > ARRIVED_NS {
            end(&key, lookup, lookup.outcome, lookup.answered_ns);
        }
        return 0;
    }
    if lookup.started_ns == 0 || !lookup.expired(now_ns, timeout_ns + AGE_MARGIN_NS) {
        return 0;
    }
    if lookup.late == 0 {
        let expired = Expired {
            deadline_ns: lookup.started_ns + timeout_ns,
            question_hash: lookup.question_hash,
        };
        // Full: the least recently used goes; a late answer to that one counts as unmatched.
        let _ = LATE.insert(LookupKey { slot: 0, ..key }, expired, 0);
    }
    end(&key, lookup, Outcome::Timeout as u8, now_ns);
    0
}
