//! `tracer doctor`: what this node supports, and why not where it does not. It loads every program
//! for real, attaches none, and leaves nothing behind.

mod conntrack;

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::Serialize;
use tracer_common::Hook;

use crate::{
    config::CriEndpoint,
    export::snapshot::{self, Snapshot},
    hooks::FAMILY_NAMES,
    kernel::{
        self,
        btf::{self, Btf},
        capabilities, cgroup,
        load::{HookStatus, Loaded, Parameters, State},
        maps::Maps,
        neighbour_tables,
        offsets::Offsets,
        reasons::Reasons,
    },
    output::printable,
    pods::{
        cri,
        kubernetes::{self, Access},
    },
};

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Can the agent do its main job here: neighbour creations and lookups, seen and counted?
    pub main_job_can_run: bool,
    /// tracer's version.
    pub version: &'static str,
    /// The kernel's release.
    pub kernel: String,
    /// The kernel's type information.
    pub btf: Check,
    /// Where cgroup2 is mounted.
    pub cgroup2: Check,
    /// What the process may do.
    pub capabilities: Vec<Capability>,
    /// The hooks.
    pub hooks: Vec<HookReport>,
    /// The neighbour tables.
    pub tables: Vec<Table>,
    /// Where pods are learned from.
    pub sources: Vec<SourceReport>,
    /// Connection tracking; `None` where the kernel has none.
    pub conntrack: Option<conntrack::Report>,
    /// What tracer does not see, wherever it runs.
    pub not_seen: &'static [&'static str],
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
    /// What tracer does with it.
    pub purpose: &'static str,
}

/// One hook.
#[derive(Debug, Serialize)]
pub struct HookReport {
    /// Its name.
    pub name: &'static str,
    /// Can it run?
    pub ok: bool,
    /// What it attaches to.
    pub mechanism: &'static str,
    /// Why it cannot; empty if it can.
    pub reason: String,
    /// Instructions that the verifier walked through, by program.
    pub verified_instructions: BTreeMap<String, u32>,
}

/// One neighbour table.
#[derive(Debug, Serialize)]
pub struct Table {
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// `gc_entries`; `None` where the hook `neigh` cannot run.
    pub entries: Option<u32>,
    /// gc_thresh1, 2, 3.
    pub limits: [u32; 3],
    /// Creations refused since boot.
    pub table_fulls: u64,
    /// Highest `gc_entries` since the agent started; `None` where no agent answers.
    pub peak_since_start: Option<u64>,
    /// Creations of entries that a forced garbage collection had thrown out within 10 s, since the
    /// agent started: many mean that the table thrashes.
    pub recreated: Option<u64>,
    /// What to do, if anything.
    pub advice: Option<Advice>,
}

/// Where pods are learned from.
#[derive(Debug, Serialize)]
pub struct SourceReport {
    /// Its name.
    pub name: String,
    /// Does it answer? `None`: there is nothing to ask on this node.
    pub ok: Option<bool>,
    /// What it knows and how old that is, or why it does not answer.
    pub detail: String,
}

/// Limits to set, and why.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// Why the present limits do not do.
    pub reason: String,
    /// gc_thresh1, 2, 3 to set.
    pub gc_thresh: [u64; 3],
    /// The lines that set them.
    pub sysctl: Vec<String>,
    /// Kernel memory that a table filled to the new limit takes.
    pub memory_bytes: u64,
}

const NOT_SEEN: &[&str] = &[
    "lookups over TCP, TLS (DoT), HTTPS (DoH) and QUIC (DoQ)",
    "what raw and packet sockets send and receive",
    "datagrams behind IPv6 extension headers",
    "sends that fail before IP output, such as without a route in the pod: the application has the \
     error (ENETUNREACH)",
];

/// The sources of the agent on this node.
pub fn sources(agent: &Snapshot) -> Vec<SourceReport> {
    let report = |source: &snapshot::Source| {
        let knows = match source.age_seconds {
            Some(age) => format!("{} pods, {age:.1} s ago", source.pods),
            None => "has not answered yet".to_owned(),
        };
        let (ok, detail) = match (source.idle, source.reason.as_str()) {
            (true, why) => (None, why.to_owned()),
            (false, "") => (Some(true), knows),
            (false, why) => (Some(false), format!("{knows}; {why}")),
        };
        SourceReport {
            name: source.name.clone(),
            ok,
            detail,
        }
    };
    agent.sources.iter().map(report).collect()
}

/// Without an agent: what its sources would find. `runtime` is the container runtime's socket, if
/// one is named.
pub async fn try_sources(node: &str, runtime: Option<&CriEndpoint>) -> Vec<SourceReport> {
    let (ok, detail) = match Access::any() {
        None => (None, "no API server is known here".to_owned()),
        Some(access) => match kubernetes::examine(access, node).await {
            Ok(found) => (Some(true), found),
            Err(why) => (Some(false), format!("{why:#}")),
        },
    };
    let name = "kubernetes".to_owned();
    let kubernetes = SourceReport { name, ok, detail };
    let (ok, detail) = match cri::examine(runtime).await {
        Ok(found) => (Some(true), found),
        Err(why) if cri::is_there(runtime) => (Some(false), format!("{why:#}")),
        Err(why) => (None, format!("{why:#}")),
    };
    let name = "cri".to_owned();
    vec![kubernetes, SourceReport { name, ok, detail }]
}

/// Looks at the node. `agent` is what the agent on it says, if one answers: what was before.
pub fn examine(agent: Option<&Snapshot>, sources: Vec<SourceReport>) -> Report {
    let capabilities: Vec<Capability> = capabilities::NEEDS
        .iter()
        .map(|need| Capability {
            name: need.name,
            held: capabilities::has(need),
            required: need.required,
            purpose: need.purpose,
        })
        .collect();
    let missing = capabilities::missing();
    let btf = Btf::open(btf::VMLINUX);
    let mut entries = [None, None];
    let hooks = match &btf {
        _ if !missing.is_empty() => cannot(&format!("{} missing", missing.join(", "))),
        Err(why) => cannot(&format!("{why:#}")),
        Ok(btf) => try_hooks(btf, &mut entries),
    };
    let hooks: Vec<HookReport> = hooks
        .into_iter()
        .map(|status| HookReport {
            name: status.hook.name(),
            ok: status.state.counts(),
            mechanism: status.mechanism,
            reason: status.reason,
            verified_instructions: status.verified.into_iter().collect(),
        })
        .collect();
    let main_job = [Hook::Neigh, Hook::Dns];
    Report {
        main_job_can_run: main_job
            .iter()
            .all(|hook| hooks.iter().any(|h| h.name == hook.name() && h.ok)),
        version: env!("CARGO_PKG_VERSION"),
        kernel: kernel::release(),
        btf: check(btf.map(|_| btf::VMLINUX.to_owned())),
        cgroup2: check(cgroup::mount_point().map(|path| path.display().to_string())),
        capabilities,
        hooks,
        tables: tables(entries, agent),
        sources,
        conntrack: conntrack::examine(),
        not_seen: NOT_SEEN,
    }
}

fn check(result: anyhow::Result<String>) -> Check {
    match result {
        Ok(detail) => Check { ok: true, detail },
        Err(why) => Check {
            ok: false,
            detail: format!("{why:#}"),
        },
    }
}

fn cannot(why: &str) -> Vec<HookStatus> {
    Hook::ALL
        .into_iter()
        .map(|hook| HookStatus {
            hook,
            state: State::Unavailable,
            mechanism: kernel::load::mechanism(hook),
            reason: why.to_owned(),
            verified: Vec::new(),
        })
        .collect()
}

fn try_hooks(btf: &Btf, entries: &mut [Option<u32>; 2]) -> Vec<HookStatus> {
    let parameters = Parameters {
        event_rate: 1,
        dns_ports: vec![53],
        dns_timeout: Duration::from_secs(5),
        silent_ports: Vec::new(),
        silent_after: Duration::from_secs(10),
    };
    let reasons = Reasons::resolve(btf).unwrap_or_default(); // the hook drops says why
    match Loaded::load(&parameters, &Offsets::resolve(btf), &reasons, false, None) {
        Ok((loaded, maps)) => {
            if loaded.is_attached(Hook::Neigh) {
                *entries = gc_entries(&loaded, &maps).unwrap_or_default(); // the table then shows `-`
            }
            loaded.hooks.clone()
        }
        Err(why) => cannot(&format!("{why:#}")),
    }
}

fn gc_entries(loaded: &Loaded, maps: &Maps) -> anyhow::Result<[Option<u32>; 2]> {
    loaded.run("tables")?;
    Ok(maps
        .tables()?
        .map(|table| (table.address != 0).then_some(table.gc_entries)))
}

fn tables(entries: [Option<u32>; 2], agent: Option<&Snapshot>) -> Vec<Table> {
    let Ok(tables) = neighbour_tables::read() else {
        return Vec::new();
    };
    let pods = agent.map_or(0, |agent| agent.pods.len() as u64);
    FAMILY_NAMES
        .iter()
        .zip(tables)
        .zip(entries)
        .filter_map(|((family, table), entries)| {
            let table = table?;
            let known = agent.and_then(|agent| agent.tables.iter().find(|t| t.family == *family));
            let peak_since_start = known.map(|table| table.entries_peak_since_start);
            let highest = peak_since_start
                .unwrap_or_default()
                .max(entries.unwrap_or_default().into());
            Some(Table {
                family,
                entries,
                limits: table.limits,
                table_fulls: table.table_fulls,
                peak_since_start,
                recreated: agent
                    .and_then(|agent| agent.total.neighbour.get(*family))
                    .map(|figures| figures.recreated),
                advice: advice(family, highest, pods, table.limits, table.table_fulls),
            })
        })
        .collect()
}

/// One entry in the kernel's slab: `struct neighbour` and its key are 330 to 350 bytes.
const ENTRY_BYTES: u64 = 512;

/// gc_thresh1, 2, 3 to set: twice what was seen, or twice a limit that did not do; never less than
/// what the kernel's documentation proposes for a busy router.
pub(crate) fn thresholds_for(highest: u64, limit: u64) -> [u64; 3] {
    let high = (highest.max(limit) * 2).next_power_of_two().max(4096);
    [high / 4, high / 2, high]
}

/// What to do about a table, from the most entries seen and what was refused.
fn advice(
    family: &str,
    highest: u64,
    pods: u64,
    limits: [u32; 3],
    table_fulls: u64,
) -> Option<Advice> {
    let limit = u64::from(limits[2]);
    let reason = if table_fulls > 0 {
        format!("{table_fulls} creations were refused since boot")
    } else if highest * 10 >= limit * 7 {
        format!("up to {highest} of {limit} entries were in use, more than 70 %")
    } else {
        return None;
    };
    let reason = match pods {
        0 => reason,
        pods => format!("{reason}; {pods} pods and host services share the table"),
    };
    let gc_thresh = thresholds_for(highest, limit);
    Some(Advice {
        reason,
        gc_thresh,
        sysctl: (1..)
            .zip(gc_thresh)
            .map(|(n, value)| format!("sysctl -w net.{family}.neigh.default.gc_thresh{n}={value}"))
            .collect(),
        memory_bytes: gc_thresh[2] * ENTRY_BYTES,
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = |ok| if ok { "ok" } else { "NO" };
        writeln!(
            f,
            "tracer {} on Linux {}",
            self.version,
            printable(&self.kernel)
        )?;
        writeln!(
            f,
            "  {:<3} BTF           {}",
            mark(self.btf.ok),
            self.btf.detail
        )?;
        writeln!(
            f,
            "  {:<3} cgroup2       {}",
            mark(self.cgroup2.ok),
            self.cgroup2.detail
        )?;
        writeln!(f, "capabilities")?;
        for c in &self.capabilities {
            let mark = match (c.held, c.required) {
                (true, _) => "ok",
                (false, true) => "NO",
                (false, false) => "-",
            };
            writeln!(f, "  {mark:<3} {:<13} {}", c.name, c.purpose)?;
        }
        writeln!(f, "hooks")?;
        for hook in &self.hooks {
            writeln!(
                f,
                "  {:<3} {:<13} {}",
                mark(hook.ok),
                hook.name,
                hook.mechanism
            )?;
            if !hook.reason.is_empty() {
                writeln!(f, "      {:<13} {}", "", printable(&hook.reason))?;
            }
        }
        writeln!(
            f,
            "neighbour tables (one for the whole kernel, shared by all pods)"
        )?;
        for table in &self.tables {
            let entries = table
                .entries
                .map_or_else(|| "-".to_owned(), |entries| entries.to_string());
            let [low, middle, high] = table.limits;
            writeln!(
                f,
                "      {:<13} {entries} of {high} entries (gc_thresh {low}/{middle}/{high}), {} refused since boot",
                table.family, table.table_fulls
            )?;
            table.details(f)?;
        }
        writeln!(f, "pod sources")?;
        for source in &self.sources {
            writeln!(
                f,
                "  {:<3} {:<13} {}",
                source.ok.map_or("-", mark),
                printable(&source.name),
                printable(&source.detail)
            )?;
        }
        if let Some(conntrack) = &self.conntrack {
            write!(
                f,
                "connection tracking (of this network namespace)\n{conntrack}"
            )?;
        }
        writeln!(f, "not seen")?;
        for thing in self.not_seen {
            writeln!(f, "      {thing}")?;
        }
        if self.main_job_can_run {
            writeln!(f, "the agent can do its main job on this node")
        } else {
            writeln!(
                f,
                "the agent cannot do its main job on this node: see NO above"
            )
        }
    }
}

impl Table {
    fn details(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(peak) = self.peak_since_start {
            let recreated = self.recreated.unwrap_or_default();
            writeln!(
                f,
                "      {:<13} since the agent started: at most {peak} entries, {recreated} made again within 10 s of a forced collection",
                ""
            )?;
        }
        let Some(advice) = &self.advice else {
            return Ok(());
        };
        writeln!(
            f,
            "      {:<13} {}; raise the limits (full, the table then takes {:.1} MB):",
            "",
            advice.reason,
            advice.memory_bytes as f64 / 1e6
        )?;
        for line in &advice.sysctl {
            writeln!(f, "      {:<13}   {line}", "")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_healthy_table_needs_no_advice() {
        assert_eq!(advice("ipv4", 10, 5, [128, 512, 1024], 0), None);
    }

    #[test]
    fn a_full_table_gets_room_for_twice_as_much() {
        let filled = advice("ipv4", 717, 0, [128, 512, 1024], 0).unwrap();
        assert!(filled.reason.contains("70 %"), "{}", filled.reason);
        let refused = advice("ipv6", 5000, 30, [1024, 2048, 4096], 3).unwrap();
        assert_eq!(refused.gc_thresh, [4096, 8192, 16384]);
        assert_eq!(
            refused.sysctl[2],
            "sysctl -w net.ipv6.neigh.default.gc_thresh3=16384"
        );
        assert!(refused.reason.contains("30 pods"), "{}", refused.reason);
    }
}
