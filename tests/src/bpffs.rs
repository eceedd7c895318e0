//! A bpf file system of a test's own.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::check;

/// Mounted at a folder of its own; unmounted on drop.
#[derive(Debug)]
pub struct BpfFs(tempfile::TempDir);

impl BpfFs {
    /// Mounts one.
    pub fn mount() -> Self {
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        check(
            Command::new("mount")
                .args(["-t", "bpf", "bpf"])
                .arg(folder.path()),
        );
        Self(folder)
    }

    /// A path in it.
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(path)
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        // Lazily: an agent that a failed test leaves behind may still hold it for a moment.
        let ended = Command::new("umount")
            .arg("--lazy")
            .arg(self.0.path())
            .status();
        if !ended.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.0.path().display());
        }
    }
}
