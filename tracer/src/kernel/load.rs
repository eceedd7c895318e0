//! Loads the programs and attaches them. A hook that cannot run has a state and a reason; it never
//! stops the others.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::MetadataExt as _,
    },
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Array, MapData, RingBuf},
    programs::{Program, links::PinnedLink},
};
use tracer_common::{
    Hook,
    dns::{Cause, MAX_PORTS},
    drops::{MAX_REASONS, Reason},
    tcp::MAX_SILENT_PORTS,
};

use super::{
    cgroup, exchange,
    kallsyms::{Ranges, Reading},
    linkage,
    maps::Maps,
    mechanisms::{IF_TAKEN, PERIODIC_WORK, Plan, mechanism, programs},
    memlock,
    offsets::Offsets,
    only,
    reasons::Reasons,
    refusal, sends,
    state::{Pins, StateDir},
    without,
};
use verify::Verdicts;

mod attach;
mod pinning;
mod start;
mod verify;

/// The eBPF object, built by `cargo xtask build`.
pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tracer-ebpf.o"));

/// Functions of the kernel whose addresses the programs compare, and the globals for their bounds.
const BOUNDS: [(&str, &str, &str); 6] = [
    ("___neigh_create", "NEIGH_CREATE_START", "NEIGH_CREATE_END"),
    (
        "neigh_periodic_work",
        "NEIGH_PERIODIC_START",
        "NEIGH_PERIODIC_END",
    ),
    (
        "neigh_invalidate",
        "NEIGH_INVALIDATE_START",
        "NEIGH_INVALIDATE_END",
    ),
    ("ndisc_error_report", "NDISC_ERROR_START", "NDISC_ERROR_END"),
    ("arp_error_report", "ARP_ERROR_START", "ARP_ERROR_END"),
    ("nf_hook_slow", "NF_HOOK_SLOW_START", "NF_HOOK_SLOW_END"),
];

/// Of these: by them, on the kernel's stack, collections are told apart.
const COLLECTIONS: [&str; 2] = ["___neigh_create", "neigh_periodic_work"];

/// Begins to look for the functions whose places the programs are told.
pub fn functions() -> Reading {
    let names = BOUNDS.map(|(name, _, _)| name);
    let wanted = names.into_iter().filter(|name| !without::is_without(name));
    Reading::of(wanted.collect())
}

/// Why the kernel's stack does not tell who collects; `None` where it does.
fn why_no_collections(functions: &Result<Ranges>) -> Option<String> {
    match functions {
        Err(why) => Some(format!("{why:#}")),
        // Inlined, or under another name.
        Ok(ranges) => COLLECTIONS
            .iter()
            .find(|name| !ranges.contains_key(*name))
            .map(|name| format!("this kernel has no function {name} of its own")),
    }
}

/// What the programs are told before they are loaded.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// Ring records a second for each hook.
    pub event_rate: u64,
    /// Server ports followed, at most [`MAX_PORTS`].
    pub dns_ports: Vec<u16>,
    /// Deadline of a lookup.
    pub dns_timeout: Duration,
    /// Ports where requests over TCP must be answered, at most [`MAX_SILENT_PORTS`].
    pub silent_ports: Vec<u16>,
    /// How long a request may wait there.
    pub silent_after: Duration,
}

/// Is a hook at work?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Yes.
    Attached,
    /// In part.
    Degraded,
    /// It cannot.
    Unavailable,
    /// It was not asked to.
    Off,
}

impl State {
    /// All states.
    pub const ALL: [Self; 4] = [Self::Attached, Self::Degraded, Self::Unavailable, Self::Off];

    /// Does the hook count anything?
    pub const fn counts(self) -> bool {
        matches!(self, Self::Attached | Self::Degraded)
    }

    /// Label value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::Degraded => "degraded",
            Self::Unavailable => "unavailable",
            Self::Off => "off",
        }
    }
}

/// What became of a hook.
#[derive(Clone, Debug)]
pub struct HookStatus {
    /// Which.
    pub hook: Hook,
    /// Is it at work?
    pub state: State,
    /// What it attaches to.
    pub mechanism: String,
    /// Why it is not attached, or only in part; empty if it is.
    pub reason: String,
    /// What it does not see here, although it runs as it should, and why. Empty: all that it sees
    /// anywhere.
    pub not_seen: String,
    /// Instructions that the verifier walked through, by program.
    pub verified: Vec<(String, u32)>,
}

/// The programs in the kernel. Dropping it detaches and unloads them, unless they are pinned.
pub struct Loaded {
    pub(super) ebpf: Ebpf,
    /// One for each hook, by index.
    pub hooks: Vec<HookStatus>,
    // The logger holds the map of aya-log's records: taken before the programs are loaded.
    logger: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
    /// Where programs and attachments are pinned, if they are.
    pins: Option<Pins>,
    /// The attachments that are, by program.
    links: HashMap<String, PinnedLink>,
    /// What became of the programs that the verifier was given at once, until each is asked for.
    verdicts: Verdicts,
    /// Are the programs at the ends of sends attached?
    sees_sends: bool,
    /// Can user space run those that are attached to nothing?
    runs: bool,
}

impl Loaded {
    /// Loads every hook that this kernel can carry. `attach` false loads only: what `doctor` does. With a
    /// state folder, what is pinned there is gone on with. `functions`: from [`functions`].
    pub fn load(
        parameters: &Parameters,
        offsets: &Offsets,
        reasons: &Reasons,
        functions: Reading,
        attach: bool,
        state: Option<&StateDir>,
    ) -> Result<(Self, Maps)> {
        if let Some(why) = offsets.features.why_never() {
            return Err(anyhow!(why));
        }
        let mut ports = [0u16; MAX_PORTS as usize];
        for (place, port) in ports.iter_mut().zip(&parameters.dns_ports) {
            *place = *port;
        }
        let mut silent_ports = [0u16; MAX_SILENT_PORTS];
        for (place, port) in silent_ports.iter_mut().zip(&parameters.silent_ports) {
            *place = *port;
        }
        let silent_after_ns = u64::try_from(parameters.silent_after.as_nanos())?;
        let timeout_ns = u64::try_from(parameters.dns_timeout.as_nanos())?;
        let mut loader = EbpfLoader::new();
        // No program needs the kernel's BTF at load: the offsets are in the globals.
        loader
            .btf(None)
            .verifier_log_level(VerifierLogLevel::STATS)
            .override_global("EVENT_RATE", &parameters.event_rate, true)
            .override_global("DNS_PORTS", &ports, true)
            .override_global("DNS_TIMEOUT_NS", &timeout_ns, true)
            .override_global("SILENT_PORTS", &silent_ports, true)
            .override_global("SILENT_AFTER_NS", &silent_after_ns, true);
        let only_netns = only::netns()?;
        loader.override_global("ONLY_NETNS", &only_netns, true);
        let functions = functions.ranges();
        let no_collections = why_no_collections(&functions);
        let bounds: Vec<(&str, u64)> = functions
            .iter()
            .flat_map(|ranges| BOUNDS.iter().filter_map(|f| Some((f, ranges.get(f.0)?))))
            .filter(|((name, ..), _)| no_collections.is_none() || !COLLECTIONS.contains(name))
            .flat_map(|((_, start, end), range)| [(*start, range.start), (*end, range.end)])
            .collect();
        for (global, address) in &bounds {
            loader.override_global(global, address, true);
        }
        for (global, offset) in &offsets.globals {
            loader.override_global(global, offset, true);
        }
        let pinned = state.map_or_else(|| Ok(Vec::new()), |_| StateDir::map_names())?;
        if let Some(state) = state {
            for name in &pinned {
                loader.map_pin_path(name, state.maps().join(name));
            }
        }
        let told = (
            (parameters.event_rate, ports, timeout_ns),
            (silent_ports, silent_after_ns, only_netns),
            (&bounds, &offsets.globals, without::names()),
            // Programs hang at the root that their agent saw.
            cgroup::mount_point()
                .and_then(|root| Ok(fs::metadata(root)?.ino()))
                .ok(),
        );
        let build = pinning::fingerprint(told);
        loader.override_global("BUILD", &build, true);
        let pins = state.map(|state| state.pins(build)).transpose()?;
        let mut object = Cow::Borrowed(OBJECT);
        if !linkage::takes_globals(&offsets.features) {
            object = linkage::all_static(&object)?.into();
        }
        if !exchange::has_exchange(&offsets.features) {
            object = exchange::removed(&object)?.into();
        }
        let mut ebpf = loader
            .load(&object)
            .map_err(|error| refusal::of_object(error.into()))
            .map_err(|error| memlock::explain(error, &offsets.features))
            .map_err(|error| refusal::explain(error, refusal::LOADING))?;
        // Present only where the object was built with the feature `log`.
        let logger = aya_log::EbpfLogger::init(&mut ebpf).ok();

        let mut meanings: Array<_, Reason> = Array::try_from(
            ebpf.map_mut("REASONS")
                .ok_or_else(|| anyhow!("the eBPF object has no map REASONS"))?,
        )?;
        for (number, reason) in reasons.meanings() {
            meanings
                .set(number, reason, 0)
                .context("cannot fill the map REASONS")?;
        }
        if !offsets.features.drop_reasons {
            // The last stands for all beyond: here for every packet.
            let unknown = Reason {
                is_failure: 0,
                cause: Cause::Dropped as u8,
                is_unspecified: 1,
                ends_refusal: 1,
            };
            meanings
                .set(MAX_REASONS - 1, unknown, 0)
                .context("cannot fill the map REASONS")?;
        }
        let maps = Maps::take(&mut ebpf, reasons)?;
        let no_runs = refusal::of_running();

        let mut programs = Self {
            ebpf,
            hooks: Vec::new(),
            logger,
            pins,
            links: HashMap::new(),
            verdicts: HashMap::new(),
            sees_sends: false,
            runs: no_runs.is_none(),
        };
        // Names before what is counted under them; drops and answers before queries: no query is
        // counted whose end could go unseen.
        let plans = [
            Hook::Cgroups,
            Hook::Drops,
            Hook::Neigh,
            Hook::Gc,
            Hook::Tcp,
            Hook::Dns,
        ]
        .map(|hook| {
            let plan = plan(hook, offsets).and_then(|plan| match &no_runs {
                Some(why) => plan.without_runs(hook, why),
                None => Ok(plan),
            });
            (hook, plan)
        });
        programs.verify(&plans, offsets);
        for (hook, plan) in plans {
            let status = programs.start(hook, plan, offsets, attach);
            programs.hooks.push(status);
        }
        programs.hooks.sort_by_key(|status| status.hook);
        if let Some(why) = no_collections {
            programs.watch_periodic_work(attach, &why);
        }
        programs.watch_sends(offsets);
        for (program, instructions) in programs.hooks.iter().flat_map(|status| &status.verified) {
            tracing::debug!("verified {program}: {instructions} instructions");
        }
        // With nothing to count, those that count go on.
        if attach && programs.counts() {
            programs.activate(build)?;
        }
        Ok((programs, maps))
    }

    /// Gives the verifier what the hooks are made of, but what is in the state folder already.
    fn verify(&mut self, plans: &[(Hook, Result<Plan>)], offsets: &Offsets) {
        let plans = plans.iter().filter_map(|(_, plan)| plan.as_ref().ok());
        let mut names: Vec<_> = plans.flat_map(|plan| plan.load.iter().copied()).collect();
        if why_no_sends(offsets).is_none() {
            names.extend(sends::PROGRAMS.map(|(name, _)| name));
        }
        names.retain(|name| {
            let pins = self.pins.as_ref();
            !pins.is_some_and(|pins| pins.program(name).exists())
        });
        self.verdicts = verify::all(&mut self.ebpf, &names);
    }

    /// The second-best way to tell who removes an entry, where the stack cannot be read.
    fn watch_periodic_work(&mut self, attach: bool, why: &str) {
        if self.hooks[Hook::Gc as usize].state == State::Unavailable {
            return;
        }
        let mut result: Result<()> = Ok(());
        for (name, tracepoint) in PERIODIC_WORK {
            result = result.and_then(|()| {
                let instructions = self.load_program(name)?;
                let verified = &mut self.hooks[Hook::Gc as usize].verified;
                verified.extend(instructions.map(|count| (name.to_owned(), count)));
                if attach {
                    self.attach_tracepoint(name, tracepoint)?;
                }
                Ok(())
            });
        }
        if result.is_err() {
            // One without the other would call all work periodic.
            for (name, _) in PERIODIC_WORK {
                self.unload(name);
            }
        }
        let (mechanism, lost) = match &result {
            Ok(()) => (
                "raw_tracepoint neigh_cleanup_and_release, periodic work item",
                "forced collections count as gc=\"other\"",
            ),
            Err(_) => (
                "raw_tracepoint neigh_cleanup_and_release",
                "all collections count as gc=\"other\"",
            ),
        };
        mechanism.clone_into(&mut self.hooks[Hook::Gc as usize].mechanism);
        self.degrade(Hook::Gc, &format!("{lost}: {why}"));
    }

    /// Where the kernel can: the queries that never become a packet. Attached by `doctor` too, for some
    /// kernels take the programs and cannot attach them.
    fn watch_sends(&mut self, offsets: &Offsets) {
        if !self.is_attached(Hook::Dns) {
            return;
        }
        self.hooks[Hook::Dns as usize].mechanism = mechanism(Hook::Dns, |_| true);
        let result = match why_no_sends(offsets) {
            Some(why) => Err(anyhow!(why)),
            None => sends::watch(self),
        };
        self.sees_sends = result.is_ok();
        if result.is_err() {
            sends::leave(self);
        }
        let status = &mut self.hooks[Hook::Dns as usize];
        match result {
            Ok(verified) => status.verified.extend(verified),
            Err(why) => {
                status.mechanism = mechanism(Hook::Dns, |_| false);
                status.not_seen = no_sends(&why);
            }
        }
    }

    /// The hook runs, but not as well as it should.
    fn degrade(&mut self, hook: Hook, why: &str) {
        let status = &mut self.hooks[hook as usize];
        if status.state == State::Attached {
            status.state = State::Degraded;
            why.clone_into(&mut status.reason);
        }
    }

    /// Takes over the program that is pinned, or pins one that has passed the verifier. Gives the instructions
    /// that the verifier walked through, where the kernel tells.
    pub(super) fn load_program(&mut self, name: &str) -> Result<Option<u32>> {
        if without::is_without(&format!("load:{name}")) {
            return Err(anyhow!("TRACER_WITHOUT says so"));
        }
        let adopted = self.adopt(name)?;
        let verdict = self.verdicts.remove(name);
        let program = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| anyhow!("the eBPF object has no program {name}"))?;
        if !adopted {
            verdict.unwrap_or_else(|| verify::load(name, program))?;
        }
        let info = match program {
            Program::RawTracePoint(program) => program.info(),
            Program::CgroupSkb(program) => program.info(),
            Program::FExit(program) => program.info(),
            _ => return Err(anyhow!("the program {name} is of no kind that is loaded")),
        };
        if !adopted {
            self.pin(name)?;
        }
        Ok(info?.verified_instruction_count())
    }

    /// Does any hook count? Names alone tell nobody anything.
    pub fn counts(&self) -> bool {
        let mut telling = Hook::ALL.iter().filter(|hook| **hook != Hook::Cgroups);
        telling.any(|hook| self.is_attached(*hook))
    }

    /// Can user space run programs that are attached to nothing? Where not, the hooks' reasons say so.
    pub const fn runs(&self) -> bool {
        self.runs
    }

    /// Is the hook at work, fully or in part?
    pub fn is_attached(&self, hook: Hook) -> bool {
        self.hooks[hook as usize].state.counts()
    }

    /// Takes everything out of the kernel that holds on to a hook, unless the next agent goes on with it.
    pub fn detach(&mut self) {
        if self.pins.is_some() {
            return;
        }
        for hook in Hook::ALL {
            for name in programs(hook) {
                self.unload(name);
            }
        }
    }

    /// Passes on what the programs said through aya-log, where they are built to say anything.
    pub fn flush_log(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    /// Runs that the kernel skipped because the program was at work on that CPU already, by hook.
    /// The kernel shows them since 5.12, in the program's fdinfo.
    pub fn misses(&self) -> Vec<(Hook, u64)> {
        Hook::ALL
            .into_iter()
            .filter(|hook| self.is_attached(*hook))
            .map(|hook| {
                (
                    hook,
                    programs(hook)
                        .iter()
                        .filter_map(|n| self.program_misses(n))
                        .sum(),
                )
            })
            .collect()
    }

    fn program_misses(&self, name: &str) -> Option<u64> {
        let fd = match self.ebpf.program(name)? {
            Program::RawTracePoint(p) => p.fd().ok()?.as_fd().as_raw_fd(),
            Program::CgroupSkb(p) => p.fd().ok()?.as_fd().as_raw_fd(),
            Program::FExit(p) => p.fd().ok()?.as_fd().as_raw_fd(),
            _ => return None,
        };
        std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))
            .ok()?
            .lines()
            .find_map(|line| line.strip_prefix("recursion_misses:"))?
            .trim()
            .parse()
            .ok()
    }
}

/// What a hook loads, unless the kernel lacks what it cannot do without.
fn plan(hook: Hook, offsets: &Offsets) -> Result<Plan> {
    match offsets.why_not(hook) {
        Some(why) => Err(anyhow!("{why}")),
        None => Plan::of(hook, &offsets.features),
    }
}

/// What is known of a hook that is not tried, by the kernel's BTF.
pub struct Expected {
    /// What it would attach to.
    pub mechanism: String,
    /// What it would not see.
    pub not_seen: String,
    /// What the kernel lacks for it; empty where nothing is known.
    pub lacks: String,
}

/// Looks at no more than the kernel's BTF.
pub fn expected(hook: Hook, offsets: &Offsets) -> Expected {
    let plan = plan(hook, offsets);
    let lacks = match &plan {
        Ok(plan) => plan.lost.join("; "),
        Err(why) => format!("{why:#}"),
    };
    let plan = plan.ok();
    let why_no_sends = why_no_sends(offsets);
    let has = |program: &str| match sends::function(program) {
        // What the kernel lacks is told with the hook; without it, there is no plan.
        "" => plan.as_ref().is_none_or(|plan| plan.has(program)),
        _ => why_no_sends.is_none(),
    };
    let not_seen = why_no_sends.as_ref().filter(|_| hook == Hook::Dns);
    let not_seen = not_seen.map(|why| no_sends(&anyhow!(why.clone())));
    let mut mechanism = mechanism(hook, has);
    if hook == Hook::Dns && why_no_sends.is_none() {
        mechanism += IF_TAKEN;
    }
    Expected {
        mechanism,
        not_seen: not_seen.unwrap_or_default(),
        lacks,
    }
}

/// What is not seen without the ends of sends.
fn no_sends(why: &anyhow::Error) -> String {
    format!("{}; no fexit here: {why:#}", sends::NOT_SEEN)
}

fn why_no_sends(offsets: &Offsets) -> Option<String> {
    if without::is_without("fexit") {
        return Some("TRACER_WITHOUT says so".to_owned());
    }
    offsets.no_sends.as_ref().map(ToString::to_string)
}

/// The ring, in the form that the reader takes.
pub type Ring = RingBuf<MapData>;
