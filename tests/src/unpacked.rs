//! Programs of packages that xtask unpacks into the user's cache instead of installing them
//! (`xtask/src/setup/unpacked.rs`).

use std::env;
use std::path::PathBuf;

/// A program of a package: from `PATH`, else from the cache. Panics with what to do without one.
pub fn program(package: &str, program: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(env::home_dir()?.join(".cache")))
        .map(|cache| cache.join("tracer/packages").join(package).join("usr/bin"));
    env::split_paths(&path)
        .chain(cache)
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| panic!("there is no {program}; `cargo xtask test` fetches it"))
}
