//! Sockets that DNS packets went through.

use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::{Key, MIX};

/// Places in the map `SOCKETS`.
pub const SOCKETS_LEN: u32 = 1 << 12;

/// What stays the same of a datagram socket as long as it lives: value of the map `SOCKETS`, where it has one place,
/// which the latest takes. What two CPUs wrote at once, and what is read while one writes, has another sum.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, KnownLayout)]
pub struct KnownSocket {
    /// `bpf_get_socket_cookie`: no other's until the machine starts anew.
    pub cookie: u64,
    /// Address of its `struct sock`.
    pub sk: u64,
    /// Whose counters.
    pub key: Key,
    /// Inode of its namespace.
    pub netns: u32,
    /// Keeps the layout free of padding.
    pub _pad: u32,
    /// Of all that: 0 is none's.
    pub sum: u64,
    /// Up to a power of two.
    pub _line: [u64; 2],
}

const _: () = assert!(size_of::<KnownSocket>() == 64);

impl KnownSocket {
    /// Place of a socket in the map `SOCKETS`.
    #[inline(always)]
    pub const fn place(cookie: u64) -> u32 {
        // Not by the low bits: each CPU gives cookies out of a block of 4096 of its own (include/linux/cookie.h), and
        // its first sockets are those that live longest.
        (cookie.wrapping_mul(MIX) >> 48) as u32 % SOCKETS_LEN
    }

    /// One that is whole, as this build knows it.
    #[inline(always)]
    pub const fn new(cookie: u64, sk: u64, key: Key, netns: u32, build: u64) -> Self {
        let mut known = Self {
            cookie,
            sk,
            key,
            netns,
            _pad: 0,
            sum: 0,
            _line: [0; 2],
        };
        known.sum = known.sum_of(build);
        known
    }

    /// Is it the socket with that cookie, whole, and written by this build? Another may have found out otherwise.
    #[inline(always)]
    pub const fn is_of(&self, cookie: u64, build: u64) -> bool {
        self.cookie == cookie && self.sum == self.sum_of(build)
    }

    /// Never 0: a place that nobody has is no socket's.
    #[inline(always)]
    const fn sum_of(&self, build: u64) -> u64 {
        let mut sum = (self.cookie ^ build).wrapping_mul(MIX);
        sum = (sum ^ sum >> 32 ^ self.sk).wrapping_mul(MIX);
        sum = (sum ^ sum >> 32 ^ self.key.cgroup_id).wrapping_mul(MIX);
        sum = (sum ^ sum >> 32 ^ self.key.net_cookie).wrapping_mul(MIX);
        sum = (sum ^ sum >> 32 ^ self.netns as u64).wrapping_mul(MIX);
        sum | 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key {
        cgroup_id: 77,
        net_cookie: 3,
    };
    const SK: u64 = 0xffff_8880_1234_5600;

    #[test]
    fn a_place_is_the_sockets_whose_it_is_whole() {
        const BUILD: u64 = 99;
        let written = KnownSocket::new(5, SK, KEY, 4_026_531_840, BUILD);
        assert!(written.is_of(5, BUILD) && !written.is_of(6, BUILD));
        assert!(!written.is_of(5, BUILD + 1));
        assert!(!KnownSocket::default().is_of(0, BUILD));
        let torn = [
            KnownSocket {
                sk: SK + 64,
                ..written
            },
            KnownSocket {
                netns: 1,
                ..written
            },
            KnownSocket {
                key: Key {
                    cgroup_id: 78,
                    ..KEY
                },
                ..written
            },
            KnownSocket {
                key: Key {
                    net_cookie: 4,
                    ..KEY
                },
                ..written
            },
        ];
        for torn in torn {
            assert!(!torn.is_of(5, BUILD), "{torn:?}");
        }
    }
}
