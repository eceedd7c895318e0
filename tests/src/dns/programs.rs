//! Real DNS programs in a lab's namespaces.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::netns::Netns;
use crate::process::{Collected, Reaped, collect, run};
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
    /// and waits until it does.
    pub fn start_here(addresses: &[IpAddr], options: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        let empty = folder.path().join("empty");
        fs::write(&empty, "").expect("file can be written");
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
        // It says so once its sockets are bound. To ask it would be a lookup.
        eventually(Duration::from_secs(10), || {
            let said = dnsmasq.stderr.text();
            ensure(said.contains("started"), || format!("dnsmasq: {said}"))
        });
        dnsmasq
    }

    /// As [`Dnsmasq::start_here`], in a namespace.
    pub fn start(netns: &Netns, addresses: &[IpAddr], options: &[&str]) -> Self {
        netns.run(|| Self::start_here(addresses, options))
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

/// Runs a program of the lab in a namespace to its end, which must come within a minute and be good,
/// and gives what it printed.
pub fn run_in(netns: &Netns, command: &mut Command) -> String {
    let ended = netns.run(|| run(command, Duration::from_mins(1)));
    assert!(ended.status.success(), "the lab failed: {ended:#?}");
    ended.stdout
}
