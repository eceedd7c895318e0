//! `cargo xtask dist`: what is handed out, in `target/dist`: the container image as an OCI archive,
//! with its root beside it, and Debian's package. The same binary, libraries and certificates make
//! the same bytes.

mod deb;
mod oci;
mod root;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use clap::Args;

use self::oci::Image;
pub use self::root::libraries;
use crate::{
    arch::Arch,
    build,
    setup::{self, Tool},
    sh,
    vm::Layers,
};

/// What it is made with.
pub const TOOLS: &[Tool] = &[
    Tool {
        program: root::CERTIFICATES,
        package: "ca-certificates",
    },
    Tool {
        program: "gzip",
        package: "gzip",
    },
    Tool {
        program: "dpkg-deb",
        package: "dpkg",
    },
];

/// What is wanted.
#[derive(Args)]
pub struct Wanted {
    /// Where it goes [default: target/dist]; TRACER_BIN=PATH packs another binary than the one built
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// The image's root only, into this folder: for a Containerfile
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    root: Option<PathBuf>,
    /// One of the two
    #[arg(long, value_enum, conflicts_with = "root")]
    only: Option<Product>,
    /// For which machines: amd64 or arm64
    #[arg(long, default_value_t = Arch::HOST)]
    arch: Arch,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Product {
    Image,
    Package,
}

pub fn run(wanted: &Wanted) -> Result<()> {
    let binary = binary(wanted.arch)?;
    let layers = Layers::to_run(wanted.arch)?;
    if let Some(folder) = &wanted.root {
        return root::make(folder, &binary, &layers);
    }
    let output = wanted
        .output
        .clone()
        .unwrap_or_else(|| sh::target().join("dist"));
    fs::create_dir_all(&output).with_context(|| format!("failed to make {}", output.display()))?;
    let version = version()?;
    if wanted.only != Some(Product::Package) {
        let image = pack(&binary, &output, &layers)?;
        sh::step(format!(
            "{}: {} {}",
            image.archive.display(),
            image.name,
            image.digest
        ));
    }
    if wanted.only != Some(Product::Image) {
        let package = deb::pack(&binary, &version, &output, &layers)?;
        sh::step(package.display().to_string());
    }
    Ok(())
}

/// Packs a binary of this machine's into an image, into a folder.
pub fn image(binary: &Path, output: &Path) -> Result<Image> {
    pack(binary, output, &Layers::to_run(Arch::HOST)?)
}

fn pack(binary: &Path, output: &Path, layers: &Layers) -> Result<Image> {
    let folder = output.join("image");
    root::make(&folder, binary, layers)?;
    oci::pack(&folder, &version()?, layers.arch, output)
}

/// The one that is named, else a new release build.
fn binary(arch: Arch) -> Result<PathBuf> {
    if let Some(binary) = env::var_os("TRACER_BIN") {
        return fs::canonicalize(&binary)
            .with_context(|| format!("TRACER_BIN: there is no {}", binary.display()));
    }
    build::build(&setup::ensure(TOOLS)?, arch)?;
    Ok(build::binary(arch))
}

/// The workspace's.
pub fn version() -> Result<String> {
    let manifest = fs::read_to_string(sh::root().join("Cargo.toml"))?;
    let version = manifest
        .lines()
        .find_map(|line| line.strip_prefix("version = "))
        .context("the workspace's Cargo.toml has no version")?;
    Ok(version.trim_matches('"').to_owned())
}

/// Seconds since 1970 that everything inside is dated with: `SOURCE_DATE_EPOCH`
/// (<https://reproducible-builds.org/specs/source-date-epoch/>), else the last commit's, else 1970.
fn date() -> Result<u64> {
    if let Ok(date) = env::var("SOURCE_DATE_EPOCH") {
        return date
            .parse()
            .with_context(|| format!("SOURCE_DATE_EPOCH: {date:?} is no number of seconds"));
    }
    let commit =
        sh::output(
            Command::new("git")
                .current_dir(sh::root())
                .args(["log", "-1", "--format=%ct"]),
        );
    Ok(commit
        .ok()
        .and_then(|date| date.parse().ok())
        .unwrap_or_default())
}

/// An archive of a folder that depends on names, modes and contents only.
fn tar(folder: &Path, archive: &Path) -> Result<()> {
    sh::quietly(
        Command::new("tar")
            .args(["--format=gnu", "--sort=name", "--owner=0", "--group=0"])
            .args(["--numeric-owner", "--mode=u+rwX,go+rX,go-w"])
            .arg(format!("--mtime=@{}", date()?))
            .arg("-cf")
            .arg(archive)
            .arg("-C")
            .arg(folder)
            .arg("."),
    )
}

/// Makes a folder that holds nothing.
fn empty(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("failed to empty {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("failed to make {}", folder.display()))
}

/// Writes a file and the folders above it.
fn write(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    let failed = || format!("failed to write {}", path.display());
    fs::create_dir_all(path.with_file_name("")).with_context(failed)?;
    fs::write(path, contents).with_context(failed)
}
