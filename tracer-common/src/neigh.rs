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
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
pub struct Counts {
    /// The kernel made an entry (which it may have thrown away at once when another CPU was faster).
    pub created: u64,
    /// Refused: the table is at `gc_thresh3` and garbage collection freed nothing (`table_fulls`).
    pub table_full: u64,
    /// Refused for want of memory.
    pub no_memory: u64,
    /// Of `table_full`: what the kernel wanted for itself, such as to answer an ARP request or to
    /// solicit a neighbour. The node is then unreachable for new peers.
    pub kernel_full: u64,
    /// Entries of this one removed, by [`Gc`].
    pub evictions: [u64; 3],
    /// Entries of anyone thrown out because this one asked for one more.
    pub forced_gc: u64,
    /// Of `created`: entries that a forced collection had thrown out within [`THRASH_NS`].
    pub recreated: u64,
}

/// Who removed an entry. The number indexes [`Counts::evictions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Gc {
    /// Garbage collection forced by a creation.
    Forced = 0,
    /// The periodic garbage collection.
    Periodic = 1,
    /// Anything else: `ip neigh`, a link that went down, a namespace that went away.
    Other = 2,
}

impl Gc {
    /// All, by number.
    pub const ALL: [Self; 3] = [Self::Forced, Self::Periodic, Self::Other];

    /// Label value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forced => "forced",
            Self::Periodic => "periodic",
            Self::Other => "other",
        }
    }
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
    /// Which walk counted `live`: [`Walk::generation`].
    pub live_generation: u32,
    /// Entries in the table whose device is in the namespace, as that walk found them.
    pub live: u32,
    /// Keeps the layout free of padding.
    pub _pad: u32,
}

/// Whose forwarded packets were refused an entry: key of the map `NEIGH_FORWARDED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
pub struct ForwardedKey {
    /// Source address of the packets, network byte order; IPv4 in the first word.
    pub source: [u32; 4],
    /// Cookie of the device's namespace: of the node's, or of a pod's that forwards for others.
    pub net_cookie: u64,
    /// Of the entries, `AF_INET` or `AF_INET6`.
    pub family: u32,
    /// Of the source. In a tunnel it may be another.
    pub source_family: u32,
}

/// A refusal that waits for the packet that is dropped for it: value of the per-CPU map `REFUSED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Refused {
    /// When, `CLOCK_MONOTONIC` nanoseconds; 0 if none waits.
    pub ktime_ns: u64,
    /// Namespace of the device.
    pub net_cookie: u64,
    /// Address that wanted an entry, network byte order; IPv4 in the first word.
    pub destination: [u32; 4],
    /// Device of the entry, NUL-padded.
    pub device: [u8; 16],
    /// Index of that device in its namespace.
    pub ifindex: u32,
    /// `AF_INET` or `AF_INET6`.
    pub family: u32,
    /// Inode of the namespace.
    pub netns: u32,
    /// The table's `gc_entries`.
    pub entries: u32,
    /// Its `gc_thresh3`.
    pub limit: u32,
    /// Keeps the layout free of padding.
    pub _pad: u32,
}

/// How long a refusal waits for a packet that dies without a reason; one that dies later is another's.
/// Nanoseconds.
pub const REFUSED_NS: u64 = 1_000_000;

/// How long a refusal waits for any packet; then it is the kernel's own need. The packet dies a moment later, but a
/// virtual machine may not get to run in that moment. Nanoseconds.
pub const SETTLE_NS: u64 = 100_000_000;

/// Highest `gc_entries` of one second: values of the per-CPU map `NEIGH_PEAK`, at index
/// family × [`PEAK_SECONDS`] + second mod [`PEAK_SECONDS`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Peak {
    /// Second of `CLOCK_MONOTONIC`.
    pub second: u64,
    /// The highest seen at a creation in it.
    pub entries: u64,
}

/// Seconds that `NEIGH_PEAK` holds.
pub const PEAK_SECONDS: u32 = 64;

/// Who was solicited in vain: key of the map `UNSOLICITED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Target {
    /// Cookie of the device's namespace.
    pub net_cookie: u64,
    /// Network byte order.
    pub address: [u32; 4],
}

/// An entry that a forced collection threw out: key of the map `EVICTED`, with the time as value.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EvictedKey {
    /// Namespace of the device.
    pub net_cookie: u64,
    /// The device.
    pub ifindex: u32,
    /// `AF_INET` or `AF_INET6`.
    pub family: u32,
    /// The neighbour's address, network byte order; IPv4 in the first word.
    pub address: [u32; 4],
}

/// An entry that is made again so soon after a forced collection threw it out is thrashing.
/// Nanoseconds.
pub const THRASH_NS: u64 = 10_000_000_000;

/// Where the walk of a table stands: values of the map `WALK`, by [`crate::family_index`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Walk {
    /// The array of hash buckets.
    pub buckets: u64,
    /// The entry to look at next, 0 for the next bucket.
    pub entry: u64,
    /// How many buckets there are.
    pub len: u32,
    /// The next bucket.
    pub bucket: u32,
    /// Counts the walks; marks what this one counted.
    pub generation: u32,
    /// Entries seen.
    pub seen: u32,
    /// Not 0: it came to the end.
    pub complete: u32,
    /// `AF_INET` or `AF_INET6`.
    pub family: u32,
}

/// A refused creation: ring record of kind [`crate::event::KIND_NEIGHBOUR_OVERFLOW`].
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Overflow {
    /// Common part.
    pub header: Header,
    /// The refusal.
    pub refused: Refused,
    /// Source of the packet that was dropped for it, if it was forwarded, network byte order; IPv4
    /// in the first word; else 0.
    pub source: [u32; 4],
    /// [`WANTED_BY_POD`], [`WANTED_BY_KERNEL`] or [`WANTED_BY_SOURCE`].
    pub wanted_by: u32,
    /// Family of `source`; 0 where there is none.
    pub source_family: u32,
}

/// The entry was wanted for a packet of the device's namespace.
pub const WANTED_BY_POD: u32 = 0;
/// The kernel wanted the entry for itself.
pub const WANTED_BY_KERNEL: u32 = 1;
/// The entry was wanted for a forwarded packet.
pub const WANTED_BY_SOURCE: u32 = 2;

/// State of one neighbour table: values of the map `TABLES`, by [`crate::family_index`]. Written by
/// the program `tables`, which user space runs when it wants fresh figures.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Table {
    /// `struct neigh_table *`, 0 while unknown.
    pub address: u64,
    /// The function that collects its garbage periodically (`gc_work.work.func`).
    pub periodic_work: u64,
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
    pub fn add(&mut self, other: &Self) {
        self.created += other.created;
        self.table_full += other.table_full;
        self.no_memory += other.no_memory;
        self.kernel_full += other.kernel_full;
        for (mine, theirs) in self.evictions.iter_mut().zip(&other.evictions) {
            *mine += theirs;
        }
        self.forced_gc += other.forced_gc;
        self.recreated += other.recreated;
    }

    /// What was counted since `earlier`; 0 where `earlier` has more.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut evictions = self.evictions;
        for (mine, theirs) in evictions.iter_mut().zip(&earlier.evictions) {
            *mine = mine.saturating_sub(*theirs);
        }
        Self {
            created: self.created.saturating_sub(earlier.created),
            table_full: self.table_full.saturating_sub(earlier.table_full),
            no_memory: self.no_memory.saturating_sub(earlier.no_memory),
            kernel_full: self.kernel_full.saturating_sub(earlier.kernel_full),
            evictions,
            forced_gc: self.forced_gc.saturating_sub(earlier.forced_gc),
            recreated: self.recreated.saturating_sub(earlier.recreated),
        }
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
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ForwardedKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Refused {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Peak {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Walk {}
}
