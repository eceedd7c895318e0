//! What reads bytes that somebody else wrote, each as a function of those bytes alone: the fuzz targets of
//! `fuzz/` (`cargo xtask fuzz`), whose corpus the unit tests replay. Not in the product.
//!
//! A target panics where something is wrong, and says whether it understood the bytes: a corpus of which
//! nothing is understood would test the first check only.

mod agent;
mod kernel;
mod node;

/// Reads bytes that somebody else wrote.
pub struct Target {
    /// As `cargo fuzz` knows it.
    pub name: &'static str,
    /// Where the bytes come from.
    pub from: &'static str,
    run: fn(&[u8]) -> bool,
}

const fn target(name: &'static str, from: &'static str, run: fn(&[u8]) -> bool) -> Target {
    Target { name, from, run }
}

/// All of them.
pub const TARGETS: [Target; 15] = [
    target("record", "the ring", kernel::record),
    target("question", "pods, by DNS", kernel::question),
    target(
        "cgroup",
        "the ring, and container runtimes' paths",
        kernel::cgroup,
    ),
    target("kallsyms", "/proc/kallsyms", kernel::kallsyms),
    target("proc", "/proc/locks, /proc/self/mounts", kernel::proc),
    target("config", "the file of --config", node::config),
    target("pod_file", "the file of --pods", node::pod_file),
    target("cri", "a container runtime", crate::pods::cri::fuzz::cri),
    target(
        "kubernetes",
        "an API server",
        crate::pods::kubernetes::fuzz::kubernetes,
    ),
    target("memory", "the state folder", node::memory),
    target("accept", "clients of /metrics", node::accept),
    target(
        "exposition",
        "names, on their way into /metrics",
        node::exposition,
    ),
    target("events", "an agent, by its stream of events", agent::events),
    target("snapshot", "an agent, by its snapshot", agent::snapshot),
    target("prometheus", "a Prometheus", crate::top::fuzz::prometheus),
];

/// Runs the target of this name.
///
/// # Panics
///
/// Where something is wrong, or there is no such target.
pub fn run(name: &str, bytes: &[u8]) -> bool {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target of this name").run)(bytes)
}

/// Text that may go to a terminal, in lines.
fn assert_plain(text: &str) {
    let is_plain = |c: char| c == '\n' || c == ' ' || c.is_ascii_graphic();
    assert!(text.chars().all(is_plain), "{text:?}");
}

#[cfg(test)]
mod tests;
