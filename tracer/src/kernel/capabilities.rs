//! What the process may do, and what for.
//!
//! [`NEEDS`] is the one list: `tracer doctor` prints it, and a test compares docs/security.md, the
//! manifests and the unit with it.

use std::fs;

use anyhow::{Result, bail};
use rustix::thread::{CapabilitySet, capabilities};

/// A capability, what it is for, and whether the main job needs it.
pub struct Need {
    /// As in capabilities(7).
    pub name: &'static str,
    /// What it buys.
    pub purpose: &'static str,
    /// What is lost without it.
    pub without: &'static str,
    /// Without it the agent cannot start.
    pub required: bool,
    set: CapabilitySet,
}

/// All that tracer uses.
pub const NEEDS: &[Need] = &[
    Need {
        name: "CAP_BPF",
        purpose: "loading the eBPF programs",
        without: "nothing can be traced: the agent ends and says so",
        required: true,
        set: CapabilitySet::BPF,
    },
    Need {
        name: "CAP_PERFMON",
        purpose: "reading kernel memory in the programs, attaching them to tracepoints",
        without: "nothing can be traced: the agent ends and says so",
        required: true,
        set: CapabilitySet::PERFMON,
    },
    Need {
        name: "CAP_NET_ADMIN",
        purpose: "attaching to the root of cgroup2, for lookups",
        without: "lookups cannot be followed: the agent ends and says so",
        required: true,
        set: CapabilitySet::NET_ADMIN,
    },
    Need {
        name: "CAP_SYSLOG",
        purpose: "addresses of kernel functions: which garbage collection removed an entry",
        without: "hook `gc` is degraded: forced collections count as `other`",
        required: false,
        set: CapabilitySet::SYSLOG,
    },
    Need {
        name: "CAP_SYS_PTRACE",
        purpose: "network namespaces of pods' processes",
        without: "what a pod's devices do (neighbour entries, overflow) is nobody's; lookups and \
                  connections keep their names by cgroup",
        required: false,
        set: CapabilitySet::SYS_PTRACE,
    },
    Need {
        name: "CAP_SYS_ADMIN",
        purpose: "cookies and addresses of namespaces, asked inside; not in the default: \
                  `exactNamespaces: true` adds it",
        without: "namespaces are told apart by inode, which the kernel may give again within a \
                  second of a pod's end; what a router drops for a namespace of `ip netns` is nobody's",
        required: false,
        set: CapabilitySet::SYS_ADMIN,
    },
];

/// `PROC_USER_INIT_INO` (include/linux/proc_ns.h): the first user namespace.
const FIRST_USER_NAMESPACE: &str = "user:[4026531837]";

/// Is it in the effective set, and does that reach the kernel? `CAP_SYS_ADMIN` stands in for the two
/// younger ones.
pub fn has(need: &Need) -> bool {
    let Ok(sets) = capabilities(None) else {
        return false;
    };
    let stand_in = (need.set == CapabilitySet::BPF || need.set == CapabilitySet::PERFMON)
        && sets.effective.contains(CapabilitySet::SYS_ADMIN);
    (sets.effective.contains(need.set) || stand_in) && !in_user_namespace()
}

/// Is the process in a user namespace of its own, as rootless containers are? Root there has all
/// capabilities, over that namespace only.
pub fn in_user_namespace() -> bool {
    fs::read_link("/proc/self/ns/user").is_ok_and(|link| link.as_os_str() != FIRST_USER_NAMESPACE)
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
        let what_to_do = match (in_user_namespace(), missing.len()) {
            (true, _) => {
                "the process is root in a user namespace of its own only: run it outside, as root"
            }
            (false, 1) => "run as root, or give the process it",
            (false, _) => "run as root, or give the process them",
        };
        bail!("{} missing: {what_to_do}", missing.join(", "));
    }
    Ok(())
}
