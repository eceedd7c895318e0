//! What a developer runs: `cargo xtask VERB`, one file a verb.

mod apt;
mod arch;
mod bench;
mod btf;
mod build;
mod cluster;
mod dashboard;
mod demo;
mod disk;
mod dist;
mod fuzz;
mod manifests;
mod object;
mod picture;
mod run;
mod setup;
mod sh;
mod soak;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::arch::Arch;

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about = "tracer's developer commands")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Find or make a toolchain that builds eBPF; every other verb does it when needed
    Setup,
    /// Build the eBPF object and the release binary that holds it
    Build {
        /// For which machines: amd64 or arm64
        #[arg(long, default_value_t = Arch::HOST)]
        arch: Arch,
    },
    /// Build, then run tracer in the foreground
    Run {
        /// What to pass to tracer [default: agent]
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Format check, lints, unit tests, end-to-end tests on this kernel, and the core of them in virtual
    /// machines; without root the machines run them alone
    Test(test::Options),
    /// End-to-end tests in virtual machines with other kernels; needs no root. TRACER_BIN=PATH
    /// tests another binary
    Vm(vm::Options),
    /// Run the fuzz targets, each for a bounded time; ends with the input that one failed of
    Fuzz(fuzz::Options),
    /// The agent in a real Kubernetes cluster of one node; builds Kubernetes once; needs root
    Cluster,
    /// What the cluster's pods run
    #[command(hide = true)]
    ClusterDns {
        #[command(subcommand)]
        role: cluster::dns::Role,
    },
    /// Make Grafana's dashboard of deploy/grafana/dashboard.toml
    Dashboard {
        /// Write nothing; fail where it is not what the source makes
        #[arg(long)]
        check: bool,
    },
    /// Build, then pack: the container image as an OCI archive, and Debian's package
    Dist(dist::Wanted),
    /// Render the manifests from the Helm chart, and validate them
    Manifests {
        /// Write nothing; fail where they are not what the chart makes
        #[arg(long)]
        check: bool,
    },
    /// Make a fixture of a kernel's type information, for tracer/tests/kernels.rs
    Btf(btf::Wanted),
    /// Turn a terminal's screen, as `tmux capture-pane -p -e` writes it, into a picture
    Picture {
        /// The screen; the tests of `top` write theirs where TRACER_PANES names a folder
        pane: std::path::PathBuf,
        /// Where the SVG goes
        svg: std::path::PathBuf,
    },
    /// Build, then play an outage, with `tracer top` beside it: on this kernel, which needs root, or in a virtual
    /// machine. TRACER_BIN=PATH shows another binary
    Demo(demo::Options),
    /// Build, then watch an agent under mixed load for a while: memory, loss, errors, figures against the truth;
    /// needs root. TRACER_BIN=PATH watches another binary
    Soak(soak::Options),
    /// Build, then measure what tracer costs on this kernel; needs root. TRACER_BIN=PATH measures another binary
    Bench {
        #[arg(default_value = "dns")]
        subject: bench::Subject,
        #[arg(long, default_value = "text")]
        output: bench::Output,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::Setup => setup::run(),
        Verb::Build { arch } => build::run(arch),
        Verb::Run { args } => run::run(args),
        Verb::Test(options) => test::run(&options),
        Verb::Vm(options) => vm::run(&options),
        Verb::Soak(options) => soak::run(&options),
        Verb::Fuzz(options) => fuzz::run(&options),
        Verb::Cluster => cluster::run(),
        Verb::ClusterDns { role } => cluster::dns::run(role),
        Verb::Dist(wanted) => dist::run(&wanted),
        Verb::Manifests { check } => manifests::run(check),
        Verb::Dashboard { check } => dashboard::run(check),
        Verb::Btf(wanted) => btf::run(&wanted),
        Verb::Picture { pane, svg } => picture::run(&pane, &svg),
        Verb::Demo(options) => demo::run(&options),
        Verb::Bench { subject, output } => bench::run(subject, output),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
