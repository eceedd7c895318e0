//! `cargo xtask test`: all that must hold before a change goes in. Stops at the first stage that
//! fails and says how far it came.
//!
//! The end-to-end tests run on this kernel where it lets them, and the core of them in virtual
//! machines with other kernels; where this one does not, the machines alone prove the product.

mod tally;

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use tally::Tally;

use crate::{
    arch::Arch,
    build, dist,
    setup::{self, Tool},
    sh, vm,
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
        program: "runc",
        package: "runc",
    },
    Tool {
        program: "/usr/lib/cni/bridge",
        package: "containernetworking-plugins",
    },
    Tool {
        program: "openssl",
        package: "openssl",
    },
];

/// So many failed end-to-end tests are run again, once: their labs are real, and a machine that lets
/// them wait, or hides an event from programs (`tests/src/unseen.rs`), can spoil one. What passes
/// then is named as flaky; more than so many are no accident.
pub const RUN_AGAIN: usize = 3;

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
    Tool {
        program: "containerd",
        package: "containerd",
    },
    Tool {
        program: "serf",
        package: "serf",
    },
];

/// Of these, what the machines want too.
const ETCD: &[Tool] = &[
    Tool {
        program: "etcd",
        package: "etcd-server",
    },
    Tool {
        program: "etcdctl",
        package: "etcd-client",
    },
];

/// What `cargo xtask test` takes.
#[derive(Args)]
pub struct Options {
    /// Leave out the core test in virtual machines with other kernels, which takes a minute where there is no
    /// hardware virtualisation; fail where only these could run the end-to-end tests
    #[arg(long)]
    no_vm: bool,
    /// Run only the tests whose name contains one of these, without format check, lints and virtual
    /// machines (`cargo xtask vm -- FILTER` runs them there)
    filters: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    let mut stages = Stages::default();
    let done = run_stages(&mut stages, options);
    stages.print();
    done
}

fn run_stages(stages: &mut Stages, options: &Options) -> Result<()> {
    let filters = &options.filters;
    let unfit = unfit_host()?;
    if let Some(why) = &unfit {
        ensure!(
            !options.no_vm,
            "end-to-end tests cannot run on this kernel ({why}); leave --no-vm away, and virtual \
             machines run them"
        );
        sh::step(format!(
            "end-to-end tests cannot run on this kernel ({why}): virtual machines run them"
        ));
    }
    // Before all else, for what cannot be fetched is better known at once than after the other stages.
    let machines = if unfit.is_some() || !options.no_vm && filters.is_empty() {
        Some(stages.run("kernels for virtual machines", || {
            vm::Kernels::ensure(Arch::HOST, &[])
        })?)
    } else {
        None
    };
    let toolchain = stages.run("setup", || {
        if filters.is_empty() {
            setup::lints::ensure()?;
        }
        if unfit.is_some() {
            // Nothing is installed: the machines fetch what they need, but for what the tests find in the cache.
            setup::unpacked::ensure(ETCD)?;
            return setup::ensure(&[]);
        }
        setup::unpacked::ensure(UNPACKED)?;
        setup::unpacked::ensure(ETCD)?;
        setup::unpacked::busybox()?;
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
    stages.run("build", || build::build_for_tests(&toolchain, Arch::HOST))?;
    if filters.is_empty() {
        stages.run("clippy", || sh::run(&mut clippy()))?;
        stages.run("clippy eBPF", || sh::run(&mut clippy_ebpf()))?;
    }
    let mut tally = Tally::default();
    let tested = run_tests(stages, &mut tally, filters, unfit.is_none());
    let passed = tally.passed;
    stages.tally = Some(tally);
    tested?;
    let tested_binary = build::tested_binary(Arch::HOST);
    if let (Some(_), Some(machines)) = (&unfit, &machines) {
        let tests = match &filters[..] {
            [] => vm::Tests::Product,
            filters => vm::Tests::Named(filters),
        };
        return stages.run("end-to-end tests in virtual machines", || {
            machines.test(tests, &tested_binary)
        });
    }
    ensure!(
        passed > 0,
        "no test has such a name: {}",
        filters.join(", ")
    );
    if let Some(machines) = &machines {
        stages.run("core tests in virtual machines", || {
            machines.test(vm::Tests::Core, &tested_binary)
        })?;
    }
    Ok(())
}

/// Why the end-to-end tests cannot run on this kernel, if they cannot.
fn unfit_host() -> Result<Option<String>> {
    if !sh::is_root()? {
        return Ok(Some("they need root".to_owned()));
    }
    let status = fs::read_to_string("/proc/self/status").context("failed to read /proc")?;
    if !has_sys_admin(&status) {
        return Ok(Some("this root lacks CAP_SYS_ADMIN".to_owned()));
    }
    let needed = [
        BTF,
        // There in the host's network namespace only.
        "/proc/sys/net/ipv4/neigh/default/gc_thresh3",
    ];
    if let Some(path) = needed.iter().find(|path| !Path::new(path).exists()) {
        return Ok(Some(format!("there is no {path}")));
    }
    let types = fs::read(BTF).with_context(|| format!("failed to read {BTF}"))?;
    Ok((!has_drop_reasons(&types))
        .then(|| "before 5.18 kernels give no reasons for drops".to_owned()))
}

/// The kernel's types.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// By the names of the kernel's types, each of which ends with a NUL.
fn has_drop_reasons(types: &[u8]) -> bool {
    types
        .split(|byte| *byte == 0)
        .any(|name| name == b"SKB_DROP_REASON_NETFILTER_DROP")
}

/// By the effective set in `/proc/self/status`.
fn has_sys_admin(status: &str) -> bool {
    /// `CAP_SYS_ADMIN` of `include/uapi/linux/capability.h`.
    const SYS_ADMIN: u64 = 1 << 21;
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set & SYS_ADMIN != 0)
}

fn run_tests(
    stages: &mut Stages,
    tally: &mut Tally,
    filters: &[String],
    on_host: bool,
) -> Result<()> {
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
    if !on_host {
        return Ok(());
    }
    stages.run("end-to-end tests", || {
        // They change host-wide settings, so one at a time.
        let arguments: Vec<String> = ["--test-threads=1".to_owned()]
            .into_iter()
            .chain(filters.iter().cloned())
            .collect();
        let mut ours = Tally::default();
        let mut done = cargo_test(&["--package", "tests"], &arguments, &mut ours);
        let few = (1..=RUN_AGAIN).contains(&ours.failures.len());
        if done.is_err() && few && ours.open == 0 {
            sh::step(format!("run again: {}", ours.failures.join(", ")));
            let mut exact = vec!["--test-threads=1".to_owned(), "--exact".to_owned()];
            exact.extend(ours.failures.iter().cloned());
            let mut again = Tally::default();
            done = cargo_test(&["--package", "tests"], &exact, &mut again);
            ours.again(&again);
        }
        let ran = ours.passed > 0;
        *tally += ours;
        done?;
        ensure!(ran || !filters.is_empty(), "not one end-to-end test ran");
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
        .env("TRACER_BIN", build::tested_binary(Arch::HOST))
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
            tally.read(&line);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_reasons_are_known_by_their_types_name() {
        assert!(has_drop_reasons(
            b"\x01\0skb\0SKB_DROP_REASON_NETFILTER_DROP\0int\0"
        ));
        assert!(!has_drop_reasons(b"\x01\0skb_drop_reason\0int\0"));
    }

    #[test]
    fn the_effective_set_tells_whether_programs_can_be_loaded() {
        assert!(has_sys_admin("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        // What a container's root has, as Docker gives it.
        assert!(!has_sys_admin("CapEff:\t00000000a80425fb\n"));
        assert!(!has_sys_admin("Name:\tx\n"));
    }
}
