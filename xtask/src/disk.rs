//! Files and folders, with errors that say what failed on which one: the system's own say neither.

use std::{
    fs::{self, File, ReadDir},
    os::unix,
    path::Path,
};

use anyhow::{Context as _, Result};

pub fn read(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let path = path.as_ref();
    fs::read(path).with_context(|| format!("failed to read {}", path.display()))
}

pub fn create(path: impl AsRef<Path>) -> Result<File> {
    let path = path.as_ref();
    File::create(path).with_context(|| format!("failed to write {}", path.display()))
}

pub fn read_dir(path: impl AsRef<Path>) -> Result<ReadDir> {
    let path = path.as_ref();
    fs::read_dir(path).with_context(|| format!("failed to read the folder {}", path.display()))
}

/// Makes a link with this content.
pub fn symlink(content: impl AsRef<Path>, link: impl AsRef<Path>) -> Result<()> {
    let link = link.as_ref();
    unix::fs::symlink(content, link)
        .with_context(|| format!("failed to make the link {}", link.display()))
}

pub fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<()> {
    let path = path.as_ref();
    fs::write(path, content).with_context(|| format!("failed to write {}", path.display()))
}

/// Gives how many bytes it has.
pub fn copy(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<u64> {
    let (from, to) = (from.as_ref(), to.as_ref());
    fs::copy(from, to)
        .with_context(|| format!("failed to copy {} to {}", from.display(), to.display()))
}

pub fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    let (from, to) = (from.as_ref(), to.as_ref());
    fs::rename(from, to)
        .with_context(|| format!("failed to rename {} to {}", from.display(), to.display()))
}

pub fn remove_file(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    fs::remove_file(path).with_context(|| format!("failed to remove {}", path.display()))
}

pub fn remove_dir_all(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    fs::remove_dir_all(path).with_context(|| format!("failed to remove {}", path.display()))
}

pub fn create_dir_all(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    fs::create_dir_all(path).with_context(|| format!("failed to make {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_file() {
        let error = write("/proc/none/x", "").unwrap_err();
        assert_eq!(error.to_string(), "failed to write /proc/none/x");
        let error = rename("/proc/none", "/proc/other").unwrap_err();
        assert_eq!(
            error.to_string(),
            "failed to rename /proc/none to /proc/other"
        );
    }
}
