//! Hook `dns`: lookups over UDP, how they ended, and why the failed ones failed.

mod lookup;
mod near;
mod socket;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use self::{lookup::*, near::*, socket::*};

/// How a lookup ended. The number indexes [`Counts::outcomes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Outcome {
    /// Answered with records, or truncated.
    NoError = 0,
    /// Answered without records of that type.
    NoData = 1,
    /// The name does not exist.
    NxDomain = 2,
    /// The server failed.
    ServFail = 3,
    /// The server refused.
    Refused = 4,
    /// The server could not read the query.
    FormErr = 5,
    /// The server does not know that kind of query.
    NotImp = 6,
    /// Another error code.
    Other = 7,
    /// No answer before the deadline.
    Timeout = 8,
}

impl Outcome {
    /// All outcomes, by number.
    pub const ALL: [Self; 9] = [
        Self::NoError,
        Self::NoData,
        Self::NxDomain,
        Self::ServFail,
        Self::Refused,
        Self::FormErr,
        Self::NotImp,
        Self::Other,
        Self::Timeout,
    ];

    /// Label value in metrics and events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoError => "noerror",
            Self::NoData => "nodata",
            Self::NxDomain => "nxdomain",
            Self::ServFail => "servfail",
            Self::Refused => "refused",
            Self::FormErr => "formerr",
            Self::NotImp => "notimp",
            Self::Other => "other",
            Self::Timeout => "timeout",
        }
    }

    /// NXDOMAIN and NODATA are answers; search paths make them by the dozen.
    pub const fn is_failure(self) -> bool {
        !matches!(self, Self::NoError | Self::NoData | Self::NxDomain)
    }

    /// The outcome that a response code (RFC 1035 4.1.1, low four bits) and the count of answer
    /// records mean. A truncated answer (TC) is `noerror`, whatever its records.
    #[inline(always)]
    pub const fn of_answer(rcode: u8, answers: u16, truncated: bool) -> Self {
        match rcode {
            0 if answers == 0 && !truncated => Self::NoData,
            0 => Self::NoError,
            1 => Self::FormErr,
            2 => Self::ServFail,
            3 => Self::NxDomain,
            4 => Self::NotImp,
            5 => Self::Refused,
            _ => Self::Other,
        }
    }
}

/// What killed a failed lookup. The number indexes [`Counts::causes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Cause {
    /// No drop of its packets was seen on this node.
    NoAnswer = 0,
    /// The server answered with an error.
    Server = 1,
    /// No neighbour entry could be made: the table is full.
    NeighbourTableFull = 2,
    /// The next hop's link-layer address was never learned.
    NeighbourUnresolved = 3,
    /// Too many packets waited for the next hop's address.
    NeighbourQueueFull = 4,
    /// Netfilter dropped a packet.
    Netfilter = 5,
    /// A socket's receive buffer was full.
    SocketBufferFull = 6,
    /// No route.
    NoRoute = 7,
    /// Nobody listens on the server's port.
    PortUnreachable = 8,
    /// Another drop reason.
    Dropped = 9,
}

impl Cause {
    /// All causes, by number.
    pub const ALL: [Self; 10] = [
        Self::NoAnswer,
        Self::Server,
        Self::NeighbourTableFull,
        Self::NeighbourUnresolved,
        Self::NeighbourQueueFull,
        Self::Netfilter,
        Self::SocketBufferFull,
        Self::NoRoute,
        Self::PortUnreachable,
        Self::Dropped,
    ];

    /// Label value in metrics and events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoAnswer => "no_answer",
            Self::Server => "server",
            Self::NeighbourTableFull => "neighbour_table_full",
            Self::NeighbourUnresolved => "neighbour_unresolved",
            Self::NeighbourQueueFull => "neighbour_queue_full",
            Self::Netfilter => "netfilter",
            Self::SocketBufferFull => "socket_buffer_full",
            Self::NoRoute => "no_route",
            Self::PortUnreachable => "port_unreachable",
            Self::Dropped => "dropped",
        }
    }
}

/// Upper bounds of the latency buckets, nanoseconds; one more bucket holds the rest.
pub const BUCKETS_NS: [u64; 13] = [
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
];

/// Index of a duration in [`Counts::buckets`].
#[inline(always)]
pub const fn bucket(duration_ns: u64) -> usize {
    let mut i = 0;
    while i < BUCKETS_NS.len() && duration_ns > BUCKETS_NS[i] {
        i += 1;
    }
    i
}

/// Whose lookups: key of the map `DNS`.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
pub struct Key {
    /// cgroup2 id of the client's socket.
    pub cgroup_id: u64,
    /// Cookie of the socket's namespace. Both 0: the rest key, charged when the map is full.
    pub net_cookie: u64,
}

/// Counters of one client, and of the node. Added to atomically: exact in every context.
///
/// What grows when something begins comes first, what grows when it ends last: mostly other CPUs do that, and take
/// the line of the cache with them.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
pub struct Counts {
    /// Query packets, retransmissions too.
    pub queries: u64,
    /// Lookups begun.
    pub started: u64,
    /// Queries not followed, for want of room.
    pub untracked: u64,
    /// The server's side: query packets that reached a server's socket.
    pub received: u64,
    /// Of those: not followed, for want of room.
    pub served_untracked: u64,
    /// Answers to nothing asked.
    pub unmatched: u64,
    /// Answers after the deadline.
    pub late: u64,
    /// Failed lookups, by [`Cause`].
    pub causes: [u64; 10],
    /// Lookups ended, by [`Outcome`].
    pub outcomes: [u64; 9],
    /// Sum of the answered lookups' durations, nanoseconds.
    pub duration_ns: u64,
    /// Answered lookups by duration, as [`BUCKETS_NS`]; the last holds the rest.
    pub buckets: [u64; 14],
    /// Of those received: answered, by [`Outcome`]; [`Outcome::Timeout`] stands for unanswered.
    pub served: [u64; 9],
}

/// Value of the map `DNS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Value {
    /// The counters.
    pub counts: Counts,
    /// Second of `CLOCK_MONOTONIC` in which this key last sent a record.
    pub event_second: u64,
    /// Inode of the namespace, for people.
    pub netns: u32,
    /// Keeps the layout free of padding.
    pub _pad: u32,
}

/// Server ports followed, at most.
pub const MAX_PORTS: u32 = 8;

impl Counts {
    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        self.queries += other.queries;
        self.started += other.started;
        for (mine, theirs) in self.outcomes.iter_mut().zip(&other.outcomes) {
            *mine += theirs;
        }
        for (mine, theirs) in self.causes.iter_mut().zip(&other.causes) {
            *mine += theirs;
        }
        self.late += other.late;
        self.unmatched += other.unmatched;
        self.untracked += other.untracked;
        self.received += other.received;
        for (mine, theirs) in self.served.iter_mut().zip(&other.served) {
            *mine += theirs;
        }
        self.served_untracked += other.served_untracked;
        self.duration_ns += other.duration_ns;
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
    }

    /// What was counted since `earlier`; 0 where `earlier` has more.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let less = |mine: &mut u64, theirs: u64| *mine = mine.saturating_sub(theirs);
        let mut counts = *self;
        less(&mut counts.queries, earlier.queries);
        less(&mut counts.started, earlier.started);
        for (mine, theirs) in counts.outcomes.iter_mut().zip(&earlier.outcomes) {
            less(mine, *theirs);
        }
        for (mine, theirs) in counts.causes.iter_mut().zip(&earlier.causes) {
            less(mine, *theirs);
        }
        less(&mut counts.late, earlier.late);
        less(&mut counts.unmatched, earlier.unmatched);
        less(&mut counts.untracked, earlier.untracked);
        less(&mut counts.received, earlier.received);
        for (mine, theirs) in counts.served.iter_mut().zip(&earlier.served) {
            less(mine, *theirs);
        }
        less(&mut counts.served_untracked, earlier.served_untracked);
        less(&mut counts.duration_ns, earlier.duration_ns);
        for (mine, theirs) in counts.buckets.iter_mut().zip(&earlier.buckets) {
            less(mine, *theirs);
        }
        counts
    }

    /// Lookups ended.
    pub fn ended(&self) -> u64 {
        self.outcomes.iter().sum()
    }

    /// Lookups begun that wait. Those of a client that was gone meanwhile end without having begun: then less
    /// than none.
    #[inline(always)]
    pub const fn waiting(&self) -> i64 {
        let mut waiting = self.started;
        let mut i = 0;
        while i < self.outcomes.len() {
            waiting = waiting.wrapping_sub(self.outcomes[i]);
            i += 1;
        }
        waiting.cast_signed()
    }

    /// Queries received that wait for the server's answer; as with [`Self::waiting`], less than none.
    #[inline(always)]
    pub const fn serving(&self) -> i64 {
        let mut serving = self.received.wrapping_sub(self.served_untracked);
        let mut i = 0;
        while i < self.served.len() {
            serving = serving.wrapping_sub(self.served[i]);
            i += 1;
        }
        serving.cast_signed()
    }

    /// Lookups ended in failure.
    pub fn failed(&self) -> u64 {
        Outcome::ALL
            .iter()
            .zip(&self.outcomes)
            .filter(|(outcome, _)| outcome.is_failure())
            .map(|(_, n)| n)
            .sum()
    }

    /// Lookups that an answer ended.
    pub fn answered(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The duration below which `share` (0 to 1) of the answered lookups stayed, seconds, linear
    /// within its bucket; `None` without answers.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let answered = self.answered();
        if answered == 0 {
            return None;
        }
        let wanted = share * answered as f64;
        let mut below = 0.0;
        let mut lower = 0.0;
        for (bound, &count) in BUCKETS_NS.iter().zip(&self.buckets) {
            let upper = *bound as f64 / 1e9;
            let count = count as f64;
            if count > 0.0 && below + count >= wanted {
                return Some(lower + (upper - lower) * ((wanted - below) / count));
            }
            below += count;
            lower = upper;
        }
        Some(lower) // in the last bucket, which has no upper bound
    }
}

#[cfg(feature = "user")]
mod user {
    // SAFETY: `#[repr(C)]`, no padding (zerocopy's IntoBytes proves it), every bit pattern valid.
    unsafe impl aya::Pod for super::Key {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Counts {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Value {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_index_the_tables() {
        for (i, o) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*o as usize, i);
        }
        for (i, c) in Cause::ALL.iter().enumerate() {
            assert_eq!(*c as usize, i);
        }
    }

    #[test]
    fn a_duration_is_in_the_bucket_that_ends_with_it() {
        assert_eq!(bucket(0), 0);
        for (i, bound) in BUCKETS_NS.into_iter().enumerate() {
            assert_eq!(bucket(bound), i);
            assert_eq!(bucket(bound + 1), i + 1);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS_NS.len());
    }

    #[test]
    fn quantiles_come_from_the_buckets() {
        let mut counts = Counts::default();
        assert_eq!(counts.quantile(0.5), None);
        counts.buckets[3] = 10;
        let median = counts.quantile(0.5).unwrap();
        assert!(median > 0.0025 && median < 0.005, "{median}");
    }

    #[test]
    fn answers_map_to_outcomes() {
        assert_eq!(Outcome::of_answer(0, 1, false), Outcome::NoError);
        assert_eq!(Outcome::of_answer(0, 0, false), Outcome::NoData);
        assert_eq!(Outcome::of_answer(0, 0, true), Outcome::NoError);
        assert_eq!(Outcome::of_answer(1, 0, false), Outcome::FormErr);
        assert_eq!(Outcome::of_answer(2, 0, false), Outcome::ServFail);
        assert_eq!(Outcome::of_answer(3, 0, false), Outcome::NxDomain);
        assert_eq!(Outcome::of_answer(4, 0, false), Outcome::NotImp);
        assert_eq!(Outcome::of_answer(5, 0, false), Outcome::Refused);
        assert_eq!(Outcome::of_answer(9, 0, false), Outcome::Other);
        assert!(!Outcome::NxDomain.is_failure());
        assert!(Outcome::Timeout.is_failure());
    }
}
