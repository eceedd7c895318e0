//! The hooks: every program is loaded for real, none but those of fexit is attached.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use tracer_common::Hook;

use super::system::Lockdown;
use crate::{
    config::DEFAULT_SILENT_PORTS,
    kernel::{
        btf::Btf,
        capabilities,
        load::{self, Expected, HookStatus, Loaded, Parameters, State},
        maps::Maps,
        mechanisms::mechanism,
        offsets::Offsets,
        reasons::Reasons,
    },
};

/// One hook.
#[derive(Debug, Serialize)]
pub struct HookReport {
    /// Its name.
    pub name: &'static str,
    /// Would it count anything?
    pub ok: bool,
    /// What the agent's `tracer_hook_state` would be here.
    pub state: &'static str,
    /// What it attaches to.
    pub mechanism: String,
    /// Why it does not run, or only in part; empty if it does.
    pub reason: String,
    /// What it does not see on this kernel, although it runs as it should, and why.
    pub not_seen: String,
    /// Instructions that the verifier walked through, by program; the kernel tells since 5.16.
    pub verified_instructions: BTreeMap<String, u32>,
}

/// Tries all hooks, and reads `gc_entries` of both neighbour tables with them.
pub fn examine(
    btf: Result<&Btf, String>,
    lockdown: &Lockdown,
) -> (Vec<HookReport>, [Option<u32>; 2]) {
    let mut entries = [None, None];
    let statuses = match btf {
        Err(why) => cannot(None, |_| why.clone()),
        Ok(btf) => try_all(btf, &mut entries),
    };
    let reports = statuses
        .into_iter()
        .map(|status| HookReport {
            name: status.hook.name(),
            ok: status.state.counts(),
            state: status.state.name(),
            mechanism: status.mechanism,
            reason: if lockdown.ok == Some(false) && !status.state.counts() {
                // The verifier only says that it knows no such function.
                format!(
                    "the kernel is locked down ({}); {}",
                    lockdown.mode, status.reason
                )
            } else {
                status.reason
            },
            not_seen: status.not_seen,
            verified_instructions: status.verified.into_iter().collect(),
        })
        .collect();
    (reports, entries)
}

fn try_all(btf: &Btf, entries: &mut [Option<u32>; 2]) -> Vec<HookStatus> {
    let offsets = Offsets::resolve(btf);
    let missing = capabilities::missing();
    // Whatever the process may do, what the kernel lacks is said.
    let without = |lack: &str| {
        cannot(Some(&offsets), |lacks| match lacks {
            "" => format!("{lack} (the kernel has what the hook reads)"),
            _ => format!("{lacks}; {lack}"),
        })
    };
    // All that loading takes; attaching takes the third.
    let loading: Vec<&str> = ["CAP_BPF", "CAP_PERFMON"]
        .into_iter()
        .filter(|name| missing.contains(name))
        .collect();
    if !loading.is_empty() {
        return without(&format!("{} missing", loading.join(" and ")));
    }
    let parameters = Parameters {
        event_rate: 1,
        dns_ports: vec![53],
        dns_timeout: Duration::from_secs(5),
        // As an agent has them: without, the verifier would leave out what looks at such connections.
        silent_ports: DEFAULT_SILENT_PORTS.to_vec(),
        silent_after: Duration::from_secs(10),
    };
    let reasons = Reasons::resolve(btf).unwrap_or_default(); // the hook drops says why
    let functions = load::functions();
    let (loaded, maps) = match Loaded::load(&parameters, &offsets, &reasons, functions, false, None)
    {
        Ok(loaded) => loaded,
        Err(why) => return without(&format!("{why:#}")),
    };
    if loaded.runs() && loaded.is_attached(Hook::Neigh) {
        *entries = gc_entries(&loaded, &maps).unwrap_or_default(); // the table then shows `-`, the hook says why
    }
    let mut statuses = loaded.hooks.clone();
    if missing.contains(&"CAP_NET_ADMIN") {
        let dns = &mut statuses[Hook::Dns as usize];
        if dns.state.counts() {
            dns.state = State::Unavailable;
            "CAP_NET_ADMIN missing".clone_into(&mut dns.reason);
        }
    }
    statuses
}

/// Nothing was tried: what the hooks would attach to, and what the kernel lacks for each, is known by its BTF, if at
/// all. `why` is told what it lacks.
fn cannot(offsets: Option<&Offsets>, why: impl Fn(&str) -> String) -> Vec<HookStatus> {
    Hook::ALL
        .into_iter()
        .map(|hook| {
            let expected = match offsets {
                Some(offsets) => load::expected(hook, offsets),
                None => Expected {
                    mechanism: mechanism(hook, |_| true),
                    not_seen: String::new(),
                    lacks: String::new(),
                },
            };
            HookStatus {
                hook,
                state: State::Unavailable,
                mechanism: expected.mechanism,
                reason: why(&expected.lacks),
                not_seen: expected.not_seen,
                verified: Vec::new(),
            }
        })
        .collect()
}

fn gc_entries(loaded: &Loaded, maps: &Maps) -> anyhow::Result<[Option<u32>; 2]> {
    loaded.run("tables")?;
    Ok(maps
        .tables()?
        .map(|table| (table.address != 0).then_some(table.gc_entries)))
}
