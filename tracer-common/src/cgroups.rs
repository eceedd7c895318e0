//! Hook `cgroups`: cgroups that were made, by name.

use zerocopy::{FromBytes, Immutable, KnownLayout};

/// Room for what paths usually are: a container's of a cluster has some 200 bytes.
pub const SHORT: usize = 248;
/// `TRACE_CGROUP_PATH_LEN` of the kernel (kernel/cgroup/cgroup-internal.h): no path is longer.
pub const LONGEST: usize = 1024;

/// A cgroup of the cgroup2 hierarchy, just made. Records of the ring `CGROUPS`, which holds nothing
/// else, with room for [`SHORT`] or [`LONGEST`] bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout)]
pub struct Made<const ROOM: usize> {
    /// Its id, as `bpf_skb_cgroup_id` gives it.
    pub id: u64,
    /// From the hierarchy's root, beginning with `/`, up to the first NUL; what is behind that is
    /// rubbish.
    pub path: [u8; ROOM],
}
