//! `cargo xtask demo`: an incident on this kernel, with `tracer top` beside it. The playing is
//! `tests/examples/demo`, the plays are the tests' own.

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
    os::unix::process::CommandExt as _,
    path::{self, Path, PathBuf},
    process::{self, Command},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};

use crate::{
    arch::Arch,
    build,
    setup::{self, Tool},
    sh, vm,
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
    /// Play it in a virtual machine, which needs no root and harms nothing; its kernel as `cargo xtask vm` takes it
    #[arg(
        long,
        value_name = "SERIES|FILE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = KERNEL
    )]
    vm: Option<vm::Wanted>,
}

/// Debian's newest of those that are tested.
const KERNEL: &str = "6.12";

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

    /// Finds or fetches what only this one is made with.
    fn ensure_programs(self) -> Result<()> {
        match self {
            Self::Overflow | Self::DeadEndpoint => Ok(()),
            Self::SickNode => setup::unpacked::ensure(UNPACKED),
        }
    }

    /// What it does to the machine beyond its own namespaces.
    fn harm(self) -> &'static str {
        match self {
            Self::Overflow => {
                "It fills this kernel's IPv4 neighbour table, at the limits 128, 512 and 1024,\n\
                 for half a minute: everything on this machine that needs a new neighbour then\n\
                 loses packets."
            }
            Self::DeadEndpoint | Self::SickNode => "It stays in network namespaces of its own.",
        }
    }
}

pub fn run(options: &Options) -> Result<()> {
    let incident = options.incident;
    if let Some(kernel) = &options.vm {
        return play_in(kernel, incident);
    }
    ensure!(
        sh::is_root()?,
        "it makes network namespaces and loads eBPF programs and needs root; run `sudo env \
         \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask demo {name}`, or `cargo xtask demo {name} --vm` without",
        name = incident.name()
    );
    if !options.yes {
        ask(incident)?;
    }
    incident.ensure_programs()?;
    setup::ensure_tools(TOOLS)?;
    let tracer = tracer()?;
    let mut demo = Command::new(build_demo()?);
    demo.arg(incident.name()).env("TRACER_BIN", tracer);
    // In the place of this process, so that signals reach who cleans up.
    let error = demo.exec();
    Err(error).with_context(|| format!("failed to start {}", sh::shown(&demo)))
}

/// In a virtual machine with this kernel. What is made there goes with the machine.
fn play_in(kernel: &vm::Wanted, incident: Incident) -> Result<()> {
    incident.ensure_programs()?;
    let tracer = tracer()?;
    let demo = build_demo()?;
    let words = [text(&demo)?, incident.name()];
    let mut variables = vec![("TRACER_BIN", text(&tracer)?.to_owned())];
    // Where the programs were put.
    if let Ok(cache) = env::var("XDG_CACHE_HOME") {
        variables.push(("XDG_CACHE_HOME", cache));
    }
    let program = vm::Program {
        words: &words,
        variables: &variables,
        tools: TOOLS,
        // Seven agents and fourteen of serf: emulated, the first of them was not ready after 150 s.
        is_heavy: matches!(incident, Incident::SickNode),
    };
    match vm::show(kernel, &program)? {
        0 => Ok(()),
        // It has said why.
        code => process::exit(code.into()),
    }
}

/// The binary that is shown: another may be, else it is built.
fn tracer() -> Result<PathBuf> {
    if let Some(path) = env::var_os("TRACER_BIN") {
        return Ok(path::absolute(path)?);
    }
    build::build(&setup::ensure(&[])?, Arch::HOST)?;
    Ok(build::binary(Arch::HOST))
}

fn build_demo() -> Result<PathBuf> {
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
    Ok(sh::target().join("debug/examples/demo"))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not text", path.display()))
}

/// An error unless the user says yes.
fn ask(incident: Incident) -> Result<()> {
    eprintln!(
        "The demo `{}` plays an outage on this machine's kernel.\n{}\n\
         It makes network namespaces, loads eBPF programs, and removes all of that at\n\
         its end, also on Ctrl-C. Never run it on a node that matters; with --vm it is\n\
         played in a virtual machine.",
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
