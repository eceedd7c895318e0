//! Queries that the hook on the way out never sees: netfilter refused them in OUTPUT or POSTROUTING,
//! which are before it (the application gets EPERM), or they never became a packet.

use core::ffi::c_void;

use aya_ebpf::helpers::{
    bpf_ktime_get_ns,
    generated::{
        bpf_probe_read_kernel as probe_read_kernel, bpf_probe_read_user as probe_read_user,
    },
};
use tracer_common::dns::{Key, LookupKey, QUESTION_LEN, Server};

use super::{
    Socket, is_datagram,
    lookups::{self, Query},
    message,
};
use crate::{
    layout::*,
    maps::{QUESTION, REFUSED_QUERY},
    util::{net_cookie, read},
};

/// The query is in a dropped packet.
pub const FROM_PACKET: u32 = 0;
/// The query is in the memory of an application that called `udp_sendmsg()`.
pub const FROM_SEND: u32 = 1;
/// The same with `udpv6_sendmsg()`.
pub const FROM_SEND6: u32 = 2;

/// A query that never left.
pub struct Refused {
    /// Address of the socket that sent it.
    pub sk: u64,
    pub id: u16,
    pub server: Server,
    /// Does it hold a question?
    pub has_question: bool,
    /// Where the question begins, an address.
    pub start: u64,
    /// Bytes from there to the end of the datagram.
    pub len: u32,
}

/// One query, and one lookup unless the same is asked already. Gives the lookup.
///
/// `PLACE` says where the query is: one of the constants above.
#[inline(always)]
pub fn refused<const PLACE: u32>(refused: &Refused) -> Option<LookupKey> {
    let mut key = LookupKey::default();
    (follow::<PLACE>(refused, &mut key) != 0).then_some(key)
}

/// Out of line: its stack is its own. 0 where there is no lookup.
#[inline(never)]
fn follow<const PLACE: u32>(refused: &Refused, key: &mut LookupKey) -> u64 {
    match try_follow::<PLACE>(refused) {
        Some(followed) => {
            *key = followed;
            1
        }
        None => 0,
    }
}

#[inline(always)]
fn try_follow<const PLACE: u32>(refused: &Refused) -> Option<LookupKey> {
    if !is_datagram(refused.sk) {
        return None;
    }
    let net = read::<u64>(refused.sk, OFF_SOCK_NET.load())?;
    let socket = Socket {
        key: Key {
            cgroup_id: cgroup_id(refused.sk),
            net_cookie: net_cookie(net)?,
        },
        netns: read(net, OFF_NET_NS_INUM.load())?,
        cookie: read(refused.sk, OFF_SOCK_COOKIE.load())?,
        sk: refused.sk,
        port: read(refused.sk, OFF_SOCK_NUM.load())?,
    };
    // SAFETY: a per-CPU array's value, of one program each. The kernel does not enter a tracing
    // program twice on a CPU.
    let words = unsafe { &mut *QUESTION.get_ptr_mut(PLACE)? };
    *words = [0; message::QUESTION_WORDS];
    let len = message::bounded_len(0, refused.len);
    let mut question = 0;
    if refused.has_question && len > 0 {
        let (to, from) = (words.as_mut_ptr().cast(), refused.start as *const c_void);
        // SAFETY: `words` has room for QUESTION_LEN bytes, and `len` is no more.
        let read = unsafe {
            if PLACE == FROM_PACKET {
                probe_read_kernel(to, len, from)
            } else {
                probe_read_user(to, len, from)
            }
        };
        if read == 0 {
            question = message::dns_hash(words, len);
        }
    }
    let query = Query {
        id: refused.id,
        server: refused.server,
        question,
        segments: 1,
    };
    if let Some(last) = REFUSED_QUERY.get_ptr_mut(0) {
        // SAFETY: an array's value; the helper has no precondition.
        unsafe { *last = bpf_ktime_get_ns() };
    }
    lookups::follow::<false>(&socket, &query, 0, |to| {
        // SAFETY: `to` has room for QUESTION_LEN bytes, and so has `words`.
        unsafe {
            probe_read_kernel(
                to.as_mut_ptr().cast(),
                QUESTION_LEN as u32,
                words.as_ptr().cast(),
            )
        };
        len
    })
}

/// The root's id in cgroup2.
const ROOT: u64 = 1;

/// cgroup2 id of a socket's owner. Before 5.15 a word with a low bit set is no pointer, but what the controllers of
/// cgroup1 keep there; it stands for the root, as no pointer does (include/linux/cgroup-defs.h, sock_cgroup_ptr).
#[inline(always)]
pub fn cgroup_id(sk: u64) -> u64 {
    read::<u64>(sk, OFF_SOCK_CGROUP.load())
        .filter(|cgroup| cgroup & 3 == 0)
        .and_then(|cgroup| read::<u64>(cgroup, OFF_CGROUP_KN.load()))
        .and_then(|node| read(node, OFF_KERNFS_NODE_ID.load()))
        .unwrap_or(ROOT)
}
