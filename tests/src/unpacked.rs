//! Programs of packages that xtask unpacks into the user's cache instead of installing them
//! (`xtask/src/setup/unpacked.rs`).

use std::env;
use std::path::PathBuf;

/// A program of a package: from `PATH`, else from the cache. Panics with what to do without one.
pub fn program(package: &str, program: &str) -> PathBuf {
    installed()
        .into_iter()
        .chain(cached(package))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| panic!("there is no {program}; `cargo xtask test` fetches it"))
}

/// A busybox that needs no libraries: xtask puts one into the cache where the one of `PATH` does.
pub fn busybox() -> PathBuf {
    cached("busybox-static")
        .into_iter()
        .chain(installed())
        .map(|folder| folder.join("busybox"))
        .find(|candidate| candidate.is_file())
        .expect("there is no busybox; `cargo xtask test` fetches it")
}

fn installed() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).collect()
}

/// Where a package's programs are in the cache.
fn cached(package: &str) -> Vec<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(env::home_dir()?.join(".cache")));
    let package = cache.map(|cache| cache.join("tracer/packages").join(package));
    package
        .into_iter()
        .flat_map(|package| ["usr/bin", "bin"].map(|part| package.join(part)))
        .collect()
}
