//! Hook `tcp`: connection attempts and how they ended, and what became of established connections.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::event;

/// Whose connections: the client's socket. All 0: the rest key, charged when the map is full.
pub use crate::dns::Key;

/// What happened to a connection. The first five are the ends of an attempt, and index
/// [`Counts::results`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Outcome {
    /// The other end answered the SYN.
    Established = 0,
    /// It refused: the client gets ECONNREFUSED, for a reset or an ICMP port unreachable.
    Refused = 1,
    /// SYNs went unanswered until the kernel or the application gave up.
    Timeout = 2,
    /// A router or this node said that there is no way, or no such host.
    Unreachable = 3,
    /// Another error, or no SYN could be sent.
    Other = 4,
    /// The other end reset an established connection.
    Reset = 5,
    /// The other end of an established connection has fallen silent.
    Silent = 6,
    /// The client gave up an established connection whose other end never answered.
    Unanswered = 7,
}

impl Outcome {
    /// All, by number.
    pub const ALL: [Self; 8] = [
        Self::Established,
        Self::Refused,
        Self::Timeout,
        Self::Unreachable,
        Self::Other,
        Self::Reset,
        Self::Silent,
        Self::Unanswered,
    ];

    /// The ends of an attempt, by number.
    pub const RESULTS: [Self; RESULTS] = [
        Self::Established,
        Self::Refused,
        Self::Timeout,
        Self::Unreachable,
        Self::Other,
    ];

    /// Label value in metrics and events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Other => "other",
            Self::Reset => "reset",
            Self::Silent => "silent",
            Self::Unanswered => "unanswered",
        }
    }
}

/// Ends that an attempt can have.
pub const RESULTS: usize = 5;

/// Timeouts of the retransmission timer in a row, without an answer, after which the other end is
/// taken to be silent: 1.4 s and more after the first, where ordinary loss has long been mended.
pub const SILENT_RUN: u8 = 3;

/// How long both ends of a connection must have been quiet before its client is taken to have given up
/// waiting: who only sends closes right after it. Nanoseconds.
pub const GIVEN_UP_NS: u64 = 150_000_000;

/// Ports on which a request must be answered (`--silent-port`), at most.
pub const MAX_SILENT_PORTS: usize = 8;

/// Bytes that make a request, on a connection that has answered before. What clients send of their own
/// accord (a window update, an end of a stream, with TLS around it) is shorter.
pub const REQUEST: u64 = 64;

/// Bytes without an answer beyond which a client that goes on sending uploads, and does not wait.
pub const UPLOAD: u64 = 65_536;

/// A destination that clients are redirected to is not held to be dead for longer than this after the
/// last failure: its answers look like those of the address that was asked. Nanoseconds.
pub const REDIRECTED_NS: u64 = 60_000_000_000;

/// New destinations of failed attempts that one client may enter in [`NEW_DESTINATIONS_NS`].
pub const NEW_DESTINATIONS: u64 = 256;
/// Nanoseconds.
pub const NEW_DESTINATIONS_NS: u64 = 60_000_000_000;

/// Counters of one client, and of the node. Added to atomically: exact in every context.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
pub struct Counts {
    /// Attempts ended, by [`Outcome`].
    pub results: [u64; RESULTS],
    /// Segments sent again on established connections.
    pub retransmits: u64,
    /// Established connections that the other end reset.
    pub resets: u64,
    /// Times that the other end of an established connection fell silent.
    pub silent: u64,
    /// Connections given up by their client, this one, before the other end ever answered.
    pub unanswered: u64,
    /// Failed attempts whose destination is not followed, for want of room.
    pub untracked: u64,
    /// Attempts that `CONNECTING` got. Of the node only.
    pub begun: u64,
    /// Of those, the ones that left it.
    pub over: u64,
}

impl Counts {
    /// Attempts under way, as far as `CONNECTING` had room. Of the node only.
    pub fn under_way(&self) -> u64 {
        self.begun.saturating_sub(self.over)
    }

    /// Attempts ended.
    pub fn ended(&self) -> u64 {
        self.results.iter().sum()
    }

    /// Of those, the ones that failed.
    pub fn failed(&self) -> u64 {
        self.ended() - self.results[Outcome::Established as usize]
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.fields().into_iter().zip(other.values()) {
            *mine += theirs;
        }
    }

    /// What was counted since `earlier`; 0 where `earlier` has more.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut counts = *self;
        for (mine, theirs) in counts.fields().into_iter().zip(earlier.values()) {
            *mine = mine.saturating_sub(theirs);
        }
        counts
    }

    fn fields(&mut self) -> [&mut u64; RESULTS + 7] {
        let [established, refused, timeout, unreachable, other] = &mut self.results;
        [
            established,
            refused,
            timeout,
            unreachable,
            other,
            &mut self.retransmits,
            &mut self.resets,
            &mut self.silent,
            &mut self.unanswered,
            &mut self.untracked,
            &mut self.begun,
            &mut self.over,
        ]
    }

    fn values(&self) -> [u64; RESULTS + 7] {
        let mut copy = *self;
        copy.fields().map(|field| *field)
    }
}

/// Value of the map `TCP`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Value {
    /// The counters.
    pub counts: Counts,
    /// Second of `CLOCK_MONOTONIC` in which this client last sent a record.
    pub event_second: u64,
    /// When its present span of [`NEW_DESTINATIONS_NS`] began, `CLOCK_MONOTONIC` nanoseconds.
    pub span_ns: u64,
    /// Destinations entered in that span.
    pub entered: u64,
    /// Inode of the namespace, for people.
    pub netns: u32,
    /// Keeps the layout free of padding.
    pub _pad: u32,
}

/// Both ends of a connection. A v4-mapped IPv6 socket's are IPv4.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ends {
    /// Own address, network byte order; IPv4 in the first word.
    pub source: [u32; 4],
    /// The other end's.
    pub destination: [u32; 4],
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
    /// Own port, host byte order; 0 where none was chosen yet.
    pub source_port: u16,
    /// The other end's.
    pub destination_port: u16,
    /// Keeps the layout free of padding.
    pub _pad: u16,
}

/// An attempt under way: value of the map `CONNECTING`, by the address of its `struct sock`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Connecting {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub started_ns: u64,
    /// Process that asked.
    pub pid: u32,
    /// Error that the socket got, before an application took it; 0: none.
    pub error: u32,
    /// Its name, NUL-padded.
    pub comm: [u8; 16],
    /// Whose share of `CONNECTING` it is of: a place of the map `QUOTAS`.
    pub quota: u32,
    /// Keeps the layout free of padding.
    pub _pad: u32,
}

/// A connection to a port where requests must be answered: value of the map `TALKING`, by the
/// address of its `struct sock`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Talking {
    /// When the request was first seen that has no answer, `CLOCK_MONOTONIC` nanoseconds; 0: none
    /// waits.
    pub asked_ns: u64,
    /// When it was last looked at, likewise.
    pub looked_ns: u64,
    /// For how long since then nothing more was sent either, nanoseconds.
    pub quiet_ns: u64,
    /// Bytes received when it was last looked at (`tcp_sock.bytes_received`).
    pub received: u64,
    /// Bytes that the other end had acknowledged when some were last received
    /// (`tcp_sock.bytes_acked`).
    pub answered: u64,
    /// The same when it was last looked at.
    pub acked: u64,
    /// Not 0: that silence has been told.
    pub told: u32,
    /// Whose share of `TALKING` it is of: a place of the map `QUOTAS`.
    pub quota: u32,
}

/// Where attempts failed: key of the map `DESTINATIONS`.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
pub struct Destination {
    /// Network byte order; IPv4 in the first word.
    pub address: [u32; 4],
    /// Cookie of the namespace for an address that means nothing outside it (loopback,
    /// link-local), else 0.
    pub net_cookie: u64,
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
    /// Host byte order.
    pub port: u16,
    /// Keeps the layout free of padding.
    pub _pad: u32,
}

/// Value of the map `DESTINATIONS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DestinationValue {
    /// How often it has answered since it was entered.
    pub answered: u64,
    /// `CLOCK_MONOTONIC` nanoseconds.
    pub last_failed_ns: u64,
    /// Not 0: who asked was redirected to it, so its answers are not seen.
    pub redirected: u64,
}

/// Failed attempts of one client to one destination between two answers of it: key of the map
/// `ATTEMPTS`.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
pub struct AttemptsKey {
    /// Whose.
    pub client: Key,
    /// Whereto.
    pub destination: Destination,
    /// [`DestinationValue::answered`] at the time.
    pub answered: u64,
}

/// Value of the map `ATTEMPTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AttemptsValue {
    /// How many.
    pub failed: u64,
    /// The first, `CLOCK_MONOTONIC` nanoseconds.
    pub first_ns: u64,
}

/// A connection that is redirected, as its client knows it: key of the map `BEHIND`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct BehindKey {
    /// The client's address, network byte order; IPv4 in the first word.
    pub client: [u32; 4],
    /// The address that it asked.
    pub asked: [u32; 4],
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
    /// The client's port, host byte order.
    pub client_port: u16,
    /// The port that it asked.
    pub asked_port: u16,
    /// Keeps the layout free of padding.
    pub _pad: u16,
}

/// Where its last packet that was dropped was redirected to: value of the map `BEHIND`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Behind {
    /// When, `CLOCK_MONOTONIC` nanoseconds.
    pub ktime_ns: u64,
    /// Network byte order; IPv4 in the first word.
    pub address: [u32; 4],
    /// Host byte order.
    pub port: u16,
    /// Keeps the layout free of padding.
    pub _pad: [u16; 3],
}

/// Ring record: an attempt or a connection failed.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Failure {
    /// Common part.
    pub header: event::Header,
    /// From the first SYN to the end; from the request to now for a silent server; else 0.
    /// Nanoseconds.
    pub waited_ns: u64,
    /// Between whom.
    pub ends: Ends,
    /// Where a packet of it was redirected to that this node dropped; 0: none was seen.
    pub backend: [u32; 4],
    /// The port there; 0: none was seen.
    pub backend_port: u16,
    /// [`Outcome`].
    pub outcome: u8,
    /// Keeps the layout free of padding.
    pub _pad: [u8; 5],
}

#[cfg(feature = "user")]
mod user {
    // SAFETY: `#[repr(C)]`, no padding (zerocopy's IntoBytes proves it), every bit pattern valid.
    unsafe impl aya::Pod for super::Counts {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Value {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Destination {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::DestinationValue {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::AttemptsKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::AttemptsValue {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Talking {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_index_the_tables() {
        for (i, outcome) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, i);
        }
        assert_eq!(Outcome::RESULTS[..], Outcome::ALL[..RESULTS]);
    }

    #[test]
    fn every_counter_adds_up() {
        let mut counts = Counts::default();
        for (n, field) in (1..).zip(counts.fields()) {
            *field = n;
        }
        let mut twice = counts;
        twice.add(&counts);
        assert_eq!(twice.since(&counts), counts);
        assert_eq!((counts.ended(), counts.failed()), (15, 14));
    }
}
