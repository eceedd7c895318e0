//! bpf-linker, built once into the user's cache folder, where every clone finds it.

use std::{
    env, fs,
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use super::llvm::Llvm;
use crate::sh;

const VERSION: &str = "0.13.0";

/// Names a bpf-linker of the user's own, where none can be built.
const OVERRIDE: &str = "TRACER_BPF_LINKER";

/// A linker that runs and reads what a compiler with this LLVM writes.
pub fn find(at_least: u32) -> Option<PathBuf> {
    if let Some(own) = env::var_os(OVERRIDE) {
        return Some(PathBuf::from(own));
    }
    let mut cached: Vec<(u32, PathBuf)> = fs::read_dir(cache().ok()?)
        .ok()?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let llvm = llvm_of(&entry.file_name().to_string_lossy())?;
            Some((llvm, entry.path().join("bin/bpf-linker")))
        })
        .filter(|(llvm, _)| *llvm >= at_least)
        .collect();
    cached.sort();
    // One whose LLVM was removed or upgraded since does not run.
    cached
        .into_iter()
        .map(|(_, linker)| linker)
        .find(|linker| runs(linker).is_ok())
}

/// A linker that the user names must exist: rustc's message would not say who asked for it.
pub fn check_override() -> Result<()> {
    match env::var_os(OVERRIDE) {
        Some(own) if !Path::new(&own).is_file() => {
            bail!("{OVERRIDE} names {}, which is no file", own.display())
        }
        _ => Ok(()),
    }
}

/// Builds the linker, or waits for another xtask that does.
pub fn install(llvm: &Llvm) -> Result<PathBuf> {
    let cache = cache()?;
    let folder = cache.join(folder_name(llvm));
    let linker = folder.join("bin/bpf-linker");
    fs::create_dir_all(&cache).with_context(|| format!("failed to make {}", cache.display()))?;
    let lock_path = cache.join("bpf-linker.lock");
    let lock = fs::File::create(&lock_path)
        .with_context(|| format!("failed to write {}", lock_path.display()))?;
    if lock.try_lock().is_err() {
        sh::step("waiting for another xtask that builds bpf-linker");
        lock.lock()
            .with_context(|| format!("failed to lock {}", lock_path.display()))?;
    }
    match runs(&linker) {
        Ok(()) => return Ok(linker),
        Err(error) if folder.exists() => {
            sh::step(format!(
                "the cached linker is of no use any more: {error:#}"
            ));
        }
        Err(_) => {}
    }

    sh::step(format!(
        "building bpf-linker {VERSION} for LLVM {}.{} into {} (about a minute, once)",
        llvm.major,
        llvm.minor,
        folder.display()
    ));
    let start = Instant::now();
    // An interrupted build leaves this folder, and the next one goes on in it; what is in the
    // final place is always complete.
    let partial = folder.with_added_extension("partial");
    if let Err(error) = build(llvm, &partial) {
        // Nothing to go on from: a damaged folder must not fail every later build too.
        drop(fs::remove_dir_all(&partial));
        return Err(error);
    }
    fs::remove_dir_all(partial.join("target")).context("failed to tidy up the linker's build")?;
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("failed to remove {}", folder.display()))?;
    }
    fs::rename(&partial, &folder)
        .with_context(|| format!("failed to put bpf-linker into {}", folder.display()))?;
    runs(&linker)?;
    sh::step(format!(
        "bpf-linker is ready after {} s",
        start.elapsed().as_secs()
    ));
    Ok(linker)
}

/// What to do where no LLVM fits.
pub fn advice(at_least: u32) -> String {
    format!(
        "bpf-linker needs LLVM {at_least} or newer with headers: install llvm-{at_least}-dev \
         (https://apt.llvm.org has it for Debian and Ubuntu), or put a bpf-linker from \
         https://github.com/aya-rs/bpf-linker/releases somewhere and name it in {OVERRIDE}"
    )
}

fn build(llvm: &Llvm, into: &Path) -> Result<()> {
    let mut install = sh::cargo();
    install
        .args(["install", "--locked", "--force"])
        .arg(format!("bpf-linker@{VERSION}"))
        .args(["--no-default-features", "--features"])
        .arg(format!("llvm-{}", llvm.major))
        .arg("--root")
        .arg(into)
        .arg("--target-dir")
        .arg(into.join("target"))
        .env(llvm.prefix_variable, &llvm.prefix)
        .env("LLVM_PREFIX", &llvm.prefix)
        // LLVM does the linker's work, and is optimised already; the build takes 36 s instead of
        // 60 without optimisation of its shell.
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .env("CARGO_PROFILE_RELEASE_STRIP", "true");
    if !std::io::stderr().is_terminal() {
        install.arg("--quiet");
    }
    sh::run(&mut install).context("bpf-linker could not be built")?;
    runs(&into.join("bin/bpf-linker"))
}

fn runs(linker: &Path) -> Result<()> {
    let mut ask = Command::new(linker);
    let version = sh::output(sh::without_rustup(&mut ask).arg("--version"))?;
    if !version.contains(VERSION) {
        bail!("{} is {version}, not {VERSION}", linker.display());
    }
    Ok(())
}

/// What is built or fetched once for all clones.
pub fn cache() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set; set one, for the linker's cache")?;
    Ok(base.join("tracer"))
}

fn folder_name(llvm: &Llvm) -> String {
    format!("bpf-linker-{VERSION}-llvm-{}.{}", llvm.major, llvm.minor)
}

/// The major version of the LLVM that a cached linker was built for, from its folder's name.
fn llvm_of(folder: &str) -> Option<u32> {
    let (major, minor) = folder
        .strip_prefix("bpf-linker-")?
        .strip_prefix(VERSION)?
        .strip_prefix("-llvm-")?
        .split_once('.')?;
    minor.parse::<u32>().ok()?;
    major.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complete_linkers_of_this_version_are_taken() {
        let llvm = Llvm {
            major: 22,
            minor: 1,
            prefix: PathBuf::new(),
            prefix_variable: "",
        };
        assert_eq!(llvm_of(&folder_name(&llvm)), Some(22));
        assert_eq!(llvm_of("bpf-linker-0.13.0-llvm-22.1.partial"), None);
        assert_eq!(llvm_of("bpf-linker-0.12.0-llvm-22.1"), None);
        assert_eq!(llvm_of("bpf-linker.lock"), None);
    }
}
