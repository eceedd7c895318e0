//! What conntrack knows of a packet: where it was sent before it was translated, and whether it was
//! refused for want of an entry.
//!
//! `sk_buff._nfct` points at a `struct nf_conn` with `enum ip_conntrack_info` in its low three bits
//! (include/linux/skbuff.h). It is the connection of the namespace that the packet is in now: it is
//! taken off on the way into another.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    helpers::{
        bpf_get_current_task,
        generated::{bpf_get_smp_processor_id, bpf_loop},
    },
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use tracer_common::{
    dns::{Detail, Server},
    drops::{Refusals, RefusalsKey, ThisCpu},
};

use crate::{
    layout::*,
    maps::{CONNTRACK_REFUSALS, POD_ADDRESSES, THIS_CPU},
    util::{net_cookie, read},
};

/// `IP_CT_ESTABLISHED`, `IP_CT_NEW`.
const ESTABLISHED: u64 = 0;
const NEW: u64 = 2;
/// `IP_CT_ESTABLISHED_REPLY`: from here on it is the reply direction (nf_conntrack_common.h).
const REPLY: u64 = 3;
/// `IP_CT_RELATED_REPLY`.
const RELATED_REPLY: u64 = 4;
/// `IPS_SRC_NAT`: the original direction's source is translated.
const SRC_NAT: u64 = 1 << 4;
/// `IPS_DST_NAT`: the original direction's destination is translated (nf_conntrack_common.h).
const DST_NAT: u64 = 1 << 5;

/// Gives the destination that a packet had when it left its socket, if it was translated since: DNAT
/// in OUTPUT comes before the hook, its reversal before the hook on the way in.
#[inline(always)]
pub fn asked(packet: u64, family: u16, server: &mut Server) -> bool {
    try_asked(packet, family, server).is_some()
}

#[inline(always)]
fn try_asked(packet: u64, family: u16, server: &mut Server) -> Option<()> {
    if OFF_SK_BUFF_NFCT.load() == ABSENT || OFF_NF_CONN_STATUS.load() == ABSENT {
        return None;
    }
    let nfct = read::<u64>(packet, OFF_SK_BUFF_NFCT.load())?;
    let (connection, info) = (nfct & !7, nfct & 7);
    if connection == 0 || info >= REPLY {
        return None;
    }
    if read::<u64>(connection, OFF_NF_CONN_STATUS.load())? & DST_NAT == 0 {
        return None;
    }
    // The tuple is all zero but for what is set: IPv4 has the first word.
    server.address = read(connection, OFF_NF_CONN_ORIGINAL_DESTINATION.load())?;
    server.port = u16::from_be(read(connection, OFF_NF_CONN_ORIGINAL_PORT.load())?);
    server.family = family;
    Some(())
}

/// Client and server of an answer that is translated on its way out, as the server knows them.
#[inline(always)]
pub fn answering(packet: u64, family: u16) -> Option<(Server, Server)> {
    if OFF_SK_BUFF_NFCT.load() == ABSENT || OFF_NF_CONN_STATUS.load() == ABSENT {
        return None;
    }
    let nfct = read::<u64>(packet, OFF_SK_BUFF_NFCT.load())?;
    let (connection, info) = (nfct & !7, nfct & 7);
    if connection == 0 || !matches!(info, REPLY | RELATED_REPLY) {
        return None;
    }
    if read::<u64>(connection, OFF_NF_CONN_STATUS.load())? & (SRC_NAT | DST_NAT) == 0 {
        return None;
    }
    let client = Server {
        address: read(connection, OFF_NF_CONN_REPLY_DESTINATION.load())?,
        port: u16::from_be(read(connection, OFF_NF_CONN_REPLY_DESTINATION_PORT.load())?),
        family,
    };
    let server = Server {
        address: read(connection, OFF_NF_CONN_REPLY_SOURCE.load())?,
        port: u16::from_be(read(connection, OFF_NF_CONN_REPLY_SOURCE_PORT.load())?),
        family,
    };
    Some((client, server))
}

/// Who is hit where a packet cannot get to this neighbour, where conntrack knows it: network byte order, IPv4 in the
/// first word. The address that it was sent from, before it was translated; of an answer whose last step is to who
/// asked, a pod of this node, who asked. An ICMP error about a connection (`IP_CT_RELATED`) is from elsewhere.
#[inline(always)]
pub fn sender(packet: u64, neighbour: &[u32; 4], source: &mut [u32; 4]) -> bool {
    if OFF_SK_BUFF_NFCT.load() == ABSENT || OFF_NF_CONN_STATUS.load() == ABSENT {
        return false;
    }
    let nfct = read::<u64>(packet, OFF_SK_BUFF_NFCT.load()).unwrap_or_default();
    let (connection, info) = (nfct & !7, nfct & 7);
    let address = match info {
        _ if connection == 0 => None,
        ESTABLISHED | NEW => read(connection, OFF_NF_CONN_ORIGINAL_SOURCE.load()),
        REPLY => {
            let asker = read::<[u32; 4]>(connection, OFF_NF_CONN_ORIGINAL_SOURCE.load());
            let is_pods = |asker: &[u32; 4]| POD_ADDRESSES.get_ptr(asker).is_some();
            if asker.is_some_and(|asker| is_same(&asker, neighbour) && is_pods(&asker)) {
                asker
            } else {
                read(connection, OFF_NF_CONN_REPLY_SOURCE.load())
            }
        }
        _ => None,
    };
    if let Some(address) = address {
        *source = address;
    }
    address.is_some()
}

/// Are two addresses the same?
#[inline(always)]
pub fn is_same(one: &[u32; 4], other: &[u32; 4]) -> bool {
    (one[0] ^ other[0]) | (one[1] ^ other[1]) | (one[2] ^ other[2]) | (one[3] ^ other[3]) == 0
}

/// Who began the connection that a packet belongs to, whichever way it goes, as it is known where
/// conntrack saw it first.
#[inline(always)]
pub fn origin(packet: u64, family: u16) -> Option<Origin> {
    if OFF_SK_BUFF_NFCT.load() == ABSENT || OFF_NF_CONN_STATUS.load() == ABSENT {
        return None;
    }
    let nfct = read::<u64>(packet, OFF_SK_BUFF_NFCT.load())?;
    let (connection, info) = (nfct & !7, nfct & 7);
    if connection == 0 {
        return None;
    }
    Some(Origin {
        client: Server {
            address: read(connection, OFF_NF_CONN_ORIGINAL_SOURCE.load())?,
            port: u16::from_be(read(connection, OFF_NF_CONN_ORIGINAL_SOURCE_PORT.load())?),
            family,
        },
        asked: Server {
            address: read(connection, OFF_NF_CONN_ORIGINAL_DESTINATION.load())?,
            port: u16::from_be(read(connection, OFF_NF_CONN_ORIGINAL_PORT.load())?),
            family,
        },
        is_original: info < REPLY,
    })
}

/// Who began a connection.
pub struct Origin {
    pub client: Server,
    /// Whom the client asked.
    pub asked: Server,
    /// Is the packet one of the client's?
    pub is_original: bool,
}

/// Is the packet the reply direction of a connection that conntrack follows? Where `struct nf_conn`
/// is not known, an answer from another address than the one asked is then taken for translated.
#[inline(always)]
pub fn may_be_translated(packet: u64) -> bool {
    if OFF_SK_BUFF_NFCT.load() == ABSENT || OFF_NF_CONN_STATUS.load() != ABSENT {
        return false;
    }
    let nfct = read::<u64>(packet, OFF_SK_BUFF_NFCT.load()).unwrap_or_default();
    nfct & !7 != 0 && matches!(nfct & 7, REPLY | RELATED_REPLY)
}

/// Why netfilter dropped a packet, where conntrack did it and no rule: its figures
/// (`struct ip_conntrack_stat`) grow on the CPU that drops the packet next. So every packet that
/// netfilter drops must be shown to this function.
#[inline(always)]
pub fn why_refused(net: u64) -> Option<Detail> {
    if OFF_NET_CT_STAT.load() == ABSENT {
        return None;
    }
    // SAFETY: a per-CPU array's value, written before the hook was attached.
    let cpu = unsafe { &*THIS_CPU.get_ptr(0)? };
    if cpu.ready == 0 {
        return None;
    }
    let key = refusals_key(net)?;
    let now = refusals(net, cpu)?;
    let before = match CONNTRACK_REFUSALS.get_ptr(key) {
        // SAFETY: a map's value; this CPU's.
        Some(before) => unsafe { *before },
        // A namespace that had none when the hook was attached, or did not exist.
        None => Refusals::default(),
    };
    let insert_failed = now.insert_failed != before.insert_failed;
    if !insert_failed && now.dropped == before.dropped {
        return None;
    }
    let _ = CONNTRACK_REFUSALS.insert(key, now, 0); // full: the least recently used goes
    // A lost race counts as both (nf_ct_resolve_clash).
    Some(if insert_failed {
        Detail::ConntrackInsertFailed
    } else {
        Detail::ConntrackTableFull
    })
}

#[inline(always)]
fn refusals_key(net: u64) -> Option<RefusalsKey> {
    Some(RefusalsKey {
        net_cookie: net_cookie(net)?,
        // SAFETY: the helper has no precondition.
        cpu: u64::from(unsafe { bpf_get_smp_processor_id() }),
    })
}

/// What conntrack has refused in a namespace on this CPU.
#[inline(always)]
fn refusals(net: u64, cpu: &ThisCpu) -> Option<Refusals> {
    let stat = read::<u64>(net, OFF_NET_CT_STAT.load())?;
    let stat = stat.wrapping_add(cpu.offset);
    Some(Refusals {
        dropped: read(stat, OFF_CONNTRACK_STAT_DROP.load())?,
        insert_failed: read(stat, OFF_CONNTRACK_STAT_INSERT_FAILED.load())?,
    })
}

/// Namespaces that one run may look at.
const MAX_NAMESPACES: u32 = 1 << 14;

/// Not attached: user space runs it on each CPU before it attaches `kfree_skb`, to note what
/// conntrack had refused until then.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn conntrack_begin(ctx: RawTracePointContext) -> i32 {
    let _ = ctx.as_ptr();
    let _ = try_begin(); // without, netfilter's drops have no detail
    0
}

#[inline(always)]
fn try_begin() -> Option<()> {
    // Where this CPU keeps its copy of per-CPU data, seen from data of our own: its address here
    // less the address that stands for it on all CPUs (`struct bpf_array.pptrs`).
    let cpu = THIS_CPU.get_ptr_mut(0)?;
    // SAFETY: a per-CPU array's value. Through memory the addresses become numbers.
    let (own, map) = unsafe {
        (&raw mut (*cpu).own).write_volatile(cpu as u64);
        (&raw mut (*cpu).map).write_volatile(&raw const THIS_CPU as u64);
        (
            (&raw const (*cpu).own).read_volatile(),
            (&raw const (*cpu).map).read_volatile(),
        )
    };
    let everywhere = read::<u64>(map, OFF_BPF_ARRAY_PPTRS.load())?;
    // SAFETY: the helper has no precondition.
    let task = unsafe { bpf_get_current_task() };
    let nsproxy = read::<u64>(task, OFF_TASK_NSPROXY.load())?;
    let mut walk = Namespaces {
        cpu: ThisCpu {
            offset: own.wrapping_sub(everywhere),
            ready: 1,
            own: 0,
            map: 0,
        },
        first: read(nsproxy, OFF_NSPROXY_NET_NS.load())?,
        net: 0,
    };
    walk.net = walk.first;
    let callback: unsafe extern "C" fn(u32, *mut c_void) -> i64 = step;
    // SAFETY: the helper (5.17) calls back with a pointer to `walk`.
    unsafe {
        bpf_loop(
            MAX_NAMESPACES,
            callback as *mut c_void,
            (&raw mut walk).cast(),
            0,
        );
        (&raw mut (*cpu).offset).write_volatile(walk.cpu.offset);
        (&raw mut (*cpu).ready).write_volatile(1);
    }
    Some(())
}

/// A walk through the kernel's list of namespaces.
struct Namespaces {
    cpu: ThisCpu,
    first: u64,
    net: u64,
}

unsafe extern "C" fn step(_index: u32, walk: *mut c_void) -> i64 {
    // SAFETY: `walk` is what bpf_loop was given.
    let walk = unsafe { &mut *walk.cast::<Namespaces>() };
    if let Some(refusals) = refusals(walk.net, &walk.cpu)
        && (refusals.dropped | refusals.insert_failed) != 0
        && let Some(key) = refusals_key(walk.net)
    {
        let _ = CONNTRACK_REFUSALS.insert(key, refusals, 0); // full: the least recently used goes
    }
    // The list's head is in no namespace; what is read there is no namespace's either.
    let Some(next) = read::<u64>(walk.net, OFF_NET_LIST.load()) else {
        return 1;
    };
    walk.net = next.wrapping_sub(OFF_NET_LIST.load() as u64);
    i64::from(walk.net == walk.first)
}
