//! Counts dropped packets: for the node by reason, whatever it means; by owner where it means failure.
//!
//! A program of its own beside the one that looks for lookups: each has its own stack.

use aya_ebpf::{
    EbpfContext as _, bindings::BPF_NOEXIST, helpers::bpf_ktime_get_ns, macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use tracer_common::{
    AF_INET, AF_INET6, ClientMap, Hook,
    dns::Cause,
    drops::{Dropped, Key, MAX_REASONS, Value},
    event,
    quota::ByAddress,
    tcp::{Behind, BehindKey},
};

use super::{ETH_P_IP, ETH_P_IPV6, IPPROTO_UDP};
use crate::{
    conntrack,
    dns::cgroup_id,
    layout::*,
    maps::{BEHIND, DROPS, DROPS_NODE, REASONS},
    packet::is_dns_port,
    quota, ring, tcp,
    util::{add, is_active, is_watched, net_cookie, read},
};

const IPPROTO_TCP: u8 = 6;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// SYN and ACK among the flags of a TCP header.
const SYN_ACK: u8 = 0x12;

/// As [`super::kfree_skb`].
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn count_drops(ctx: RawTracePointContext) -> i32 {
    if is_active() {
        let _ = try_count(&ctx); // nothing to count
    }
    0
}

#[inline(always)]
fn try_count(ctx: &RawTracePointContext) -> Option<()> {
    let reason = read::<u32>(ctx.as_ptr() as u64, ARG_DROP_REASON.load() * 8)?;
    let index = if reason < MAX_REASONS {
        reason
    } else {
        MAX_REASONS - 1
    };
    // SAFETY: array values; REASONS is written before the hook is attached.
    let meaning = unsafe { &*REASONS.get_ptr(index)? };
    if meaning.is_failure | meaning.is_unspecified == 0 && reason < MAX_REASONS {
        return None; // no drop at all
    }
    let skb: u64 = ctx.arg(0);
    if !super::net(skb)
        .and_then(|net| read(net, OFF_NET_NS_INUM.load()))
        .is_none_or(is_watched)
    {
        return None;
    }
    // SAFETY: a per-CPU array's value, added to atomically.
    add(unsafe { &mut *DROPS_NODE.get_ptr_mut(index)? }, 1);
    if meaning.is_failure == 0 {
        return None;
    }
    let mut packet = Packet::default();
    drops_packet(skb, &mut packet);
    let mut socket = read::<u64>(skb, OFF_SK_BUFF_SK.load()).unwrap_or_default();
    if ARG_DROP_SOCKET.load() != ABSENT {
        // Through memory, as the reason.
        let receiver = read::<u64>(ctx.as_ptr() as u64, ARG_DROP_SOCKET.load() * 8)?;
        if receiver != 0 {
            socket = receiver;
        }
    }
    let mut key = Key {
        reason: index as u16,
        ..Key::default()
    };
    let netns = drops_owner(skb, socket, &packet, &mut key);
    if packet.is_redirected != 0 && packet.protocol == IPPROTO_TCP {
        drops_remember(skb, &packet);
    }
    let is_told = meaning.ends_refusal != 0 && meaning.cause == Cause::NeighbourTableFull as u8;
    drops_count(skb, &key, &packet, netns, is_told as u32);
    Some(())
}

/// What a packet says; all 0 where it is neither IPv4 nor IPv6.
#[repr(C)]
#[derive(Default)]
pub struct Packet {
    source: [u32; 4],
    destination: [u32; 4],
    /// Who began the connection, where conntrack knows it, as long as `client_port` is not 0.
    client: [u32; 4],
    family: u16,
    source_port: u16,
    destination_port: u16,
    client_port: u16,
    protocol: u8,
    /// Is it an answer, by what it says?
    is_answer: u8,
    /// Is its destination translated?
    is_redirected: u8,
    /// Verifiers want all of it to have been written.
    _pad: u8,
}

/// Global: see [`crate::util`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn drops_packet(skb: u64, packet: *mut Packet) -> u64 {
    // SAFETY: a caller's.
    if let Some(packet) = unsafe { packet.as_mut() } {
        let _ = try_packet(skb, packet); // what was read stands
    }
    0
}

#[inline(always)]
fn try_packet(skb: u64, packet: &mut Packet) -> Option<()> {
    let head = read::<u64>(skb, OFF_SK_BUFF_HEAD.load())?;
    let outer = head + read::<u16>(skb, OFF_SK_BUFF_NETWORK_HEADER.load())? as u64;
    if !matches!(
        u16::from_be(read(skb, OFF_SK_BUFF_PROTOCOL.load())?),
        ETH_P_IP | ETH_P_IPV6
    ) {
        return None;
    }
    let inner = super::tunnelled(skb, head, outer);
    let network = inner.unwrap_or(outer);
    if read::<u8>(network, 0)? >> 4 == 4 {
        packet.family = AF_INET;
        packet.source[0] = read(network, 12)?;
        packet.destination[0] = read(network, 16)?;
        packet.protocol = read(network, 9)?;
    } else {
        packet.family = AF_INET6;
        packet.source = read(network, 8)?;
        packet.destination = read(network, 24)?;
    }
    // Known of every fragment, which takes it from the whole packet. Of what is in a tunnel nothing is known any more.
    let mut asked_port = 0;
    if inner.is_none()
        && let Some(origin) = conntrack::origin(skb, packet.family)
    {
        packet.client = origin.client.address;
        packet.client_port = origin.client.port;
        if origin.is_original {
            asked_port = origin.asked.port;
            // No bit of the connection says so where IPVS translates.
            let is_asked = conntrack::is_same(&origin.asked.address, &packet.destination);
            packet.is_redirected = !is_asked as u8;
        }
    }
    let transport = if packet.family == AF_INET {
        if u16::from_be(read(network, 6)?) & 0x1fff != 0 {
            return None; // a later fragment
        }
        network + ((read::<u8>(network, 0)? & 0xf) as u64) * 4
    } else {
        behind_extensions(network, packet)?
    };
    if packet.protocol != IPPROTO_TCP && packet.protocol != IPPROTO_UDP {
        return None;
    }
    packet.source_port = u16::from_be(read(transport, 0)?);
    packet.destination_port = u16::from_be(read(transport, 2)?);
    if asked_port != 0 && asked_port != packet.destination_port {
        packet.is_redirected = 1;
    }
    let is_answer = if packet.protocol == IPPROTO_TCP {
        read::<u8>(transport, 13)? & SYN_ACK == SYN_ACK
    } else {
        is_dns_port(packet.source_port) && !is_dns_port(packet.destination_port)
    };
    packet.is_answer = is_answer as u8;
    Some(())
}

/// Follows IPv6 extension headers (RFC 8200 4) to the transport header, a few of them.
#[inline(always)]
fn behind_extensions(network: u64, packet: &mut Packet) -> Option<u64> {
    packet.protocol = read(network, 6)?;
    let mut at = network + 40;
    let mut i = 0;
    while i < 4 {
        let len = match packet.protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => (read::<u8>(at, 1)? as u64 + 1) * 8,
            FRAGMENT => {
                if u16::from_be(read(at, 2)?) & 0xfff8 != 0 {
                    packet.protocol = read(at, 0)?;
                    return None; // a later fragment
                }
                8
            }
            _ => break,
        };
        packet.protocol = read(at, 0)?;
        at += len;
        i += 1;
    }
    Some(at)
}

/// Whose packet it is: fills the key and gives the namespace's inode. Global: as above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn drops_owner(skb: u64, socket: u64, packet: *const Packet, key: *mut Key) -> u32 {
    // SAFETY: a caller's.
    let (Some(packet), Some(key)) = (unsafe { packet.as_ref() }, unsafe { key.as_mut() }) else {
        return 0;
    };
    try_owner(skb, socket, packet, key).unwrap_or_default()
}

#[inline(always)]
fn try_owner(skb: u64, socket: u64, packet: &Packet, key: &mut Key) -> Option<u32> {
    let net: u64 = if socket != 0 {
        if tcp::is_whole(socket) {
            key.cgroup_id = cgroup_id(socket);
        }
        read(socket, OFF_SOCK_NET.load())?
    } else {
        key.family = packet.family;
        key.address = if packet.client_port != 0 {
            packet.client
        } else if packet.is_answer != 0 {
            packet.destination
        } else {
            packet.source
        };
        let device = read::<u64>(skb, OFF_SK_BUFF_DEV.load())?;
        read(device, OFF_NET_DEVICE_ND_NET.load())?
    };
    key.net_cookie = net_cookie(net)?;
    read(net, OFF_NET_NS_INUM.load())
}

/// Notes where the packet was to go: its connection's socket knows only whom it asked. Global: as
/// above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn drops_remember(skb: u64, packet: *const Packet) -> u64 {
    // SAFETY: a caller's.
    let Some(packet) = (unsafe { packet.as_ref() }) else {
        return 0;
    };
    if packet.destination_port == 0 {
        return 0; // a later fragment
    }
    let Some(origin) = conntrack::origin(skb, packet.family) else {
        return 0;
    };
    let key = BehindKey {
        client: origin.client.address,
        asked: origin.asked.address,
        family: packet.family,
        client_port: origin.client.port,
        asked_port: origin.asked.port,
        _pad: 0,
    };
    let behind = Behind {
        // SAFETY: the helper has no precondition.
        ktime_ns: unsafe { bpf_ktime_get_ns() },
        address: packet.destination,
        port: packet.destination_port,
        _pad: [0; 3],
    };
    let _ = BEHIND.insert(key, behind, 0); // full: the least recently used goes
    0
}

/// A refused neighbour entry (`is_told` is not 0) is told by the hook `neigh`. Global: as above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn drops_count(
    skb: u64,
    key: *const Key,
    packet: *const Packet,
    netns: u32,
    is_told: u32,
) -> u64 {
    // SAFETY: a caller's.
    if let (Some(key), Some(packet)) = (unsafe { key.as_ref() }, unsafe { packet.as_ref() }) {
        let _ = try_count_owner(skb, key, packet, netns, is_told == 0); // held back or lost, and counted so
    }
    0
}

#[inline(always)]
fn try_count_owner(skb: u64, key: &Key, packet: &Packet, netns: u32, tell: bool) -> Option<()> {
    // On the own stack: before 6.2 no other memory may be a key of a map.
    let key = &{ *key };
    let enters = || key.family == 0 || quota::enters(ByAddress::Drops, &key.address);
    if DROPS.get_ptr(key).is_none() && enters() {
        let fresh = Value {
            netns,
            ..Value::default()
        };
        // EEXIST: another CPU was faster, which is as good.
        let _ = DROPS.insert(key, fresh, BPF_NOEXIST as u64);
    }
    let value = match DROPS.get_ptr_mut(key) {
        Some(value) => value,
        None => {
            ring::count_full(ClientMap::Drops);
            let rest = Key {
                reason: key.reason,
                ..Key::default()
            };
            DROPS.get_ptr_mut(rest)?
        }
    };
    // SAFETY: entries are removed only long after their owner is gone.
    let value = unsafe { &mut *value };
    add(&mut value.dropped, 1);
    if !tell {
        return None;
    }
    // SAFETY: the helper has no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let mut entry = ring::reserve::<Dropped>(Hook::Drops, now_ns, &mut value.event_second)?;
    let record = entry.as_mut_ptr();
    let device = read::<u64>(skb, OFF_SK_BUFF_DEV.load())
        .and_then(|device| read(device, OFF_NET_DEVICE_NAME.load()));
    // SAFETY: the ring gave this room; every field is written before it is submitted.
    unsafe {
        (*record).header = event::Header {
            kind: event::KIND_DROP,
            version: event::VERSION,
            netns,
            ktime_ns: now_ns,
            net_cookie: key.net_cookie,
            cgroup_id: key.cgroup_id,
            // The current task may just have been interrupted: it decides nothing here.
            pid: 0,
            _pad: 0,
            comm: [0; 16],
        };
        (*record).key = *key;
        (*record).source = packet.source;
        (*record).destination = packet.destination;
        (*record).family = packet.family;
        (*record).source_port = packet.source_port;
        (*record).destination_port = packet.destination_port;
        (*record).protocol = packet.protocol;
        (*record)._pad = 0;
        (*record).device = device.unwrap_or_default();
    }
    entry.submit(0);
    Some(())
}
