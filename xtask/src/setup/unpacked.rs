//! Programs whose packages would start a daemon on the machine that installs them, or conflict with what is there:
//! their packages are downloaded and unpacked into the user's cache, where the tests look too
//! (`tests/src/unpacked.rs`).

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use object::{
    Endianness, elf,
    read::elf::{FileHeader as _, ProgramHeader as _},
};

use super::Tool;
use crate::{apt, disk, sh};

/// Debian's ordinary busybox conflicts with it.
const BUSYBOX: Tool = Tool {
    program: "busybox",
    package: "busybox-static",
};

/// Fetches what is neither in `PATH` nor in the cache.
pub fn ensure(tools: &[Tool]) -> Result<()> {
    let missing: Vec<&Tool> = tools
        .iter()
        .filter(|tool| sh::which(tool.program).is_none())
        .collect();
    fetch(&missing)
}

/// A busybox that needs no libraries, for it is to run where there are none.
pub fn busybox() -> Result<PathBuf> {
    if let Some(own) = sh::which(BUSYBOX.program)
        && is_static(&fs::read(&own).with_context(|| format!("failed to read {}", own.display()))?)
    {
        return Ok(own);
    }
    fetch(&[&BUSYBOX])?;
    place(&BUSYBOX, &cache()?.join(BUSYBOX.package)).context("there is no busybox")
}

/// Does this program run without a loader?
fn is_static(program: &[u8]) -> bool {
    let interpreter = || -> object::Result<bool> {
        let header = elf::FileHeader64::<Endianness>::parse(program)?;
        let endian = header.endian()?;
        let mut segments = header.program_headers(endian, program)?.iter();
        Ok(segments.any(|segment| segment.p_type(endian) == elf::PT_INTERP))
    };
    interpreter().is_ok_and(|is_there| !is_there)
}

/// A program of an unpacked package.
fn place(tool: &Tool, folder: &Path) -> Option<PathBuf> {
    // Before Debian 13, busybox is not below usr.
    ["usr/bin", "bin"]
        .map(|part| folder.join(part).join(tool.program))
        .into_iter()
        .find(|path| path.is_file())
}

/// Fetches what is not in the cache.
fn fetch(tools: &[&Tool]) -> Result<()> {
    let cache = cache()?;
    let is_here = |tool: &&Tool| place(tool, &cache.join(tool.package)).is_some();
    if tools.iter().all(is_here) {
        return Ok(());
    }
    let _lock = lock()?;
    let mut lists_are_fresh = false;
    for tool in tools {
        let folder = cache.join(tool.package);
        // Another xtask may have fetched it meanwhile.
        if is_here(tool) {
            continue;
        }
        if !apt::exists() {
            bail!(
                "{} is missing; put the one of {} into a folder of PATH",
                tool.program,
                tool.package
            );
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
        disk::remove_dir_all(folder)?;
    }
    let files = partial.join("files");
    fresh(&partial)?;
    fresh(&files)?;
    let archive = apt::HOST.download(tool.package, &partial)?;
    sh::quietly(Command::new("dpkg").arg("-x").arg(&archive).arg(&files))?;
    ensure!(
        place(tool, &files).is_some(),
        "the package {} has no program {}",
        tool.package,
        tool.program
    );
    disk::rename(&files, folder)?;
    disk::remove_dir_all(&partial)?;
    Ok(())
}

/// An empty folder, whatever a download that was cut short left there.
pub fn fresh(folder: &Path) -> Result<()> {
    if folder.exists() {
        disk::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder).with_context(|| format!("failed to make {}", folder.display()))
}

/// Held while something is fetched into the cache, for all clones share it; waits for another xtask that does.
pub fn lock() -> Result<File> {
    let base = base()?;
    disk::create_dir_all(&base)?;
    lock_at(&base.join("lock"))
}

fn lock_at(path: &Path) -> Result<File> {
    let lock = disk::create(path)?;
    if lock.try_lock().is_err() {
        sh::step("waiting for another xtask that fetches something");
        lock.lock()
            .with_context(|| format!("failed to lock {}", path.display()))?;
    }
    Ok(lock)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_fetches_at_a_time() {
        let path = env::temp_dir().join(format!("xtask-lock-{}", std::process::id()));
        let lock = lock_at(&path).unwrap();
        assert!(File::open(&path).unwrap().try_lock().is_err());
        drop(lock);
        assert!(File::open(&path).unwrap().try_lock().is_ok());
        disk::remove_file(&path).unwrap();
    }

    #[test]
    fn a_program_without_a_loader_is_static() {
        let myself = fs::read(env::current_exe().unwrap()).unwrap();
        assert!(!is_static(&myself));
        assert!(!is_static(b"#!/bin/sh\n"));
        // A header of 64 bits without a single segment.
        let mut header = [0; 64];
        header[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        header[54] = 56;
        assert!(is_static(&header));
    }
}
