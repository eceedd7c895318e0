//! The one image of the cluster: busybox, and xtask itself with the libraries that it needs, for it
//! holds the programs that the pods run. Made here, for there is no registry.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::{arch::Arch, disk, dist, setup::unpacked, sh};

/// What the image is called.
pub const NAME: &str = "tracer.local/lab:1";
/// xtask, inside.
pub const PROGRAM: &str = "/lab/xtask";

/// Writes the image as `docker save` does, and says where.
pub fn make(folder: &Path) -> Result<PathBuf> {
    let root = folder.join("image");
    let inside = |path: &str| root.join(path.trim_start_matches('/'));
    for part in ["/bin", "/tmp", "/lab", "/etc"] {
        disk::create_dir_all(inside(part))?;
    }
    disk::copy(unpacked::busybox()?, inside("/bin/busybox"))?;
    for applet in ["sh", "sleep", "cat", "date"] {
        disk::symlink("busybox", inside("/bin").join(applet))?;
    }
    let myself = env::current_exe()?;
    disk::copy(&myself, inside(PROGRAM))?;
    for library in dist::libraries(&sh::output(Command::new("ldd").arg(&myself))?) {
        let target = inside(&library);
        disk::create_dir_all(target.with_file_name(""))?;
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
        "architecture": Arch::HOST.debian(), "os": "linux",
        // The sandbox's, which has nothing to do but to be there.
        "config": {"Entrypoint": ["/bin/sleep", "2147483647"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"]}]);
    disk::write(folder.join("config.json"), config.to_string())?;
    disk::write(folder.join("manifest.json"), manifest.to_string())?;
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
