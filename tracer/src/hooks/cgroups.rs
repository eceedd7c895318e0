//! The user half of hook `cgroups`: reads the names of new cgroups.

use std::{ffi::CStr, mem::offset_of};

use tracer_common::cgroups::Made;
use zerocopy::FromBytes as _;

use crate::kernel::load::Ring;

/// The names that nobody has taken yet. Dropping it loses them.
pub struct Names(Ring);

impl Names {
    /// Of a ring that holds nothing else.
    pub fn of(ring: Ring) -> Self {
        Self(ring)
    }

    /// Calls back with id and path (from the hierarchy's root, beginning with `/`) of every cgroup
    /// made since the last call, in their order.
    pub fn take(&mut self, mut made: impl FnMut(u64, String)) {
        while let Some(record) = self.0.next() {
            if let Some((id, path)) = decode(&record) {
                made(id, path);
            }
        }
    }
}

/// `None`: no name could be read.
pub(crate) fn decode(bytes: &[u8]) -> Option<(u64, String)> {
    let (made, _) = Made::<0>::ref_from_prefix(bytes).ok()?;
    let path = bytes.get(offset_of!(Made<0>, path)..)?;
    let path = CStr::from_bytes_until_nul(path).ok()?;
    // As a walk would find it.
    let path = path.to_string_lossy().into_owned();
    path.starts_with('/').then_some((made.id, path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracer_common::cgroups::{LONGEST, SHORT};

    fn made<const ROOM: usize>(path: &[u8]) -> Option<(u64, String)> {
        let mut record = [b'x'; LONGEST + 8];
        record[..8].copy_from_slice(&7_u64.to_ne_bytes());
        record[8..8 + path.len()].copy_from_slice(path);
        assert_eq!(size_of::<Made<ROOM>>(), ROOM + 8, "no padding");
        decode(&record[..size_of::<Made<ROOM>>()])
    }

    #[test]
    fn a_path_ends_at_the_first_nul() {
        let expected = Some((7, "/kubepods/poda".to_owned()));
        assert_eq!(made::<SHORT>(b"/kubepods/poda\0b\0"), expected);
        assert_eq!(made::<LONGEST>(b"/kubepods/poda\0"), expected);
        let odd = made::<SHORT>(b"/a\xff\0");
        assert_eq!(odd, Some((7, "/a\u{fffd}".to_owned())));
    }

    #[test]
    fn what_is_no_path_is_left_out() {
        for path in [&b"\0"[..], b"a\0", b"/a"] {
            assert_eq!(made::<SHORT>(path), None);
        }
        assert_eq!(decode(&[7; 7]), None);
        assert_eq!(decode(&[7; 8]), None);
    }
}
