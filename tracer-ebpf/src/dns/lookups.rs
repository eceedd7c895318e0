//! How a query finds the lookup it belongs to, or begins one.

use aya_ebpf::helpers::{bpf_get_current_task, bpf_ktime_get_ns};
use tracer_common::{
    ClientMap,
    dns::{LookupKey, Outcome, QUESTION_LEN, Server, Value},
};

use super::{
    Socket,
    end::{client, dns_end, node},
    message,
    near::{Taken, WAITING, show},
    unsent,
};
use crate::{
    layout::*,
    maps::{ANSWERS, LOOKUP_ZERO, REFUSED_QUERY},
    ring,
    util::{add, read},
};

const EEXIST: i32 = -17;

/// What a query says.
#[derive(Default)]
pub struct Query {
    pub id: u16,
    /// The server asked, before any translation.
    pub server: Server,
    /// Hash of the question.
    pub question: u64,
    /// Packets on the wire that it stands for (UDP_SEGMENT); 0 and 1 both mean one.
    pub segments: u32,
}

/// Counts a query of a socket; gives the lookup that it belongs to, if one waits. `copy` takes over the question's
/// bytes where a lookup begins, and says how many there may be.
///
/// Without `MAY_END`, for programs that have no stack left for it, lookups in the way stay until
/// `dns_age` ends them.
#[inline(always)]
pub fn follow<const MAY_END: bool>(
    socket: &Socket,
    query: &Query,
    endpoint: u64,
    copy: impl FnOnce(&mut [u8; QUESTION_LEN]) -> u32,
) -> Option<LookupKey> {
    unsent::note(socket.sk);
    let value = client(socket.key, socket.netns)?;
    let node = node()?;
    if query.segments > 1 {
        // Only the first is followed.
        let segments = query.segments as u64;
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
        socket: if socket.cookie == 0 {
            socket.stand_in()
        } else {
            socket.cookie
        },
        id: query.id,
        slot: 0,
        port: socket.port,
        _pad: 0,
    };
    let mut free = None;
    // The first slot last: it is the cheaper one, and taken where both are free.
    let mut slot = 2;
    while slot > 0 {
        slot -= 1;
        key.slot = slot;
        match WAITING.find(&key) {
            None => free = Some(slot),
            Some(lookup) => {
                // SAFETY: a map's value; a reader at the same time may see a lookup that just ended, which the
                // removal below settles.
                let lookup = unsafe { &mut *lookup };
                let same = lookup.question_hash == query.question;
                if lookup.answered_ns != 0 {
                    // Answered; nobody has counted it yet.
                    if same && !lookup.expired(now_ns, DNS_TIMEOUT_NS.load()) {
                        return None; // asked again: see `asked_again`
                    }
                    if MAY_END {
                        dns_end(&key, lookup, lookup.outcome as u32, lookup.answered_ns);
                        free = Some(slot);
                    }
                } else if lookup.started_ns == 0 || !lookup.expired(now_ns, DNS_TIMEOUT_NS.load()) {
                    if lookup.started_ns == 0 || same {
                        // Asked again, perhaps elsewhere: one more query, no new lookup.
                        lookup.asked(query.server);
                        if lookup.endpoint == 0 {
                            lookup.endpoint = endpoint; // it was refused before
                        }
                        return Some(key);
                    }
                    if MAY_END {
                        // Another question under the same id: nobody waits for the old one any more.
                        dns_end(&key, lookup, Outcome::Timeout as u32, now_ns);
                        free = Some(slot);
                    }
                }
            }
        }
    }

    let Some(slot) = free else {
        return untracked(value);
    };
    key.slot = slot;
    if asked_again(&key, query.question, now_ns) {
        return None;
    }
    if socket.cookie != 0
        && refused_lately(now_ns)
        && moved(socket.stand_in(), query, &key, now_ns, endpoint)
    {
        return Some(key);
    }
    let lookup = match WAITING.take(&key) {
        Taken::Place(place) => {
            // SAFETY: an array's value, this program's alone; later nobody touches it while its start is 0.
            let lookup = unsafe { &mut (*place).value };
            lookup.clear();
            show(place, &key, now_ns);
            lookup
        }
        // Another CPU just started the very same lookup.
        Taken::Same => return Some(key),
        // Room for others is kept in the hash map, where there is some: what a client has begun and ended is in
        // other CPUs' caches.
        Taken::No if value.counts.waiting() >= DNS_PENDING_PER_CLIENT.load() as i64 => {
            return untracked(value);
        }
        Taken::No => {
            let zero = LOOKUP_ZERO.get_ptr(0)?;
            // SAFETY: an array's value that nobody writes.
            match WAITING.put_far(&key, unsafe { &*zero }) {
                Ok(()) => {}
                Err(EEXIST) => return Some(key), // as above
                Err(_) => {
                    ring::count_full(ClientMap::Pending);
                    return untracked(value);
                }
            }
            // SAFETY: a map's value; as above.
            unsafe { &mut *WAITING.far(&key)? }
        }
    };
    lookup.key = socket.key;
    lookup.question_hash = query.question;
    lookup.endpoint = endpoint;
    if query.question != 0 {
        let len = copy(&mut lookup.question);
        message::dns_note_length(lookup, len);
    }
    lookup.netns = socket.netns;
    lookup.asked(query.server);
    // A datagram leaves a socket in the context of the process that sends it.
    // SAFETY: the helper has no precondition.
    let task = unsafe { bpf_get_current_task() };
    lookup.pid = read(task, OFF_TASK_TGID.load()).unwrap_or_default();
    lookup.comm = read(task, OFF_TASK_COMM.load()).unwrap_or_default();
    add(&mut value.counts.started, 1);
    add(&mut node.started, 1);
    let started: *mut u64 = &mut lookup.started_ns;
    // SAFETY: a valid place; volatile, so that it is written last.
    unsafe { started.write_volatile(now_ns) };
    Some(key)
}

#[inline(always)]
fn untracked(value: &mut Value) -> Option<LookupKey> {
    add(&mut value.counts.untracked, 1);
    add(&mut node()?.untracked, 1);
    None
}

/// Was this question answered under the same socket and id, before the deadline? Then it is one more
/// query and no lookup: musl asks all servers, and may have one's answer before it asks the next. Out
/// of line: its stack is its own.
#[inline(never)]
fn asked_again(key: &LookupKey, question: u64, now_ns: u64) -> bool {
    let Some(answered) = ANSWERS.get_ptr(key.answers_place()) else {
        return false;
    };
    // SAFETY: an array's value; torn reads, as a place that another has taken, make one lookup too many.
    let answered = unsafe { &*answered };
    answered.socket == key.socket
        && answered.id == key.id as u64
        && answered.question_hash == question
        && now_ns <= answered.deadline_ns
}

/// Has netfilter refused any query that may still wait?
#[inline(always)]
fn refused_lately(now_ns: u64) -> bool {
    let Some(last) = REFUSED_QUERY.get_ptr(0) else {
        return false;
    };
    // SAFETY: an array's value.
    let last = unsafe { *last };
    last != 0 && now_ns.wrapping_sub(last) < DNS_TIMEOUT_NS.load()
}

/// Sockets get their cookie when they first reach the hook: a lookup whose first query was refused
/// waits under the socket's address. Now that it is asked again, it moves to `to`. Out of line: its
/// stack is its own.
#[inline(never)]
fn moved(address: u64, query: &Query, to: &LookupKey, now_ns: u64, endpoint: u64) -> bool {
    let mut from = LookupKey {
        socket: address,
        ..*to
    };
    let mut slot = 0;
    while slot < 2 {
        from.slot = slot;
        if let Some(lookup) = WAITING.find(&from) {
            // SAFETY: as in `follow`.
            let lookup = unsafe { &mut *lookup };
            if lookup.started_ns != 0
                && lookup.question_hash == query.question
                && !lookup.expired(now_ns, DNS_TIMEOUT_NS.load())
            {
                let started_ns = lookup.started_ns;
                lookup.asked(query.server);
                lookup.endpoint = endpoint;
                return match WAITING.put_far(to, lookup) {
                    Ok(()) if WAITING.remove(&from, started_ns) => true,
                    Ok(()) => {
                        WAITING.remove(to, started_ns); // it ended meanwhile
                        false
                    }
                    Err(error) => error == EEXIST, // another CPU moved it
                };
            }
        }
        slot += 1;
    }
    false
}
