//! The LLVM that bpf-linker is built against: the system's, with its C headers.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{apt::Candidate, sh};

/// The major versions that bpf-linker 0.13 can use, and where llvm-sys looks for each.
const SUPPORTED: [(u32, &str); 3] = [
    (21, "LLVM_SYS_211_PREFIX"),
    (22, "LLVM_SYS_221_PREFIX"),
    (23, "LLVM_SYS_231_PREFIX"),
];

#[derive(Debug)]
pub struct Llvm {
    pub major: u32,
    pub minor: u32,
    pub prefix: PathBuf,
    pub prefix_variable: &'static str,
}

/// The lowest installed version that reads what a compiler with this LLVM writes.
pub fn find(at_least: u32) -> Option<Llvm> {
    fitting(at_least).find_map(|(major, prefix_variable)| {
        env::var_os(prefix_variable)
            .map(PathBuf::from)
            .into_iter()
            // Debian, Alpine, Fedora.
            .chain([
                PathBuf::from(format!("/usr/lib/llvm-{major}")),
                PathBuf::from(format!("/usr/lib/llvm{major}")),
                PathBuf::from(format!("/usr/lib64/llvm{major}")),
            ])
            .chain(prefix_of(&format!("llvm-config-{major}")))
            .chain(prefix_of("llvm-config"))
            .find_map(|prefix| {
                let (found, minor) = version(&prefix)?;
                (found == major).then_some(Llvm {
                    major,
                    minor,
                    prefix,
                    prefix_variable,
                })
            })
    })
}

/// The packages that would do, the best first.
pub fn packages(at_least: u32) -> Vec<String> {
    fitting(at_least)
        .map(|(major, _)| format!("llvm-{major}-dev"))
        .collect()
}

/// Takes the package for exactly the compiler's LLVM where it is known, else the newest: a
/// newer LLVM reads what an older one wrote, never the reverse.
pub fn choose_package(candidates: &[Candidate], compiler: Option<u32>) -> Option<&str> {
    let mut fit = packages(compiler.unwrap_or(0));
    if compiler.is_none() {
        fit.reverse();
    }
    fit.iter().find_map(|name| {
        let found = candidates
            .iter()
            .find(|candidate| candidate.name == *name)?;
        Some(found.name.as_str())
    })
}

fn fitting(at_least: u32) -> impl Iterator<Item = (u32, &'static str)> {
    SUPPORTED
        .into_iter()
        .filter(move |(major, _)| *major >= at_least)
}

fn prefix_of(llvm_config: &str) -> Option<PathBuf> {
    let program = sh::which(llvm_config)?;
    sh::output(Command::new(program).arg("--prefix"))
        .ok()
        .map(PathBuf::from)
}

/// The version under a prefix, if a program can be built against it: Debian installs llvm-config
/// without the headers.
fn version(prefix: &Path) -> Option<(u32, u32)> {
    let program = prefix.join("bin/llvm-config");
    if !program.is_file() {
        return None;
    }
    let ask = |what: &str| sh::output(Command::new(&program).arg(what)).ok();
    let headers = PathBuf::from(ask("--includedir")?);
    if !headers.join("llvm-c/Core.h").is_file() {
        return None;
    }
    parse_version(&ask("--version")?)
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim().split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(names: &[&str]) -> Vec<Candidate> {
        names
            .iter()
            .map(|name| Candidate {
                name: (*name).to_owned(),
                version: "1".to_owned(),
            })
            .collect()
    }

    #[test]
    fn version_is_read_from_llvm_config() {
        assert_eq!(parse_version("22.1.8\n"), Some((22, 1)));
        assert_eq!(parse_version("23.0.0git"), Some((23, 0)));
        assert_eq!(parse_version("trunk"), None);
    }

    #[test]
    fn package_is_never_older_than_the_compiler() {
        let all = candidates(&["llvm-21-dev", "llvm-22-dev", "llvm-23-dev"]);
        assert_eq!(choose_package(&all, Some(22)), Some("llvm-22-dev"));
        assert_eq!(choose_package(&all, Some(20)), Some("llvm-21-dev"));
        assert_eq!(choose_package(&all, Some(24)), None);
        assert_eq!(choose_package(&all, None), Some("llvm-23-dev"));
        assert_eq!(
            choose_package(&candidates(&["llvm-21-dev"]), Some(22)),
            None
        );
    }
}
