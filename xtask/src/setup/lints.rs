//! What formats and lints: components of a toolchain that rustup's smallest profile lacks.

use std::process::Command;

use anyhow::{Result, bail, ensure};

use super::rustc;
use crate::sh;

/// cargo's verbs, and the components that have them.
const COMPONENTS: &[(&str, &str)] = &[("fmt", "rustfmt"), ("clippy", "clippy")];

/// Adds those that the toolchain of this xtask lacks.
pub fn ensure() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    let Some(rustup) = sh::which("rustup") else {
        bail!("{names}: missing; install the distribution's packages of these names");
    };
    sh::step(format!(
        "adding what formats and lints: rustup component add {names}"
    ));
    ensure!(
        rustc::server_answers(&rustup),
        "{names}: missing, and rustup's server cannot be reached; run `rustup component add {names}` where it can"
    );
    let mut add = Command::new(rustup);
    // For the toolchain that runs this, which rustup names in the environment.
    add.args(["component", "add"])
        .args(&missing)
        .current_dir(sh::root());
    let status = sh::status_within(&mut add, rustc::DOWNLOAD_LIMIT)?;
    ensure!(status.success(), "`{}` failed ({status})", sh::shown(&add));
    Ok(())
}

fn missing() -> Vec<&'static str> {
    let lacks = |verb: &str| sh::output(sh::cargo().args([verb, "--version"])).is_err();
    COMPONENTS
        .iter()
        .filter(|(verb, _)| lacks(verb))
        .map(|(_, component)| *component)
        .collect()
}
