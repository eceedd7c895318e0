//! Where connections are counted: by client, for the node, by destination.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use tracer_common::{
    AF_INET, ClientMap, Hook, event,
    peers::{self, Kind},
    quota,
    tcp::{
        AttemptsKey, AttemptsValue, BehindKey, Connecting, Counts, Destination, DestinationValue,
        Ends, Failure, Key, NEW_DESTINATIONS, NEW_DESTINATIONS_NS, Outcome, REDIRECTED_NS, Value,
    },
};

use super::{NEW, ends_of, has_sent, owner, silence};
use crate::{
    conntrack,
    layout::*,
    maps::{ATTEMPTS, BEHIND, DESTINATIONS, TABLES, TCP, TCP_NODE},
    peer, ring,
    util::{add, read},
};

/// How long after its drop a packet may say where the connection was redirected to. Nanoseconds: longer
/// than the kernel tries to connect by default (tcp_syn_retries 6: 127 s).
const BEHIND_NS: u64 = 150_000_000_000;

/// What the other end of a connection over the loopback device says it takes (MTU 65,536; `ip_default_advmss` of
/// net/ipv4/route.c, `ip6_default_advmss` of net/ipv6/route.c). InfiniBand's largest is 65,480 and 65,460.
const LOOPBACK_MSS_V4: u16 = 65_495;
/// As [`LOOPBACK_MSS_V4`].
const LOOPBACK_MSS_V6: u16 = 65_476;

/// How long a client must have waited in vain. Nanoseconds.
const PATIENCE_NS: u64 = 150_000_000;

/// The counters of a socket's owner; those of the rest key where the map is full.
#[inline(always)]
pub fn client(key: &Key, netns: u32) -> Option<&'static mut Value> {
    if let Some(value) = TCP.get_ptr_mut(key) {
        // SAFETY: entries are removed only long after their client is gone.
        return Some(unsafe { &mut *value });
    }
    new_client(key, netns)
}

/// Out of line: its stack is its own.
#[inline(never)]
fn new_client(key: &Key, netns: u32) -> Option<&'static mut Value> {
    let fresh = Value {
        netns,
        ..Value::default()
    };
    // EEXIST: another CPU was faster, which is as good.
    let _ = TCP.insert(key, fresh, NEW);
    let value = match TCP.get_ptr_mut(key) {
        Some(value) => value,
        None => {
            ring::count_full(ClientMap::Tcp);
            TCP.get_ptr_mut(Key::default())?
        }
    };
    // SAFETY: as above.
    Some(unsafe { &mut *value })
}

/// The node's counters.
#[inline(always)]
pub fn node() -> Option<&'static mut Counts> {
    // SAFETY: a per-CPU array's value, added to atomically.
    TCP_NODE.get_ptr_mut(0).map(|node| unsafe { &mut *node })
}

/// Counts an attempt that ended. Out of line: its stack is its own.
#[inline(never)]
pub fn ended(sk: u64, outcome: Outcome, connecting: &Connecting) -> u64 {
    let _ = try_ended(sk, outcome, connecting); // the socket cannot be read
    0
}

#[inline(always)]
fn try_ended(sk: u64, outcome: Outcome, connecting: &Connecting) -> Option<()> {
    let (key, netns) = owner(sk)?;
    let value = client(&key, netns)?;
    let node = node()?;
    let index = core::hint::black_box(outcome as usize);
    if index < node.results.len() {
        add(&mut value.counts.results[index], 1);
        add(&mut node.results[index], 1);
    }
    let mut ends = Ends::default();
    if ends_of(sk, &mut ends) == 0 {
        return None;
    }
    if matches!(outcome, Outcome::Established) {
        if silence::is_silent_port(ends.destination_port) {
            silence::begin(sk, quota::place(&key));
        }
        if !is_proxied(sk, &ends, key.net_cookie) {
            answered(&ends, key.net_cookie);
        }
        return None;
    }
    let mut to = destination(&ends, key.net_cookie);
    let is_redirected = redirected(&ends, connecting.started_ns, &mut to);
    if has_sent(sk) {
        peer::count(
            &peers::Key {
                address: ends.destination,
                family: ends.family,
                kind: Kind::Connect as u16,
            },
            Kind::Connect,
            1,
            quota::place(&key),
        );
        if !is_impatient(outcome, connecting) {
            failed(&key, &to, value, is_redirected);
        }
    }
    let backend = (is_redirected != 0).then_some(&to);
    tell(&key, &ends, backend, outcome as u8, connecting);
    None
}

/// Has a proxy in the pod taken the connection (a mesh's sidecar, by a redirect to the loopback device)? Then nothing is
/// known of who was asked. No other device carries segments of that size, but one with the largest MTU. On the host a Service's backend may be on the
/// host itself, which is the one that was asked.
#[inline(always)]
fn is_proxied(sk: u64, ends: &Ends, net_cookie: u64) -> bool {
    let largest = if ends.family == AF_INET {
        LOOPBACK_MSS_V4
    } else {
        LOOPBACK_MSS_V6
    };
    OFF_TCP_SOCK_MSS_CLAMP.load() != ABSENT
        && read::<u16>(sk, OFF_TCP_SOCK_MSS_CLAMP.load()).is_some_and(|mss| mss >= largest)
        && !is_local(ends)
        && !conntrack::is_same(&ends.source, &ends.destination)
        // SAFETY: an array's value.
        && TABLES.get_ptr(0).is_some_and(|table| unsafe {
            let host = (*table).init_net_cookie;
            host != 0 && host != net_cookie
        })
}

/// Has the client given up before a server at some distance could have answered? Then nothing is held
/// against the destination.
#[inline(always)]
fn is_impatient(outcome: Outcome, connecting: &Connecting) -> bool {
    // SAFETY: the helper has no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    matches!(outcome, Outcome::Timeout)
        && connecting.started_ns != 0
        && now_ns - connecting.started_ns < PATIENCE_NS
}

/// The destination has answered. Out of line: its stack is its own.
#[inline(never)]
fn answered(ends: &Ends, net_cookie: u64) -> u64 {
    let destination = destination(ends, net_cookie);
    if let Some(value) = DESTINATIONS.get_ptr_mut(destination) {
        // SAFETY: entries are removed only long after their last failure.
        add(unsafe { &mut (*value).answered }, 1);
    }
    0
}

#[inline(always)]
fn destination(ends: &Ends, net_cookie: u64) -> Destination {
    Destination {
        address: ends.destination,
        net_cookie: if is_local(ends) { net_cookie } else { 0 },
        family: ends.family,
        port: ends.destination_port,
        _pad: 0,
    }
}

/// Does the destination's address mean something else in each namespace?
#[inline(always)]
fn is_local(ends: &Ends) -> bool {
    let [a, b, c, d] = ends.destination.map(u32::from_be);
    if ends.family == AF_INET {
        return a >> 24 == 127;
    }
    (a | b | c == 0 && d == 1) || a >> 22 == 0xfe80 >> 6
}

/// Puts in where a packet of the connection was redirected to that this node dropped since the
/// connection's begin; 0 if none was seen. Out of line: its stack is its own.
#[inline(never)]
fn redirected(ends: &Ends, since_ns: u64, to: &mut Destination) -> u64 {
    let key = BehindKey {
        client: ends.source,
        asked: ends.destination,
        family: ends.family,
        client_port: ends.source_port,
        asked_port: ends.destination_port,
        _pad: 0,
    };
    let Some(behind) = BEHIND.get_ptr(key) else {
        return 0;
    };
    // SAFETY: a map's value; the helper has no precondition.
    let (behind, now_ns) = unsafe { (&*behind, bpf_ktime_get_ns()) };
    if behind.ktime_ns < since_ns || now_ns.wrapping_sub(behind.ktime_ns) >= BEHIND_NS {
        return 0;
    }
    to.address = behind.address;
    to.port = behind.port;
    to.net_cookie = 0;
    1
}

/// Notes a failed attempt under its destination. Out of line: its stack is its own.
#[inline(never)]
fn failed(client: &Key, to: &Destination, value: &mut Value, is_redirected: u64) -> u64 {
    let _ = try_failed(client, to, value, is_redirected); // untracked where there is no room
    0
}

#[inline(always)]
fn try_failed(client: &Key, to: &Destination, value: &mut Value, is_redirected: u64) -> Option<()> {
    // SAFETY: the helper has no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let mut key = AttemptsKey {
        client: *client,
        destination: *to,
        answered: 0,
    };
    if DESTINATIONS.get_ptr(to).is_none() && enter(to, value, now_ns) == 0 {
        add(&mut value.counts.untracked, 1);
        add(&mut node()?.untracked, 1);
        return None;
    }
    // SAFETY: as in `answered`.
    let at = unsafe { &mut *DESTINATIONS.get_ptr_mut(to)? };
    at.redirected = is_redirected;
    if is_redirected != 0 && now_ns.wrapping_sub(at.last_failed_ns) >= REDIRECTED_NS {
        add(&mut at.answered, 1); // or so it is taken
    }
    at.last_failed_ns = now_ns;
    key.answered = at.answered;
    if ATTEMPTS.get_ptr(key).is_none() {
        let fresh = AttemptsValue {
            failed: 0,
            first_ns: now_ns,
        };
        let _ = ATTEMPTS.insert(key, fresh, NEW); // EEXIST: another CPU was faster
    }
    match ATTEMPTS.get_ptr_mut(key) {
        // SAFETY: as above.
        Some(attempts) => add(unsafe { &mut (*attempts).failed }, 1),
        None => {
            ring::count_full(ClientMap::Attempts);
            add(&mut value.counts.untracked, 1);
            add(&mut node()?.untracked, 1);
        }
    }
    Some(())
}

/// Makes room for a destination; 0 where there is none. A client that tries everything has its share
/// only, so that it does not push the others' out. Out of line: its stack is its own.
#[inline(never)]
fn enter(to: &Destination, value: &mut Value, now_ns: u64) -> u64 {
    // Races between CPUs let a few more or less in, which is fine: it is a limit.
    if now_ns.wrapping_sub(value.span_ns) >= NEW_DESTINATIONS_NS {
        value.span_ns = now_ns;
        value.entered = 0;
    }
    if value.entered >= NEW_DESTINATIONS {
        return 0;
    }
    value.entered += 1;
    let _ = DESTINATIONS.insert(to, DestinationValue::default(), NEW); // EEXIST: as above
    if DESTINATIONS.get_ptr(to).is_none() {
        ring::count_full(ClientMap::Destinations);
        return 0;
    }
    1
}

/// Something happened to an established connection. Out of line: its stack is its own.
#[inline(never)]
pub fn happened(sk: u64, outcome: Outcome, waited_ns: u64) -> u64 {
    let _ = try_happened(sk, outcome, waited_ns); // the socket cannot be read
    0
}

#[inline(always)]
fn try_happened(sk: u64, outcome: Outcome, waited_ns: u64) -> Option<()> {
    let (key, netns) = owner(sk)?;
    let value = client(&key, netns)?;
    let node = node()?;
    match outcome {
        Outcome::Reset => {
            add(&mut value.counts.resets, 1);
            add(&mut node.resets, 1);
        }
        Outcome::Unanswered => {
            add(&mut value.counts.unanswered, 1);
            add(&mut node.unanswered, 1);
        }
        _ => {
            add(&mut value.counts.silent, 1);
            add(&mut node.silent, 1);
        }
    }
    let mut ends = Ends::default();
    if ends_of(sk, &mut ends) == 0 {
        return None;
    }
    if matches!(outcome, Outcome::Unanswered) {
        peer::count(
            &peers::Key {
                address: ends.destination,
                family: ends.family,
                kind: Kind::Unanswered as u16,
            },
            Kind::Unanswered,
            1,
            quota::place(&key),
        );
    }
    // SAFETY: the helper has no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let nobody = Connecting {
        started_ns: if waited_ns == 0 {
            0
        } else {
            now_ns - waited_ns
        },
        ..Connecting::default()
    };
    let mut to = Destination::default();
    let backend = (redirected(&ends, 0, &mut to) != 0).then_some(&to);
    tell(&key, &ends, backend, outcome as u8, &nobody);
    None
}

/// Sends the record. Out of line: its stack is its own.
#[inline(never)]
fn tell(
    key: &Key,
    ends: &Ends,
    backend: Option<&Destination>,
    outcome: u8,
    connecting: &Connecting,
) -> u64 {
    let _ = try_tell(key, ends, backend, outcome, connecting); // held back or lost, and counted so
    0
}

#[inline(always)]
fn try_tell(
    key: &Key,
    ends: &Ends,
    backend: Option<&Destination>,
    outcome: u8,
    connecting: &Connecting,
) -> Option<()> {
    // SAFETY: the helper has no precondition.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: entries are removed only long after their client is gone.
    let value = unsafe {
        &mut *TCP
            .get_ptr_mut(key)
            .or_else(|| TCP.get_ptr_mut(Key::default()))?
    };
    let mut entry = ring::reserve::<Failure>(Hook::Tcp, now_ns, &mut value.event_second)?;
    let record = entry.as_mut_ptr();
    // SAFETY: the ring gave this room; every field is written before it is submitted.
    unsafe {
        (*record).header = event::Header {
            kind: event::KIND_CONNECT_FAILURE,
            version: event::VERSION,
            netns: value.netns,
            ktime_ns: now_ns,
            net_cookie: key.net_cookie,
            cgroup_id: key.cgroup_id,
            pid: connecting.pid,
            _pad: 0,
            comm: connecting.comm,
        };
        (*record).waited_ns = match connecting.started_ns {
            0 => 0,
            started_ns => now_ns - started_ns,
        };
        (*record).ends = *ends;
        (*record).backend = backend.map_or([0; 4], |to| to.address);
        (*record).backend_port = backend.map_or(0, |to| to.port);
        (*record).outcome = outcome;
        (*record)._pad = [0; 5];
    }
    entry.submit(0);
    Some(())
}
