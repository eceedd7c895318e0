//! `TRACER_ONLY_NETNS`: the one network namespace whose sockets and drops an agent counts, as a path. In a lab
//! several nodes share one kernel, each with an agent of its own; what belongs to no socket and is no drop (the
//! neighbour tables) stays the kernel's. For tests only: it is no setting, and no file of `--config` has it.

use std::{env, fs, os::unix::fs::MetadataExt as _};

use anyhow::{Context as _, Result};

const VARIABLE: &str = "TRACER_ONLY_NETNS";

/// Its inode number; 0: all namespaces.
pub fn netns() -> Result<u32> {
    let Some(path) = env::var_os(VARIABLE) else {
        return Ok(0);
    };
    let about = || format!("{VARIABLE}: {}", path.display());
    let inode = fs::metadata(&path).with_context(about)?.ino();
    u32::try_from(inode).with_context(about)
}
