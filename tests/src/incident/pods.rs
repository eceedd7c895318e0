//! The list of pods of the source `file`, rewritten as an editor does it: so that pods of an incident
//! have the names of a cluster, and none of a test's namespaces.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::agent::Agent;
use crate::wait::{ensure, eventually};

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Its addresses; none where its network namespace is told.
    pub ips: Vec<IpAddr>,
    /// Its network namespace.
    pub netns: Option<PathBuf>,
}

impl Listed {
    /// One by its network namespace.
    pub fn of(namespace: &str, name: &str, netns: &Path) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ips: Vec::new(),
            netns: Some(netns.to_owned()),
        }
    }

    /// As labels of its series.
    pub fn labels(&self) -> [(&str, &str); 2] {
        [("namespace", &self.namespace), ("pod", &self.name)]
    }
}

/// The file.
#[derive(Debug)]
pub struct Pods {
    folder: TempDir,
    listed: Vec<Listed>,
}

impl Pods {
    /// An empty one.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        let pods = Self {
            folder,
            listed: Vec::new(),
        };
        pods.write();
        pods
    }

    /// The value of `--pods`.
    pub fn argument(&self) -> String {
        format!("file:{}", self.path().display())
    }

    /// Some more.
    pub fn add(&mut self, pods: impl IntoIterator<Item = Listed>) {
        self.listed.extend(pods);
        self.write();
    }

    /// Without the pod of this name.
    pub fn remove(&mut self, name: &str) {
        self.listed.retain(|pod| pod.name != name);
        self.write();
    }

    /// Waits until an agent knows all of them.
    pub fn await_known(&self, agent: &Agent) {
        let all = self.listed.len() as u64;
        eventually(Duration::from_secs(5), || {
            let metrics = agent.metrics();
            let known = metrics.count("tracer_node_pods", &[("source", "file")]);
            ensure(known == all, || format!("{known} pods of {all}"))
        });
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("pods.toml")
    }

    fn write(&self) {
        let mut text = String::new();
        for pod in &self.listed {
            let (namespace, name) = (&pod.namespace, &pod.name);
            writeln!(
                text,
                "[[pod]]\nnamespace = \"{namespace}\"\nname = \"{name}\""
            )
            .expect("text grows");
            if !pod.ips.is_empty() {
                let ips: Vec<String> = pod.ips.iter().map(|ip| format!("\"{ip}\"")).collect();
                writeln!(text, "ips = [{}]", ips.join(", ")).expect("text grows");
            }
            if let Some(netns) = &pod.netns {
                writeln!(text, "netns = \"{}\"", netns.display()).expect("text grows");
            }
        }
        let new = self.folder.path().join("new");
        fs::write(&new, text).expect("file can be written");
        fs::rename(&new, self.path()).expect("file can be renamed");
    }
}

impl Default for Pods {
    fn default() -> Self {
        Self::new()
    }
}
