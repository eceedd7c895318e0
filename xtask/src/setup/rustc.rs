//! The compiler for the eBPF crate: any rustc that has the sources of `core` beside it, since
//! nobody ships `core` compiled for BPF.

use std::{
    cmp::Reverse,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{apt::Candidate, sh};

/// The oldest release that our crates build with.
pub const OLDEST: &str = env!("CARGO_PKG_RUST_VERSION");

#[derive(Debug)]
pub struct Compiler {
    pub rustc: PathBuf,
    pub version: Version,
}

impl Compiler {
    /// A program of the same toolchain, where it has one.
    pub fn sibling(&self, name: &str) -> Option<PathBuf> {
        let path = self.rustc.with_file_name(name);
        path.is_file().then_some(path)
    }
}

/// From `rustc -vV`.
#[derive(Debug, PartialEq, Eq)]
pub struct Version {
    /// Such as `1.97.0-nightly`.
    pub release: String,
    /// bpf-linker's LLVM must be at least this, or it cannot read what the compiler wrote.
    pub llvm: u32,
}

/// Compilers that are fit, the preferred first.
pub fn find() -> Vec<Compiler> {
    rustup_toolchains()
        .iter()
        .map(|toolchain| (toolchain.join("bin/rustc"), toolchain.clone()))
        .chain(distribution())
        .filter(|(_, sysroot)| has_core_sources(sysroot))
        .filter_map(|(rustc, _)| {
            let version = version(&rustc).ok()?;
            new_enough(&version.release).then_some(Compiler { rustc, version })
        })
        .collect()
}

/// Lets rustup add the sources to one of its toolchains, if it can one whose LLVM is at hand;
/// false where it can add none.
pub fn add_sources(llvm_at_hand: impl Fn(u32) -> bool) -> Result<bool> {
    let Some(rustup) = sh::which("rustup") else {
        return Ok(false);
    };
    let fit: Vec<(PathBuf, Version)> = rustup_toolchains()
        .into_iter()
        .filter_map(|toolchain| {
            let version = version(&toolchain.join("bin/rustc")).ok()?;
            new_enough(&version.release).then_some((toolchain, version))
        })
        .collect();
    let best = fit.iter().find(|(_, version)| llvm_at_hand(version.llvm));
    let Some((toolchain, _)) = best.or(fit.first()) else {
        return Ok(false);
    };
    let name = toolchain.file_name().unwrap_or_default();
    sh::step(format!(
        "adding the sources of core: rustup component add rust-src --toolchain {}",
        name.display()
    ));
    if !server_answers(&rustup) {
        sh::step("rustup's server cannot be reached");
        return Ok(false);
    }
    let mut add = Command::new(rustup);
    add.args(["component", "add", "rust-src", "--toolchain"])
        .arg(name);
    let status = sh::status_within(&mut add, DOWNLOAD_LIMIT)?;
    ensure!(status.success(), "`{}` failed ({status})", sh::shown(&add));
    Ok(true)
}

/// Some megabytes.
pub const DOWNLOAD_LIMIT: Duration = Duration::from_mins(5);

/// Behind some firewalls rustup hangs for minutes instead of failing. A check may be ended at any
/// time, where an installation would leave a toolchain half changed.
pub fn server_answers(rustup: &Path) -> bool {
    const LIMIT: Duration = Duration::from_secs(10);
    const UPDATES_AVAILABLE: i32 = 100;

    let mut check = Command::new(rustup);
    check
        .arg("check")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    sh::status_within(&mut check, LIMIT)
        .is_ok_and(|status| matches!(status.code(), Some(0 | UPDATES_AVAILABLE)))
}

/// The names under which distributions ship compilers: `rustc`, Debian's `rustc-web` (as new as
/// the browsers need it), Ubuntu's `rustc-1.96`.
pub const PACKAGES: &str = "^rustc(-web|-[0-9.]+)?$";

/// The package with the sources for a compiler's package.
pub fn source_package(compiler: &str) -> String {
    format!("rust{}-src", compiler.trim_start_matches("rustc"))
}

/// The newest of the packages, if it is new enough.
pub fn choose_package(candidates: &[Candidate]) -> Option<&str> {
    candidates
        .iter()
        .filter(|candidate| new_enough(&candidate.version))
        .max_by_key(|candidate| numbers(&candidate.version))
        .map(|candidate| candidate.name.as_str())
}

fn has_core_sources(sysroot: &Path) -> bool {
    sysroot
        .join("lib/rustlib/src/rust/library/core/src/lib.rs")
        .is_file()
}

/// rustup's toolchains: nightly, then the one in use, then the rest, newest first.
fn rustup_toolchains() -> Vec<PathBuf> {
    let home = env::var_os("RUSTUP_HOME").map(PathBuf::from).or_else(|| {
        let home = env::var_os("HOME")?;
        Some(Path::new(&home).join(".rustup"))
    });
    let folders = home.and_then(|home| fs::read_dir(home.join("toolchains")).ok());
    let mut names: Vec<PathBuf> = folders
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    let active = env::var("RUSTUP_TOOLCHAIN").unwrap_or_default();
    names.sort_by_key(|path| {
        preference(
            &path.file_name().unwrap_or_default().to_string_lossy(),
            &active,
        )
    });
    names
}

fn preference(name: &str, active: &str) -> (u8, Reverse<Vec<u32>>) {
    let rank = if name.starts_with("nightly") {
        0
    } else if name == active {
        1
    } else if name.starts_with("stable") {
        2
    } else {
        3
    };
    (rank, Reverse(numbers(name.trim_start_matches("nightly-"))))
}

/// Compilers outside rustup, with their sysroots.
fn distribution() -> Vec<(PathBuf, PathBuf)> {
    // Ubuntu's versioned packages live in folders such as /usr/lib/rust-1.89.
    let versioned = fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("rust-"))
        })
        .map(|path| path.join("bin/rustc"));
    ["/usr/bin/rustc", "/usr/local/bin/rustc"]
        .into_iter()
        .map(PathBuf::from)
        .chain(versioned)
        .filter(|rustc| {
            // A packaged rustup is a rustc by name only.
            fs::canonicalize(rustc)
                .is_ok_and(|real| real.file_name().is_some_and(|name| name == "rustc"))
        })
        .filter_map(|rustc| {
            let mut command = Command::new(&rustc);
            let sysroot =
                sh::output(sh::without_rustup(&mut command).args(["--print", "sysroot"])).ok()?;
            Some((rustc, PathBuf::from(sysroot)))
        })
        .collect()
}

fn version(rustc: &Path) -> Result<Version> {
    let mut command = Command::new(rustc);
    let text = sh::output(sh::without_rustup(&mut command).arg("-vV"))?;
    parse_version(&text).with_context(|| format!("{} gave no version: {text}", rustc.display()))
}

fn parse_version(text: &str) -> Option<Version> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    Some(Version {
        release: field("release: ")?.to_owned(),
        llvm: field("LLVM version: ")?.split('.').next()?.parse().ok()?,
    })
}

fn new_enough(release: &str) -> bool {
    numbers(release) >= numbers(OLDEST)
}

/// The leading numbers of a version: `1.96.0+dfsg1-1` is 1, 96, 0.
fn numbers(version: &str) -> Vec<u32> {
    let end = version
        .find(|character: char| character != '.' && !character.is_ascii_digit())
        .unwrap_or(version.len());
    version[..end]
        .split('.')
        .map_while(|part| part.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_read_from_rustc() {
        let text = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)
binary: rustc
commit-hash: e50aa6fba4e63ab34c72bf9acfd2c307c1155d1a
commit-date: 2026-05-19
host: x86_64-unknown-linux-gnu
release: 1.97.0-nightly
LLVM version: 22.1.4";
        assert_eq!(
            parse_version(text),
            Some(Version {
                release: "1.97.0-nightly".to_owned(),
                llvm: 22
            })
        );
        assert_eq!(parse_version("rustc 1.97.0-nightly"), None);
    }

    #[test]
    fn old_compilers_are_refused() {
        assert!(new_enough(OLDEST));
        assert!(new_enough("1.97.0-nightly"));
        assert!(new_enough("1.100.0"));
        assert!(new_enough("2.0"));
        assert!(!new_enough("1.63.0+dfsg1-2"));
        assert!(!new_enough("1.9.0"));
        assert!(!new_enough("unknown"));
    }

    #[test]
    fn newest_package_is_taken_and_old_ones_never() {
        let candidate = |name: &str, version: &str| Candidate {
            name: name.to_owned(),
            version: version.to_owned(),
        };
        let old = candidate("rustc", "1.63.0+dfsg1-2");
        let web = candidate("rustc-web", "1.96.0+dfsg1-1~deb12u2");
        let versioned = candidate("rustc-1.99", "1.99.0+dfsg0ubuntu1");
        assert_eq!(choose_package(std::slice::from_ref(&old)), None);
        let both = [old, web];
        assert_eq!(choose_package(&both), Some("rustc-web"));
        let [old, web] = both;
        assert_eq!(choose_package(&[versioned, web, old]), Some("rustc-1.99"));
    }

    #[test]
    fn source_packages_follow_their_compilers() {
        assert_eq!(source_package("rustc"), "rust-src");
        assert_eq!(source_package("rustc-web"), "rust-web-src");
        assert_eq!(source_package("rustc-1.96"), "rust-1.96-src");
    }

    #[test]
    fn toolchains_are_tried_nightly_first() {
        let mut names = [
            "1.95.0-x86_64",
            "nightly-2025-01-02-x86_64",
            "stable-x86_64",
            "beta-x86_64",
            "1.96.0-x86_64",
            "nightly-x86_64",
        ];
        names.sort_by_key(|name| preference(name, "beta-x86_64"));
        assert_eq!(
            names[2..],
            [
                "beta-x86_64",
                "stable-x86_64",
                "1.96.0-x86_64",
                "1.95.0-x86_64"
            ]
        );
        assert!(names[..2].iter().all(|name| name.starts_with("nightly")));
    }
}
