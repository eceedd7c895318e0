//! Whose name a figure gets.

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

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
    /// Without a uid.
    pub fn new(namespace: &str, pod: &str) -> Arc<Self> {
        Arc::new(Self {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
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
