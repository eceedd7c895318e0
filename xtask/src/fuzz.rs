//! `cargo xtask fuzz`: the fuzz targets of `fuzz/`, each for a bounded time. What is found is told by target,
//! and kept where `cargo fuzz` keeps it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::SystemTime,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::{
    build,
    setup::{self, Tool},
    sh,
};

/// libFuzzer is C++, and built with the targets.
const TOOLS: &[Tool] = &[Tool {
    program: "c++",
    package: "g++",
}];

/// What `cargo fuzz` is pinned to.
const VERSION: &str = "0.13.2";

/// One input may take so long, in seconds: all are small, and none is worth waiting for.
const LONGEST: u32 = 5;

/// What `cargo xtask fuzz` takes.
#[derive(Args)]
pub struct Options {
    /// How long each target runs
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Only these targets
    targets: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    let toolchain = setup::ensure(TOOLS)?;
    // tracer's build script wants it.
    build::build_ebpf(&toolchain)?;
    let cargo_fuzz = ensure_cargo_fuzz()?;
    let all = targets()?;
    let chosen = match &options.targets[..] {
        [] => all,
        chosen => {
            if let Some(unknown) = chosen.iter().find(|name| !all.contains(name)) {
                bail!("no target {unknown}; there are {}", all.join(", "));
            }
            chosen.to_vec()
        }
    };
    sh::run(&mut command(&cargo_fuzz, "build")).context("the fuzz targets could not be built")?;
    let mut failed = Vec::new();
    for target in &chosen {
        sh::step(format!("== {target}: {} s", options.seconds));
        if let Some(inputs) = fuzz(&cargo_fuzz, target, options.seconds)? {
            failed.push(format!("{target}: {inputs}"));
        }
    }
    ensure!(
        failed.is_empty(),
        "{} of {} fuzz targets failed:\n  {}",
        failed.len(),
        chosen.len(),
        failed.join("\n  ")
    );
    sh::step(format!("{} fuzz targets passed", chosen.len()));
    Ok(())
}

/// Says what it failed of, if it did.
fn fuzz(cargo_fuzz: &Path, target: &str, seconds: u32) -> Result<Option<String>> {
    let [corpus, seeds, artifacts] =
        ["corpus", "seeds", "artifacts"].map(|part| folder().join(part).join(target));
    fs::create_dir_all(&corpus).with_context(|| format!("cannot make {}", corpus.display()))?;
    let began = SystemTime::now();
    let mut run = command(cargo_fuzz, "run");
    // New inputs go to the first folder, which is not in the repository.
    run.arg(target)
        .args([&corpus, &seeds])
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={LONGEST}"))
        .args(["-rss_limit_mb=1024", "-print_final_stats=1"]);
    if sh::run(&mut run).is_ok() {
        return Ok(None);
    }
    let new: Vec<String> = inputs(&artifacts)
        .into_iter()
        // An input that failed before is written anew, under the same name.
        .filter(|input| written_since(input, began))
        .map(|input| input.display().to_string())
        .collect();
    Ok(Some(if new.is_empty() {
        "it ended badly, and left no input; see above".to_owned()
    } else {
        format!(
            "{}; copy it to fuzz/seeds/{target} once it passes",
            new.join(", ")
        )
    }))
}

/// Stable rustc has no sanitizers; Rust that is safe needs none. Built beside everything else.
fn command(cargo_fuzz: &Path, verb: &str) -> Command {
    let mut cargo = sh::cargo();
    let mut command = Command::new(cargo_fuzz);
    // As `cargo fuzz` would call it, with what `sh::cargo` has arranged.
    for (name, value) in cargo.current_dir(folder()).get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
        .current_dir(folder())
        .env("CARGO_TARGET_DIR", sh::target().join("fuzz"))
        .args(["fuzz", verb, "--sanitizer", "none"]);
    command
}

fn folder() -> PathBuf {
    sh::root().join("fuzz")
}

fn inputs(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn written_since(file: &Path, began: SystemTime) -> bool {
    fs::metadata(file)
        .and_then(|status| status.modified())
        .is_ok_and(|at| at >= began)
}

/// As `fuzz/Cargo.toml` has them.
fn targets() -> Result<Vec<String>> {
    let path = folder().join("Cargo.toml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
    let manifest: toml::Table = text
        .parse()
        .with_context(|| format!("{} is no manifest", path.display()))?;
    let binaries = manifest.get("bin").and_then(toml::Value::as_array);
    let names = binaries.into_iter().flatten().filter_map(|bin| {
        let name = bin.get("name")?.as_str()?;
        Some(name.to_owned())
    });
    Ok(names.collect())
}

/// Finds `cargo-fuzz`, or builds it into the cache, where every clone finds it.
fn ensure_cargo_fuzz() -> Result<PathBuf> {
    let runs = |program: &Path| {
        let mut version = Command::new(program);
        version.args(["fuzz", "--version"]);
        let quiet = version.stdout(Stdio::null()).stderr(Stdio::null());
        quiet.status().is_ok_and(|status| status.success())
    };
    let cached = setup::cache()?.join(format!("cargo-fuzz-{VERSION}"));
    let program = cached.join("bin/cargo-fuzz");
    if let Some(found) = [Some(program.clone()), sh::which("cargo-fuzz")]
        .into_iter()
        .flatten()
        .find(|program| runs(program))
    {
        return Ok(found);
    }
    let _lock = setup::unpacked::lock()?;
    if runs(&program) {
        return Ok(program);
    }
    sh::step(format!(
        "building cargo-fuzz {VERSION} into {}",
        cached.display()
    ));
    let mut install = sh::cargo();
    install
        .env_remove("CARGO_TARGET_DIR")
        .args(["install", "cargo-fuzz", "--locked", "--version", VERSION])
        .arg("--root")
        .arg(&cached);
    sh::run(&mut install).context("cargo-fuzz could not be built")?;
    ensure!(runs(&program), "{} does not run", program.display());
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{process, time::Duration};

    #[test]
    fn an_input_that_is_written_again_counts() {
        let file = std::env::temp_dir().join(format!("xtask-fuzz-{}", process::id()));
        fs::write(&file, "a").unwrap();
        let at = fs::metadata(&file).unwrap().modified().unwrap();
        let later = at + Duration::from_secs(1);
        assert!(written_since(&file, at));
        assert!(!written_since(&file, later));
        let again = fs::File::options().write(true).open(&file).unwrap();
        again.set_modified(later).unwrap();
        assert!(written_since(&file, later));
        fs::remove_file(&file).unwrap();
    }
}
