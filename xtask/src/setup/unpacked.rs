//! Programs whose packages would start a daemon on the machine that installs them: their packages
//! are downloaded and unpacked into the user's cache, where the tests look too (`tests/src/unpacked.rs`).

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::Tool;
use crate::{apt, sh};

/// Fetches what is neither in `PATH` nor in the cache.
pub fn ensure(tools: &[Tool]) -> Result<()> {
    let cache = cache()?;
    let mut lists_are_fresh = false;
    for tool in tools {
        let folder = cache.join(tool.package);
        let unpacked = folder.join("usr/bin").join(tool.program).is_file();
        if unpacked || sh::which(tool.program).is_some() {
            continue;
        }
        if !apt::exists() {
            bail!("{} is missing; put it into a folder of PATH", tool.program);
        }
        sh::step(format!(
            "unpacking the package {} into {}",
            tool.package,
            folder.display()
        ));
        if !lists_are_fresh && sh::is_root()? {
            apt::HOST.update()?;
            lists_are_fresh = true;
        }
        unpack(tool, &folder)?;
    }
    Ok(())
}

/// What is in the final place is always complete.
fn unpack(tool: &Tool, folder: &Path) -> Result<()> {
    let partial = folder.with_added_extension("partial");
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    let files = partial.join("files");
    fresh(&partial)?;
    fresh(&files)?;
    let archive = apt::HOST.download(tool.package, &partial)?;
    sh::quietly(Command::new("dpkg").arg("-x").arg(&archive).arg(&files))?;
    ensure!(
        files.join("usr/bin").join(tool.program).is_file(),
        "the package {} has no program {}",
        tool.package,
        tool.program
    );
    fs::rename(&files, folder)?;
    fs::remove_dir_all(&partial)?;
    Ok(())
}

/// An empty folder, whatever a download that was cut short left there.
pub fn fresh(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder).with_context(|| format!("failed to make {}", folder.display()))
}

/// Where such packages are kept.
pub fn cache() -> Result<PathBuf> {
    Ok(base()?.join("packages"))
}

/// The user's cache of what xtask fetches.
pub fn base() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set; set one, to keep packages in")?;
    Ok(base.join("tracer"))
}
