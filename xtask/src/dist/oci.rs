//! The image as an archive of an OCI layout, made by hand: no daemon, and each byte is known.
//! <https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md>

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{date, empty, root::PROGRAM, tar};
use crate::{arch::Arch, disk, sh};

/// Where the image says it comes from: from no registry. The chart's default.
pub const REPOSITORY: &str = "localhost/tracer";

/// A written image.
pub struct Image {
    pub archive: PathBuf,
    /// Repository and tag.
    pub name: String,
    /// Of the manifest.
    pub digest: String,
}

fn config(diff: &str, created: &str, arch: Arch) -> Value {
    json!({
        "created": created,
        "architecture": arch.debian(), "os": "linux",
        "config": {
            "Entrypoint": [PROGRAM],
            "Cmd": ["agent"],
            // `kubectl exec … tracer top`
            "Env": ["PATH=/usr/bin"],
        },
        "rootfs": {"type": "layers", "diff_ids": [diff]},
        "history": [{"created": created, "created_by": "cargo xtask dist"}],
    })
}

/// Makes the image of a root: `tracer-VERSION-ARCHITECTURE.oci.tar` in a folder.
pub fn pack(root: &Path, version: &str, arch: Arch, output: &Path) -> Result<Image> {
    let layout = output.join("oci");
    empty(&layout)?;
    let plain = output.join("layer.tar");
    tar(root, &plain)?;
    let diff = digest(&plain)?;
    let packed = output.join("layer.tar.gz");
    gzip(&plain, &packed)?;
    let layer = blob(&layout, &packed)?;
    let created = rfc3339(date()?)?;
    let configuration = blob_of(&layout, &config(&diff, &created, arch))?;
    let manifest = blob_of(
        &layout,
        &json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": described(&configuration, "application/vnd.oci.image.config.v1+json"),
            "layers": [described(&layer, "application/vnd.oci.image.layer.v1.tar+gzip")],
        }),
    )?;
    let name = format!("{REPOSITORY}:{version}");
    let mut entry = described(&manifest, "application/vnd.oci.image.manifest.v1+json");
    entry["platform"] = json!({"architecture": arch.debian(), "os": "linux"});
    // The first is for skopeo and podman, the second for containerd.
    entry["annotations"] = json!({
        "org.opencontainers.image.ref.name": name,
        "io.containerd.image.name": name,
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    });
    super::write(&layout.join("index.json"), index.to_string())?;
    super::write(
        &layout.join("oci-layout"),
        json!({"imageLayoutVersion": "1.0.0"}).to_string(),
    )?;
    let archive = output.join(format!("tracer-{version}-{arch}.oci.tar"));
    tar(&layout, &archive)?;
    for part in [&plain, &packed] {
        disk::remove_file(part)?;
    }
    disk::remove_dir_all(&layout)?;
    Ok(Image {
        archive,
        name,
        digest: manifest.digest,
    })
}

/// A file of the layout, called by its digest.
struct Blob {
    digest: String,
    size: u64,
}

fn described(blob: &Blob, kind: &str) -> Value {
    json!({"mediaType": kind, "digest": blob.digest, "size": blob.size})
}

fn blob(layout: &Path, file: &Path) -> Result<Blob> {
    let digest = digest(file)?;
    let folder = layout.join("blobs/sha256");
    disk::create_dir_all(&folder)?;
    let name = digest.trim_start_matches("sha256:");
    let size = disk::copy(file, folder.join(name))?;
    Ok(Blob { digest, size })
}

fn blob_of(layout: &Path, contents: &Value) -> Result<Blob> {
    let file = layout.join("blob");
    super::write(&file, contents.to_string())?;
    let blob = blob(layout, &file)?;
    disk::remove_file(file)?;
    Ok(blob)
}

fn digest(file: &Path) -> Result<String> {
    let sum = sh::output(Command::new("sha256sum").arg(file))?;
    let sum = sum.split_whitespace().next().context("no checksum")?;
    Ok(format!("sha256:{sum}"))
}

/// Without name and time of the file.
pub fn gzip(from: &Path, to: &Path) -> Result<()> {
    sh::run(
        Command::new("gzip")
            // A tenth larger than by default, in a third of the time.
            .args(["--fast", "--no-name", "--stdout"])
            .stdin(Stdio::from(File::open(from)?))
            .stdout(Stdio::from(disk::create(to)?)),
    )
}

fn rfc3339(seconds: u64) -> Result<String> {
    let date = format!("--date=@{seconds}");
    sh::output(Command::new("date").args(["--utc", &date, "+%Y-%m-%dT%H:%M:%SZ"]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_containerfile_makes_the_same_image() {
        let text = fs::read_to_string(sh::root().join("Containerfile")).unwrap();
        let config = config("sha256:0", "2026-01-01T00:00:00Z", Arch::HOST);
        for (instruction, wanted) in [
            ("ENTRYPOINT ", config["config"]["Entrypoint"].to_string()),
            ("CMD ", config["config"]["Cmd"].to_string()),
            ("ENV ", "PATH=/usr/bin".to_owned()),
        ] {
            let last = text.lines().rfind(|line| line.starts_with(instruction));
            let said = last.and_then(|line| line.strip_prefix(instruction));
            assert_eq!(said, Some(&*wanted), "{instruction}");
        }
        assert_eq!(config["config"]["Env"], json!(["PATH=/usr/bin"]));
    }
}
