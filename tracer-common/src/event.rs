//! The ring: every record begins with a [`Header`], whose `kind` says what follows.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of the record layouts. User space refuses records of another.
pub const VERSION: u16 = 1;

/// [`crate::neigh::Overflow`] follows.
pub const KIND_NEIGHBOUR_OVERFLOW: u16 = 1;
/// [`crate::dns::Failure`] follows.
pub const KIND_DNS_FAILURE: u16 = 2;
/// [`crate::drops::Dropped`] follows.
pub const KIND_DROP: u16 = 3;
/// [`crate::tcp::Failure`] follows.
pub const KIND_CONNECT_FAILURE: u16 = 4;

/// First bytes of every ring record.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Header {
    /// One of the `KIND_…` constants.
    pub kind: u16,
    /// [`VERSION`].
    pub version: u16,
    /// Inode of the network namespace concerned, for people; 0 if unknown.
    pub netns: u32,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub ktime_ns: u64,
    /// The namespace's cookie (`struct net.net_cookie`): never reused.
    pub net_cookie: u64,
    /// cgroup2 id of the socket, 0 where there is none.
    pub cgroup_id: u64,
    /// Process (thread group) that asked, 0 where the kernel was not in its context.
    pub pid: u32,
    /// Keeps the layout free of padding.
    pub _pad: u32,
    /// Its name, NUL-padded; all 0 where `pid` is 0.
    pub comm: [u8; 16],
}

/// What one hook says of its own ring use. Values of a per-CPU array indexed by [`crate::Hook`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RingStats {
    /// Records put into the ring.
    pub sent: u64,
    /// Records lost because the ring was full.
    pub lost: u64,
    /// Records held back by the event rate.
    pub suppressed: u64,
}

/// Event budget of one hook and second. Values of an array indexed by [`crate::Hook`]. Approximate
/// under races between CPUs, which is fine: it limits details, never counts.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RateWindow {
    /// Second of `CLOCK_MONOTONIC` that `used` belongs to.
    pub second: u64,
    /// Records let through in that second.
    pub used: u64,
}

#[cfg(feature = "user")]
mod user {
    // SAFETY: `#[repr(C)]`, no padding (zerocopy's IntoBytes proves it), every bit pattern valid.
    unsafe impl aya::Pod for super::RingStats {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::RateWindow {}
}
