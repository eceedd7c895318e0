//! The root of the image: tracer, the libraries it is linked to, certificates. No shell.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result, ensure};

use super::{empty, write};
use crate::{disk, sh, vm::Layers};

/// Where Debian and its kin keep the certificates of authorities: for `tracer top --prometheus`.
pub const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// tracer, inside.
pub const PROGRAM: &str = "/usr/bin/tracer";

/// Folders that a container runtime mounts on, which it cannot make in a root that is read-only.
const MOUNT_POINTS: &[&str] = &["dev", "proc", "run", "sys", "tmp", "var/run/secrets"];

/// What glibc needs to know to find a server by its name.
const FILES: &[(&str, &str)] = &[
    ("etc/passwd", "root:x:0:0:root:/:/usr/bin/tracer\n"),
    ("etc/group", "root:x:0:\n"),
    ("etc/nsswitch.conf", "hosts: files dns\n"),
];

/// Makes the root in a folder.
pub fn make(folder: &Path, binary: &Path, layers: &Layers) -> Result<()> {
    empty(folder)?;
    let inside = |path: &str| folder.join(path.trim_start_matches('/'));
    for point in MOUNT_POINTS {
        disk::create_dir_all(inside(point))?;
    }
    for (path, contents) in FILES {
        write(&inside(path), contents)?;
    }
    let certificates = fs::read(CERTIFICATES)
        .with_context(|| format!("{CERTIFICATES} is missing; install ca-certificates"))?;
    write(&inside(CERTIFICATES), certificates)?;
    write(
        &inside("/usr/share/doc/tracer/copyright"),
        disk::read(sh::root().join("LICENSE"))?,
    )?;
    let copyright = "/usr/share/doc/libc6/copyright";
    let theirs = layers.file(copyright);
    if theirs.exists() {
        write(&inside(copyright), disk::read(theirs)?)?;
    }
    copy(binary, &inside(PROGRAM))?;
    let libraries = libraries(&layers.ldd(binary)?);
    ensure!(
        !libraries.is_empty(),
        "{} is linked to no library",
        binary.display()
    );
    for library in libraries {
        copy(&layers.file(&library), &inside(&library))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let failed = || format!("failed to copy {} to {}", from.display(), to.display());
    fs::create_dir_all(to.with_file_name("")).with_context(failed)?;
    fs::copy(from, to).with_context(failed)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).with_context(failed)
}

/// The files that `ldd` names: `libc.so.6 => /lib/…/libc.so.6 (0x…)`, `/lib64/ld-linux… (0x…)`.
pub fn libraries(ldd: &str) -> Vec<String> {
    ldd.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_off_ldd() {
        let said = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            libraries(said),
            [
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
        );
        assert!(libraries("\tstatically linked").is_empty());
    }
}
