//! Cgroups of cgroup2, as the kubelet and container runtimes make them.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::netns::Netns;
use crate::process::{Reaped, check};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// How long the last process may take to leave.
const LEAVING: Duration = Duration::from_secs(5);

/// Where cgroup2 is mounted.
pub fn mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("there are mounts");
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields[2] == "cgroup2")
        .map(|fields| PathBuf::from(fields[1]))
        .expect("cgroup2 is mounted")
}

/// A cgroup with all above it, below one of the test's own; gone after drop, its processes have to
/// be gone before.
#[derive(Debug)]
pub struct Cgroup {
    top: PathBuf,
    path: PathBuf,
}

impl Cgroup {
    /// Makes it and what is missing above.
    pub fn make(name: &str) -> Self {
        Self::make_in(&mount(), name)
    }

    /// The same, in the hierarchy that is mounted there.
    pub fn make_in(mount: &Path, name: &str) -> Self {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let top = mount.join(format!("tracer-test-{}-{number}", std::process::id()));
        let path = top.join(name);
        fs::create_dir_all(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self { top, path }
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves a process into it.
    pub fn take_in(&self, pid: u32) {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
            .unwrap_or_else(|e| panic!("cannot move {pid} into {}: {e}", self.path.display()));
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let end = Instant::now() + LEAVING;
        for folder in self.path.ancestors() {
            // A process that is waited for may still be on its way out of the cgroup.
            while let Err(why) = fs::remove_dir(folder)
                && why.kind() == ErrorKind::ResourceBusy
                && Instant::now() < end
            {
                sleep(Duration::from_millis(1));
            }
            if folder == self.top {
                break;
            }
        }
    }
}

/// A hierarchy of version 1 without controllers, as systemd has one on hybrid hosts; not mounted any more after drop.
#[derive(Debug)]
pub struct Version1(TempDir);

impl Version1 {
    /// Mounts it.
    pub fn mount() -> Self {
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        let options = ["-t", "cgroup", "-o", "none,name=systemd", "none"];
        check(Command::new("mount").args(options).arg(folder.path()));
        Self(folder)
    }

    /// Where.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Version1 {
    fn drop(&mut self) {
        check(Command::new("umount").arg(self.path()));
    }
}

/// A process in a network namespace and in a pod's cgroup, as a container runtime arranges it.
#[derive(Debug)]
pub struct Container {
    // Before the cgroup, which must be empty when it goes.
    _process: Reaped,
    _cgroup: Cgroup,
}

impl Container {
    /// Of the pod with this uid.
    pub fn start(netns: &Netns, uid: &str) -> Self {
        Self::start_in(&mount(), netns, uid)
    }

    /// The same, with its cgroup in the hierarchy that is mounted there.
    pub fn start_in(mount: &Path, netns: &Netns, uid: &str) -> Self {
        let cgroup = Cgroup::make_in(mount, &format!("kubepods/pod{uid}/main"));
        let process = netns.run(|| {
            Command::new("sleep")
                .arg("600")
                .spawn()
                .expect("sleep runs")
        });
        cgroup.take_in(process.id());
        Self {
            _process: Reaped(process),
            _cgroup: cgroup,
        }
    }
}
