//! Debian's and Ubuntu's package manager.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{arch::Arch, disk, sh};

/// For so long the lists may be locked, as by the automatic updates of a machine that has just booted.
const LOCKED: Duration = Duration::from_mins(2);

/// An update failed.
static UNREAD: AtomicBool = AtomicBool::new(false);

/// This machine's packages.
pub const HOST: Packages = Packages {
    options: Vec::new(),
};

/// The packages of one architecture.
#[derive(Clone, Debug)]
pub struct Packages {
    /// What apt is told besides.
    options: Vec<String>,
}

impl Packages {
    /// Those of another architecture, of the distribution that this machine has. apt's lists of them
    /// and its record of what is installed, which is empty, are in a folder of their own: this
    /// machine's apt learns nothing of them, and no root is needed.
    pub fn foreign(arch: Arch, folder: &Path) -> Result<Self> {
        let lists = folder.join("lists");
        let archives = folder.join("archives");
        for folder in [&lists, &archives] {
            fs::create_dir_all(folder.join("partial"))
                .with_context(|| format!("failed to make {}", folder.display()))?;
        }
        let installed = folder.join("status");
        fs::write(&installed, "")
            .with_context(|| format!("failed to write {}", installed.display()))?;
        Ok(Self {
            options: vec![
                format!("APT::Architecture={arch}"),
                format!("APT::Architectures={arch}"),
                format!("Dir::State={}", folder.display()),
                format!("Dir::State::Lists={}", lists.display()),
                format!("Dir::State::status={}", installed.display()),
                format!("Dir::Cache={}", folder.display()),
                format!("Dir::Cache::Archives={}", archives.display()),
                // The folder may be one that apt's own user cannot enter.
                "APT::Sandbox::User=root".to_owned(),
            ],
        })
    }

    /// Are they of another architecture?
    pub fn is_foreign(&self) -> bool {
        !self.options.is_empty()
    }

    /// May the lists be read anew? This machine's by root only.
    pub fn can_update(&self) -> Result<bool> {
        Ok(self.is_foreign() || sh::is_root()?)
    }

    /// Reads the package lists anew. A mirror that is dead need not be the one that is wanted, and older lists may do:
    /// so a failure is told, and again with what comes of it ([`remark`]).
    pub fn update(&self) -> Result<()> {
        sh::step("reading the package lists: apt-get update");
        let mut update = self.apt_get();
        update
            // Else a mirror that does not answer is no failure.
            .args(["-o", "APT::Update::Error-Mode=any", "-qq", "update"])
            .stdin(Stdio::null())
            .env("LC_ALL", "C");
        let start = Instant::now();
        let (succeeded, said) = loop {
            let output = update
                .output()
                .with_context(|| format!("failed to start `{}`", sh::shown(&update)))?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            // apt waits for the lock of installations by itself, not for that of the lists.
            if output.status.success() || !is_locked(&said) || start.elapsed() > LOCKED {
                break (output.status.success(), said);
            }
            thread::sleep(Duration::from_secs(2));
        };
        for line in complaints(&said) {
            sh::step(format!("apt-get update: {line}"));
        }
        if !succeeded {
            sh::step("not all package lists could be read anew: going on with those that are here");
            UNREAD.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Names of packages that match a regular expression.
    pub fn search(&self, pattern: &str) -> Result<Vec<String>> {
        let mut search = self.command("apt-cache");
        let found = sh::output(search.args(["search", "--names-only", pattern]))?;
        Ok(found
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .map(str::to_owned)
            .collect())
    }

    /// What an installation of these packages would add, themselves included.
    pub fn closure(&self, packages: &[&str]) -> Result<Vec<String>> {
        let simulated = sh::output(
            self.apt_get()
                .args(["-s", "-o", "Debug::NoLocking=1", "--no-install-recommends"])
                .arg("install")
                .args(packages)
                .env("LC_ALL", "C"),
        )
        .with_context(|| {
            let packages = packages.join(", ");
            format!("what {packages} need could not be found{}", remark())
        })?;
        Ok(parse_simulation(&simulated))
    }

    /// Downloads a package into a folder, without installing it: the archive's path.
    pub fn download(&self, package: &str, folder: &Path) -> Result<PathBuf> {
        self.download_all(&[package.to_owned()], folder)?
            .pop()
            .with_context(|| format!("apt-get download {package} left no archive"))
    }

    /// The same of many at once.
    pub fn download_all(&self, packages: &[String], folder: &Path) -> Result<Vec<PathBuf>> {
        sh::quietly(
            self.apt_get()
                // The folder may be one that apt's own user cannot enter.
                .args(["-qq", "-o", "APT::Sandbox::User=root", "download"])
                .args(packages)
                .current_dir(folder),
        )
        .with_context(|| {
            let packages = packages.join(", ");
            format!("{packages} could not be downloaded{}", remark())
        })?;
        Ok(disk::read_dir(folder)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .collect())
    }

    fn apt_get(&self) -> Command {
        let mut apt_get = self.command("apt-get");
        apt_get
            // A machine that has just booted may still be running its automatic updates.
            .args(["-o", "DPkg::Lock::Timeout=120", "-o", "Dpkg::Use-Pty=0"])
            .env("DEBIAN_FRONTEND", "noninteractive");
        apt_get
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.arg("-o").arg(option);
        }
        command
    }
}

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

/// Installs packages; nothing that is installed gives way to them.
pub fn install(packages: &[String]) -> Result<()> {
    sh::step(format!("installing packages: {}", packages.join(" ")));
    sh::quietly(
        HOST.apt_get()
            .args([
                "-qq",
                "install",
                "-y",
                "--no-install-recommends",
                "--no-remove",
            ])
            .args(packages),
    )
    .with_context(|| format!("the packages could not be installed{}", remark()))
}

/// For an error that older package lists may be the reason of; empty where they were read.
pub fn remark() -> &'static str {
    if UNREAD.load(Ordering::Relaxed) {
        " (the package lists could not be read anew, as said above)"
    } else {
        ""
    }
}

/// Does another apt read the lists now?
fn is_locked(said: &str) -> bool {
    said.contains("Could not get lock")
}

/// apt's warnings and errors.
fn complaints(said: &str) -> impl Iterator<Item = &str> {
    said.lines()
        .filter(|line| line.starts_with("W:") || line.starts_with("E:"))
}

/// What somebody without the right to install should type.
pub fn install_command(packages: &[String]) -> String {
    format!(
        "sudo apt-get update && sudo apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    )
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
    fn what_apt_complains_of_is_shown() {
        let said = "Reading package lists...
W: Some index files failed to download. They have been ignored, or old ones used instead.
E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)
";
        assert!(is_locked(said));
        assert_eq!(complaints(said).count(), 2);
        assert!(!is_locked("E: Failed to fetch http://deb.debian.org/"));
    }

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
