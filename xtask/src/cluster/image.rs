//! The one image of the cluster: busybox, and xtask itself with the libraries that it needs, for it
//! holds the programs that the pods run. Made here, for there is no registry.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::sh;

/// What the image is called.
pub const NAME: &str = "tracer.local/lab:1";
/// xtask, inside.
pub const PROGRAM: &str = "/lab/xtask";

/// Writes the image as `docker save` does, and says where.
pub fn make(folder: &Path) -> Result<PathBuf> {
    let root = folder.join("image");
    let inside = |path: &str| root.join(path.trim_start_matches('/'));
    for part in ["/bin", "/tmp", "/lab", "/etc"] {
        fs::create_dir_all(inside(part))?;
    }
    let busybox = sh::which("busybox").context("busybox is missing")?;
    fs::copy(busybox, inside("/bin/busybox"))?;
    for applet in ["sh", "sleep", "cat", "date"] {
        symlink("busybox", inside("/bin").join(applet))?;
    }
    let myself = env::current_exe()?;
    fs::copy(&myself, inside(PROGRAM))?;
    for library in libraries(&sh::output(Command::new("ldd").arg(&myself))?) {
        let target = inside(&library);
        fs::create_dir_all(target.with_file_name(""))?;
        fs::copy(&library, target).with_context(|| format!("cannot copy {library}"))?;
    }
    let layer = folder.join("layer.tar");
    sh::quietly(
        Command::new("tar")
            .args(["--owner=0", "--group=0", "--sort=name", "-C"])
            .arg(&root)
            .arg("-cf")
            .arg(&layer)
            .arg("."),
    )?;
    let sum = sh::output(Command::new("sha256sum").arg(&layer))?;
    let digest = sum.split_whitespace().next().unwrap_or_default();
    let config = json!({
        "architecture": go_architecture(), "os": "linux",
        // The sandbox's, which has nothing to do but to be there.
        "config": {"Entrypoint": ["/bin/sleep", "2147483647"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"]}]);
    fs::write(folder.join("config.json"), config.to_string())?;
    fs::write(folder.join("manifest.json"), manifest.to_string())?;
    let image = folder.join("image.tar");
    sh::quietly(
        Command::new("tar")
            .arg("-C")
            .arg(folder)
            .arg("-cf")
            .arg(&image)
            .args(["manifest.json", "config.json", "layer.tar"]),
    )?;
    Ok(image)
}

/// The files that `ldd` names: `libc.so.6 => /lib/…/libc.so.6 (0x…)`, `/lib64/ld-linux… (0x…)`.
fn libraries(ldd: &str) -> Vec<String> {
    ldd.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(str::to_owned)
        .collect()
}

fn go_architecture() -> &'static str {
    match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
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
