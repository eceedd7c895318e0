//! What to do next, from what was found.

use serde::Serialize;

use super::Report;
use crate::kernel::{
    capabilities, cgroup, features::PANIC_ON_WARN, memlock, refusal, state::BPFFS,
};

/// One thing to do.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Why.
    pub why: String,
    /// The command; `None` where no command does it.
    pub command: Option<String>,
}

impl Step {
    fn new(why: &str, command: Option<&str>) -> Self {
        Self {
            why: why.to_owned(),
            command: command.map(str::to_owned),
        }
    }
}

/// The most pressing first. `agent`: one answers on this node already.
pub fn steps(report: &Report, agent: bool) -> Vec<Step> {
    let mut steps = obstacles(report);
    if steps.is_empty() && !report.main_job_can_run {
        steps.push(Step::new(
            "no step is known that would help: what the kernel said is in the hooks' reasons",
            None,
        ));
    }
    let mut step = |why: &str, command: Option<&str>| steps.push(Step::new(why, command));
    let costly = report.settings.iter().filter(|setting| !setting.ok);
    for setting in costly.filter(|_| report.main_job_can_run) {
        step(&setting.detail, setting.command.as_deref());
    }
    if report
        .state
        .path
        .as_ref()
        .is_some_and(|path| path.starts_with(BPFFS))
        && !report.state.bpffs
    {
        step(
            "counters survive a restart of the agent on a bpf file system only",
            Some("mount -t bpf bpf /sys/fs/bpf"),
        );
    }
    if report.main_job_can_run {
        if agent {
            step("see what fails on this node", Some("tracer why"));
        } else {
            step("trace this node", Some("tracer agent"));
        }
    }
    steps
}

/// What keeps the main job, or a hook, from running.
fn obstacles(report: &Report) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut step = |why: &str, command: Option<&str>| steps.push(Step::new(why, command));
    let is_said = |words| report.hooks.iter().any(|hook| hook.reason.contains(words));
    if !report.btf.ok {
        step(
            "tracer needs a kernel built with CONFIG_DEBUG_INFO_BTF=y",
            None,
        );
    }
    if report.lockdown.ok == Some(false) {
        step("boot with lockdown=integrity, or without lockdown", None);
    }
    if !report.cgroup2.ok {
        step(
            "lookups need cgroup2, mounted on the node; a pod sees it once it is started anew",
            Some(cgroup::how_to_mount()),
        );
    }
    let missing: Vec<&str> = report
        .capabilities
        .iter()
        .filter(|c| c.required && !c.held)
        .map(|c| c.name)
        .collect();
    if !missing.is_empty() {
        let lack = format!("{} missing", missing.join(", "));
        if capabilities::in_user_namespace() {
            step(
                &format!(
                    "{lack}: root of a user namespace has them there only; run it outside, as root"
                ),
                None,
            );
        } else if rustix::process::geteuid().is_root() {
            step(
                &format!(
                    "{lack}: add them to the container's securityContext or the unit's bounding set"
                ),
                None,
            );
        } else {
            step(&lack, Some("sudo tracer doctor"));
        }
    } else if is_said(memlock::NAME) {
        step(
            &format!(
                "raise {}: LimitMEMLOCK=infinity in the unit of the agent or of the container runtime; or add \
                 CAP_SYS_RESOURCE, with which the agent raises it",
                memlock::NAME
            ),
            None,
        );
    } else if is_said(PANIC_ON_WARN) {
        step(
            "the node would panic: this kernel warns when tracer loads; a kernel since 6.1 does not",
            Some(&format!("sysctl -w {PANIC_ON_WARN}=0")),
        );
    } else if is_said(refusal::BY_FILTER) {
        step(
            "let the seccomp profile allow bpf(2); in Kubernetes: seccompProfile.type Unconfined",
            None,
        );
    } else if is_said(refusal::NO_READS) && report.lockdown.ok.is_none() {
        // Rules of a security module could do it too.
        step(
            "read /sys/kernel/security/lockdown on the node: where it says confidentiality, boot with \
             lockdown=integrity, or without lockdown",
            None,
        );
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Check, cgroups, hooks::HookReport, state, system::Lockdown};

    /// Of a pod under the runtime's own filter, where a hook does not run for this reason.
    fn steps_for(reason: &str) -> String {
        let ok = || Check {
            ok: true,
            detail: String::new(),
        };
        let hook = HookReport {
            name: "neigh",
            ok: false,
            state: "unavailable",
            mechanism: String::new(),
            reason: reason.to_owned(),
            not_seen: String::new(),
            verified_instructions: std::collections::BTreeMap::new(),
        };
        let report = Report {
            main_job_can_run: false,
            next: Vec::new(),
            version: "",
            kernel: String::new(),
            architecture: String::new(),
            btf: ok(),
            lockdown: Lockdown {
                mode: "unknown",
                ok: None,
                detail: String::new(),
            },
            seccomp_filter: true,
            cgroup2: ok(),
            cgroups: cgroups::Cgroups {
                layout: "v2",
                ok: true,
                costs: Vec::new(),
            },
            settings: Vec::new(),
            capabilities: Vec::new(),
            hooks: vec![hook],
            state: state::StateFolder::default(),
            tables: Vec::new(),
            sources: Vec::new(),
            conntrack: None,
            not_seen: Vec::new(),
        };
        let steps = steps(&report, false);
        steps.into_iter().map(|step| step.why + "\n").collect()
    }

    #[test]
    fn a_filter_is_blamed_for_what_it_refused_only() {
        assert!(steps_for(refusal::BY_FILTER).contains("seccompProfile.type"));
        let other = steps_for("the verifier refuses the eBPF program: back-edge");
        assert!(!other.contains("seccomp"), "{other}");
    }

    #[test]
    fn lockdown_is_looked_for_where_it_cannot_be_read() {
        let steps = steps_for(refusal::NO_READS);
        assert!(steps.contains("lockdown=integrity"), "{steps}");
        assert!(!steps.contains("seccomp"), "{steps}");
    }

    #[test]
    fn who_cannot_be_helped_is_told_so() {
        let steps = steps_for("something else");
        assert!(steps.contains("no step is known"), "{steps}");
    }
}
