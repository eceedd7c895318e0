//! What builds for another architecture: Debian's cross compiler with its C library, for ring's C and
//! as the linker, and the standard library for the cargo in use, which rustup has.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Tool, rustc};
use crate::{arch::Arch, sh};

/// The C library's package has no program: a file of it stands for one.
const AMD64: &[Tool] = &[
    Tool {
        program: "x86_64-linux-gnu-gcc",
        package: "gcc-x86-64-linux-gnu",
    },
    Tool {
        program: "/usr/x86_64-linux-gnu/include/stdio.h",
        package: "libc6-dev-amd64-cross",
    },
];

const ARM64: &[Tool] = &[
    Tool {
        program: "aarch64-linux-gnu-gcc",
        package: "gcc-aarch64-linux-gnu",
    },
    Tool {
        program: "/usr/aarch64-linux-gnu/include/stdio.h",
        package: "libc6-dev-arm64-cross",
    },
];

/// Finds it; installs what is missing. This machine's own needs nothing.
pub fn ensure(arch: Arch) -> Result<()> {
    let Some(target) = arch.target() else {
        return Ok(());
    };
    let tools = match arch {
        Arch::AMD64 => AMD64,
        Arch::ARM64 => ARM64,
        _ => bail!("nothing is known of what builds for {arch}"),
    };
    super::ensure_tools(tools)?;
    if !has_std(&target)? {
        add_std(&target)?;
    }
    Ok(())
}

/// A cargo that builds for an architecture; what it builds is in [`folder`].
pub fn cargo(arch: Arch) -> Command {
    let mut cargo = sh::cargo();
    if let Some(target) = arch.target() {
        let variable = target.to_uppercase().replace('-', "_");
        cargo.env("CARGO_BUILD_TARGET", &target).env(
            format!("CARGO_TARGET_{variable}_LINKER"),
            format!("{}-gcc", arch.gnu()),
        );
    }
    cargo
}

/// Where cargo puts what it builds for an architecture: under here, by profile.
pub fn folder(arch: Arch) -> PathBuf {
    arch.target()
        .map_or_else(sh::target, |target| sh::target().join(target))
}

/// Whether the compiler that cargo takes has the target's standard library.
fn has_std(target: &str) -> Result<bool> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    let folder = sh::output(command.args(["--print", "target-libdir", "--target", target]))
        .with_context(|| format!("the compiler does not know {target}"))?;
    Ok(fs::read_dir(Path::new(&folder)).is_ok_and(|files| {
        files
            .filter_map(Result::ok)
            .any(|file| file.file_name().to_string_lossy().starts_with("libstd-"))
    }))
}

fn add_std(target: &str) -> Result<()> {
    let Some(rustup) = sh::which("rustup") else {
        bail!(
            "the compiler has no standard library for {target}, and there is no rustup to add it"
        );
    };
    let mut add = Command::new(&rustup);
    add.args(["target", "add", target]);
    // Without it, rustup takes the default, which need not be the one that runs us.
    if let Some(toolchain) = env::var_os("RUSTUP_TOOLCHAIN") {
        add.arg("--toolchain").arg(toolchain);
    }
    sh::step(format!(
        "adding the standard library for {target}: {}",
        sh::shown(&add)
    ));
    ensure!(
        rustc::server_answers(&rustup),
        "rustup's server cannot be reached; `{}` where it can",
        sh::shown(&add)
    );
    let status = sh::status_within(&mut add, rustc::DOWNLOAD_LIMIT)?;
    ensure!(status.success(), "`{}` failed ({status})", sh::shown(&add));
    ensure!(
        has_std(target)?,
        "`{}` did not give the compiler that cargo takes a standard library",
        sh::shown(&add)
    );
    Ok(())
}
