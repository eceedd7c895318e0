//! `cargo xtask demo`: an incident on this kernel, with `tracer top` beside it. The playing is
//! `tests/examples/demo`, the plays are the tests' own.

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
    os::unix::process::CommandExt as _,
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};

use crate::{
    arch::Arch,
    build,
    setup::{self, Tool},
    sh,
};

/// What the plays are made with, and shown by.
const TOOLS: &[Tool] = &[
    Tool {
        program: "ip",
        package: "iproute2",
    },
    Tool {
        program: "nft",
        package: "nftables",
    },
    Tool {
        program: "sysctl",
        package: "procps",
    },
    Tool {
        program: "tmux",
        package: "tmux",
    },
];

/// The same for a cluster, of packages that would start a daemon if they were installed.
const UNPACKED: &[Tool] = &[
    Tool {
        program: "prometheus",
        package: "prometheus",
    },
    Tool {
        program: "serf",
        package: "serf",
    },
];

/// What is played, and how.
#[derive(Args)]
pub struct Options {
    /// The incident
    #[arg(default_value = "overflow")]
    incident: Incident,
    /// Do not ask whether it may be done to this machine
    #[arg(long)]
    yes: bool,
}

/// As the pages in docs/incidents.
#[derive(Clone, Copy, ValueEnum)]
enum Incident {
    /// Pods arrive until the neighbour table is full
    Overflow,
    /// Pods are replaced, and their clients go on calling the dead
    DeadEndpoint,
    /// A gossip cluster flaps because one of its nodes stands still again and again
    SickNode,
}

impl Incident {
    fn name(self) -> &'static str {
        match self {
            Self::Overflow => "overflow",
            Self::DeadEndpoint => "dead-endpoint",
            Self::SickNode => "sick-node",
        }
    }

    /// What it does to the machine beyond its own namespaces.
    fn harm(self) -> &'static str {
        match self {
            Self::Overflow => {
                "It fills this kernel's IPv4 neighbour table, at the limits 128, 512 and 1024, for half a \
                 minute: everything on this machine that needs a new neighbour then loses packets."
            }
            Self::DeadEndpoint | Self::SickNode => "It stays in network namespaces of its own.",
        }
    }
}

pub fn run(options: &Options) -> Result<()> {
    ensure!(
        sh::is_root()?,
        "it makes network namespaces and loads eBPF programs and needs root; run `sudo env \
         \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask demo {}`",
        options.incident.name()
    );
    if !options.yes {
        ask(options.incident)?;
    }
    if matches!(options.incident, Incident::SickNode) {
        setup::unpacked::ensure(UNPACKED)?;
    }
    let toolchain = setup::ensure(TOOLS)?;
    let mut cargo = sh::cargo();
    cargo.args([
        "build",
        "--quiet",
        "--package",
        "tests",
        "--example",
        "demo",
    ]);
    sh::run(&mut cargo)?;
    let mut demo = Command::new(sh::target().join("debug/examples/demo"));
    demo.arg(options.incident.name());
    // Another binary may be shown.
    if env::var_os("TRACER_BIN").is_none() {
        build::build(&toolchain, Arch::HOST)?;
        demo.env("TRACER_BIN", build::binary(Arch::HOST));
    }
    // In the place of this process, so that signals reach who cleans up.
    let error = demo.exec();
    Err(error).with_context(|| format!("failed to start {}", sh::shown(&demo)))
}

/// An error unless the user says yes.
fn ask(incident: Incident) -> Result<()> {
    eprintln!(
        "The demo `{}` plays an outage on this machine's kernel. {}\n\
         It makes network namespaces, loads eBPF programs, and removes all of that at its end, also \
         on Ctrl-C.\nNever run it on a node that matters.",
        incident.name(),
        incident.harm()
    );
    ensure!(
        io::stdin().is_terminal(),
        "nobody is there to be asked; give --yes if this machine may be used so"
    );
    eprint!("Go on? [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!("not wanted");
    }
    Ok(())
}
