//! The server's side: queries that reach a socket on a DNS port, and what the server makes of them.

use aya_ebpf::{EbpfContext as _, helpers::bpf_ktime_get_ns, programs::SkBuffContext};
use tracer_common::{
    ClientMap,
    dns::{AGE_MARGIN_NS, LookupKey, Outcome, Served, ServedKey, Server},
};

use super::{
    Socket,
    end::{client, node},
    message::Header,
    near::{SERVING, Taken, show},
    packets,
};
use crate::{
    conntrack,
    layout::{DNS_PENDING_PER_CLIENT, DNS_TIMEOUT_NS},
    packet::Udp,
    ring,
    util::{add, sub},
};

const EEXIST: i32 = -17;

/// The client is not on this node.
const NOBODYS: LookupKey = LookupKey {
    socket: 0,
    id: 0,
    slot: 0,
    port: 0,
    _pad: 0,
};

/// A query reaches a server's socket. Out of line: its stack is its own.
#[inline(never)]
pub fn received(ctx: &SkBuffContext, udp: &Udp, header: &Header) -> u64 {
    let _ = try_received(ctx, udp, header); // what cannot be read is not followed
    0
}

#[inline(always)]
fn try_received(ctx: &SkBuffContext, udp: &Udp, header: &Header) -> Option<()> {
    let socket = Socket::of(ctx)?;
    let key = ServedKey {
        net_cookie: socket.key.net_cookie,
        client: udp.address(ctx, false)?,
        server: Server {
            address: udp.address(ctx, true)?,
            port: udp.destination_port,
            family: udp.family,
        },
        client_port: udp.source_port,
        id: header.id,
    };
    let value = client(socket.key, socket.netns)?;
    let node = node()?;
    add(&mut value.counts.received, 1);
    add(&mut node.received, 1);
    // SAFETY: the helper has no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    if again(&key, now_ns) {
        return Some(());
    }
    let served = Served {
        key: socket.key,
        received_ns: now_ns,
        waiting: 1,
        lookup: packets::lookup(packets::address(ctx), header.id, false).unwrap_or(NOBODYS),
        _line: [0; 3],
    };
    let begun = match SERVING.take(&key) {
        Taken::Place(place) => {
            // SAFETY: an array's value, this program's alone.
            unsafe { (*place).value = served };
            show(place, &key, now_ns);
            Ok(())
        }
        // As below, but for a moment it cannot be found.
        Taken::Same => {
            if !again(&key, now_ns) {
                add(&mut value.counts.served_untracked, 1);
                add(&mut node.served_untracked, 1);
            }
            return Some(());
        }
        // As with lookups. This one is among them.
        Taken::No if value.counts.serving() > DNS_PENDING_PER_CLIENT.load() as i64 => {
            add(&mut value.counts.served_untracked, 1);
            add(&mut node.served_untracked, 1);
            return Some(());
        }
        Taken::No => SERVING.put_far(&key, &served),
    };
    match begun {
        Ok(()) => {}
        // The same query again, on another CPU at the same time.
        Err(EEXIST) if again(&key, now_ns) => {}
        Err(_) => {
            ring::count_full(ClientMap::Served);
            add(&mut value.counts.served_untracked, 1);
            add(&mut node.served_untracked, 1);
        }
    }
    Some(())
}

/// The same query again while the server is at it: it gets one more answer.
#[inline(always)]
fn again(key: &ServedKey, now_ns: u64) -> bool {
    let Some(served) = SERVING.find(key) else {
        return false;
    };
    // SAFETY: a map's value.
    let served = unsafe { &mut *served };
    served.received_ns = now_ns;
    add(&mut served.waiting, 1);
    true
}

/// An answer leaves a server's socket. Out of line: its stack is its own.
#[inline(never)]
pub fn answered(ctx: &SkBuffContext, udp: &Udp, header: &Header) -> u64 {
    let _ = try_answered(ctx, udp, header); // what cannot be read is not followed
    0
}

#[inline(always)]
fn try_answered(ctx: &SkBuffContext, udp: &Udp, header: &Header) -> Option<()> {
    let socket = Socket::of(ctx)?;
    let (client_end, server) = match conntrack::answering(ctx.as_ptr() as u64, udp.family) {
        Some(ends) => ends,
        None => (
            Server {
                address: udp.address(ctx, true)?,
                port: udp.destination_port,
                family: udp.family,
            },
            Server {
                address: udp.address(ctx, false)?,
                port: udp.source_port,
                family: udp.family,
            },
        ),
    };
    let key = ServedKey {
        net_cookie: socket.key.net_cookie,
        client: client_end.address,
        server,
        client_port: client_end.port,
        id: header.id,
    };
    // An answer to nothing received is none: the client will call it unmatched.
    let (served, taken_ns) = SERVING.find_taken(&key)?;
    // SAFETY: as in `again`.
    let served = unsafe { &mut *served };
    if served.lookup.socket != 0 {
        packets::note(packets::address(ctx), &served.lookup, true);
    }
    let value = client(served.key, socket.netns)?;
    let node = node()?;
    if served.waiting > 1 {
        sub(&mut served.waiting, 1);
    } else {
        if !SERVING.remove(&key, taken_ns) {
            return None; // whoever removes it counts it
        }
    }
    // black_box: LLVM checks one register and indexes with another.
    let outcome = core::hint::black_box(header.outcome() as usize);
    if outcome < Outcome::ALL.len() {
        add(&mut value.counts.served[outcome], 1);
        add(&mut node.served[outcome], 1);
    }
    Some(())
}

/// Ends what the server has let lie, and that took its place at that time: for the program `dns_age`.
#[inline(always)]
pub fn age(key: &ServedKey, served: &Served, taken_ns: u64, now_ns: u64) -> Option<()> {
    let over_ns = served.received_ns + DNS_TIMEOUT_NS.load() + AGE_MARGIN_NS;
    if now_ns < over_ns {
        return None;
    }
    let (whose, waiting) = (served.key, served.waiting);
    let value = client(whose, 0)?;
    let node = node()?;
    if !SERVING.remove(key, taken_ns) {
        return None;
    }
    add(&mut value.counts.served[Outcome::Timeout as usize], waiting);
    add(&mut node.served[Outcome::Timeout as usize], waiting);
    Some(())
}
