//! Hook `drops`: packets that the kernel dropped, with its reason, joined to the lookup they
//! belonged to.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::event;

/// Drop reasons are small numbers that change from kernel to kernel; the node's counters are an
/// array this long, the last entry for anything beyond.
pub const MAX_REASONS: u32 = 256;

/// What a drop reason means for a lookup: values of the map `REASONS`, by the kernel's number.
/// User space fills it from the kernel's BTF.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Reason {
    /// Not 0: a packet dropped for this reason counts as a failure.
    pub is_failure: u8,
    /// [`crate::dns::Cause`] of a lookup whose packet died of it.
    pub cause: u8,
    /// Not 0: the reason means no failure by itself, but a DNS packet freed for it is lost. [`SAYS_NOTHING`] where it
    /// is what a socket's closing says too, of what nobody has read.
    pub is_unspecified: u8,
    /// Not 0: a packet that finds no neighbour entry is dropped for this reason, so it says who
    /// wanted the entry that was refused just before.
    pub ends_refusal: u8,
}

/// Value of [`Reason::is_unspecified`].
pub const SAYS_NOTHING: u8 = 2;

/// Where a CPU keeps its copy of per-CPU data: value of the per-CPU map `THIS_CPU`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ThisCpu {
    /// From the address that stands for all copies to this CPU's.
    pub offset: u64,
    /// Not 0: it is known, and so is what conntrack had refused before.
    pub ready: u64,
    /// Address of this value.
    pub own: u64,
    /// Address of the map.
    pub map: u64,
}

/// Key of the map `CONNTRACK_REFUSALS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RefusalsKey {
    /// Cookie of the namespace.
    pub net_cookie: u64,
    /// The CPU's number.
    pub cpu: u64,
}

/// What conntrack refused in a namespace on one CPU (`struct ip_conntrack_stat`): value of the map
/// `CONNTRACK_REFUSALS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Refusals {
    /// `drop`: packets.
    pub dropped: u32,
    /// `insert_failed`: entries; a lost race counts as both.
    pub insert_failed: u32,
}

/// Datagrams lost in full receive buffers: key of the maps `RECEIVE_DROPS`, where the port is 0, and
/// `RECEIVE_PORTS`.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
pub struct ReceiverKey {
    /// cgroup2 id of the socket.
    pub cgroup_id: u64,
    /// Cookie of its namespace. All 0: the rest key, charged when the map is full.
    pub net_cookie: u64,
    /// Port of the socket, host byte order.
    pub port: u16,
    /// Keeps the layout free of padding.
    pub _pad: [u16; 3],
}

/// Value of both maps.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ReceiverValue {
    /// Datagrams lost.
    pub dropped: u64,
    /// Of those, the ones whose port found no room in `RECEIVE_PORTS`, where this is 0.
    pub portless: u64,
    /// Inode of the namespace, for people.
    pub netns: u32,
    /// Keeps the layout free of padding.
    pub _pad: u32,
}

/// Whose packets were dropped, and why: key of the map `DROPS`.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
pub struct Key {
    /// cgroup2 id of the packet's socket; 0 where it has none.
    pub cgroup_id: u64,
    /// Cookie of the socket's namespace, else of the device's. 0, with an address of 0: the rest
    /// key of that reason, charged when the map is full.
    pub net_cookie: u64,
    /// Of a packet without a socket: the address that asked, network byte order; IPv4 in the first
    /// word.
    pub address: [u32; 4],
    /// `AF_INET` or `AF_INET6` of that address; 0: the packet has a socket.
    pub family: u16,
    /// The kernel's number.
    pub reason: u16,
    /// Keeps the layout free of padding.
    pub _pad: u32,
}

/// Value of the map `DROPS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Value {
    /// Packets.
    pub dropped: u64,
    /// Second of `CLOCK_MONOTONIC` in which this key last sent a record.
    pub event_second: u64,
    /// Inode of the namespace, for people.
    pub netns: u32,
    /// Keeps the layout free of padding.
    pub _pad: u32,
}

/// Ring record: a packet was dropped for a reason that means failure.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Dropped {
    /// Common part.
    pub header: event::Header,
    /// Whose it is.
    pub key: Key,
    /// What the packet says; network byte order, IPv4 in the first word.
    pub source: [u32; 4],
    /// As `source`.
    pub destination: [u32; 4],
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
    /// Host byte order; 0 where the protocol has none, or a later fragment does not say.
    pub source_port: u16,
    /// As `source_port`.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Keeps the layout free of padding.
    pub _pad: u8,
    /// Name of the packet's device, NUL-padded.
    pub device: [u8; 16],
}

#[cfg(feature = "user")]
mod user {
    // SAFETY: `#[repr(C)]`, no padding (zerocopy's IntoBytes proves it), every bit pattern valid.
    unsafe impl aya::Pod for super::Reason {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ReceiverKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ReceiverValue {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Key {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Value {}
}
