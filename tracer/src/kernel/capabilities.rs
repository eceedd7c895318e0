//! What the process may do, and what for.

use anyhow::{Result, bail};
use rustix::thread::{CapabilitySet, capabilities};

/// A capability, what it is for, and whether the main job needs it.
pub struct Need {
    /// As in capabilities(7).
    pub name: &'static str,
    /// What tracer does with it.
    pub purpose: &'static str,
    /// Without it the agent cannot start.
    pub required: bool,
    set: CapabilitySet,
}

/// All that tracer uses.
pub const NEEDS: &[Need] = &[
    Need {
        name: "CAP_BPF",
        purpose: "load the eBPF programs",
        required: true,
        set: CapabilitySet::BPF,
    },
    Need {
        name: "CAP_PERFMON",
        purpose: "read kernel memory in them and attach to tracepoints",
        required: true,
        set: CapabilitySet::PERFMON,
    },
    Need {
        name: "CAP_NET_ADMIN",
        purpose: "attach the hook dns to the root of cgroup2",
        required: true,
        set: CapabilitySet::NET_ADMIN,
    },
    Need {
        name: "CAP_SYSLOG",
        purpose: "tell forced from periodic garbage collection by the addresses of kernel functions",
        required: false,
        set: CapabilitySet::SYSLOG,
    },
    Need {
        name: "CAP_SYS_PTRACE",
        purpose: "see the network namespace of a pod's processes (else only its sockets are named)",
        required: false,
        set: CapabilitySet::SYS_PTRACE,
    },
    Need {
        name: "CAP_SYS_ADMIN",
        purpose: "ask a network namespace for its cookie and addresses (else its inode must do)",
        required: false,
        set: CapabilitySet::SYS_ADMIN,
    },
];

/// Is it in the effective set? `CAP_SYS_ADMIN` stands in for the two younger ones.
pub fn has(need: &Need) -> bool {
    let Ok(sets) = capabilities(None) else {
        return false;
    };
    let stand_in = (need.set == CapabilitySet::BPF || need.set == CapabilitySet::PERFMON)
        && sets.effective.contains(CapabilitySet::SYS_ADMIN);
    sets.effective.contains(need.set) || stand_in
}

/// The required ones that are missing, by name.
pub fn missing() -> Vec<&'static str> {
    NEEDS
        .iter()
        .filter(|need| need.required && !has(need))
        .map(|need| need.name)
        .collect()
}

/// Fails where a required one is missing.
pub fn check() -> Result<()> {
    let missing = missing();
    if !missing.is_empty() {
        bail!(
            "{} missing: run as root, or give the process {}",
            missing.join(", "),
            if missing.len() == 1 { "it" } else { "them" }
        );
    }
    Ok(())
}
