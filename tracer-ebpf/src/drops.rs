//! Hook `drops`: packets that the kernel dropped, with its reason, joined to the lookup they
//! belonged to; and datagrams lost in full receive buffers.
//!
//! Raw tracepoint `kfree_skb`, with a reason since 5.17 (include/trace/events/skb.h):
//! `TP_PROTO(struct sk_buff *skb, void *location, enum skb_drop_reason reason)`, and since 6.11 one
//! more `struct sock *rx_sk`, which may be NULL and is not used. User space takes the reason's
//! index from the prototype in BTF and the meaning of its numbers from the enum: both move. Before
//! 5.17 who freed the packet (`location`) and the refusal that waits on this CPU must do.

mod count;
mod datagram;

use aya_ebpf::{
    EbpfContext as _, bindings::BPF_NOEXIST, helpers::bpf_ktime_get_ns, macros::raw_tracepoint,
    maps::HashMap, programs::RawTracePointContext,
};
use tracer_common::{
    AF_INET, AF_INET6, ClientMap,
    dns::{Cause, Detail, Drop},
    drops::{MAX_REASONS, ReceiverKey, ReceiverValue, SAYS_NOTHING},
    family_index,
    neigh::{Target, WANTED_BY_KERNEL, WANTED_BY_POD, WANTED_BY_SOURCE},
};

use self::datagram::Datagram;
use crate::{
    conntrack,
    dns::{self, near::WAITING},
    layout::*,
    maps::{NEIGH_LAST_FULL, REASONS, RECEIVE_DROPS, RECEIVE_PORTS, UNSOLICITED},
    neigh::{self, Waiting},
    ring,
    util::{add, forget, is_active, is_watched, net_cookie, read},
};

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const IPPROTO_ICMPV6: u8 = 58;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_IPIP: u8 = 4;
/// IPv6 in whatever is around it.
const IPPROTO_IPV6: u8 = 41;
const IPPROTO_GRE: u8 = 47;
/// Port of IPsec in UDP (RFC 3948).
const IPSEC_NAT_TRAVERSAL: u16 = 4500;
const ND_SOLICITATION: u8 = 135;
/// Types of neighbour discovery (RFC 4861): from a router's solicitation to a redirect.
const ND_FIRST: u8 = 133;
const ND_LAST: u8 = 137;

/// How long after a refused neighbour entry a drop for want of one is put down to the full table.
/// They follow each other on one CPU; softirqs may come between. Nanoseconds.
const TABLE_FULL_NS: u64 = 1_000_000_000;

/// How long after a solicitation that found the table full the packets that wait for its answer are
/// put down to that. They are given up after three solicitations, one a second. Nanoseconds.
const UNSOLICITED_NS: u64 = 5_000_000_000;

#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn kfree_skb(ctx: RawTracePointContext) -> i32 {
    if is_active() {
        let _ = try_kfree_skb(&ctx); // a packet that cannot be read belongs to no lookup
    }
    0
}

#[inline(always)]
fn try_kfree_skb(ctx: &RawTracePointContext) -> Option<()> {
    let skb: u64 = ctx.arg(0);
    let has_reason = ARG_DROP_REASON.load() != ABSENT;
    let reason = if has_reason {
        // Through memory: the verifier wants fixed offsets into the arguments, and LLVM makes a
        // computed one of any choice between two.
        read::<u32>(ctx.as_ptr() as u64, ARG_DROP_REASON.load() * 8)?
    } else {
        MAX_REASONS
    };
    let index = if reason < MAX_REASONS {
        reason
    } else {
        MAX_REASONS - 1
    };
    // SAFETY: array values; REASONS is written before the hook is attached.
    let meaning = unsafe { &*REASONS.get_ptr(index)? };
    let mut was_refused = false;
    let mut source = [0; 4];
    if meaning.ends_refusal != 0
        && (has_reason || !was_netfilter(ctx.arg(1)))
        && let Some(mut waiting) = neigh::waiting()
    {
        let is_sure = meaning.cause == Cause::NeighbourTableFull as u8;
        let wanted_by = drops_wanted(skb, &mut waiting, &mut source, is_sure as u32) as u32;
        if wanted_by != NOT_WANTED {
            was_refused = neigh::settle(wanted_by, &source, &waiting, is_sure);
        }
    }
    let mut drop = Drop {
        reason: reason as u16,
        cause: meaning.cause,
        detail: if has_reason {
            Detail::None
        } else {
            Detail::NoReason
        } as u8,
    };
    if meaning.is_failure != 0 {
        if meaning.cause == Cause::Netfilter as u8
            && let Some(detail) = net(skb).and_then(conntrack::why_refused)
        {
            drop.detail = detail as u8;
        }
    } else if meaning.is_unspecified != 0 {
        // A BPF datapath frees without a reason too.
        drop.cause = if was_refused {
            Cause::NeighbourTableFull
        } else if was_neighbour(ctx.arg(1)) {
            Cause::NeighbourUnresolved
        } else if !has_reason && was_netfilter(ctx.arg(1)) {
            Cause::Netfilter
        } else if dns::packets::is_known(skb) {
            unspecified(skb)
        } else {
            return None; // most packets freed without a reason are no failure
        } as u8;
    } else {
        return None;
    }

    // All ways to here are one from here on.
    drop.reason = forget(drop.reason as u64, skb) as u16;
    drop.cause = forget(drop.cause as u64, skb) as u8;
    drop.detail = forget(drop.detail as u64, skb) as u8;
    let mut datagram = Datagram::of(skb)?;
    datagram.family = forget(datagram.family as u64, skb) as u16;
    datagram.is_answer = forget(datagram.is_answer as u64, skb) != 0;
    if datagram.is_answer
        && (meaning.is_unspecified != SAYS_NOTHING || !has_reason)
        && let Some(mark) = datagram.mark(skb)
        && dns::take_back(mark, datagram.id, drop)
    {
        return None;
    }
    if drop.cause == Cause::NeighbourTableFull as u8 && !table_was_full(datagram.family) {
        // No entry, but not for a full table: no memory, or the device is going away.
        drop.cause = Cause::Dropped as u8;
    } else if drop.cause == Cause::PortUnreachable as u8 && datagram.is_answer {
        // The client's own port: it has given up.
        drop.cause = Cause::Dropped as u8;
    } else if drop.cause == Cause::NeighbourUnresolved as u8 && was_unsolicited(skb, &datagram) {
        drop.cause = Cause::NeighbourTableFull as u8;
    }
    drop.cause = forget(drop.cause as u64, skb) as u8;
    let is_new = drop.cause == Cause::Netfilter as u8
        && !datagram.is_answer
        && Datagram::is_before_device(skb);
    let (mut key, found) = match datagram.by_packet(skb) {
        Some(key) if !is_new => (key, Found::Address),
        _ if drop.cause == Cause::Netfilter as u8 && datagram.never_left(skb) => {
            if !datagram.is_answer {
                (datagram.refused(skb)?, Found::Sockets)
            } else if let Some(key) = datagram.by_server(skb)? {
                (key, Found::Sockets)
            } else {
                (datagram.by_endpoint(skb)?, Found::Endpoint)
            }
        }
        _ => (datagram.by_endpoint(skb)?, Found::Endpoint),
    };
    let own = key.slot;
    let mut slot = 0;
    while slot < 2 {
        key.slot = slot;
        if !matches!(found, Found::Endpoint) && slot != own {
            slot += 1;
            continue;
        }
        if let Some(lookup) = WAITING.find(&key) {
            // SAFETY: a map's value; the fields written are no keys and no counters.
            let lookup = unsafe { &mut *lookup };
            // SAFETY: the helper has no precondition.
            let now_ns = unsafe { bpf_ktime_get_ns() };
            if lookup.started_ns != 0
                && lookup.answered_ns == 0
                && !lookup.expired(now_ns, DNS_TIMEOUT_NS.load())
                && match found {
                    Found::Sockets => true,
                    Found::Address => datagram.is_of(&key, lookup),
                    Found::Endpoint => datagram.asks_as(lookup),
                }
            {
                lookup.dropped(datagram.is_answer, drop);
            }
        }
        slot += 1;
    }
    Some(())
}

/// How a dropped packet's lookup was found.
enum Found {
    /// By the sockets at both ends, as it never left.
    Sockets,
    /// By the address of its `sk_buff`.
    Address,
    /// By what it says of the client.
    Endpoint,
}

/// `udp_fail_queue_rcv_skb(int rc, struct sock *sk, ..)` (include/trace/events/udp.h): once for each
/// datagram that a full receive buffer loses.
#[raw_tracepoint(tracepoint = "udp_fail_queue_rcv_skb")]
pub fn udp_fail_queue(ctx: RawTracePointContext) -> i32 {
    if is_active() {
        let _ = try_udp_fail_queue(ctx.arg(1)); // a socket that cannot be read has no owner
    }
    0
}

#[inline(always)]
fn try_udp_fail_queue(sk: u64) -> Option<()> {
    let net = read::<u64>(sk, OFF_SOCK_NET.load())?;
    let netns = read(net, OFF_NET_NS_INUM.load())?;
    if !is_watched(netns) {
        return None;
    }
    let mut key = ReceiverKey {
        cgroup_id: dns::cgroup_id(sk),
        net_cookie: net_cookie(net)?,
        port: 0,
        _pad: [0; 3],
    };
    let Some(total) = receiver(&RECEIVE_DROPS, &key, netns) else {
        ring::count_full(ClientMap::ReceiveDrops);
        let rest = RECEIVE_DROPS.get_ptr_mut(ReceiverKey::default())?;
        // SAFETY: the rest key stays. Its ports are nobody's.
        add(unsafe { &mut (*rest).dropped }, 1);
        return Some(());
    };
    // SAFETY: entries are removed only long after their owner is gone.
    let total = unsafe { &mut *total };
    add(&mut total.dropped, 1);
    key.port = read(sk, OFF_SOCK_NUM.load())?;
    match receiver(&RECEIVE_PORTS, &key, netns) {
        // SAFETY: as above.
        Some(of_port) => add(unsafe { &mut (*of_port).dropped }, 1),
        None => {
            ring::count_full(ClientMap::ReceivePorts);
            add(&mut total.portless, 1);
        }
    }
    Some(())
}

/// The counters of a receiver, if there is room for any.
#[inline(always)]
fn receiver(
    map: &HashMap<ReceiverKey, ReceiverValue>,
    key: &ReceiverKey,
    netns: u32,
) -> Option<*mut ReceiverValue> {
    if let Some(value) = map.get_ptr_mut(key) {
        return Some(value);
    }
    let fresh = ReceiverValue {
        netns,
        ..ReceiverValue::default()
    };
    // EEXIST: another CPU was faster, which is as good.
    let _ = map.insert(key, fresh, BPF_NOEXIST as u64);
    map.get_ptr_mut(key)
}

/// Was the packet freed because a neighbour did not answer? IPv4 says so in the reason, where there are reasons; IPv6
/// frees without one, in ndisc_error_report(), which may be inlined into neigh_invalidate().
#[inline(always)]
fn was_neighbour(location: u64) -> bool {
    let within = |start: u64, end: u64| location >= start && location < end;
    within(NEIGH_INVALIDATE_START.load(), NEIGH_INVALIDATE_END.load())
        || within(NDISC_ERROR_START.load(), NDISC_ERROR_END.load())
        || within(ARP_ERROR_START.load(), ARP_ERROR_END.load())
}

/// Was the packet freed because netfilter refused it? For kernels that do not say so in the reason.
#[inline(always)]
fn was_netfilter(location: u64) -> bool {
    location >= NF_HOOK_SLOW_START.load() && location < NF_HOOK_SLOW_END.load()
}

/// What a packet freed without a reason died of.
#[inline(always)]
fn unspecified(skb: u64) -> Cause {
    // Routes of the kinds unreachable, prohibit and blackhole carry an error.
    let error = route(skb).and_then(|route| read::<u16>(route, OFF_DST_ENTRY_ERROR.load()));
    if error.is_some_and(|error| error != 0) {
        return Cause::NoRoute;
    }
    Cause::Dropped
}

/// Instead of who wanted an entry: the packet did not die for want of it.
const NOT_WANTED: u32 = u32::MAX;

/// Who wanted the neighbour entry that this packet dies for. `source` becomes that of a forwarded packet. `is_sure`: as
/// for [`neigh::settle`]. Global: see [`crate::util`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn drops_wanted(
    skb: u64,
    waiting: *mut Waiting,
    source: *mut [u32; 4],
    is_sure: u32,
) -> u64 {
    // SAFETY: a caller's.
    let (Some(waiting), Some(source)) = (unsafe { waiting.as_mut() }, unsafe { source.as_mut() })
    else {
        return NOT_WANTED as u64;
    };
    wanted(skb, waiting, source, is_sure != 0).unwrap_or(NOT_WANTED) as u64
}

/// `None` if the packet is of another family than the entry, or of another device.
#[inline(always)]
fn wanted(skb: u64, waiting: &mut Waiting, source: &mut [u32; 4], is_sure: bool) -> Option<u32> {
    let device = read::<u64>(skb, OFF_SK_BUFF_DEV.load())?;
    if !is_sure
        && (read(device, OFF_NET_DEVICE_IFINDEX.load()) != Some(waiting.ifindex)
            || device_net_cookie(skb) != Some(waiting.net_cookie))
    {
        return None;
    }
    let family = match u16::from_be(read(skb, OFF_SK_BUFF_PROTOCOL.load())?) {
        ETH_P_IP => AF_INET,
        ETH_P_IPV6 => AF_INET6,
        _ => return None,
    };
    if family as u32 != waiting.family {
        return None;
    }
    let head = read::<u64>(skb, OFF_SK_BUFF_HEAD.load())?;
    let network = read::<u16>(skb, OFF_SK_BUFF_NETWORK_HEADER.load())? as u32;
    let socket = read::<u64>(skb, OFF_SK_BUFF_SK.load())?;
    if family == AF_INET6 && read::<u8>(head, network + 6)? == IPPROTO_ICMPV6 {
        let kind = read::<u8>(head, network + 40)?;
        if kind == ND_SOLICITATION && socket != 0 {
            let _ = unsolicited(skb, read(head, network + 48)?); // nobody waits for it then
        }
        // What comes from outside, such as a router's advertisement, the node takes in for itself.
        if matches!(kind, ND_FIRST..=ND_LAST) {
            return Some(WANTED_BY_KERNEL);
        }
    }
    if socket != 0 {
        // A packet keeps its socket on its way out of the pod where a BPF datapath passes by the node's IP.
        let net = read::<u64>(socket, OFF_SOCK_NET.load())?;
        if net_cookie(net) != Some(waiting.net_cookie) {
            waiting.whose = net;
        }
        return Some(WANTED_BY_POD);
    }
    waiting.source_family = family as u32;
    let header = head + network as u64;
    if let Some(inner) = tunnelled(skb, head, header) {
        // What conntrack knows by now is of the tunnel: from node to node.
        waiting.source_family = source_of(inner, source)? as u32;
    } else if !conntrack::sender(skb, &waiting.destination, source) {
        // The entry is looked for behind POSTROUTING: what the packet says may be the node's address by now.
        source_of(header, source)?;
    }
    Some(WANTED_BY_SOURCE)
}

/// Source and family of what an IP header at an address in kernel memory says.
#[inline(always)]
fn source_of(header: u64, source: &mut [u32; 4]) -> Option<u16> {
    if read::<u8>(header, 0)? >> 4 == 4 {
        source[0] = read(header, 12)?;
        Some(AF_INET)
    } else {
        *source = read(header, 8)?;
        Some(AF_INET6)
    }
}

/// Where the header of the packet is that this one carries, wrapped by this node for a tunnel (VXLAN, Geneve, IPIP,
/// GRE): an address in kernel memory. `network` is that of its own. Nothing is known of what came wrapped from elsewhere.
#[inline(always)]
fn tunnelled(skb: u64, head: u64, network: u64) -> Option<u64> {
    let (protocol, least) = match read::<u8>(network, 0)? >> 4 {
        4 => (read::<u8>(network, 9)?, 20),
        6 => (read::<u8>(network, 6)?, 40),
        _ => return None,
    };
    if !matches!(
        protocol,
        IPPROTO_UDP | IPPROTO_IPIP | IPPROTO_IPV6 | IPPROTO_GRE
    ) {
        return None;
    }
    // What IPsec wraps is marked alike, and cannot be read.
    if protocol == IPPROTO_UDP
        && u16::from_be(read::<u16>(network + least, 2)?) == IPSEC_NAT_TRAVERSAL
    {
        return None;
    }
    // 0 where nothing is inside; where it has been taken out, it is the packet's own.
    let inner = head + read::<u16>(skb, OFF_SK_BUFF_INNER_NETWORK_HEADER.load())? as u64;
    let end = head + read::<u32>(skb, OFF_SK_BUFF_TAIL.load())? as u64;
    if inner < network + least || inner + 20 > end {
        return None;
    }
    let is_ip = matches!(read::<u8>(inner, 0)? >> 4, 4 | 6);
    is_ip.then_some(inner)
}

/// The namespace that the packet is in: its device's, or its socket's where it has no device yet.
#[inline(always)]
fn net(skb: u64) -> Option<u64> {
    match read::<u64>(skb, OFF_SK_BUFF_DEV.load())? {
        0 => read(read(skb, OFF_SK_BUFF_SK.load())?, OFF_SOCK_NET.load()),
        device => read(device, OFF_NET_DEVICE_ND_NET.load()),
    }
}

/// The packet's route: a `struct dst_entry`, the beginning of a `struct rt6_info` for IPv6.
#[inline(always)]
fn route(skb: u64) -> Option<u64> {
    // The low two bits are flags (include/linux/skbuff.h, SKB_DST_PTRMASK).
    Some(read::<u64>(skb, OFF_SK_BUFF_DST.load())? & !3)
}

/// Cookie of the namespace of the packet's device.
#[inline(always)]
fn device_net_cookie(skb: u64) -> Option<u64> {
    let device = read::<u64>(skb, OFF_SK_BUFF_DEV.load())?;
    let net = read::<u64>(device, OFF_NET_DEVICE_ND_NET.load())?;
    net_cookie(net)
}

/// Remembers that the solicitation of `address` found the table full.
#[inline(always)]
fn unsolicited(skb: u64, address: [u32; 4]) -> Option<()> {
    let target = Target {
        net_cookie: device_net_cookie(skb)?,
        address,
    };
    // SAFETY: the helper has no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let _ = UNSOLICITED.insert(target, now_ns, 0); // full: the least recently used goes
    Some(())
}

/// Did the solicitation of this packet's next hop find the table full?
#[inline(always)]
fn was_unsolicited(skb: u64, datagram: &Datagram) -> bool {
    if datagram.family != AF_INET6 {
        return false;
    }
    let last = || {
        let gateway = read::<[u32; 4]>(route(skb)?, OFF_RT6_INFO_GATEWAY.load())?;
        let address = if gateway[0] | gateway[1] | gateway[2] | gateway[3] == 0 {
            datagram.address(true)?
        } else {
            gateway
        };
        let target = Target {
            net_cookie: device_net_cookie(skb)?,
            address,
        };
        // SAFETY: a map's value.
        UNSOLICITED.get_ptr(target).map(|last| unsafe { *last })
    };
    // SAFETY: the helper has no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    last().is_some_and(|last| now_ns.wrapping_sub(last) < UNSOLICITED_NS)
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
