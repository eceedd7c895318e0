//! Whose name a figure gets.

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::output::printable;

/// Label values: a pod, or what stands for something that is none. The uid tells nobody apart: a pod
/// that has its predecessor's name goes on with its series.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Owner {
    /// Kubernetes namespace, or a word in parentheses.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// Its uid, where known.
    pub uid: Option<String>,
}

impl Owner {
    /// Without a uid. Where a name is a file's (a network namespace's, a cgroup's), it may hold anything:
    /// here it becomes one line of plain text, before anything shows it.
    pub fn new(namespace: &str, pod: &str) -> Arc<Self> {
        Arc::new(Self {
            namespace: printable(namespace).into_owned(),
            pod: printable(pod).into_owned(),
            uid: None,
        })
    }

    /// What could not be named.
    pub fn unknown() -> Arc<Self> {
        Self::new("(unknown)", "(unknown)")
    }

    /// What found no room.
    pub fn other() -> Arc<Self> {
        Self::new("(other)", "(other)")
    }
}

impl Owner {
    /// Is it a pod, and not one of tracer's own words? No Kubernetes name holds a parenthesis.
    pub fn is_pod(&self) -> bool {
        !self.namespace.starts_with('(')
    }

    fn labels(&self) -> (&str, &str) {
        (&self.namespace, &self.pod)
    }
}

impl PartialEq for Owner {
    fn eq(&self, other: &Self) -> bool {
        self.labels() == other.labels()
    }
}

impl Eq for Owner {}

impl Hash for Owner {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.labels().hash(state);
    }
}

impl PartialOrd for Owner {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Owner {
    fn cmp(&self, other: &Self) -> Ordering {
        self.labels().cmp(&other.labels())
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.pod)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_become_plain_text() {
        let owner = Owner::new("(host)", "a\nb\u{1b}[31m\u{202e}.service");
        assert_eq!(owner.pod, "a\\nb\\u{1b}[31m\\u{202e}.service");
        assert_eq!(
            Owner::new("shop", "cart-7d9f").to_string(),
            "shop/cart-7d9f"
        );
    }
}
