//! What to do next, from what was found.

use serde::Serialize;

use super::Report;
use crate::kernel::{capabilities, cgroup, features::PANIC_ON_WARN, memlock, state::BPFFS};

/// One thing to do.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Why.
    pub why: String,
    /// The command; `None` where no command does it.
    pub command: Option<String>,
}

/// The most pressing first. `agent`: one answers on this node already.
pub fn steps(report: &Report, agent: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut step = |why: &str, command: Option<&str>| {
        steps.push(Step {
            why: why.to_owned(),
            command: command.map(str::to_owned),
        });
    };
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
        step("lookups need cgroup2", Some(cgroup::how_to_mount()));
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
    } else if report
        .hooks
        .iter()
        .any(|hook| hook.reason.contains(memlock::NAME))
    {
        step(
            &format!(
                "raise {}: LimitMEMLOCK=infinity in the unit of the agent or of the container runtime; or add \
                 CAP_SYS_RESOURCE, with which the agent raises it",
                memlock::NAME
            ),
            None,
        );
    } else if report
        .hooks
        .iter()
        .any(|hook| hook.reason.contains(PANIC_ON_WARN))
    {
        step(
            "the node would panic: this kernel warns when tracer loads; a kernel since 6.1 does not",
            Some(&format!("sysctl -w {PANIC_ON_WARN}=0")),
        );
    } else if report.seccomp_filter && report.hooks.iter().all(|hook| !hook.ok) && report.btf.ok {
        step(
            "let the seccomp profile allow bpf(2); in Kubernetes: seccompProfile.type Unconfined",
            None,
        );
    }
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
