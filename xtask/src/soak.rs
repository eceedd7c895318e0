//! `cargo xtask soak`: an agent under mixed load for a while. The load and the report are `tests/benches/soak`.

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::{
    arch::Arch,
    build,
    setup::{self, Tool},
    sh,
};

/// What the load is made with.
const TOOLS: &[Tool] = &[Tool {
    program: "ip",
    package: "iproute2",
}];

/// What `cargo xtask soak` takes.
#[derive(Args)]
pub struct Options {
    /// How long, from 0.2 to a day's 1440
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// Watch the binary as the tests run it, with overflow and debug assertions; quicker to build, slower to run
    #[arg(long)]
    debug: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let toolchain = setup::ensure(TOOLS)?;
    let mut cargo = sh::cargo();
    if std::env::var_os("TRACER_BIN").is_none() {
        let binary = if options.debug {
            build::build_for_tests(&toolchain, Arch::HOST)?;
            build::tested_binary(Arch::HOST)
        } else {
            build::build(&toolchain, Arch::HOST)?;
            build::binary(Arch::HOST)
        };
        cargo.env("TRACER_BIN", binary);
    }
    ensure!(
        sh::is_root()?,
        "it loads eBPF programs and needs root; run `sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo \
         xtask soak`"
    );
    // The load itself need not be quick, and the tests' build of it is there already.
    cargo
        .args(["bench", "--quiet", "--package", "tests", "--bench", "soak"])
        .args(["--profile", "dev", "--"])
        .arg(format!("--minutes={}", options.minutes));
    sh::run(&mut cargo).context("what is wrong is told above")
}
