//! xtask, as a developer runs it.

use std::env;
use std::process::Command;

/// `cargo xtask VERB…`: the one that runs these tests, else cargo finds it.
pub fn xtask(arguments: &[&str]) -> Command {
    let mut command = if let Some(program) = env::var_os("TRACER_XTASK") {
        Command::new(program)
    } else {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["run", "--quiet", "--package", "xtask", "--"]);
        cargo
    };
    command.args(arguments);
    command
}
