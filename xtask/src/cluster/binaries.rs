//! Kubernetes itself, from the distribution's source package: no registry is needed, and what runs
//! is what its makers wrote. Built once, kept in the user's cache.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{disk, sh};

/// What a cluster of one node is made of.
const PROGRAMS: &[&str] = &[
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubelet",
];
/// The distribution's copy of a library that the source brings in a version which crashes under
/// Go 1.18 and later (SIGSEGV in mapiternext).
const REFLECT2: &str = "/usr/share/gocode/src/github.com/modern-go/reflect2";
/// The release that has the source package.
const RELEASE: &str = "bookworm";

/// The folder that holds the programs; builds them where it does not.
pub fn ensure_built() -> Result<PathBuf> {
    let cache = cache()?;
    let sources = Sources::new(&cache.join("sources"))?;
    let version = sources.version()?;
    let folder = cache.join(format!("kubernetes-{version}"));
    if PROGRAMS.iter().all(|program| folder.join(program).exists()) {
        return Ok(folder);
    }
    sh::step(format!(
        "building Kubernetes {version}, once: about six minutes and 3 GB meanwhile"
    ));
    let source = sources.fetch()?;
    patch(&source)?;
    build(&source)?;
    disk::create_dir_all(&folder)?;
    for program in PROGRAMS {
        let built = source.join("_output/bin").join(program);
        fs::copy(&built, folder.join(program))
            .with_context(|| format!("the build left no {}", built.display()))?;
    }
    sources.clear()?;
    Ok(folder)
}

fn cache() -> Result<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME").map_or_else(
        || env::home_dir().map(|home| home.join(".cache")),
        |cache| Some(cache.into()),
    );
    Ok(cache
        .context("no home folder to keep the build in")?
        .join("tracer"))
}

/// The distribution's source packages, with lists of their own: the machine's stay as they are.
struct Sources {
    folder: PathBuf,
}

impl Sources {
    fn new(folder: &Path) -> Result<Self> {
        for part in ["parts", "lists/partial", "cache/archives/partial"] {
            disk::create_dir_all(folder.join("apt").join(part))?;
        }
        let mirrors = sh::output(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(REPO_URI)",
            "Created-By: Packages",
        ]))?;
        let mirror = mirrors
            .lines()
            .find(|uri| uri.contains("debian") && !uri.contains("security"))
            .context("apt knows no Debian mirror; the cluster is built from Debian's sources")?;
        let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
        disk::write(
            folder.join("apt/sources.list"),
            format!("deb-src [signed-by={keyring}] {mirror} {RELEASE} main\n"),
        )?;
        let sources = Self {
            folder: folder.to_owned(),
        };
        Ok(sources)
    }

    fn apt(&self, program: &str) -> Command {
        let apt = self.folder.join("apt");
        let mut command = Command::new(program);
        command.current_dir(&self.folder);
        for (option, path) in [
            ("Dir::Etc::sourcelist", "sources.list"),
            ("Dir::Etc::sourceparts", "parts"),
            ("Dir::State::lists", "lists"),
            ("Dir::Cache", "cache"),
        ] {
            command.arg("-o");
            command.arg(format!("{option}={}", apt.join(path).display()));
        }
        command
    }

    fn version(&self) -> Result<String> {
        let show = || {
            sh::output(
                self.apt("apt-cache")
                    .args(["showsrc", "--only-source", "kubernetes"]),
            )
        };
        let mut shown = show().unwrap_or_default();
        if shown.is_empty() {
            sh::quietly(self.apt("apt-get").args(["-qq", "update"]))?;
            shown = show()?;
        }
        let version = shown
            .lines()
            .find_map(|line| line.strip_prefix("Version: "))
            .context("the distribution has no source package kubernetes")?;
        Ok(version.to_owned())
    }

    fn fetch(&self) -> Result<PathBuf> {
        self.clear()?;
        sh::quietly(self.apt("apt-get").args(["-qq", "source", "kubernetes"]))?;
        self.unpacked()?
            .context("apt-get source left no folder kubernetes-…")
    }

    fn unpacked(&self) -> Result<Option<PathBuf>> {
        for entry in disk::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if entry.file_type()?.is_dir() && name.to_string_lossy().starts_with("kubernetes-") {
                return Ok(Some(entry.path()));
            }
        }
        Ok(None)
    }

    fn clear(&self) -> Result<()> {
        if let Some(old) = self.unpacked()? {
            disk::remove_dir_all(old)?;
        }
        Ok(())
    }
}

fn patch(source: &Path) -> Result<()> {
    let vendored = source.join("vendor/github.com/modern-go/reflect2");
    disk::remove_dir_all(&vendored)?;
    sh::quietly(Command::new("cp").args(["-r", REFLECT2]).arg(&vendored))?;
    // The vendored folder knows no modules.
    let module = vendored.join("go.mod");
    if module.exists() {
        disk::remove_file(module)?;
    }
    Ok(())
}

fn build(source: &Path) -> Result<()> {
    // As its makefile wants to find itself.
    let path = source.join(".go/src/k8s.io");
    disk::create_dir_all(&path)?;
    disk::symlink("../../..", path.join("kubernetes"))?;
    let what: Vec<String> = PROGRAMS.iter().map(|name| format!("cmd/{name}")).collect();
    let mut make = Command::new("make");
    make.current_dir(source)
        .arg(format!("WHAT={}", what.join(" ")))
        .env("GOPATH", source.join(".go"))
        .env("GOCACHE", source.join(".go/cache"))
        .env("GO111MODULE", "auto")
        .env("GOPROXY", "off")
        .env("CGO_ENABLED", "0")
        .env("KUBE_GIT_VERSION", "v1.20.2");
    sh::quietly(&mut make).context("Kubernetes could not be built")?;
    ensure!(source.join("_output/bin").exists(), "make built nothing");
    Ok(())
}
