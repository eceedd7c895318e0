//! `tracer doctor`: what this node supports, and why not where it does not. It loads every program
//! for real, attaches none, and leaves nothing behind.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::Serialize;
use tracer_common::Hook;

use crate::{
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
    /// What to do; empty if nothing.
    pub advice: String,
}

const NOT_SEEN: &[&str] = &[
    "DNS over TCP, TLS and HTTPS",
    "queries of raw and packet sockets",
    "datagrams behind IPv6 extension headers",
];

/// Looks at the node.
pub fn examine() -> Report {
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
        tables: tables(entries),
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
    };
    let reasons = Reasons::resolve(btf).unwrap_or_default(); // the hook drops says why
    match Loaded::load(&parameters, &Offsets::resolve(btf), &reasons, false) {
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

fn tables(entries: [Option<u32>; 2]) -> Vec<Table> {
    let Ok(tables) = neighbour_tables::read() else {
        return Vec::new();
    };
    FAMILY_NAMES
        .iter()
        .zip(tables)
        .zip(entries)
        .filter_map(|((family, table), entries)| {
            let table = table?;
            Some(Table {
                family,
                entries,
                limits: table.limits,
                table_fulls: table.table_fulls,
                advice: advice(family, entries, table.limits, table.table_fulls),
            })
        })
        .collect()
}

/// What to do about a table: nothing, or the sysctl lines.
fn advice(family: &str, entries: Option<u32>, limits: [u32; 3], table_fulls: u64) -> String {
    let [_, _, limit] = limits;
    let filled = entries.is_some_and(|entries| u64::from(entries) * 10 >= u64::from(limit) * 7);
    if table_fulls == 0 && !filled {
        return String::new();
    }
    let why = if table_fulls > 0 {
        format!("refused {table_fulls} creations since boot")
    } else {
        "more than 70 % full".to_owned()
    };
    let [low, middle, high] = limits.map(|n| u64::from(n).max(1) * 4);
    format!(
        "{why}: raise the limits, such as sysctl -w net.{family}.neigh.default.gc_thresh3={high} \
         net.{family}.neigh.default.gc_thresh2={middle} net.{family}.neigh.default.gc_thresh1={low}"
    )
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
            if !table.advice.is_empty() {
                writeln!(f, "      {:<13} {}", "", table.advice)?;
            }
        }
        writeln!(f, "not seen: {}", self.not_seen.join("; "))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_healthy_table_needs_no_advice() {
        assert_eq!(advice("ipv4", Some(10), [128, 512, 1024], 0), "");
        assert!(advice("ipv4", Some(717), [128, 512, 1024], 0).contains("70 %"));
        let said = advice("ipv6", None, [128, 512, 1024], 3);
        assert!(
            said.contains("net.ipv6.neigh.default.gc_thresh3=4096"),
            "{said}"
        );
    }
}
