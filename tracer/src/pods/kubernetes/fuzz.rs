//! [`crate::fuzz`]: objects that an API server sends.

use super::{nodes, object};

/// A pod, or a node.
pub(crate) fn kubernetes(bytes: &[u8]) -> bool {
    let mut understood = nodes::fuzz(bytes);
    if let Ok(pod) = serde_json::from_slice::<object::Pod>(bytes)
        && let Some(kept) = object::keep(&pod)
    {
        let owner = &kept.known.owner;
        for name in [&owner.namespace, &owner.pod] {
            assert!(object::is_plain(name, 253), "{name:?}");
        }
        understood = true;
    }
    understood
}
