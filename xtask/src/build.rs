//! `cargo xtask build`: the eBPF object, checked, and the release binary that holds it.

use std::{
    env::consts::ARCH,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    arch::Arch,
    object,
    setup::{self, Toolchain, cross},
    sh,
};

/// A BPF program has the byte order of the kernel that runs it.
const TARGET: &str = if cfg!(target_endian = "little") {
    "bpfel-unknown-none"
} else {
    "bpfeb-unknown-none"
};

pub fn run(arch: Arch) -> Result<()> {
    build(&setup::ensure(&[])?, arch)
}

/// The object, and the release binary.
pub fn build(toolchain: &Toolchain, arch: Arch) -> Result<()> {
    let found = build_object(toolchain)?;
    build_binary(arch, &["--release"], &binary(arch))?;
    sh::step(format!("{}: {found}", ebpf_object().display()));
    Ok(())
}

/// The object, and the binary as the tests run it: with overflow and debug assertions, and of the
/// dependencies that the tests are built of anyway.
pub fn build_for_tests(toolchain: &Toolchain, arch: Arch) -> Result<()> {
    let found = build_object(toolchain)?;
    build_binary(arch, &[], &tested_binary(arch))?;
    sh::step(format!("{}: {found}", ebpf_object().display()));
    Ok(())
}

/// The object alone.
pub fn build_ebpf(toolchain: &Toolchain) -> Result<()> {
    let found = build_object(toolchain)?;
    sh::step(format!("{}: {found}", ebpf_object().display()));
    Ok(())
}

fn build_binary(arch: Arch, arguments: &[&str], binary: &Path) -> Result<()> {
    cross::ensure(arch)?;
    sh::run(
        cross::cargo(arch)
            .args(["build", "--package", "tracer"])
            .args(arguments),
    )
    .context("the binary could not be built")?;
    let size = fs::metadata(binary)
        .with_context(|| format!("the build left no {}", binary.display()))?
        .len();
    sh::step(format!("{}: {size} bytes", binary.display()));
    Ok(())
}

/// Says what is in the object.
fn build_object(toolchain: &Toolchain) -> Result<String> {
    let built = compile_ebpf(toolchain)?;
    let bytes = fs::read(&built).with_context(|| format!("failed to read {}", built.display()))?;
    let unfit = || format!("the eBPF object {} is not fit", built.display());
    let bytes = object::strip(&bytes).with_context(unfit)?;
    let found = object::check(&bytes).with_context(unfit)?;
    place(&bytes)?;
    Ok(found.to_string())
}

pub fn binary(arch: Arch) -> PathBuf {
    cross::folder(arch).join("release/tracer")
}

/// The one that the tests run.
pub fn tested_binary(arch: Arch) -> PathBuf {
    cross::folder(arch).join("debug/tracer")
}

/// A cargo command for the eBPF crate; what it needs more goes after.
pub fn ebpf_cargo(toolchain: &Toolchain, verb: &str) -> Command {
    let compiler = &toolchain.compiler;
    // Debian's compiler comes without cargo; ours can drive it.
    let cargo = compiler.sibling("cargo").unwrap_or_else(sh::cargo_path);
    // cargo would find rustup's stand-in for a subcommand, which serves another toolchain.
    let program = compiler.sibling(&format!("cargo-{verb}"));
    let program = program.as_ref().unwrap_or(&cargo);
    // The target's own linker is found through PATH; naming it here makes cargo build anew when
    // another one is taken.
    let flags = [
        format!("--cfg=bpf_target_arch=\"{ARCH}\""),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("-Clinker={}", toolchain.linker.display()),
    ];
    let mut command = Command::new(program);
    sh::without_rustup(&mut command)
        .current_dir(sh::root())
        .arg(verb)
        .args(["--package", "tracer-ebpf", "--profile", "bpf"])
        .args(["--target", TARGET, "-Zbuild-std=core"])
        // A folder of its own: the flags differ, and so the two builds do not wait for each other.
        .arg("--target-dir")
        .arg(sh::target().join("ebpf"))
        .env("CARGO", &cargo)
        .env("RUSTC", &compiler.rustc)
        // Opens -Z on a stable compiler. For this one command only: build scripts of common
        // crates would take it for a nightly.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    command
}

fn compile_ebpf(toolchain: &Toolchain) -> Result<PathBuf> {
    sh::run(&mut ebpf_cargo(toolchain, "build")).context("the eBPF object could not be built")?;
    Ok(sh::target()
        .join("ebpf")
        .join(TARGET)
        .join("bpf/tracer-ebpf"))
}

/// Where tracer's build script takes the object from.
fn ebpf_object() -> PathBuf {
    sh::target().join("bpf/tracer-ebpf.o")
}

/// Puts the object into its place; only when it changed, or cargo would build the binary anew.
fn place(bytes: &[u8]) -> Result<()> {
    let path = ebpf_object();
    if fs::read(&path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let failed = || format!("failed to write {}", path.display());
    fs::create_dir_all(path.with_file_name("")).with_context(failed)?;
    let partial = path.with_extension("partial");
    fs::write(&partial, bytes).with_context(failed)?;
    fs::rename(&partial, &path).with_context(failed)
}
