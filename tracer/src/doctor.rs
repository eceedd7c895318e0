//! `tracer doctor`: what this node supports, and why not where it does not. It loads every program
//! for real, attaches none but those of fexit, which count nothing, and leaves nothing behind but the verifier's log of
//! a program that it refuses. docs/doctor.md has every field of its JSON.

mod cgroups;
mod conntrack;
mod hooks;
mod next;
pub mod sources;
mod state;
mod system;
mod tables;
mod text;

use std::path::Path;

use serde::Serialize;
use tracer_common::Hook;

use crate::{
    export::snapshot::Snapshot,
    kernel::{
        self,
        btf::{self, Btf},
        capabilities, cgroup, refusal,
    },
};

pub(crate) use tables::thresholds_for;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Can the agent do its main job here: neighbour creations and lookups, seen and counted?
    pub main_job_can_run: bool,
    /// What to do next, the most pressing first.
    pub next: Vec<next::Step>,
    /// tracer's version.
    pub version: &'static str,
    /// The kernel's release.
    pub kernel: String,
    /// Its architecture.
    pub architecture: String,
    /// The kernel's type information.
    pub btf: Check,
    /// The kernel's lockdown.
    pub lockdown: system::Lockdown,
    /// Is a seccomp filter in force on this process?
    pub seccomp_filter: bool,
    /// Where cgroup2 is mounted.
    pub cgroup2: Check,
    /// How cgroups are laid out, and what that costs.
    pub cgroups: cgroups::Cgroups,
    /// The kernel's settings that matter.
    pub settings: Vec<system::Setting>,
    /// What the process may do.
    pub capabilities: Vec<Capability>,
    /// The hooks.
    pub hooks: Vec<hooks::HookReport>,
    /// The state folder.
    pub state: state::StateFolder,
    /// The neighbour tables.
    pub tables: Vec<tables::NeighbourTable>,
    /// Where pods are learned from.
    pub sources: Vec<sources::SourceReport>,
    /// Connection tracking; `None` where the kernel has none.
    pub conntrack: Option<conntrack::Report>,
    /// What tracer does not see, wherever it runs, and on this kernel.
    pub not_seen: Vec<String>,
}

/// One thing that is there or is not.
#[derive(Debug, Serialize)]
pub struct Check {
    /// Is it?
    pub ok: bool,
    /// Where it is, or why it is not.
    pub detail: String,
}

/// One capability.
#[derive(Debug, Serialize)]
pub struct Capability {
    /// As in capabilities(7).
    pub name: &'static str,
    /// Does this process have it?
    pub held: bool,
    /// Does the main job need it?
    pub required: bool,
    /// What it buys.
    pub purpose: &'static str,
    /// What is lost without it.
    pub without: &'static str,
}

const NOT_SEEN: &[&str] = &[
    "lookups over TCP, TLS (DoT), HTTPS (DoH) and QUIC (DoQ)",
    "what raw and packet sockets send and receive",
    "datagrams behind IPv6 extension headers",
    "connect() of UDP sockets that fails, such as without a route in the pod: nothing is asked then, \
     and the application has the error (ENETUNREACH)",
    "queries in several pieces (writev) that fail before IP output",
];

/// Looks at the node. `agent` is what the agent on it says, if one answers: what was before.
pub fn examine(
    agent: Option<&Snapshot>,
    sources: Vec<sources::SourceReport>,
    state_dir: Option<&Path>,
) -> Report {
    let btf = Btf::open(btf::VMLINUX);
    let known = btf.as_ref().map_err(|why| format!("{why:#}"));
    let lockdown = system::lockdown();
    let (hooks, entries) = hooks::examine(known, &lockdown);
    let main_job = [Hook::Neigh, Hook::Dns];
    let of_hooks = hooks.iter().map(|hook| hook.not_seen.as_str());
    let not_seen = NOT_SEEN.iter().copied().chain(of_hooks);
    let not_seen = not_seen.filter(|thing| !thing.is_empty());
    let not_seen = not_seen.map(str::to_owned).collect();
    let mut report = Report {
        main_job_can_run: capabilities::missing().is_empty()
            && main_job
                .iter()
                .all(|hook| hooks.iter().any(|h| h.name == hook.name() && h.ok)),
        next: Vec::new(),
        version: env!("CARGO_PKG_VERSION"),
        kernel: kernel::release(),
        architecture: system::architecture(),
        lockdown,
        seccomp_filter: refusal::seccomp_filter(),
        cgroup2: system::check(cgroup::mount_point().map(|path| path.display().to_string())),
        cgroups: cgroups::examine(btf.as_ref().ok()),
        btf: system::check(btf.map(|_| btf::VMLINUX.to_owned())),
        settings: system::settings(),
        capabilities: capabilities::NEEDS
            .iter()
            .map(|need| Capability {
                name: need.name,
                held: capabilities::has(need),
                required: need.required,
                purpose: need.purpose,
                without: need.without,
            })
            .collect(),
        hooks,
        state: state::examine(state_dir),
        tables: tables::examine(entries, agent),
        sources,
        conntrack: conntrack::examine(),
        not_seen,
    };
    report.next = next::steps(&report, agent.is_some());
    report
}
