//! What the kernel half and the user half of tracer say to each other: map keys, map values and
//! ring records. Plain `#[repr(C)]` data without padding, native byte order unless a field says
//! otherwise. One module per hook, as everywhere in tracer.
#![no_std]

pub mod cgroups;
pub mod dns;
pub mod drops;
pub mod event;
pub mod neigh;
pub mod peers;
pub mod quota;
pub mod tcp;

/// The version of what the maps hold: an agent goes on with the maps that another one left only where
/// both mean the same by them. Raised with every change of a key, a value or what is counted in it.
pub const SCHEMA: u32 = 5;

/// Hooks in the order of their index in the per-hook maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Hook {
    /// Neighbour creation.
    Neigh = 0,
    /// UDP port 53.
    Dns = 1,
    /// Dropped packets.
    Drops = 2,
    /// Removed neighbour entries.
    Gc = 3,
    /// TCP connections.
    Tcp = 4,
    /// Names of cgroups, for the others: it counts nothing.
    Cgroups = 5,
}

impl Hook {
    /// All hooks, by index.
    pub const ALL: [Self; 6] = [
        Self::Neigh,
        Self::Dns,
        Self::Drops,
        Self::Gc,
        Self::Tcp,
        Self::Cgroups,
    ];
    /// How many hooks there are: entries of the per-hook maps.
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// The hook's one name: module, page, test, metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Neigh => "neigh",
            Self::Dns => "dns",
            Self::Drops => "drops",
            Self::Gc => "gc",
            Self::Tcp => "tcp",
            Self::Cgroups => "cgroups",
        }
    }
}

/// Maps whose new keys may find no room. The number indexes the map `FULL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ClientMap {
    /// Creations by namespace.
    Neigh = 0,
    /// Lookups by cgroup and namespace.
    Dns = 1,
    /// Refusals by source address.
    NeighForwarded = 2,
    /// Lookups that wait.
    Pending = 3,
    /// Queries that wait for a server's answer.
    Served = 4,
    /// Datagrams lost in full receive buffers.
    ReceiveDrops = 5,
    /// Failures by the address at the other end.
    Peers = 6,
    /// Datagrams lost in full receive buffers, by port.
    ReceivePorts = 7,
    /// Dropped packets by owner.
    Drops = 8,
    /// Connections by client.
    Tcp = 9,
    /// Attempts under way.
    Connecting = 10,
    /// Connections to ports where requests must be answered.
    Talking = 11,
    /// Where attempts failed.
    Destinations = 12,
    /// Failed attempts by client and destination.
    Attempts = 13,
}

impl ClientMap {
    /// How many there are.
    pub const COUNT: u32 = 14;
}

/// Address family as the kernel numbers it (`include/linux/socket.h`).
pub const AF_INET: u16 = 2;
/// Address family as the kernel numbers it (`include/linux/socket.h`).
pub const AF_INET6: u16 = 10;

/// Index of a family in arrays with one entry for each: IPv4, IPv6.
pub const FAMILIES: u32 = 2;

/// `Some(0)` for IPv4, `Some(1)` for IPv6, else `None`.
#[inline(always)]
pub const fn family_index(family: u16) -> Option<u32> {
    match family {
        AF_INET => Some(0),
        AF_INET6 => Some(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_index_arrays() {
        assert_eq!(family_index(AF_INET), Some(0));
        assert_eq!(family_index(AF_INET6), Some(1));
        assert_eq!(family_index(0), None);
    }
}
