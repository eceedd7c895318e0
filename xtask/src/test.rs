//! `cargo xtask test`: all that must hold before a change goes in. Stops at the first stage that
//! fails and says how far it came.

use std::{
    env, fmt,
    io::{BufRead as _, BufReader},
    ops::AddAssign,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    build, dist,
    setup::{self, Tool},
    sh,
};

/// What the end-to-end tests make their labs with.
const TOOLS: &[Tool] = &[
    Tool {
        program: "ip",
        package: "iproute2",
    },
    Tool {
        program: "tmux",
        package: "tmux",
    },
    Tool {
        program: "nft",
        package: "nftables",
    },
    Tool {
        program: "dnsmasq",
        package: "dnsmasq-base",
    },
    Tool {
        program: "dig",
        package: "bind9-dnsutils",
    },
    Tool {
        program: "dnsperf",
        package: "dnsperf",
    },
    Tool {
        program: "musl-gcc",
        package: "musl-tools",
    },
    Tool {
        program: "containerd",
        package: "containerd",
    },
    Tool {
        program: "runc",
        package: "runc",
    },
    Tool {
        program: "/usr/lib/cni/bridge",
        package: "containernetworking-plugins",
    },
    Tool {
        program: "busybox",
        package: "busybox-static",
    },
    Tool {
        program: "openssl",
        package: "openssl",
    },
];

/// The same, of packages that would start a daemon if they were installed.
const UNPACKED: &[Tool] = &[
    Tool {
        program: "prometheus",
        package: "prometheus",
    },
    Tool {
        program: "prometheus-alertmanager",
        package: "prometheus-alertmanager",
    },
];

pub fn run(filters: &[String]) -> Result<()> {
    let mut stages = Stages::default();
    let done = run_stages(&mut stages, filters);
    stages.print();
    done
}

fn run_stages(stages: &mut Stages, filters: &[String]) -> Result<()> {
    let toolchain = stages.run("setup", || {
        setup::unpacked::ensure(UNPACKED)?;
        let tools = [TOOLS, setup::kubernetes::TOOLS, dist::TOOLS].concat();
        let toolchain = setup::ensure(&tools)?;
        setup::kubernetes::Kubernetes::ensure()?;
        Ok(toolchain)
    })?;
    if filters.is_empty() {
        stages.run("format", || {
            sh::run(sh::cargo().args(["fmt", "--all", "--check"])).context("run `cargo fmt --all`")
        })?;
    } else {
        sh::step("only the named tests: format check and lints are left out");
    }
    // Before the lints: tracer's build script takes the eBPF object from it.
    stages.run("build", || build::build_for_tests(&toolchain))?;
    if filters.is_empty() {
        stages.run("clippy", || sh::run(&mut clippy()))?;
        stages.run("clippy eBPF", || sh::run(&mut clippy_ebpf()))?;
    }
    let mut tally = Tally::default();
    let tested = run_tests(stages, &mut tally, filters);
    stages.tally = Some(tally);
    tested?;
    ensure!(
        tally.passed > 0,
        "no test has such a name: {}",
        filters.join(", ")
    );
    Ok(())
}

fn run_tests(stages: &mut Stages, tally: &mut Tally, filters: &[String]) -> Result<()> {
    stages.run("unit tests", || {
        let others = [
            "--workspace",
            "--exclude",
            "tracer-ebpf",
            "--exclude",
            "tests",
        ];
        cargo_test(&others, filters, tally)
    })?;
    stages.run("end-to-end tests", || {
        ensure!(
            sh::is_root()?,
            "they load eBPF programs and need root; run `sudo env \"PATH=$PATH\" \"HOME=$HOME\" \
             cargo xtask test`"
        );
        // They change host-wide settings, so one at a time.
        let arguments: Vec<String> = ["--test-threads=1".to_owned()]
            .into_iter()
            .chain(filters.iter().cloned())
            .collect();
        let before = tally.passed;
        cargo_test(&["--package", "tests"], &arguments, tally)?;
        ensure!(
            tally.passed > before || !filters.is_empty(),
            "not one end-to-end test ran"
        );
        Ok(())
    })
}

fn clippy() -> Command {
    let mut cargo = sh::cargo();
    cargo.args([
        "clippy",
        "--workspace",
        "--exclude",
        "tracer-ebpf",
        "--all-targets",
    ]);
    cargo.args(["--", "-D", "warnings"]);
    cargo
}

/// The eBPF crate for the host: clippy comes with rustup's stable only, and one toolchain's lints
/// are enough. RUSTC_BOOTSTRAP for the crate's one unstable feature; `--profile bpf` aborts on panic.
fn clippy_ebpf() -> Command {
    let mut cargo = sh::cargo();
    cargo
        .args(["clippy", "--package", "tracer-ebpf", "--profile", "bpf"])
        .args(["--target-dir", "target/ebpf-lint", "--", "-D", "warnings"])
        .env("RUSTC_BOOTSTRAP", "1")
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        );
    cargo
}

/// Runs `cargo test`, shows what it writes and adds up the results, also of a failed run.
fn cargo_test(packages: &[&str], arguments: &[String], tally: &mut Tally) -> Result<()> {
    let mut cargo = sh::cargo();
    cargo
        .args(["test", "--no-fail-fast"])
        .args(packages)
        .arg("--")
        .args(arguments)
        .env("TRACER_BIN", build::tested_binary())
        // The tests pack an image and render manifests with it.
        .env("TRACER_XTASK", env::current_exe()?)
        .stdout(Stdio::piped());
    let mut child = cargo
        .spawn()
        .with_context(|| format!("failed to start `{}`", sh::shown(&cargo)))?;
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            let line = line.context("failed to read the tests' output")?;
            println!("{line}");
            *tally += Tally::of_line(&line);
        }
    }
    let status = child.wait()?;
    ensure!(
        status.success(),
        "`{}` failed ({status})",
        sh::shown(&cargo)
    );
    Ok(())
}

#[derive(Default)]
struct Stages {
    done: Vec<(&'static str, Duration)>,
    failed: Option<&'static str>,
    tally: Option<Tally>,
}

impl Stages {
    fn run<T>(&mut self, name: &'static str, stage: impl FnOnce() -> Result<T>) -> Result<T> {
        sh::step(format!("== {name}"));
        let start = Instant::now();
        let result = stage();
        match &result {
            Ok(_) => self.done.push((name, start.elapsed())),
            Err(_) => self.failed = Some(name),
        }
        result.with_context(|| format!("stage `{name}` failed"))
    }

    fn print(&self) {
        eprintln!();
        for (name, took) in &self.done {
            eprintln!("  ok      {name} ({:.1} s)", took.as_secs_f64());
        }
        if let Some(name) = self.failed {
            eprintln!("  FAILED  {name}; what comes after it was not run");
        }
        if let Some(tally) = &self.tally {
            eprintln!("  {tally}");
        }
    }
}

/// Results of tests, from the summary lines that each test binary prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Tally {
    /// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; …`; any other line counts nothing.
    fn of_line(line: &str) -> Self {
        let mut tally = Self::default();
        if let Some(results) = line.strip_prefix("test result: ") {
            let words: Vec<&str> = results.split_whitespace().collect();
            for pair in words.windows(2) {
                let count = pair[0].parse().unwrap_or(0);
                match pair[1] {
                    "passed;" => tally.passed = count,
                    "failed;" => tally.failed = count,
                    "ignored;" => tally.ignored = count,
                    _ => {}
                }
            }
        }
        tally
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "tests: {} passed, {} failed, {} ignored",
            self.passed, self.failed, self.ignored
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up() {
        let mut tally = Tally::default();
        for line in [
            "running 4 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ] {
            tally += Tally::of_line(line);
        }
        assert_eq!(
            tally,
            Tally {
                passed: 5,
                failed: 1,
                ignored: 1
            }
        );
    }
}
