//! A control plane in part: a cluster of etcd (the real one), and a server that hangs.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
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

/// A server that answers each request of some bytes with as many, in a pod; ends on drop.
#[derive(Debug)]
pub struct Answering {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Answering {
    /// At this port.
    pub fn start(pod: &Resident, number: u16) -> Self {
        let at = port(pod, number);
        let listener = pod
            .netns
            .run(|| TcpListener::bind(at).unwrap_or_else(|e| panic!("cannot listen on {at}: {e}")));
        listener.set_nonblocking(true).expect("sockets can be set");
        let stop = Arc::new(AtomicBool::new(false));
        let own = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut open: Vec<TcpStream> = Vec::new();
            let mut buffer = [0; 1024];
            while !own.load(Ordering::Relaxed) {
                if let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true).expect("sockets can be set");
                    open.push(stream);
                }
                // One that is at its end, or has failed, is closed.
                open.retain_mut(|stream| match stream.read(&mut buffer) {
                    Ok(0) => false,
                    Ok(length) => stream.write_all(&buffer[..length]).is_ok(),
                    Err(error) => error.kind() == ErrorKind::WouldBlock,
                });
                sleep(Duration::from_millis(2));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// A connection of a pod on which it asks.
#[derive(Debug)]
pub struct Asking(TcpStream);

/// Of the size of a small request.
const REQUEST: [u8; 100] = [1; 100];

impl Asking {
    /// Connected.
    pub fn connect(pod: &Resident, to: SocketAddr) -> Self {
        let limit = Duration::from_secs(5);
        let stream = pod.netns.run(|| TcpStream::connect_timeout(&to, limit));
        Self(stream.unwrap_or_else(|e| panic!("the lab failed: {to}: {e}")))
    }

    /// Sends a request.
    pub fn ask(&mut self) {
        self.0.write_all(&REQUEST).expect("the connection is there");
    }

    /// Waits for the answer to one, some seconds at most.
    pub fn await_answer(&mut self) -> bool {
        let limit = Some(Duration::from_secs(5));
        self.0.set_read_timeout(limit).expect("sockets can be set");
        self.0.read_exact(&mut [0; REQUEST.len()]).is_ok()
    }
}
