//! Hook `dns`: lookups over UDP, followed from the client's query to the answer or the deadline.
//!
//! cgroup_skb at the root of cgroup2 sees each packet once at each socket's end, on the way out
//! before the neighbour is resolved: a query that dies of a full neighbour table is seen here and
//! by no tap on a device. All counting is done here; user space only runs `dns_age` now and then.

mod end;
pub mod endpoints;
mod lookups;
mod message;
pub mod near;
pub mod packets;
mod refused;
mod served;
mod unsent;

use aya_ebpf::{
    EbpfContext as _,
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_get_socket_cookie, bpf_skb_cgroup_id, bpf_skb_load_bytes},
    },
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use tracer_common::dns::{Answered, Endpoint, Key, KnownSocket, LATE_NS, LookupKey, Server};

pub use self::{
    end::take_back,
    message::Words,
    refused::{FROM_PACKET, Refused, cgroup_id, refused},
};
use self::{
    end::{client, count_arrived, end_answered, node},
    lookups::Query,
    message::{HEADER, Header, bounded_len},
    near::WAITING,
};
use crate::{
    conntrack,
    layout::*,
    maps::{ANSWERED, EXPIRED, SOCKETS},
    packet::{self, Udp},
    util::{add, is_active, is_watched, is_watched_net, net_cookie, read},
};

#[cgroup_skb(egress)]
pub fn dns_egress(ctx: SkBuffContext) -> i32 {
    if let Some(udp) = packet::datagram(&ctx) {
        let _ = leaves(&ctx, &udp); // what cannot be read is no DNS
    }
    1 // pass, always
}

#[cgroup_skb(ingress)]
pub fn dns_ingress(ctx: SkBuffContext) -> i32 {
    if let Some(udp) = packet::datagram(&ctx) {
        let _ = arrives(&ctx, &udp); // what cannot be read is no DNS
    }
    1 // pass, always
}

#[inline(always)]
fn leaves(ctx: &SkBuffContext, udp: &Udp) -> Option<()> {
    let from_server = packet::is_dns_port(udp.source_port);
    if from_server && is_active() {
        let header = Header::load(ctx, udp)?;
        if header.is_response() {
            served::answered(ctx, udp, &header);
            return Some(());
        }
    }
    if !packet::is_dns_port(udp.destination_port) && is_as_connected(ctx, udp) {
        return None; // most of what is no DNS
    }
    let mut query = Query::default();
    // A redirected query goes to any port; an answer is translated back before this hook.
    let redirected = conntrack::asked(ctx.as_ptr() as u64, udp.family, &mut query.server);
    let to_server = packet::is_dns_port(udp.destination_port)
        || (redirected && packet::is_dns_port(query.server.port));
    if !to_server || !is_active() {
        return None;
    }
    let header = Header::load(ctx, udp)?;
    if header.is_response() {
        return None;
    }
    if !redirected {
        query.server.address = udp.address(ctx, true)?;
        query.server.port = udp.destination_port;
        query.server.family = udp.family;
    }
    query.id = header.id;
    query.question = header.question(ctx, udp);
    // SAFETY: the verifier knows the context's fields.
    query.segments = unsafe { (*ctx.skb.skb).gso_segs };
    ask(ctx, udp, &query);
    Some(())
}

/// Does the packet go to the very port that its socket is connected to? Then nobody has translated it.
#[inline(always)]
fn is_as_connected(ctx: &SkBuffContext, udp: &Udp) -> bool {
    // SAFETY: the verifier knows the context's fields.
    unsafe {
        let common = (*ctx.skb.skb).__bindgen_anon_2.sk;
        // Two bytes, which kernels before 5.18 take for a part of four.
        !common.is_null() && u16::from_be((*common).dst_port) == udp.destination_port
    }
}

#[inline(always)]
fn arrives(ctx: &SkBuffContext, udp: &Udp) -> Option<()> {
    let to_server = packet::is_dns_port(udp.destination_port);
    let from_server = packet::is_dns_port(udp.source_port);
    if (!to_server && !from_server) || !is_active() {
        return None;
    }
    let header = Header::load(ctx, udp)?;
    if header.is_response() {
        return if from_server {
            answer(ctx, udp, &header)
        } else {
            None
        };
    }
    if to_server {
        served::received(ctx, udp, &header);
    }
    Some(())
}

/// The socket at this end of the packet.
pub struct Socket {
    pub key: Key,
    /// Inode of its namespace.
    pub netns: u32,
    /// 0 where it has none yet.
    pub cookie: u64,
    /// Address of its `struct sock`.
    pub sk: u64,
    /// Its own, host byte order.
    pub port: u16,
}

/// `SOCK_DGRAM` (include/linux/net.h).
const SOCK_DGRAM: u16 = 2;

/// Is it no raw socket? Those get a copy of what another is meant to get. Out of line: its stack is its own.
#[inline(never)]
fn is_datagram(sk: u64) -> bool {
    read(sk, OFF_SOCK_TYPE.load()) == Some(SOCK_DGRAM)
}

impl Socket {
    /// Stands for a socket that has no cookie: where it is, with its port in the low bits, for the memory
    /// is another socket's soon, with another port.
    #[inline(always)]
    fn stand_in(&self) -> u64 {
        self.sk ^ self.port as u64
    }

    /// None for a raw socket: those get a copy of what another is meant to get.
    #[inline(always)]
    fn of(ctx: &SkBuffContext) -> Option<Self> {
        // SAFETY: the verifier knows the context's fields; the helper takes the context.
        let (port, cookie) = unsafe {
            let common = (*ctx.skb.skb).__bindgen_anon_2.sk;
            if common.is_null() {
                return None;
            }
            (
                (*common).src_port,
                bpf_get_socket_cookie(ctx.skb.skb.cast()),
            )
        };
        let mut socket = Self {
            key: Key::default(),
            netns: 0,
            cookie,
            sk: 0,
            port: port as u16,
        };
        (identify(ctx, &mut socket) != 0).then_some(socket)
    }
}

/// Says whose the socket with that cookie is. What is once known of one is remembered: that saves each packet six
/// reads of the kernel's memory and calls of helpers. 0 where it is not followed. Out of line: its stack is its own.
#[inline(never)]
fn identify(ctx: &SkBuffContext, socket: &mut Socket) -> u64 {
    u64::from(try_identify(ctx, socket).is_some())
}

#[inline(always)]
fn try_identify(ctx: &SkBuffContext, socket: &mut Socket) -> Option<()> {
    if socket.cookie == 0 {
        return None; // no socket of its own
    }
    let place = SOCKETS.get_ptr_mut(KnownSocket::place(socket.cookie))?;
    // SAFETY: an array's value; a copy that was made while another CPU wrote it shows by its sum.
    let known = unsafe { *place };
    if known.is_of(socket.cookie, BUILD.load()) && is_watched(known.netns) {
        socket.key = known.key;
        socket.netns = known.netns;
        socket.sk = known.sk;
        return Some(());
    }
    let sk = read::<u64>(ctx.as_ptr() as u64, OFF_SK_BUFF_SK.load())?;
    let net = read::<u64>(sk, OFF_SOCK_NET.load())?;
    let kind = read::<u16>(sk, OFF_SOCK_TYPE.load())?;
    if kind != SOCK_DGRAM || !is_watched_net(net) {
        return None;
    }
    socket.key = Key {
        // SAFETY: the helper takes the context.
        cgroup_id: unsafe { bpf_skb_cgroup_id(ctx.skb.skb) },
        net_cookie: net_cookie(net)?,
    };
    socket.netns = read(net, OFF_NET_NS_INUM.load())?;
    socket.sk = sk;
    let known = KnownSocket::new(socket.cookie, sk, socket.key, socket.netns, BUILD.load());
    // SAFETY: an array's value.
    unsafe { *place = known };
    Some(())
}

/// A query leaves a socket. Out of line: the question's hash is made in a frame beside this one, not
/// on top.
#[inline(never)]
fn ask(ctx: &SkBuffContext, udp: &Udp, query: &Query) -> u64 {
    let Some(socket) = Socket::of(ctx) else {
        return 0;
    };
    let endpoint = endpoint(ctx, udp, query.id, socket.key.net_cookie);
    let key = lookups::follow::<true>(&socket, query, endpoint, |question| {
        let start = udp.payload() + HEADER;
        let len = bounded_len(start, ctx.len());
        if len > 0 {
            // SAFETY: the field has room for QUESTION_LEN bytes, and `len` is no more.
            unsafe {
                bpf_skb_load_bytes(ctx.skb.skb.cast(), start, question.as_mut_ptr().cast(), len)
            };
        }
        len
    });
    if let Some(key) = key {
        packets::note(packets::address(ctx), &key, false);
        if endpoint != 0 {
            endpoints::note(endpoint, udp.source_port, &key);
        }
    }
    0
}

/// Stands for what the query's packet says of the client; 0 where it says nothing. Out of line: its stack is its
/// own.
#[inline(never)]
fn endpoint(ctx: &SkBuffContext, udp: &Udp, id: u16, net_cookie: u64) -> u64 {
    let Some(address) = udp.address(ctx, false) else {
        return 0;
    };
    Endpoint {
        net_cookie: if Endpoint::is_loopback(udp.family, &address) {
            net_cookie
        } else {
            0
        },
        address,
        port: udp.source_port,
        id,
    }
    .hash()
}

/// An answer reaches a socket.
#[inline(always)]
fn answer(ctx: &SkBuffContext, udp: &Udp, header: &Header) -> Option<()> {
    count_arrived();
    let question = header.question(ctx, udp);
    take(ctx, udp, header, question);
    Some(())
}

/// Out of line, as `ask`.
#[inline(never)]
fn take(ctx: &SkBuffContext, udp: &Udp, header: &Header, question: u64) -> u64 {
    let _ = try_take(ctx, udp, header, question); // what cannot be read is no answer
    0
}

#[inline(always)]
fn try_take(ctx: &SkBuffContext, udp: &Udp, header: &Header, question: u64) -> Option<()> {
    let socket = Socket::of(ctx)?;
    let packet = ctx.as_ptr() as u64;
    let server = Server {
        address: udp.address(ctx, false)?,
        port: udp.source_port,
        family: udp.family,
    };
    // SAFETY: the helper has no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let mut key = LookupKey {
        socket: socket.cookie,
        id: header.id,
        slot: 0,
        port: udp.destination_port,
        _pad: 0,
    };
    // A lookup that is over may not have been taken away yet, in either place: the one that lives
    // goes first.
    let mut over = None;
    let mut slot = 0;
    while slot < 2 {
        key.slot = slot;
        if let Some(lookup) = WAITING.find(&key) {
            // SAFETY: as in `lookups::follow`.
            let lookup = unsafe { &mut *lookup };
            // Some servers answer FORMERR without the question.
            let fits = lookup.started_ns != 0
                && (header.questions == 0 || lookup.question_hash == question)
                && (lookup.was_asked(&server) || conntrack::may_be_translated(packet));
            if lookup.answered_ns != 0 {
                // Answered before; this one is to nothing asked, unless it fits the other slot.
                end_answered(&key, lookup);
            } else if fits && !lookup.expired(now_ns, DNS_TIMEOUT_NS.load()) {
                // It counts when it has not been dropped behind this hook: see `count_arrived`.
                lookup.outcome = header.outcome() as u8;
                lookup.answered_ns = now_ns;
                // SAFETY: a per-CPU array's value; answers come in softirqs, which do not
                // interrupt each other.
                let answered = unsafe { &mut *ANSWERED.get_ptr_mut(0)? };
                answered.key = key;
                answered.packet = Answered::mark(packets::address(ctx), &server, key.port);
                return Some(());
            } else if fits && lookup.late == 0 {
                over = Some(lookup);
            }
        }
        slot += 1;
    }
    if let Some(lookup) = over {
        lookup.late = 1;
        return late(&socket);
    }
    key.slot = 0;
    if let Some(expired) = EXPIRED.get_ptr(key) {
        // SAFETY: a map's value; torn reads of an evicted entry would make one answer unmatched.
        let expired = unsafe { *expired };
        let fits = (header.questions == 0 || expired.question_hash == question)
            && now_ns < expired.deadline_ns + LATE_NS;
        if fits && EXPIRED.remove(key).is_ok() {
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
