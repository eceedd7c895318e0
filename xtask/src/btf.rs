//! `cargo xtask btf`: makes fixtures of kernels' type information, for the tests that look up what
//! each kernel has without booting it.

mod trim;
mod wanted;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{disk, sh};

#[derive(clap::Args)]
pub struct Wanted {
    /// A kernel: Debian's package, vmlinux, vmlinuz, an arm64 Image, or BTF itself
    kernel: PathBuf,
    /// Where the fixture goes, such as tracer/tests/btf/6.12-amd64.btf
    fixture: PathBuf,
    /// Also write the whole BTF there, to look at with bpftool
    #[arg(long, value_name = "FILE")]
    whole: Option<PathBuf>,
}

/// How a kernel's image may be packed inside, and what unpacks it.
const PACKED: [(&[u8], &str); 4] = [
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x1f\x8b\x08", "gzip"),
];

pub fn run(wanted: &Wanted) -> Result<()> {
    let kernel = &wanted.kernel;
    let bytes = if kernel.extension().is_some_and(|e| e == "deb") {
        image_of(kernel)?
    } else {
        fs::read(kernel).with_context(|| format!("failed to read {}", kernel.display()))?
    };
    let whole = whole(&bytes).with_context(|| {
        format!(
            "{} holds no BTF: it takes a kernel built with CONFIG_DEBUG_INFO_BTF=y",
            kernel.display()
        )
    })?;
    if let Some(file) = &wanted.whole {
        write(file, &whole)?;
    }
    let fixture = trim::trim(&whole)?;
    write(&wanted.fixture, &fixture)?;
    sh::step(format!(
        "{}: {} of {} bytes",
        wanted.fixture.display(),
        fixture.len(),
        whole.len()
    ));
    Ok(())
}

fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(file, bytes).with_context(|| format!("failed to write {}", file.display()))
}

/// The kernel's image in a package: in /boot, or since 6.19 beside the modules.
fn image_of(package: &Path) -> Result<Vec<u8>> {
    let folder = sh::target().join("btf");
    if folder.exists() {
        disk::remove_dir_all(&folder)?;
    }
    disk::create_dir_all(&folder)?;
    sh::quietly(Command::new("dpkg").arg("-x").arg(package).arg(&folder))?;
    let modules = ["lib/modules", "usr/lib/modules"]
        .into_iter()
        .filter_map(|place| fs::read_dir(folder.join(place)).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("vmlinuz")));
    let boot = fs::read_dir(folder.join("boot"))
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().contains("/vmlinu"));
    let Some(image) = modules.chain(boot).find(|path| path.is_file()) else {
        bail!("{} holds no kernel", package.display());
    };
    let bytes = disk::read(&image)?;
    disk::remove_dir_all(&folder)?;
    Ok(bytes)
}

/// The BTF of an image, which may be packed.
fn whole(image: &[u8]) -> Result<Vec<u8>> {
    if let Some(btf) = trim::find(image) {
        return Ok(btf.to_vec());
    }
    for (magic, tool) in PACKED {
        for at in positions(image, magic) {
            // What is behind the packed kernel makes the tool fail, when it has done its work.
            let unpacked = unpack(tool, &image[at..])?;
            if let Some(btf) = trim::find(&unpacked) {
                return Ok(btf.to_vec());
            }
        }
    }
    bail!("no BTF in it, nor in anything packed in it")
}

fn positions<'a>(image: &'a [u8], magic: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    (0..image.len()).filter(|at| image[*at..].starts_with(magic))
}

fn unpack(tool: &str, packed: &[u8]) -> Result<Vec<u8>> {
    ensure!(
        sh::which(tool).is_some(),
        "the kernel is packed with {tool}, which is not installed"
    );
    let file = sh::target().join("btf-packed");
    write(&file, packed)?;
    Ok(Command::new(tool)
        .args(["-d", "-c"])
        .stdin(fs::File::open(&file)?)
        .stderr(Stdio::null())
        .output()
        .with_context(|| format!("failed to start {tool}"))?
        .stdout)
}
