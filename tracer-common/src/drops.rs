//! Hook `drops`: packets that the kernel dropped, with its reason, joined to the lookup they
//! belonged to.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

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
    /// Not 0: the reason says nothing by itself, but a query freed for it is lost; where it was
    /// freed says why.
    pub is_unspecified: u8,
    /// Not 0: a packet that finds no neighbour entry is dropped for this reason, so it says who
    /// wanted the entry that was refused just before.
    pub ends_refusal: u8,
}

#[cfg(feature = "user")]
mod user {
    // SAFETY: `#[repr(C)]`, no padding (zerocopy's IntoBytes proves it), every bit pattern valid.
    unsafe impl aya::Pod for super::Reason {}
}
