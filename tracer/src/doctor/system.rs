//! The kernel itself: what it was built with, and which settings get in tracer's way.

use std::{fs, path::Path};

use serde::Serialize;

use super::Check;

const LOCKDOWN: &str = "/sys/kernel/security/lockdown";
const SECURITY: &str = "/sys/kernel/security";

/// Kernel lockdown (kernel_lockdown(7)).
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Lockdown {
    /// `none`, `integrity`, `confidentiality`, or `unknown` where nothing says so.
    pub mode: &'static str,
    /// Does it let tracer work? `None` where nobody knows; the hooks then show it.
    pub ok: Option<bool>,
    /// What it takes.
    pub detail: String,
}

/// Reads the mode.
pub fn lockdown() -> Lockdown {
    match fs::read_to_string(LOCKDOWN) {
        Ok(text) => lockdown_of(&text),
        Err(_) if Path::new(SECURITY).join("lsm").exists() => Lockdown {
            mode: "none",
            ok: Some(true),
            detail: "this kernel has none".to_owned(),
        },
        Err(_) => Lockdown {
            mode: "unknown",
            ok: None,
            detail: format!("no securityfs at {SECURITY} tells the mode"),
        },
    }
}

/// All modes in one line, the one in force in brackets.
fn lockdown_of(text: &str) -> Lockdown {
    let mode = text
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .map_or("", |(mode, _)| mode);
    // LOCKDOWN_BPF_READ_KERNEL is above integrity and at most confidentiality
    // (include/linux/security.h, security/lockdown/lockdown.c): bpf_probe_read_kernel is refused to
    // every program then.
    let (mode, ok, detail) = match mode {
        "none" => ("none", Some(true), "off"),
        "integrity" => (
            "integrity",
            Some(true),
            "takes nothing that tracer needs: it forbids programs to write, and tracer's only read",
        ),
        "confidentiality" => (
            "confidentiality",
            Some(false),
            "forbids programs to read kernel memory (bpf_probe_read_kernel), so that no hook can \
             run: boot with lockdown=integrity, or without",
        ),
        _ => ("unknown", None, "the kernel tells no mode that is known"),
    };
    Lockdown {
        mode,
        ok,
        detail: detail.to_owned(),
    }
}

/// One setting of the kernel, and what it means for tracer.
#[derive(Debug, Serialize)]
pub struct Setting {
    /// As sysctl(8) has it.
    pub name: &'static str,
    /// Its value; `None` where it cannot be read here.
    pub value: Option<i64>,
    /// Does it leave tracer alone?
    pub ok: bool,
    /// What it does to tracer, if anything.
    pub detail: String,
    /// The command that sets it right, where it is not.
    pub command: Option<String>,
}

/// Name, the value that is right, and what a value does to tracer: is it all right, and what to know of it.
type Judge = (&'static str, i64, fn(i64) -> (bool, &'static str));

const SETTINGS: &[Judge] = &[
    ("kernel.unprivileged_bpf_disabled", 2, |_| {
        (true, "tracer has CAP_BPF or does not run: no matter")
    }),
    ("kernel.perf_event_paranoid", 2, |value| match value {
        // Debian's and Ubuntu's patch; others end at 2.
        3.. => (
            true,
            "perf events are for CAP_SYS_ADMIN only: kprobes need it, raw tracepoints and fentry do not",
        ),
        _ => (true, ""),
    }),
    ("kernel.kptr_restrict", 1, |value| match value {
        2.. => (
            false,
            "addresses of kernel functions are hidden even with CAP_SYSLOG: hook gc is degraded",
        ),
        _ => (true, ""),
    }),
    ("net.core.bpf_jit_enable", 1, |value| match value {
        0 => (
            false,
            "the programs are interpreted, which makes each run several times as dear",
        ),
        2 => (false, "every program's code goes to the kernel's log"),
        _ => (true, ""),
    }),
    ("kernel.bpf_stats_enabled", 0, |value| match value {
        0 => (true, ""),
        _ => (
            false,
            "the kernel times every run of every program, some 40 ns each",
        ),
    }),
];

/// The settings that matter.
pub fn settings() -> Vec<Setting> {
    let read = |name: &str| {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    SETTINGS
        .iter()
        .map(|judge| setting(judge, read(judge.0)))
        .collect()
}

fn setting((name, right, judge): &Judge, value: Option<i64>) -> Setting {
    let (ok, detail) = match value {
        Some(value) => judge(value),
        // Some are in the host's network namespace only, some for root, some of newer kernels.
        None => (true, "cannot be read here"),
    };
    Setting {
        name,
        value,
        ok,
        detail: detail.to_owned(),
        command: (!ok).then(|| format!("sysctl -w {name}={right}")),
    }
}

/// The architecture, as `uname -m` says.
pub fn architecture() -> String {
    rustix::system::uname()
        .machine()
        .to_string_lossy()
        .into_owned()
}

/// A check from a result.
pub fn check(result: anyhow::Result<String>) -> Check {
    match result {
        Ok(detail) => Check { ok: true, detail },
        Err(why) => Check {
            ok: false,
            detail: format!("{why:#}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_in_brackets_is_in_force() {
        for (text, mode, ok) in [
            ("[none] integrity confidentiality\n", "none", Some(true)),
            (
                "none [integrity] confidentiality\n",
                "integrity",
                Some(true),
            ),
            (
                "none integrity [confidentiality]\n",
                "confidentiality",
                Some(false),
            ),
            ("none integrity\n", "unknown", None),
            ("[total]\n", "unknown", None),
        ] {
            let found = lockdown_of(text);
            assert_eq!((found.mode, found.ok), (mode, ok), "{text:?}");
        }
    }

    #[test]
    fn settings_that_cost_something_say_what() {
        let judge = |name: &str, value| {
            let judge = SETTINGS.iter().find(|judge| judge.0 == name).unwrap();
            setting(judge, value)
        };
        assert!(!judge("kernel.kptr_restrict", Some(2)).ok);
        assert!(judge("kernel.kptr_restrict", Some(1)).ok);
        let slow = judge("net.core.bpf_jit_enable", Some(0));
        let command = "sysctl -w net.core.bpf_jit_enable=1".to_owned();
        assert_eq!((slow.ok, slow.command), (false, Some(command)));
        let paranoid = judge("kernel.perf_event_paranoid", Some(3));
        assert!(paranoid.ok && paranoid.detail.contains("kprobes"));
        assert_eq!(judge("kernel.perf_event_paranoid", Some(-1)).detail, "");
        let hidden = judge("net.core.bpf_jit_enable", None);
        assert!(hidden.ok && hidden.detail.contains("cannot be read"));
    }
}
