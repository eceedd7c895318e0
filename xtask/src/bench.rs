//! `cargo xtask bench`: what tracer costs on this kernel. The measuring is `tests/benches`.

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::{
    arch::Arch,
    build,
    setup::{self, Tool},
    sh,
};

/// What the load is made with.
const TOOLS: &[Tool] = &[
    Tool {
        program: "ip",
        package: "iproute2",
    },
    Tool {
        program: "dnsperf",
        package: "dnsperf",
    },
    Tool {
        program: "dnsmasq",
        package: "dnsmasq-base",
    },
];

/// What tracer is compared with.
const RIVALS: &[Tool] = &[
    Tool {
        program: "tcpdump",
        package: "tcpdump",
    },
    Tool {
        program: "tshark",
        package: "tshark",
    },
    Tool {
        program: "bpftrace",
        package: "bpftrace",
    },
];

/// What can be measured.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Subject {
    /// Lookups, neighbours and drops, by program
    Dns,
    /// TCP connections
    Connect,
    /// What a busy node loses to tracer, and to tcpdump, tshark and bpftrace
    Beside,
    /// The agent itself: start, memory, processor time, and how they grow
    Agent,
}

/// How it is told.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Output {
    /// A table
    Text,
    /// For programs
    Json,
}

pub fn run(subject: Subject, output: Output) -> Result<()> {
    let tools = match subject {
        Subject::Beside => [TOOLS, RIVALS].concat(),
        _ => TOOLS.to_vec(),
    };
    let toolchain = setup::ensure(&tools)?;
    let mut cargo = sh::cargo();
    // Another binary may be measured, such as the one before a change.
    if std::env::var_os("TRACER_BIN").is_none() {
        build::build(&toolchain, Arch::HOST)?;
        cargo.env("TRACER_BIN", build::binary(Arch::HOST));
    }
    ensure!(
        sh::is_root()?,
        "it loads eBPF programs and needs root; run `sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo \
         xtask bench`"
    );
    let bench = match subject {
        Subject::Dns => "dns",
        Subject::Connect => "connect",
        Subject::Beside => "beside",
        Subject::Agent => "agent",
    };
    let output = match output {
        Output::Text => "text",
        Output::Json => "json",
    };
    cargo
        .args(["bench", "--quiet", "--package", "tests", "--bench", bench])
        .args(["--", &format!("--output={output}")]);
    sh::run(&mut cargo).context("the measuring failed")
}
