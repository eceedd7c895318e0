//! `cargo xtask setup`: finds or makes what builds eBPF. Every step that changes something is
//! said in a line; where nothing is missing it takes a tenth of a second and is silent.
//!
//! It takes a rustc with the sources of `core`, and a bpf-linker whose LLVM is at least that
//! rustc's. rustup's server is asked for the sources first: a few megabytes and no root, where
//! packages are a hundred. Where it cannot be reached the distribution's packages do it all.

pub mod cross;
pub mod kubernetes;
mod linker;
pub mod lints;
mod llvm;
mod rustc;
pub mod unpacked;

use std::path::PathBuf;

use anyhow::{Result, bail};

pub use self::{linker::cache, rustc::Compiler};
use crate::{apt, sh};

/// A compiler and a linker that fit each other.
#[derive(Debug)]
pub struct Toolchain {
    pub compiler: Compiler,
    pub linker: PathBuf,
}

/// A program that a verb needs, and Debian's package with it.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    pub program: &'static str,
    pub package: &'static str,
}

pub fn run() -> Result<()> {
    let Toolchain { compiler, linker } = ensure(&[])?;
    sh::step(format!(
        "ready: rustc {} at {}, {}",
        compiler.version.release,
        compiler.rustc.display(),
        linker.display()
    ));
    Ok(())
}

/// Finds a toolchain for eBPF and the named tools; installs what is missing.
pub fn ensure(tools: &[Tool]) -> Result<Toolchain> {
    linker::check_override()?;
    let mut compilers = rustc::find();
    if missing(tools).is_empty()
        && let Some(ready) = ready(&mut compilers)
    {
        return Ok(ready);
    }
    if compilers.is_empty() {
        match rustc::add_sources(llvm_at_hand) {
            Ok(true) => compilers = rustc::find(),
            Ok(false) => {}
            // The distribution's packages may do instead.
            Err(error) => sh::step(format!("{error:#}")),
        }
    }
    install_packages(&compilers, tools)?;

    let mut compilers = rustc::find();
    if let Some(ready) = ready(&mut compilers) {
        return Ok(ready);
    }
    let Some(first) = compilers.first() else {
        bail!(no_compiler()?);
    };
    let needed = first.version.llvm;
    let fit = compilers.into_iter().find_map(|compiler| {
        let llvm = llvm::find(compiler.version.llvm)?;
        Some((compiler, llvm))
    });
    let Some((compiler, llvm)) = fit else {
        bail!(linker::advice(needed));
    };
    let linker = linker::install(&llvm)?;
    Ok(Toolchain { compiler, linker })
}

/// Finds the named tools, without a toolchain; installs what is missing.
pub fn ensure_tools(tools: &[Tool]) -> Result<()> {
    let packages = missing(tools);
    if packages.is_empty() {
        return Ok(());
    }
    if !apt::exists() {
        bail!("programs are missing; install {}", packages.join(", "));
    }
    if !sh::is_root()? {
        bail!(
            "packages are missing; run `{}`",
            apt::install_command(&packages)
        );
    }
    apt::HOST.update()?;
    apt::install(&packages)
}

/// The first compiler for which there is a linker already.
fn ready(compilers: &mut Vec<Compiler>) -> Option<Toolchain> {
    let (index, linker) = compilers
        .iter()
        .enumerate()
        .find_map(|(index, compiler)| Some((index, linker::find(compiler.version.llvm)?)))?;
    let compiler = compilers.swap_remove(index);
    Some(Toolchain { compiler, linker })
}

/// Whether there is, or could be, a linker for what a compiler with this LLVM writes.
fn llvm_at_hand(compiler: u32) -> bool {
    let packaged = || {
        let candidates = apt::candidates(&llvm::packages(compiler)).unwrap_or_default();
        llvm::choose_package(&candidates, Some(compiler)).is_some()
    };
    linker::find(compiler).is_some()
        || llvm::find(compiler).is_some()
        || (apt::exists() && packaged())
}

/// Installs the packages that are missing, all at once; without the right to, says how.
fn install_packages(compilers: &[Compiler], tools: &[Tool]) -> Result<()> {
    let tools = missing(tools);
    let complete = compilers.iter().any(|compiler| {
        linker::find(compiler.version.llvm).is_some() || llvm::find(compiler.version.llvm).is_some()
    });
    if complete && tools.is_empty() {
        return Ok(());
    }
    if !apt::exists() {
        match (complete, tools.is_empty()) {
            (true, false) => bail!("programs are missing; install {}", tools.join(", ")),
            // The caller says what the toolchain lacks.
            _ => return Ok(()),
        }
    }
    let root = sh::is_root()?;
    if root {
        apt::HOST.update()?;
    }
    let mut packages = tools;
    if !complete {
        packages.extend(toolchain_packages(compilers)?);
    }
    if packages.is_empty() {
        return Ok(());
    }
    if root {
        apt::install(&packages)
    } else {
        bail!(
            "packages are missing; run `{}`",
            apt::install_command(&packages)
        )
    }
}

/// What the distribution has to complete the toolchain; nothing, where it has nothing fit.
fn toolchain_packages(compilers: &[Compiler]) -> Result<Vec<String>> {
    let llvms = apt::candidates(&llvm::packages(0))?;
    let llvm = compilers
        .iter()
        .find_map(|compiler| llvm::choose_package(&llvms, Some(compiler.version.llvm)));
    if let Some(llvm) = llvm {
        return Ok(vec![llvm.to_owned()]);
    }
    // No compiler, or each is newer than every LLVM here: the distribution's own fits its LLVM.
    let candidates = apt::candidates(&apt::HOST.search(rustc::PACKAGES)?)?;
    let compiler = rustc::choose_package(&candidates);
    let (Some(compiler), Some(llvm)) = (compiler, llvm::choose_package(&llvms, None)) else {
        return Ok(Vec::new());
    };
    Ok(vec![
        compiler.to_owned(),
        rustc::source_package(compiler),
        llvm.to_owned(),
    ])
}

fn missing(tools: &[Tool]) -> Vec<String> {
    tools
        .iter()
        .filter(|tool| sh::which(tool.program).is_none())
        .map(|tool| tool.package.to_owned())
        .collect()
}

fn no_compiler() -> Result<String> {
    let lists = if apt::exists() && !sh::is_root()? {
        "; where apt lists no such package, `sudo apt-get update` first"
    } else {
        apt::remark()
    };
    Ok(format!(
        "no compiler here builds eBPF: it takes rustc {} or newer with the sources of core; run \
         `rustup component add rust-src`, or install the distribution's rustc and its sources \
         (Debian 12: rustc-web and rust-web-src){lists}, then try again",
        rustc::OLDEST
    ))
}
