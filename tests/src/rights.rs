//! Less than root: wrappers that take capabilities away, another user, a filter of system calls.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::thread;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};
use tempfile::TempDir;

use crate::agent::Agent;
use crate::process::tracer_path;

/// What the main job needs, as setpriv(1) calls it.
pub const LEAST: &[&str] = &["bpf", "perfmon", "net_admin"];

/// The usual one without rights.
const NOBODY: u32 = 65534;
/// Number of bpf(2) (asm/unistd.h).
const BPF: i64 = if cfg!(target_arch = "aarch64") {
    280
} else {
    321
};

fn set(capabilities: &[&str]) -> String {
    capabilities
        .iter()
        .fold("-all".to_owned(), |set, name| set + ",+" + name)
}

/// A wrapper: root with these capabilities and no other.
pub fn root_with(capabilities: &[&str]) -> Vec<String> {
    let bounding = format!("--bounding-set={}", set(capabilities));
    ["setpriv", "--inh-caps=-all", &bounding]
        .map(str::to_owned)
        .to_vec()
}

/// A wrapper's words, as commands take them.
pub fn words(wrapper: &[String]) -> Vec<&str> {
    wrapper.iter().map(String::as_str).collect()
}

/// Ambient capabilities survive exec.
fn nobody_with(capabilities: &[&str]) -> Vec<String> {
    let set = set(capabilities);
    let mut words = vec![
        "setpriv".to_owned(),
        format!("--reuid={NOBODY}"),
        format!("--regid={NOBODY}"),
        "--clear-groups".to_owned(),
    ];
    words
        .extend(["inh-caps", "ambient-caps", "bounding-set"].map(|what| format!("--{what}={set}")));
    words
}

/// A copy of the binary under test that anyone may run, wherever the build is.
#[derive(Debug)]
pub struct ForAnyone {
    _folder: TempDir,
    path: PathBuf,
}

impl ForAnyone {
    /// Copies it.
    pub fn copy() -> Self {
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        let open = PermissionsExt::from_mode(0o755);
        fs::set_permissions(folder.path(), open).expect("folder can be opened");
        let path = folder.path().join("tracer");
        fs::copy(tracer_path(), &path).expect("binary can be copied");
        Self {
            _folder: folder,
            path,
        }
    }

    /// A wrapper: a user without rights, with these capabilities, who runs the copy in the place of
    /// the binary.
    pub fn wrapper(&self, capabilities: &[&str]) -> Vec<String> {
        let path = self.path.to_str().expect("path is text");
        let mut words = nobody_with(capabilities);
        words.extend(["sh", "-c", "shift; exec \"$0\" \"$@\"", path].map(str::to_owned));
        words
    }

    /// An agent of a user without rights, with these capabilities; not waited for.
    pub fn agent(&self, capabilities: &[&str], arguments: &[&str]) -> Agent {
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        chown(folder.path(), Some(NOBODY), Some(NOBODY)).expect("folders can be given away");
        let wrapper = self.wrapper(capabilities);
        Agent::launch_in(folder, &words(&wrapper), arguments)
    }
}

/// A command of bpf(2) (include/uapi/linux/bpf.h).
#[derive(Clone, Copy, Debug)]
pub enum Command {
    /// `BPF_PROG_LOAD`.
    ProgLoad = 5,
    /// `BPF_PROG_TEST_RUN`.
    ProgTestRun = 10,
}

/// Runs `f` on a thread that may not call bpf(2): EPERM, as the runtimes' seccomp profiles have it. A
/// process started by it may not either.
pub fn without_bpf<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    under_filter(BTreeMap::from([(BPF, Vec::new())]), f)
}

/// The same, and only this command is refused.
pub fn without_command<T: Send>(command: Command, f: impl FnOnce() -> T + Send) -> T {
    let is = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, command as u64);
    let rule = is.and_then(|is| SeccompRule::new(vec![is]));
    let rule = rule.expect("it is a rule");
    under_filter(BTreeMap::from([(BPF, vec![rule])]), f)
}

/// The same, and nothing is refused: as in most containers, where a filter is in force that minds others.
pub fn under_a_filter<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    under_filter(BTreeMap::new(), f)
}

fn under_filter<T: Send>(
    refused: BTreeMap<i64, Vec<SeccompRule>>,
    f: impl FnOnce() -> T + Send,
) -> T {
    let architecture = std::env::consts::ARCH.try_into().expect("it is known");
    let filter = SeccompFilter::new(
        refused,
        SeccompAction::Allow,
        SeccompAction::Errno(rustix::io::Errno::PERM.raw_os_error() as u32),
        architecture,
    );
    let filter: BpfProgram = filter.and_then(TryInto::try_into).expect("it is a filter");
    thread::scope(|scope| {
        let filtered = scope.spawn(|| {
            apply_filter(&filter).expect("filters can be set");
            f()
        });
        filtered.join().expect("it ends well")
    })
}
