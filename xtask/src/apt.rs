//! Debian's and Ubuntu's package manager.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::sh;

pub fn exists() -> bool {
    sh::which("apt-get").is_some() && sh::which("apt-cache").is_some()
}

/// A package and the version that would be installed.
#[derive(Debug, PartialEq, Eq)]
pub struct Candidate {
    pub name: String,
    pub version: String,
}

/// Which of the named packages could be installed.
pub fn candidates(names: &[String]) -> Result<Vec<Candidate>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let policy = sh::output(
        Command::new("apt-cache")
            .arg("policy")
            .args(names)
            .env("LC_ALL", "C"),
    )?;
    Ok(parse_policy(&policy))
}

/// Names of packages that match a regular expression.
pub fn search(pattern: &str) -> Result<Vec<String>> {
    let found = sh::output(Command::new("apt-cache").args(["search", "--names-only", pattern]))?;
    Ok(found
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect())
}

/// Reads the package lists anew.
pub fn update() -> Result<()> {
    sh::step("reading the package lists: apt-get update");
    sh::quietly(apt_get().args(["-qq", "update"])).context("the package lists could not be read")
}

/// Installs packages; nothing that is installed gives way to them.
pub fn install(packages: &[String]) -> Result<()> {
    sh::step(format!("installing packages: {}", packages.join(" ")));
    sh::quietly(
        apt_get()
            .args([
                "-qq",
                "install",
                "-y",
                "--no-install-recommends",
                "--no-remove",
            ])
            .args(packages),
    )
    .context("the packages could not be installed")
}

/// Downloads a package into a folder, without installing it: the archive's path.
pub fn download(package: &str, folder: &Path) -> Result<PathBuf> {
    download_all(&[package.to_owned()], folder)?
        .pop()
        .with_context(|| format!("apt-get download {package} left no archive"))
}

/// The same of many at once.
pub fn download_all(packages: &[String], folder: &Path) -> Result<Vec<PathBuf>> {
    sh::quietly(
        apt_get()
            // The folder may be one that apt's own user cannot enter.
            .args(["-qq", "-o", "APT::Sandbox::User=root", "download"])
            .args(packages)
            .current_dir(folder),
    )
    .with_context(|| format!("{} could not be downloaded", packages.join(", ")))?;
    Ok(fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect())
}

/// What an installation of these packages would add, themselves included.
pub fn closure(packages: &[&str]) -> Result<Vec<String>> {
    let simulated = sh::output(
        apt_get()
            .args(["-s", "-o", "Debug::NoLocking=1", "--no-install-recommends"])
            .arg("install")
            .args(packages)
            .env("LC_ALL", "C"),
    )
    .with_context(|| format!("what {} need could not be found", packages.join(", ")))?;
    Ok(parse_simulation(&simulated))
}

/// What somebody without the right to install should type.
pub fn install_command(packages: &[String]) -> String {
    format!(
        "sudo apt-get update && sudo apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    )
}

fn apt_get() -> Command {
    let mut apt_get = Command::new("apt-get");
    apt_get
        // A machine that has just booted may still be running its automatic updates.
        .args(["-o", "DPkg::Lock::Timeout=120", "-o", "Dpkg::Use-Pty=0"])
        .env("DEBIAN_FRONTEND", "noninteractive");
    apt_get
}

fn parse_policy(text: &str) -> Vec<Candidate> {
    let mut found = Vec::new();
    let mut name = "";
    for line in text.lines() {
        if let Some(version) = line.trim().strip_prefix("Candidate: ") {
            if version != "(none)" {
                found.push(Candidate {
                    name: name.to_owned(),
                    version: version.to_owned(),
                });
            }
        } else if !line.starts_with(' ') {
            name = line.trim_end_matches(':');
        }
    }
    found
}

/// `Inst NAME (VERSION …)`, one a package.
fn parse_simulation(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("Inst "))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_simulated_installation_adds() {
        let text = "Reading package lists...
The following NEW packages will be installed:
  kmod libkmod2
Inst libkmod2 (30+20221128-1 Debian:12.11/oldstable [amd64])
Inst kmod (30+20221128-1 Debian:12.11/oldstable [amd64])
Conf libkmod2 (30+20221128-1 Debian:12.11/oldstable [amd64])
";
        assert_eq!(parse_simulation(text), ["libkmod2", "kmod"]);
    }

    #[test]
    fn policy_without_a_candidate_is_left_out() {
        let text = "rustc-web:
  Installed: (none)
  Candidate: 1.96.0+dfsg1-1~deb12u2
  Version table:
     1.96.0+dfsg1-1~deb12u2 500
        500 http://deb.debian.org/debian-security bookworm-security/main amd64 Packages
llvm-23-dev:
  Installed: (none)
  Candidate: (none)
  Version table:
";
        assert_eq!(
            parse_policy(text),
            [Candidate {
                name: "rustc-web".to_owned(),
                version: "1.96.0+dfsg1-1~deb12u2".to_owned()
            }]
        );
    }
}
