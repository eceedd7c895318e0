//! What the kernel hands over, pods' own bytes in it.

use std::sync::LazyLock;

use super::assert_plain;
use crate::{
    hooks,
    kernel::{
        cgroup::{self, MountedCgroups},
        kallsyms,
        reasons::Reasons,
        state,
    },
};

/// A record: any length, version, kind and contents.
pub(super) fn record(bytes: &[u8]) -> bool {
    static REASONS: LazyLock<Reasons> = LazyLock::new(Reasons::default);

    let Ok(record) = hooks::decode(bytes, &REASONS) else {
        return false;
    };
    let json = serde_json::to_string(&record.details).expect("details are JSON");
    for text in [record.comm, json] {
        assert_plain(&text);
        assert!(!text.contains('\n'), "{text:?}");
    }
    true
}

/// The question of a message, as pods put it on the wire.
pub(super) fn question(bytes: &[u8]) -> bool {
    let (name, kind) = hooks::question::decode(bytes);
    assert!(name.len() <= (4 * bytes.len()).max(1), "{name:?}");
    for text in [&name, &kind] {
        assert!(text.bytes().all(|byte| byte.is_ascii_graphic()), "{text:?}");
    }
    !kind.is_empty()
}

/// A cgroup's name, as a record, and what is read of its path.
pub(super) fn cgroup(bytes: &[u8]) -> bool {
    let Some((_, path)) = hooks::cgroups::decode(bytes) else {
        return false;
    };
    assert!(path.starts_with('/'), "{path:?}");
    for uid in cgroup::pod_uids(&path) {
        assert!(!uid.is_empty() && uid.len() <= path.len());
    }
    assert!(!cgroup::unit(&path).is_empty());
    true
}

/// Functions of which there are two, one or none.
pub(super) fn kallsyms(bytes: &[u8]) -> bool {
    let Ok(ranges) = kallsyms::ranges_in(bytes, &["neigh_forced_gc", "neigh_periodic_work", "a"])
    else {
        return false;
    };
    for (name, range) in &ranges {
        assert!(range.start <= range.end, "{name}: {range:?}");
    }
    !ranges.is_empty()
}

/// Who has a lock, and where cgroups are mounted.
pub(super) fn proc(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let holder = state::find_holder(&text, "00:1f:7");
    let mounted = MountedCgroups::parse(&text, |_| true);
    holder.is_some() || mounted.v2.is_some() || !mounted.v1.is_empty()
}
