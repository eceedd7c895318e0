//! What a layer of programs was made of, written when all of it is there. One that was cut short, or unpacked by
//! another release of the distribution, would fail in ways that nobody understands.

use std::{collections::BTreeSet, fs, io::ErrorKind, path::Path};

use anyhow::{Context as _, Result};

use crate::disk;

/// Which release of which distribution this machine has.
pub fn release() -> String {
    // Not all have it, but those without have no packages for us either.
    release_of(&fs::read_to_string("/etc/os-release").unwrap_or_default())
}

fn release_of(text: &str) -> String {
    let lines = text
        .lines()
        .filter(|line| line.starts_with("ID=") || line.starts_with("VERSION_ID="));
    lines.collect::<Vec<_>>().join(" ")
}

/// The packages of a stamp; nothing where there is none, or one of another release.
pub fn packages(stamp: &Path, release: &str) -> Option<BTreeSet<String>> {
    let text = fs::read_to_string(stamp).ok()?;
    let (of, packages) = text.split_once('\n')?;
    (of == release).then(|| packages.lines().map(str::to_owned).collect())
}

pub fn write(stamp: &Path, release: &str, packages: &BTreeSet<String>) -> Result<()> {
    let lines = packages.iter().map(String::as_str).collect::<Vec<_>>();
    disk::write(stamp, format!("{release}\n{}", lines.join("\n")))
}

pub fn remove(stamp: &Path) -> Result<()> {
    match fs::remove_file(stamp) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {}", stamp.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{env, process};

    #[test]
    fn a_stamp_is_of_one_release() {
        let stamp = env::temp_dir().join(format!("xtask-stamp-{}", process::id()));
        assert_eq!(packages(&stamp, "ID=debian"), None);
        let names = BTreeSet::from(["kmod".to_owned(), "zstd".to_owned()]);
        let release = release_of("NAME=\"Debian\"\nVERSION_ID=\"12\"\nID=debian\n");
        assert_eq!(release, "VERSION_ID=\"12\" ID=debian");
        write(&stamp, &release, &names).unwrap();
        assert_eq!(packages(&stamp, &release), Some(names));
        assert_eq!(packages(&stamp, "VERSION_ID=\"13\" ID=debian"), None);
        remove(&stamp).unwrap();
        remove(&stamp).unwrap();
        assert_eq!(packages(&stamp, &release), None);
    }
}
