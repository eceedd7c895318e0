//! Failures by the address at the other end, of every hook that knows one.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u16)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
pub enum Kind {
    /// Lookups, by the server asked first.
    Dns = 0,
    /// Connection attempts.
    Connect = 1,
    /// Segments sent again on established connections.
    Retransmit = 2,
    /// Connections that answered no request until the client gave up.
    Unanswered = 3,
}

impl Kind {
    /// All kinds, by number.
    pub const ALL: [Self; 4] = [Self::Dns, Self::Connect, Self::Retransmit, Self::Unanswered];

    /// Label value in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Retransmit => "retransmit",
            Self::Unanswered => "unanswered",
        }
    }
}

/// Key of the map `PEERS`.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
pub struct Key {
    /// Network byte order; IPv4 in the first word.
    pub address: [u32; 4],
    /// `AF_INET` or `AF_INET6`; 0: the rest, charged when the map is full.
    pub family: u16,
    /// [`Kind`].
    pub kind: u16,
}

impl Key {
    /// The rest key of a kind.
    pub const fn rest(kind: Kind) -> Self {
        Self {
            address: [0; 4],
            family: 0,
            kind: kind as u16,
        }
    }
}

#[cfg(feature = "user")]
mod user {
    // SAFETY: `#[repr(C)]`, no padding (zerocopy's IntoBytes proves it), every bit pattern valid.
    unsafe impl aya::Pod for super::Key {}
}
