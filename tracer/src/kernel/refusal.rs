//! bpf(2) is refused although the capabilities are held: the kernel gives a number, which does not tell by whom.

use std::{fs, io, os::fd::OwnedFd};

use anyhow::{Context as _, Error, Result, anyhow};

use super::sys;

/// Said where a seccomp filter is what refuses; the commands follow.
pub const BY_FILTER: &str = "a seccomp filter is in force on this process and forbids";

/// Said where the verifier refuses what all hooks need: `security_locked_down(LOCKDOWN_BPF_READ_KERNEL)`
/// (`bpf_base_func_proto`, kernel/bpf/helpers.c), which security modules may refuse by rules of their own.
pub const NO_READS: &str =
    "the kernel lets no program read its memory, as under lockdown=confidentiality";

/// A command of bpf(2), by name (include/uapi/linux/bpf.h).
pub type Command = (u32, &'static str);

/// What making maps and loading programs takes.
pub const LOADING: &[Command] = &[
    (0, "BPF_MAP_CREATE"),
    (2, "BPF_MAP_UPDATE_ELEM"),
    (sys::BPF_PROG_LOAD, "BPF_PROG_LOAD"),
    (22, "BPF_MAP_FREEZE"),
];
/// What running programs takes that are attached to nothing.
const RUNNING: &[Command] = &[(sys::BPF_PROG_TEST_RUN, "BPF_PROG_TEST_RUN")];

/// The error, and who it is by, where one of these commands was refused.
pub fn explain(error: Error, commands: &[Command]) -> Error {
    if !is_refusal(&error) {
        return error;
    }
    let mut forbidden = Vec::new();
    for (command, name) in commands {
        // Not the kernel's answer to this: something is in front of it.
        if !sys::reaches_bpf(*command) {
            forbidden.push(*name);
        }
    }
    anyhow!("{error:#}: {}", by_whom(&forbidden, seccomp_filter()))
}

/// What of bpf(2) never comes to the kernel, and whether a filter can be why.
fn by_whom(forbidden: &[&str], filter: bool) -> String {
    match (forbidden, filter) {
        ([], _) => "the capabilities are held, and no seccomp filter is in the way, so a security module (SELinux, \
                    AppArmor) or the kernel's lockdown forbids it"
            .to_owned(),
        (_, true) => format!("{BY_FILTER} bpf(2) {}", forbidden.join(", ")),
        (_, false) => format!(
            "this kernel has no bpf(2) {}, or something in front of it keeps it",
            forbidden.join(", ")
        ),
    }
}

fn is_refusal(error: &Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|e| {
            [libc::EPERM, libc::EACCES, libc::ENOSYS]
                .map(Some)
                .contains(&e.raw_os_error())
        })
    })
}

/// Why the eBPF object cannot be loaded. The loader tries what the kernel has by loading programs: where it may load
/// none, it takes the kernel for one that lacks everything, and fails over that.
pub fn of_object(error: Error) -> Error {
    match try_load() {
        Err(why) => why,
        Ok(_) => error.context("cannot create the eBPF maps"),
    }
}

/// Why user space cannot run programs that are attached to nothing; `None` where it can, or where that cannot be tried.
pub fn of_running() -> Option<String> {
    let program = try_load().ok()?;
    let error = sys::run_nothing(&program).err()?;
    let error = anyhow!(error).context("programs that tracer runs by itself cannot be run");
    Some(format!("{:#}", explain(error, RUNNING)))
}

/// A program that does nothing, of the kind that most are.
fn try_load() -> Result<OwnedFd> {
    sys::load_nothing().context("cannot load any eBPF program")
}

/// What the verifier's last words mean, where they say that a program may not read the kernel's memory: the helper is
/// unknown to it then. The loader writes the older of the two where it finds the newer refused.
pub fn of_verifier(said: &str) -> Option<&'static str> {
    let refuses = said.contains("unknown func ") || said.contains("cannot use helper ");
    let reads = ["bpf_probe_read_kernel#", "bpf_probe_read#"];
    (refuses && reads.iter().any(|helper| said.contains(helper))).then_some(NO_READS)
}

/// Is a seccomp filter in force on this process?
pub fn seccomp_filter() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status
            .lines()
            .any(|line| line.strip_prefix("Seccomp:").map(str::trim) == Some("2"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifier_does_not_know_a_helper_that_lockdown_takes() {
        for said in [
            "unknown func bpf_probe_read_kernel#113",
            "unknown func bpf_probe_read#4",
            "program of this type cannot use helper bpf_probe_read_kernel#113",
        ] {
            assert_eq!(of_verifier(said), Some(NO_READS), "{said}");
        }
        for said in [
            "unknown func bpf_loop#181",
            "R1 type=scalar expected=fp; call bpf_probe_read_kernel#113",
            "",
        ] {
            assert_eq!(of_verifier(said), None, "{said}");
        }
    }

    #[test]
    fn nobody_is_blamed_who_is_not_in_the_way() {
        let of = |forbidden: &[&str], filter| by_whom(forbidden, filter);
        // A filter that lets bpf(2) through has refused nothing.
        for filter in [true, false] {
            let module = of(&[], filter);
            assert!(module.contains("security module"), "{module}");
            assert!(!module.contains(BY_FILTER), "{module}");
        }
        let filtered = of(&["BPF_PROG_LOAD"], true);
        assert!(filtered.starts_with(BY_FILTER) && filtered.ends_with("BPF_PROG_LOAD"));
        assert!(!of(&["BPF_PROG_LOAD"], false).contains("seccomp"));
    }

    #[test]
    fn another_error_stays_as_it_is() {
        let error = || Error::from(io::Error::from_raw_os_error(libc::E2BIG));
        let told = explain(error(), LOADING);
        assert_eq!(format!("{told:#}"), format!("{:#}", error()));
    }
}
