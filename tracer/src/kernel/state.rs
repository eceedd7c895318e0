//! The state folder (`--state-dir`): a directory on a bpf file system that one agent holds.
//!
//! In this version it is the agents' lock and nothing is pinned in it: counters begin when the
//! agent starts.

use std::{
    fs::{self, File},
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    fs::{FlockOperation, flock, statfs},
    mount::{MountFlags, mount},
};

/// Where the system has its bpf file system.
pub const BPFFS: &str = "/sys/fs/bpf";
/// `BPF_FS_MAGIC` (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// The folder, held for as long as this lives.
#[derive(Debug)]
pub struct StateDir {
    _lock: File,
}

impl StateDir {
    /// Makes the folder, mounting a bpf file system at `/sys/fs/bpf` where none is, and takes it.
    /// `None` where it may not mount one: the agent goes on without.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        if path.starts_with(BPFFS)
            && !is_bpffs(Path::new(BPFFS))
            && let Err(error) = mount("bpf", BPFFS, "bpf", MountFlags::empty(), None)
        {
            tracing::warn!(
                "going on without the state folder {}: cannot mount a bpf file system at {BPFFS}: {error}",
                path.display()
            );
            return Ok(None);
        }
        fs::create_dir_all(path).with_context(|| {
            format!(
                "cannot make the state folder {}: use a folder that can be written, or --state-dir none",
                path.display()
            )
        })?;
        if !is_bpffs(path) {
            bail!(
                "the state folder {} is not on a bpf file system: use a folder below {BPFFS}, or --state-dir none",
                path.display()
            );
        }
        let folder = File::open(path)
            .with_context(|| format!("cannot open the state folder {}", path.display()))?;
        if flock(&folder, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!(
                "another agent holds the state folder {}: stop it, or give this one its own --state-dir and --api",
                path.display()
            );
        }
        Ok(Some(Self { _lock: folder }))
    }
}

/// Is this on a bpf file system?
pub fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|s| s.f_type as u64 == BPF_FS_MAGIC)
}
