//! A control plane in part: a cluster of etcd (the real one), and a server that hangs.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::street::{Street, port};
use crate::incident::overflow::town::Resident;
use crate::process::{Reaped, run};
use crate::wait::{ensure, eventually};

/// Where clients of etcd ask.
pub const CLIENTS: u16 = 2379;
/// Where its members talk to each other.
pub const PEERS: u16 = 2380;
/// Where the API server listens.
pub const API: u16 = 6443;

/// Three members, each in a pod.
#[derive(Debug)]
pub struct Etcd {
    // Before their namespaces.
    _members: Vec<Reaped>,
    /// The pods.
    pub pods: Vec<Resident>,
    folder: TempDir,
}

impl Etcd {
    /// Waits until they have a leader.
    pub fn start(street: &mut Street) -> Self {
        let pods: Vec<Resident> = (0..3)
            .map(|n| street.on_bridge("kube-system", &format!("etcd-{n}")))
            .collect();
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        let url = |pod: &Resident, number| format!("http://{}", port(pod, number));
        let named = pods
            .iter()
            .map(|pod| format!("{}={}", pod.listed.name, url(pod, PEERS)));
        let cluster = named.collect::<Vec<_>>().join(",");
        let members = pods
            .iter()
            .map(|pod| {
                let name = &pod.listed.name;
                let log = folder.path().join(format!("{name}.log"));
                let mut etcd = Command::new("ip");
                etcd.args(["netns", "exec", pod.netns.name(), "etcd"])
                    .args(["--name", name, "--data-dir"])
                    .arg(folder.path().join(name))
                    .args(["--listen-peer-urls", &url(pod, PEERS)])
                    .args(["--initial-advertise-peer-urls", &url(pod, PEERS)])
                    .args(["--listen-client-urls", &url(pod, CLIENTS)])
                    .args(["--advertise-client-urls", &url(pod, CLIENTS)])
                    .args(["--initial-cluster", &cluster])
                    .args(["--initial-cluster-state", "new", "--unsafe-no-fsync"])
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(File::create(log).expect("files can be made"));
                let child = etcd.spawn();
                Reaped(
                    child.unwrap_or_else(|e| panic!("cannot run etcd: {e}; install etcd-server")),
                )
            })
            .collect();
        let etcd = Self {
            _members: members,
            pods,
            folder,
        };
        eventually(Duration::from_secs(30), || {
            etcd.put(0, "first").map_err(|why| {
                let log = etcd.folder.path().join("etcd-0.log");
                format!(
                    "{why}; {}",
                    std::fs::read_to_string(log).unwrap_or_default()
                )
            })
        });
        etcd
    }

    /// Writes by a member; an error where it does not answer within two seconds.
    pub fn put(&self, member: usize, value: &str) -> Result<(), String> {
        let pod = &self.pods[member];
        let mut etcdctl = Command::new("ip");
        etcdctl
            .args(["netns", "exec", pod.netns.name(), "etcdctl"])
            .args(["--endpoints", &format!("http://{}", port(pod, CLIENTS))])
            .args(["--command-timeout", "2s", "put", "/lab", value])
            .env("ETCDCTL_API", "3");
        let ended = run(&mut etcdctl, Duration::from_secs(10));
        ensure(ended.status.success(), || format!("{ended:?}"))
    }
}
