//! What the kernel remembers of lookups on their way, and what it tells of the failed ones.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Key;
use crate::event::Header;

/// A lookup that waits: key of the map `PENDING`, and of `EXPIRED` with slot 0.
///
/// Two slots let a new lookup start under the same socket and id while the program that ages has
/// not taken the expired one away yet. Only that program deletes expired entries and only the
/// packet programs delete live ones, so nobody deletes another's successor.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct LookupKey {
    /// `bpf_get_socket_cookie` of the client's socket. A socket whose first query netfilter refused
    /// has none yet: then its address in the kernel and its port, which no cookie is as large as.
    pub socket: u64,
    /// Transaction id, host byte order.
    pub id: u16,
    /// 0 or 1.
    pub slot: u16,
    /// The socket's own port, host byte order: no part of what it is, but of where it is ([`super::PlaceKey`]).
    pub port: u16,
    /// Keeps the layout free of padding.
    pub _pad: u16,
}

/// Bytes of a question kept: 255 of name, 4 of type and class, rounded.
pub const QUESTION_LEN: usize = 260;

/// A server asked.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Server {
    /// Network byte order; IPv4 in the first word.
    pub address: [u32; 4],
    /// Host byte order.
    pub port: u16,
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
}

/// Servers that one lookup remembers: musl asks all of resolv.conf (at most 3) at once.
pub const MAX_SERVERS: usize = 3;

/// A lookup: value of the map `PENDING`, and of a place in `PENDING_NEAR`, where what every answer needs shares a line
/// of the cache with the key, and the first server is in the next: a line that another CPU has takes as long as
/// the rest of a program.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Lookup {
    /// First query, `CLOCK_MONOTONIC` nanoseconds; 0 while the entry is being filled.
    pub started_ns: u64,
    /// When a fitting answer reached the socket's filter; 0 if none did, or it was dropped behind it.
    pub answered_ns: u64,
    /// Hash of the question, letter case folded; 0 without one.
    pub question_hash: u64,
    /// Whose counters.
    pub key: Key,
    /// How many servers; more than [`MAX_SERVERS`] means that not all are remembered.
    pub servers_len: u8,
    /// Not 0: it is in the map `ENDPOINTS`.
    pub is_noted: u8,
    /// Drop reason that counts, the kernel's number; 0 if no packet of this lookup was dropped.
    pub drop_reason: u16,
    /// [`Cause`](super::Cause) that it means.
    pub drop_cause: u8,
    /// Not 0: the dropped packet was an answer.
    pub drop_of_answer: u8,
    /// Not 0: an answer came after the deadline.
    pub late: u8,
    /// [`Outcome`](super::Outcome) of the answer, valid if there is one.
    pub outcome: u8,
    /// Servers asked, the first first.
    pub servers: [Server; MAX_SERVERS],
    /// Process (thread group) that asked.
    pub pid: u32,
    /// [`Endpoint::hash`] of the client's end; 0 where no packet has left.
    pub endpoint: u64,
    /// Inode of the socket's namespace.
    pub netns: u32,
    /// Bytes of `question` that are the question.
    pub question_len: u16,
    /// [`Detail`] of the drop that counts.
    pub drop_detail: u8,
    /// Keeps the layout free of padding.
    pub _pad: u8,
    /// Name of the process, NUL-padded.
    pub comm: [u8; 16],
    /// The first question as on the wire: name, type, class.
    pub question: [u8; QUESTION_LEN],
    /// Up to the next line of the cache.
    pub _line: [u8; 20],
}

impl Lookup {
    /// Is the deadline over?
    #[inline(always)]
    pub const fn expired(&self, now_ns: u64, timeout_ns: u64) -> bool {
        now_ns > self.started_ns.saturating_add(timeout_ns)
    }

    /// Remembers a server asked.
    #[inline(always)]
    pub fn asked(&mut self, server: Server) {
        if self.was_remembered(&server) {
            return;
        }
        match self.servers_len {
            0 => self.servers[0] = server,
            1 => self.servers[1] = server,
            2 => self.servers[2] = server,
            _ => {}
        }
        if self.servers_len <= MAX_SERVERS as u8 {
            self.servers_len += 1;
        }
    }

    /// Forgets what was there before, but for the question's bytes, of which none are valid then.
    #[inline(always)]
    pub const fn clear(&mut self) {
        self.started_ns = 0;
        self.answered_ns = 0;
        self.key = Key {
            cgroup_id: 0,
            net_cookie: 0,
        };
        self.question_hash = 0;
        self.endpoint = 0;
        self.pid = 0;
        self.netns = 0;
        self.servers_len = 0;
        self.drop_reason = 0;
        self.drop_cause = 0;
        self.drop_of_answer = 0;
        self.late = 0;
        self.outcome = 0;
        self.question_len = 0;
        self.drop_detail = 0;
        self.is_noted = 0;
    }

    /// Can the answer come from there?
    #[inline(always)]
    pub const fn was_asked(&self, server: &Server) -> bool {
        self.servers_len > MAX_SERVERS as u8 || self.was_remembered(server)
    }

    #[inline(always)]
    const fn was_remembered(&self, server: &Server) -> bool {
        (self.servers_len > 0 && self.servers[0].is(server))
            || (self.servers_len > 1 && self.servers[1].is(server))
            || (self.servers_len > 2 && self.servers[2].is(server))
    }

    /// Remembers that a packet of this lookup was dropped. An answer's drop goes before a query's,
    /// the later before the earlier.
    #[inline(always)]
    pub const fn dropped(&mut self, of_answer: bool, drop: Drop) {
        if self.drop_of_answer == 0 || of_answer {
            self.drop_of_answer = of_answer as u8;
            self.drop_reason = drop.reason;
            self.drop_cause = drop.cause;
            self.drop_detail = drop.detail;
        }
    }
}

impl Server {
    /// Word by word: `==` would be a call to `bcmp`, which BPF does not have.
    #[inline(always)]
    pub(super) const fn is(&self, other: &Self) -> bool {
        self.address[0] == other.address[0]
            && self.address[1] == other.address[1]
            && self.address[2] == other.address[2]
            && self.address[3] == other.address[3]
            && self.port == other.port
            && self.family == other.family
    }
}

/// Value of the map `EXPIRED`, by key with slot 0: the lookup that ended so last.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ended {
    /// The deadline, `CLOCK_MONOTONIC` nanoseconds.
    pub deadline_ns: u64,
    /// As [`Lookup::question_hash`].
    pub question_hash: u64,
}

/// Places in the map `ANSWERS`.
pub const ANSWERS_LEN: u32 = 1 << 14;

/// A lookup that was answered: value of the map `ANSWERS`, where it has one place, which the latest takes.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AnsweredLookup {
    /// As [`LookupKey::socket`].
    pub socket: u64,
    /// Transaction id.
    pub id: u64,
    /// The deadline, `CLOCK_MONOTONIC` nanoseconds.
    pub deadline_ns: u64,
    /// As [`Lookup::question_hash`].
    pub question_hash: u64,
}

impl LookupKey {
    #[inline(always)]
    pub(super) const fn mixed(&self) -> u64 {
        (self.socket ^ ((self.id as u64) << 48)).wrapping_mul(MIX)
    }

    /// Place in the map `ANSWERS`, the same for both slots.
    #[inline(always)]
    pub const fn answers_place(&self) -> u32 {
        (self.mixed() >> 48) as u32 % ANSWERS_LEN
    }
}

/// 2^64 divided by the golden ratio: multiplied by it, all bits count in the upper ones.
pub(super) const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// An answer at the socket's filter is not in the socket yet: the very next thing that happens on
/// that CPU may be its drop for a full receive buffer. Value of the per-CPU map `ANSWERED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Answered {
    /// [`Self::mark`] of the answer's packet; 0 if none waits.
    pub packet: u64,
    /// The lookup that it answers.
    pub key: LookupKey,
}

impl Answered {
    /// Stands for a packet: the lower half of its `sk_buff`'s address, which is another packet's soon, and a hash of
    /// where it comes from and of the port that it goes to. Never 0.
    #[inline(always)]
    pub const fn mark(address: u64, from: &Server, to_port: u16) -> u64 {
        let [a, b, c, d] = from.address;
        let mut hash = (a as u64 | (b as u64) << 32).wrapping_mul(MIX);
        hash = (hash ^ (hash >> 32) ^ (c as u64 | (d as u64) << 32)).wrapping_mul(MIX);
        hash =
            (hash ^ (hash >> 32) ^ (from.port as u64 | (to_port as u64) << 16)).wrapping_mul(MIX);
        (hash | 1 << 63) & !(u32::MAX as u64) | address & u32::MAX as u64
    }
}

/// An answer that has not been dropped for this long has arrived. Nanoseconds.
pub const ARRIVED_NS: u64 = 1_000_000;

/// How long after the deadline an answer counts as late; then it is unmatched. Nanoseconds.
pub const LATE_NS: u64 = 60_000_000_000;

/// The program `dns_age` leaves an expired lookup alone for this long, so that a packet program that
/// judged it alive just before the deadline is done with it. Nanoseconds.
pub const AGE_MARGIN_NS: u64 = 50_000_000;

/// A failed lookup: ring record of kind [`crate::event::KIND_DNS_FAILURE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Failure {
    /// Common part.
    pub header: Header,
    /// From the first query to the end, nanoseconds.
    pub waited_ns: u64,
    /// The server asked first.
    pub server: Server,
    /// Transaction id.
    pub id: u16,
    /// [`Outcome`](super::Outcome).
    pub outcome: u8,
    /// [`Cause`](super::Cause).
    pub cause: u8,
    /// Drop reason that decided the cause, the kernel's number; 0 if none.
    pub drop_reason: u16,
    /// Valid bytes of `question`.
    pub question_len: u16,
    /// [`Detail`] of that drop.
    pub drop_detail: u8,
    /// Keeps the layout free of padding.
    pub _pad: [u8; 7],
    /// As [`Lookup::question`].
    pub question: [u8; QUESTION_LEN],
}

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug)]
pub struct Drop {
    /// The kernel's number.
    pub reason: u16,
    /// [`Cause`](super::Cause) that it means.
    pub cause: u8,
    /// [`Detail`].
    pub detail: u8,
}

/// What the kernel's reason does not say. Takes its place in events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Detail {
    /// Nothing.
    None = 0,
    /// `NETFILTER_DROP`: conntrack's table had no room for the connection (its figure `drop`).
    ConntrackTableFull = 1,
    /// `NETFILTER_DROP`: another packet of the same connection was faster (its figure
    /// `insert_failed`).
    ConntrackInsertFailed = 2,
    /// No drop: the send failed before there was a packet. [`Drop::reason`] is the error.
    SendError = 3,
    /// The kernel gives no reasons (before 5.17).
    NoReason = 4,
}

impl Detail {
    /// What events say instead of the reason's name.
    pub fn name(number: u8, reason: u16) -> Option<&'static str> {
        const TABLE_FULL: u8 = Detail::ConntrackTableFull as u8;
        const INSERT_FAILED: u8 = Detail::ConntrackInsertFailed as u8;
        const SEND_ERROR: u8 = Detail::SendError as u8;
        match number {
            TABLE_FULL => Some("conntrack_table_full"),
            INSERT_FAILED => Some("conntrack_insert_failed"),
            SEND_ERROR => SEND_ERRORS
                .iter()
                .find(|(error, _)| *error == reason)
                .map(|(_, name)| *name)
                .or(Some("send_error")),
            _ => None,
        }
    }
}

/// Errors of sends that are counted (include/uapi/asm-generic/errno.h), and what events say instead of
/// a reason's name.
const SEND_ERRORS: [(u16, &str); 12] = [
    (1, "eperm"),
    (12, "enomem"),
    (13, "eacces"),
    (19, "enodev"),
    (22, "einval"),
    (99, "eaddrnotavail"),
    (100, "enetdown"),
    (101, "enetunreach"),
    (105, "enobufs"),
    (111, "econnrefused"),
    (112, "ehostdown"),
    (113, "ehostunreach"),
];

/// Places in the map `SENT`.
pub const SENT_LEN: u32 = 1024;

/// A send under way whose query is counted: value of the map `SENT`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Sent {
    /// Address of the task that sends; 0: none.
    pub task: u64,
    /// Address of its `struct sock`.
    pub sk: u64,
}

impl Sent {
    /// Place of a task. Two that meet there would have to send at the same moment.
    #[inline(always)]
    pub const fn place(task: u64) -> u32 {
        (task.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u32 % SENT_LEN
    }
}

/// Places in the map `PACKETS`.
pub const PACKETS_LEN: u32 = 1 << 16;

/// A DNS packet on its way: value of the map `PACKETS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Packet {
    /// Address of its `sk_buff`, the lower half.
    pub address: u64,
    /// The lookup it belongs to.
    pub lookup: LookupKey,
    /// Not 0: the answer, else the query.
    pub is_answer: u64,
}

/// What the packets of a lookup say of the client. By its hash the map `ENDPOINTS` finds the lookup of a packet
/// that was copied on its way, or that comes from a server elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    /// Network byte order; IPv4 in the first word.
    pub address: [u32; 4],
    /// Cookie of the namespace for loopback addresses, which every namespace has; else 0.
    pub net_cookie: u64,
    /// Host byte order.
    pub port: u16,
    /// Transaction id, host byte order.
    pub id: u16,
}

/// Sets in the map `ENDPOINTS`.
pub const ENDPOINT_SETS: u32 = 1 << 14;
/// Lookups in one.
pub const ENDPOINT_WAYS: usize = 4;

/// A lookup that waits, by the hash of its endpoint, the low bits of which say in which set: one that has no place, or
/// whose packets have another port than its socket, for others are found at their place. Value of the map
/// `ENDPOINTS`: so many. It is taken away when the lookup ends; where more wait in one set than it has
/// room for, a later one takes an earlier one's place, whose packets are found by address only.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Way {
    /// [`Endpoint::hash`]; 0: free.
    pub endpoint: u64,
    /// The lookup.
    pub lookup: LookupKey,
}

impl Endpoint {
    /// All of it; never 0.
    #[inline(always)]
    pub const fn hash(&self) -> u64 {
        let [a, b, c, d] = self.address;
        let mut hash = (a as u64 | (b as u64) << 32).wrapping_mul(MIX);
        hash = (hash ^ (hash >> 32) ^ (c as u64 | (d as u64) << 32)).wrapping_mul(MIX);
        hash = (hash ^ (hash >> 32) ^ self.net_cookie).wrapping_mul(MIX);
        hash =
            (hash ^ (hash >> 32) ^ (self.port as u64 | (self.id as u64) << 16)).wrapping_mul(MIX);
        hash ^ (hash >> 32) | 1 << 63
    }

    /// Is the address in 127.0.0.0/8, or ::1?
    #[inline(always)]
    pub const fn is_loopback(family: u16, address: &[u32; 4]) -> bool {
        if family == crate::AF_INET {
            address[0].to_ne_bytes()[0] == 127
        } else {
            address[0] == 0
                && address[1] == 0
                && address[2] == 0
                && address[3] == u32::from_ne_bytes([0, 0, 0, 1])
        }
    }
}

/// A query that a server has not answered yet: key of the map `SERVED`. Without the socket, for some
/// servers answer from another one.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ServedKey {
    /// Cookie of the server's namespace.
    pub net_cookie: u64,
    /// Network byte order; IPv4 in the first word.
    pub client: [u32; 4],
    /// The address asked.
    pub server: Server,
    /// Host byte order.
    pub client_port: u16,
    /// Transaction id, host byte order.
    pub id: u16,
}

/// Value of the map `SERVED`, and of a place in `SERVED_NEAR`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Served {
    /// The server: whose counters.
    pub key: Key,
    /// When the last of them arrived, `CLOCK_MONOTONIC` nanoseconds; 0 while the entry is being
    /// filled.
    pub received_ns: u64,
    /// Copies of the query that wait for an answer each.
    pub waiting: u64,
    /// The client's lookup, if the client is on this node; else all 0.
    pub lookup: LookupKey,
    /// Up to the next line of the cache.
    pub _line: [u64; 3],
}

#[cfg(feature = "user")]
mod user {
    // SAFETY: `#[repr(C)]`, no padding (zerocopy's IntoBytes proves it), every bit pattern valid.
    unsafe impl aya::Pod for super::Lookup {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Served {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Sent {}
}
