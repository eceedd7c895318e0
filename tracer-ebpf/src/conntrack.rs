//! What conntrack knows of a packet: where it was sent before it was translated.
//!
//! `sk_buff._nfct` points at a `struct nf_conn` with `enum ip_conntrack_info` in its low three bits
//! (include/linux/skbuff.h). It is the connection of the namespace that the packet is in now: it is
//! taken off on the way into another.

use tracer_common::dns::Server;

use crate::{layout::*, util::read};

/// `IP_CT_ESTABLISHED_REPLY`: from here on it is the reply direction (nf_conntrack_common.h).
const REPLY: u64 = 3;
/// `IPS_DST_NAT`: the original direction's destination is translated (nf_conntrack_common.h).
const DST_NAT: u64 = 1 << 5;

/// The destination that a packet had when it left its socket, if it was translated since: DNAT in
/// OUTPUT comes before the hook, its reversal before the hook on the way in.
#[inline(always)]
pub fn asked(packet: u64, family: u16) -> Option<Server> {
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
    Some(Server {
        // The tuple is all zero but for what is set: IPv4 has the first word.
        address: read(connection, OFF_NF_CONN_ORIGINAL_DESTINATION.load())?,
        port: u16::from_be(read(connection, OFF_NF_CONN_ORIGINAL_PORT.load())?),
        family,
    })
}

/// Is the packet the reply direction of a connection that conntrack follows? Where `struct nf_conn`
/// is not known, an answer from another address than the one asked is then taken for translated.
#[inline(always)]
pub fn may_be_translated(packet: u64) -> bool {
    if OFF_SK_BUFF_NFCT.load() == ABSENT || OFF_NF_CONN_STATUS.load() != ABSENT {
        return false;
    }
    let nfct = read::<u64>(packet, OFF_SK_BUFF_NFCT.load()).unwrap_or_default();
    nfct & !7 != 0 && matches!(nfct & 7, 3 | 4)
}
