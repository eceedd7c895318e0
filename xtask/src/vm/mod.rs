//! `cargo xtask vm`: boots the kernels that users have in virtual machines and runs the end-to-end
//! tests in them, the same binaries as on the host.
//!
//! A guest's root is the host's, shared read-only, under a layer in memory: programs, tests and
//! tools are where they are on the host, and there is no image to keep. It has no network device.
//! With another architecture (`--arch`) the layer has all programs, and tracer and tests are cross-built.

mod accel;
mod board;
mod guest;
mod initrd;
mod kernel;
mod layer;
mod machine;
mod modules;
mod results;
mod show;
mod stamp;
mod suite;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::Args;

use self::{
    accel::Accel,
    kernel::Kernel,
    results::{Outcome, Results},
    suite::Binary,
};
pub use self::{
    kernel::Wanted,
    layer::Layers,
    show::{Program, show},
    suite::Tests,
};
use crate::{
    arch::Arch,
    build, disk,
    setup::{self, Tool, cross},
    sh,
    test::RUN_AGAIN,
};

/// Debian's kernels that are booted where none is named: the oldest that its users run, and the
/// newest that its stable release offers.
const KERNELS: &[&str] = &["6.1", "6.12"];

/// How many times longer than on hardware a test may wait for something in an emulated machine
/// (`tests/src/wait.rs`), unless `TRACER_PATIENCE` says so.
const PATIENCE: u32 = 10;

fn patience() -> Result<u32> {
    let Ok(text) = env::var("TRACER_PATIENCE") else {
        return Ok(PATIENCE);
    };
    text.parse()
        .ok()
        .filter(|patience| *patience > 0)
        .with_context(|| format!("TRACER_PATIENCE: {text} is no number of times"))
}

/// A machine that says nothing for this long hangs. Emulated, an agent's start takes half a minute,
/// and a test may make four.
const SILENCE: Duration = Duration::from_mins(5);

/// One that has not begun with the tests by then hangs in its boot, which takes ten seconds of a
/// processor's time.
const BOOT: Duration = Duration::from_mins(2);

/// What the tests call; of the other programs only those on [`suite`]'s list have need.
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
        program: "dig",
        package: "bind9-dnsutils",
    },
    Tool {
        program: "dnsmasq",
        package: "dnsmasq-base",
    },
    Tool {
        program: "dnsperf",
        package: "dnsperf",
    },
    Tool {
        program: "tmux",
        package: "tmux",
    },
];

/// What `cargo xtask vm` takes.
#[derive(Args)]
pub struct Options {
    /// A series of Debian's (6.1), or a file: a kernel's package, a folder it is unpacked in, a
    /// vmlinuz in one; may be repeated [default: 6.1 and 6.12]
    #[arg(long = "kernel", value_name = "SERIES|FILE")]
    kernels: Vec<Wanted>,
    /// The kernels' architecture: amd64 or arm64; another one than this machine's is emulated
    #[arg(long, default_value_t = Arch::HOST)]
    arch: Arch,
    /// Run the tests of these files, and those whose name contains one of these, instead of the
    /// core tests; an empty one runs all
    #[arg(last = true, value_name = "TEST FILTER")]
    filters: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    let tested = if let Some(own) = env::var_os("TRACER_BIN") {
        let own = PathBuf::from(own);
        ensure!(
            own.is_file(),
            "TRACER_BIN names {}, which is no file",
            own.display()
        );
        sh::step(format!(
            "TRACER_BIN is set: nothing is built, {} is tested",
            own.display()
        ));
        own
    } else {
        let toolchain = setup::ensure(&[])?;
        build::build_for_tests(&toolchain, options.arch)?;
        build::tested_binary(options.arch)
    };
    let tests = match &options.filters[..] {
        [] => Tests::Core,
        filters => Tests::Named(filters),
    };
    Kernels::ensure(options.arch, &options.kernels)?.test(tests, &tested)
}

/// Kernels at hand, and what their machines are made of.
pub struct Kernels {
    layers: Layers,
    found: Vec<Kernel>,
    /// Those that nobody asked for and that are not to be had, and why.
    left_out: Vec<(&'static str, String)>,
}

impl Kernels {
    /// Finds or fetches these kernels. Where none is named, those of the default that this machine's package
    /// lists have, for each release of a distribution has others.
    pub fn ensure(arch: Arch, wanted: &[Wanted]) -> Result<Self> {
        cross::ensure(arch)?;
        let layers = Layers::ensure(arch, TOOLS)?;
        let found = wanted.iter().map(|wanted| Kernel::ensure(wanted, &layers));
        let mut kernels = Self {
            found: found.collect::<Result<_>>()?,
            layers,
            left_out: Vec::new(),
        };
        if !wanted.is_empty() {
            return Ok(kernels);
        }
        for series in KERNELS {
            match Kernel::ensure(&Wanted::Series((*series).to_owned()), &kernels.layers) {
                Ok(kernel) => kernels.found.push(kernel),
                Err(error) => {
                    // The first says that it was asked for.
                    let why: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
                    kernels.left_out.push((series, why.join(": ")));
                }
            }
        }
        ensure!(
            !kernels.found.is_empty(),
            "no kernel to boot; name another with `cargo xtask vm --kernel`\n{}",
            not_run(&kernels.left_out)
        );
        Ok(kernels)
    }

    /// Runs the tests with this binary in them; the tests are built if need be, the binary must be.
    pub fn test(&self, tests: Tests<'_>, tested: &Path) -> Result<()> {
        let done = run_on(&self.found, tests, tested, &self.layers);
        eprint!("{}", not_run(&self.left_out));
        done
    }
}

/// A line for each kernel that is left out.
fn not_run(left_out: &[(&str, String)]) -> String {
    left_out.iter().fold(String::new(), |text, (series, why)| {
        text + &format!("  NOT RUN {series} ({why})\n")
    })
}

/// Two machines at a time.
fn run_on(kernels: &[Kernel], tests: Tests<'_>, tested: &Path, layers: &Layers) -> Result<()> {
    let suite = suite::pick(tests, layers)?;
    let script = |suite: &[Binary]| guest::of_tests(layers.arch, suite, tested);
    let mut plans = Vec::new();
    for kernel in kernels {
        let folder = sh::target().join("vm").join(&kernel.release);
        plans.push(Plan::prepare(
            kernel.clone(),
            folder,
            &script(&suite)?,
            layers,
        )?);
    }
    let Some(first) = plans.first() else {
        bail!("no kernel is named");
    };
    let accel = Accel::find(&first.kernel, &first.initrd(), layers)?;
    let mut reports = Vec::new();
    // The tests of one are one after the other, so each has need of little more than a processor.
    let together = thread::available_parallelism()
        .map_or(1, usize::from)
        .min(2);
    for plans in plans.chunks(together) {
        thread::scope(|scope| {
            let running: Vec<_> = plans
                .iter()
                .map(|plan| scope.spawn(|| plan.boot(accel, &suite, layers)))
                .collect();
            for (plan, thread) in plans.iter().zip(running) {
                let report = thread
                    .join()
                    .unwrap_or_else(|_| Err(anyhow!("its thread panicked")));
                reports.push((plan, report));
            }
        });
    }
    let mut failed = Vec::new();
    for (plan, report) in &reports {
        eprintln!("\n{}", plan.kernel);
        let sound = match report {
            Ok(report) => report.print(),
            Err(error) => {
                eprintln!("  {error:#}");
                false
            }
        };
        let sound = sound
            || match report {
                Ok(report) => plan.pass_again(report, &suite, script, accel, layers)?,
                Err(_) => false,
            };
        if !sound {
            failed.push(format!(
                "{} (its logs: {})",
                plan.kernel,
                plan.folder.display()
            ));
        }
    }
    ensure!(failed.is_empty(), "failed on {}", failed.join(", "));
    Ok(())
}

/// One kernel's run, and its folder.
struct Plan {
    kernel: Kernel,
    folder: PathBuf,
}

/// How it went.
struct Report {
    results: Results,
    took: Duration,
    /// Why it was ended before its end.
    cut: Option<String>,
    console: String,
}

impl Plan {
    fn prepare(kernel: Kernel, folder: PathBuf, script: &str, layers: &Layers) -> Result<Self> {
        setup::unpacked::fresh(&folder)?;
        let plan = Self { kernel, folder };
        initrd::write(&plan.initrd(), &plan.kernel, layers)
            .with_context(|| format!("the kernel {} cannot be booted", plan.kernel))?;
        disk::write(plan.folder.join("guest.sh"), script)?;
        Ok(plan)
    }

    /// Do the few that failed pass in a machine that has just been booted?
    fn pass_again(
        &self,
        report: &Report,
        suite: &[Binary],
        script: impl Fn(&[Binary]) -> Result<String>,
        accel: Accel,
        layers: &Layers,
    ) -> Result<bool> {
        let few = report.few_failed();
        if few.is_empty() {
            return Ok(false);
        }
        let names: Vec<String> = few.iter().map(|(f, t)| format!("{f}::{t}")).collect();
        sh::step(format!("{}: run again: {}", self.kernel, names.join(", ")));
        let suite = suite::only(suite, &few);
        let mut folder = self.folder.clone().into_os_string();
        folder.push("-again");
        let plan = Self::prepare(self.kernel.clone(), folder.into(), &script(&suite)?, layers)?;
        let passed = plan.boot(accel, &suite, layers)?.print();
        if passed {
            for name in names {
                eprintln!(
                    "  FLAKY   {name} on {}: failed, and passed when run again",
                    self.kernel
                );
            }
        }
        Ok(passed)
    }

    fn initrd(&self) -> PathBuf {
        self.folder.join("initrd")
    }

    /// Where the kernel's own messages go.
    fn console(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    /// The machine, with the host's files, and its second serial line as QEMU's input and output.
    fn machine(&self, accel: Accel, layers: &Layers) -> Result<Command> {
        let mut qemu = machine::qemu(layers, accel, &self.kernel, &self.initrd(), "")?;
        machine::share(&mut qemu, "host", Path::new("/"))?;
        machine::share(&mut qemu, "layer", layers.guest.root())?;
        machine::share(&mut qemu, "modules", &self.kernel.modules)?;
        machine::share(&mut qemu, "work", &self.folder)?;
        // A line of its own for the tests: the kernel's messages would stand in the middle of theirs.
        machine::lines(&mut qemu, layers, &self.console())?;
        Ok(qemu)
    }

    fn boot(&self, accel: Accel, suite: &[Binary], layers: &Layers) -> Result<Report> {
        let mut qemu = self.machine(accel, layers)?;
        sh::step(format!("booting {} ({accel:?})", self.kernel));
        let expected = suite.iter().flat_map(|binary| {
            let tests = binary.tests.iter();
            tests.map(|test| (binary.file.clone(), test.clone()))
        });
        let mut results = Results::expecting(expected);
        let start = Instant::now();
        let mut machine = machine::start(&mut qemu)?;
        let silence = SILENCE * patience()?.div_ceil(PATIENCE);
        let mut boots = 1;
        let mut said = String::new();
        let mut line = String::new();
        let cut = loop {
            let limit = if said.is_empty() { BOOT } else { silence };
            match machine.more(limit) {
                // On a busy host an emulated machine may find its timers broken.
                Err(error) if said.is_empty() && boots == 1 => {
                    sh::step(format!("{}: {error}; booting once more", self.kernel));
                    boots += 1;
                    drop(machine);
                    machine = machine::start(&mut qemu)?;
                }
                Ok(Some(text)) => {
                    said += &text;
                    line += &text;
                    while let Some((whole, rest)) = line.split_once('\n') {
                        eprintln!("{:10.10}| {whole}", self.kernel.release);
                        results.line(whole);
                        line = rest.to_owned();
                    }
                }
                Ok(None) => break machine.failure()?,
                Err(error) => break Some(error.to_string()),
            }
        };
        drop(machine);
        results.line(&line);
        disk::write(self.folder.join("tests.log"), &said)?;
        Ok(Report {
            results,
            took: start.elapsed(),
            cut,
            console: machine::said(&self.console())?,
        })
    }
}

impl Report {
    /// The tests that failed, where nothing else is wrong and they are so few that it may be an accident.
    fn few_failed(&self) -> Vec<(&str, &str)> {
        let results = &self.results;
        let failed = results
            .tests
            .iter()
            .filter(|test| test.2 == Outcome::Failed);
        let failed: Vec<_> = failed.map(|(f, t, _)| (f.as_str(), t.as_str())).collect();
        let ended = failed.len() + results.count(Outcome::Passed) + results.count(Outcome::Ignored);
        let is_sound = ended == results.tests.len()
            && results.finished
            && self.cut.is_none()
            && results.faults().is_empty()
            && results::complaints(&self.console).is_empty();
        if is_sound && failed.len() <= RUN_AGAIN {
            failed
        } else {
            Vec::new()
        }
    }

    /// Results by name; whether all is well.
    fn print(&self) -> bool {
        let results = &self.results;
        for (file, test, outcome) in &results.tests {
            eprintln!("  {:11} {file}::{test}", outcome.to_string());
        }
        let passed = results.count(Outcome::Passed);
        eprintln!(
            "  {passed} of {} passed in {:.0} s",
            results.tests.len(),
            self.took.as_secs_f64()
        );
        let complaints = results::complaints(&self.console);
        for complaint in &complaints {
            eprintln!("  the kernel said: {complaint}");
        }
        let faults = results.faults();
        for fault in &faults {
            eprintln!("  {fault}");
        }
        if let Some(why) = &self.cut {
            eprintln!("  ended by force: {why}");
        }
        if let Some(test) = results.running() {
            eprintln!("  it was in {test}");
        }
        if !results.finished {
            eprintln!("  it did not come to its end; the console's last lines:");
            let lines: Vec<&str> = self.console.lines().collect();
            for line in &lines[lines.len().saturating_sub(40)..] {
                eprintln!("    {line}");
            }
        }
        let ignored = results.count(Outcome::Ignored);
        // Where none ran, nothing is proven.
        passed > 0
            && passed + ignored == results.tests.len()
            && results.finished
            && faults.is_empty()
            && complaints.is_empty()
    }
}

/// Where kernels and programs are kept.
fn cache() -> Result<PathBuf> {
    let folder = setup::unpacked::base()?.join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("failed to make {}", folder.display()))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_is_left_out_is_named_with_the_reason() {
        let left_out = [("6.1", "the package lists have none".to_owned())];
        assert_eq!(
            not_run(&left_out),
            "  NOT RUN 6.1 (the package lists have none)\n"
        );
        assert_eq!(not_run(&[]), "");
    }

    fn report(tests: &[(&str, &str)], said: &str) -> Report {
        let own = |(file, test): &(&str, &str)| ((*file).to_owned(), (*test).to_owned());
        let mut results = Results::expecting(tests.iter().map(own));
        for line in said.lines() {
            results.line(line);
        }
        Report {
            results,
            took: Duration::ZERO,
            cut: None,
            console: String::new(),
        }
    }

    #[test]
    fn a_run_of_nothing_is_no_success() {
        assert!(!report(&[], "tracer-vm: end").print());
        let said = |exit| {
            format!("tracer-vm: file gc\ntest a ... ok\ntracer-vm: exit {exit}\ntracer-vm: end")
        };
        assert!(report(&[("gc", "a")], &said(0)).print());
        assert!(!report(&[("gc", "a")], &said(139)).print());
    }
}
