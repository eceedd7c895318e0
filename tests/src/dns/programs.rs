//! Real DNS programs in a lab's namespaces.

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::packet::{QUERY, parse, query};
use crate::netns::Netns;
use crate::process::{Collected, Reaped, collect};
use crate::wait::{ensure, eventually};

/// A running dnsmasq; killed on drop.
#[derive(Debug)]
pub struct Dnsmasq {
    _child: Reaped,
    stderr: Collected,
    _folder: TempDir,
}

impl Dnsmasq {
    /// Serves port 53 of these addresses of the thread's own namespace, with these options beside,
    /// and waits until it answers.
    pub fn start_here(addresses: &[IpAddr], options: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        let empty = folder.path().join("empty");
        fs::write(&empty, "local=/ready.lab/\n").expect("file can be written");
        let mut command = Command::new("dnsmasq");
        command
            .args(["--keep-in-foreground", "--no-resolv", "--no-hosts"])
            .args(["--bind-interfaces", "--user=root", "--pid-file"])
            .args([
                "--log-facility=-",
                "--max-cache-ttl=1",
                "--except-interface=none",
            ])
            .arg(format!("--conf-file={}", empty.display()))
            .args(addresses.iter().map(|a| format!("--listen-address={a}")))
            .args(options);
        let mut child = spawn(&mut command, "dnsmasq-base");
        let stderr = collect(child.stderr.take().expect("stderr is piped"));
        let dnsmasq = Self {
            _child: Reaped(child),
            stderr,
            _folder: folder,
        };
        for address in addresses {
            dnsmasq.await_ready(*address);
        }
        dnsmasq
    }

    /// As [`Dnsmasq::start_here`], in a namespace.
    pub fn start(netns: &Netns, addresses: &[IpAddr], options: &[&str]) -> Self {
        netns.run(|| Self::start_here(addresses, options))
    }

    fn await_ready(&self, address: IpAddr) {
        let any: IpAddr = match address {
            IpAddr::V4(_) => [0; 4].into(),
            IpAddr::V6(_) => [0; 16].into(),
        };
        let socket = UdpSocket::bind((any, 0)).expect("a port is free");
        let wait = Duration::from_millis(100);
        socket.set_read_timeout(Some(wait)).expect("timeout is set");
        let bytes = query(1, QUERY, "ready.lab", super::A);
        let mut buffer = [0; 512];
        eventually(Duration::from_secs(10), || {
            let answered = socket
                .send_to(&bytes, (address, 53))
                .and_then(|_| socket.recv(&mut buffer))
                .is_ok_and(|length| parse(&buffer[..length]).is_some_and(|m| m.answer));
            ensure(answered, || {
                format!("dnsmasq does not answer: {}", self.stderr.text())
            })
        });
    }
}

/// Starts a program that Debian has in this package, with its pipes to be read.
fn spawn(command: &mut Command, package: &str) -> Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run {command:?}: {e}; the tests need {package}"))
}

/// A folder with a `resolv.conf`, and how programs get to see it.
#[derive(Debug)]
pub struct Resolver {
    folder: TempDir,
}

impl Resolver {
    /// One with these lines.
    pub fn new(lines: &str) -> Self {
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        fs::write(folder.path().join("resolv.conf"), lines).expect("file can be written");
        Self { folder }
    }

    /// A file beside it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A program that has it as its `/etc/resolv.conf`, in a mount namespace of its own.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-c"])
            .arg("mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"")
            .arg(self.path("resolv.conf"))
            .arg(program)
            .args(arguments);
        command
    }
}
