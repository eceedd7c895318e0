//! Hook `neigh`: creations of neighbour entries, and those the kernel refused.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::event::Header;

/// Whose creations: key of the map `NEIGH`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Key {
    /// Cookie of the device's namespace; 0 is the rest key, charged when the map is full.
    pub net_cookie: u64,
    /// `AF_INET` or `AF_INET6`.
    pub family: u32,
    /// Keeps the layout free of padding.
    pub _pad: u32,
}

impl Key {
    /// The key that the kernel charges where the map is full.
    #[inline(always)]
    pub const fn rest(family: u16) -> Self {
        Self {
            net_cookie: 0,
            family: family as u32,
            _pad: 0,
        }
    }
}

/// Creations asked for, by result. Added to atomically: exact in every context.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Counts {
    /// The kernel made an entry (which it may have thrown away at once when another CPU was faster).
    pub created: u64,
    /// Refused: the table is at `gc_thresh3` and garbage collection freed nothing (`table_fulls`).
    pub table_full: u64,
    /// Refused for want of memory.
    pub no_memory: u64,
}

/// Value of the map `NEIGH`.
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

/// A refused creation: ring record of kind [`crate::event::KIND_NEIGHBOUR_OVERFLOW`].
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Overflow {
    /// Common part.
    pub header: Header,
    /// Address that wanted an entry, network byte order; IPv4 in the first four bytes.
    pub destination: [u8; 16],
    /// Device of the entry, NUL-padded.
    pub device: [u8; 16],
    /// Index of that device in its namespace.
    pub ifindex: u32,
    /// `AF_INET` or `AF_INET6`.
    pub family: u32,
    /// The table's `gc_entries` just after the refusal.
    pub entries: u32,
    /// The limit in force, `gc_thresh3`.
    pub limit: u32,
}

/// State of one neighbour table: values of the map `TABLES`, by [`crate::family_index`]. Written by
/// the program `tables`, which user space runs when it wants fresh figures.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Table {
    /// `struct neigh_table *`, 0 while unknown.
    pub address: u64,
    /// Cookie of the kernel's first network namespace (`init_net`), 0 while unknown.
    pub init_net_cookie: u64,
    /// Inode of that namespace.
    pub init_netns: u32,
    /// `gc_entries`: what the kernel compares with the limit.
    pub gc_entries: u32,
    /// `entries`: all, permanent and externally learned ones too.
    pub entries: u32,
    /// Limits in force: below this no garbage collection.
    pub gc_thresh1: u32,
    /// Above this for 5 s: forced garbage collection.
    pub gc_thresh2: u32,
    /// The hard limit.
    pub gc_thresh3: u32,
}

impl Counts {
    /// Adds another's counts.
    pub const fn add(&mut self, other: &Self) {
        self.created += other.created;
        self.table_full += other.table_full;
        self.no_memory += other.no_memory;
    }

    /// Creations asked for.
    pub const fn attempts(&self) -> u64 {
        self.created + self.table_full + self.no_memory
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
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Table {}
}
