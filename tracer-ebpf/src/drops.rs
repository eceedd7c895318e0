//! Hook `drops`: packets that the kernel dropped, with its reason, joined to the lookup they
//! belonged to.
//!
//! Raw tracepoint `kfree_skb`, with a reason since 5.17 (include/trace/events/skb.h):
//! `TP_PROTO(struct sk_buff *skb, void *location, enum skb_drop_reason reason)`, and since 6.11 one
//! more `struct sock *rx_sk`, which may be NULL and is not used. User space takes the reason's
//! index from the prototype in BTF and the meaning of its numbers from the enum: both move.

use aya_ebpf::{
    EbpfContext as _, helpers::bpf_ktime_get_ns, macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use tracer_common::{
    AF_INET, AF_INET6,
    dns::{Cause, LookupKey},
    drops::MAX_REASONS,
    family_index,
};

use crate::{
    dns,
    layout::*,
    maps::{DROPS_NODE, NEIGH_LAST_FULL, PACKETS, PENDING, REASONS},
    neigh::{self, Wanted},
    packet::is_dns_port,
    util::{add, read},
};

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_ICMPV6: u8 = 58;
const ND_SOLICITATION: u8 = 135;
const ND_ADVERTISEMENT: u8 = 136;

/// How long after a refused neighbour entry a drop for want of one is put down to the full table.
/// They follow each other on one CPU; softirqs may come between. Nanoseconds.
const TABLE_FULL_NS: u64 = 1_000_000_000;

#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn kfree_skb(ctx: RawTracePointContext) -> i32 {
    let _ = try_kfree_skb(&ctx); // a packet that cannot be read belongs to no lookup
    0
}

#[inline(always)]
fn try_kfree_skb(ctx: &RawTracePointContext) -> Option<()> {
    let skb: u64 = ctx.arg(0);
    // Through memory: the verifier wants fixed offsets into the arguments, and LLVM makes a
    // computed one of any choice between two.
    let reason = read::<u32>(ctx.as_ptr() as u64, ARG_DROP_REASON.load() * 8)?;
    let index = if reason < MAX_REASONS {
        reason
    } else {
        MAX_REASONS - 1
    };
    // SAFETY: array values; REASONS is written before the hook is attached.
    let meaning = unsafe { &*REASONS.get_ptr(index)? };
    if meaning.ends_refusal != 0
        && let Some(family) = neigh::waiting()
        && let Some(wanted) = wanted(skb, family)
    {
        neigh::settle(wanted);
    }
    let mut cause = meaning.cause;
    if meaning.is_failure != 0 {
        // SAFETY: a per-CPU array's value, added to atomically.
        add(unsafe { &mut *DROPS_NODE.get_ptr_mut(index)? }, 1);
        if dns::take_back(skb, reason as u16, cause) {
            return None;
        }
    } else if meaning.is_unspecified != 0 {
        // Most packets freed without a reason are no failure: only a query on its way is looked at.
        PACKETS.get_ptr(skb)?;
        cause = if was_neighbour(ctx.arg(1)) {
            Cause::NeighbourUnresolved
        } else {
            Cause::Dropped
        } as u8;
    } else {
        return None;
    }

    let datagram = Datagram::of(skb)?;
    let mut key = datagram.lookup(skb)?;
    if cause == Cause::NeighbourTableFull as u8 && !table_was_full(datagram.family) {
        // No entry, but not for a full table: no memory, or the device is going away.
        cause = Cause::Dropped as u8;
    }
    let mut slot = 0;
    while slot < 2 {
        key.slot = slot;
        if let Some(lookup) = PENDING.get_ptr_mut(key) {
            // SAFETY: NO_PREALLOC elements outlive the program's RCU section; the fields written
            // are no keys and no counters.
            let lookup = unsafe { &mut *lookup };
            // SAFETY: the helper has no precondition.
            let now_ns = unsafe { bpf_ktime_get_ns() };
            if lookup.started_ns != 0
                && lookup.answered_ns == 0
                && !lookup.expired(now_ns, DNS_TIMEOUT_NS.load())
            {
                lookup.dropped(datagram.is_answer, reason as u16, cause);
            }
        }
        slot += 1;
    }
    Some(())
}

/// Was the packet freed because a neighbour did not answer? IPv4 says so in the reason; IPv6 frees
/// without one, in ndisc_error_report(), which may be inlined into neigh_invalidate().
#[inline(always)]
fn was_neighbour(location: u64) -> bool {
    (location >= NEIGH_INVALIDATE_START.load() && location < NEIGH_INVALIDATE_END.load())
        || (location >= NDISC_ERROR_START.load() && location < NDISC_ERROR_END.load())
}

/// Who wanted the neighbour entry that this packet dies for; `None` if the packet is of another
/// family than the entry.
#[inline(always)]
fn wanted(skb: u64, family: u16) -> Option<Wanted> {
    let head = read::<u64>(skb, OFF_SK_BUFF_HEAD.load())?;
    let network = read::<u16>(skb, OFF_SK_BUFF_NETWORK_HEADER.load())? as u32;
    let forwarded = read::<u64>(skb, OFF_SK_BUFF_SK.load())? == 0;
    match u16::from_be(read(skb, OFF_SK_BUFF_PROTOCOL.load())?) {
        ETH_P_IP if family == AF_INET => {
            if !forwarded {
                return Some(Wanted::Local);
            }
            Some(Wanted::Forwarded([read(head, network + 12)?, 0, 0, 0]))
        }
        ETH_P_IPV6 if family == AF_INET6 => {
            if read::<u8>(head, network + 6)? == IPPROTO_ICMPV6
                && matches!(
                    read::<u8>(head, network + 40)?,
                    ND_SOLICITATION | ND_ADVERTISEMENT
                )
            {
                return Some(Wanted::Kernel);
            }
            if !forwarded {
                return Some(Wanted::Local);
            }
            Some(Wanted::Forwarded(read(head, network + 8)?))
        }
        _ => None,
    }
}

#[inline(always)]
fn table_was_full(family: u16) -> bool {
    let Some(last) = family_index(family).and_then(|index| NEIGH_LAST_FULL.get_ptr(index)) else {
        return false;
    };
    // SAFETY: an array's value; the helper has no precondition.
    let (last, now) = unsafe { (*last, bpf_ktime_get_ns()) };
    last != 0 && now.wrapping_sub(last) < TABLE_FULL_NS
}

/// What a dropped packet says, read from kernel memory.
struct Datagram {
    family: u16,
    id: u16,
    is_answer: bool,
}

impl Datagram {
    #[inline(always)]
    fn of(skb: u64) -> Option<Self> {
        let head = read::<u64>(skb, OFF_SK_BUFF_HEAD.load())?;
        let network = read::<u16>(skb, OFF_SK_BUFF_NETWORK_HEADER.load())? as u32;
        let (family, udp) = match u16::from_be(read(skb, OFF_SK_BUFF_PROTOCOL.load())?) {
            ETH_P_IP => {
                let first = read::<u8>(head, network)?;
                if first >> 4 != 4 || read::<u8>(head, network + 9)? != IPPROTO_UDP {
                    return None;
                }
                (AF_INET, network + ((first & 0xf) as u32) * 4)
            }
            ETH_P_IPV6 => {
                if read::<u8>(head, network + 6)? != IPPROTO_UDP {
                    return None;
                }
                (AF_INET6, network + 40)
            }
            _ => return None,
        };
        let ports = read::<[u16; 2]>(head, udp)?;
        let dns = read::<[u16; 2]>(head, udp + 8)?;
        let is_answer = u16::from_be(dns[1]) & 0x8000 != 0;
        let server_port = u16::from_be(if is_answer { ports[0] } else { ports[1] });
        is_dns_port(server_port).then_some(Self {
            family,
            id: u16::from_be(dns[0]),
            is_answer,
        })
    }

    /// The lookup it belongs to. Wherever on the node a query dies, its `sk_buff` is the one that
    /// left the socket; addresses are reused at once, so the id must fit. A packet that still has
    /// its socket names the lookup itself.
    #[inline(always)]
    fn lookup(&self, skb: u64) -> Option<LookupKey> {
        if !self.is_answer
            && let Some(key) = PACKETS.get_ptr(skb)
        {
            // SAFETY: a map's value; a torn read names a lookup whose id does not fit.
            let key = unsafe { *key };
            if key.id == self.id {
                return Some(key);
            }
        }
        let sk = read::<u64>(skb, OFF_SK_BUFF_SK.load())?;
        let socket = read::<u64>(sk, OFF_SOCK_COOKIE.load())?;
        Some(LookupKey {
            socket,
            id: self.id,
            slot: 0,
            _pad: 0,
        })
    }
}
