//! What the running kernel has for the programs, besides fields: tracepoints, BPF helpers, functions
//! to attach to. All by its BTF, never by its version: distributions carry much of newer kernels.

use std::{collections::BTreeSet, fs};

use super::{btf::Btf, without::is_without};

/// What a program cannot be loaded or attached without.
#[derive(Debug)]
pub struct Needs {
    /// Its name in the object.
    pub program: &'static str,
    tracepoints: &'static [&'static str],
    /// As in include/uapi/linux/bpf.h.
    helpers: &'static [&'static str],
}

const fn needs(
    program: &'static str,
    tracepoints: &'static [&'static str],
    helpers: &'static [&'static str],
) -> Needs {
    Needs {
        program,
        tracepoints,
        helpers,
    }
}

/// Every program of the object that attaches to something, or that calls what came after 5.10.
pub const PROGRAMS: &[Needs] = &[
    needs("neigh_create", &["neigh_create"], &["bpf_jiffies64"]),
    needs("walk", &[], &["bpf_loop"]),
    needs("dns_age", &[], &["bpf_for_each_map_elem"]),
    needs("kfree_skb", &["kfree_skb"], &[]),
    needs("count_drops", &["kfree_skb"], &[]),
    needs("udp_fail_queue", &["udp_fail_queue_rcv_skb"], &[]),
    needs("conntrack_begin", &[], &["bpf_loop"]),
    needs("neigh_cleanup", &["neigh_cleanup_and_release"], &[]),
    needs("work_start", &["workqueue_execute_start"], &[]),
    needs("work_end", &["workqueue_execute_end"], &[]),
    needs("tcp_state", &["inet_sock_set_state"], &[]),
    needs("tcp_state_again", &["inet_sock_set_state"], &[]),
    needs("tcp_retransmit", &["tcp_retransmit_skb"], &[]),
    needs("tcp_retransmit_again", &["tcp_retransmit_skb"], &[]),
    needs("tcp_reset", &["tcp_receive_reset"], &[]),
    needs("tcp_reset_again", &["tcp_receive_reset"], &[]),
    needs("tcp_error", &["inet_sk_error_report"], &[]),
    needs("tcp_error_again", &["inet_sk_error_report"], &[]),
    needs("tcp_age", &[], &["bpf_for_each_map_elem"]),
    needs("cgroup_mkdir", &["cgroup_mkdir"], &[]),
];

/// What came after 5.10, the oldest kernel that tracer runs on, and when; for the reasons that
/// people read.
const SINCE: &[(&str, &str)] = &[
    ("bpf_for_each_map_elem", "5.13"),
    ("inet_sk_error_report", "5.14"),
    ("bpf_loop", "5.17"),
];

/// Functions that a program may attach to (fentry, kprobe) where the kernel has them under that
/// name: neither inlined nor cloned.
const FUNCTIONS: &[&str] = &[
    "neigh_destroy",
    "udp_sendmsg",
    "udpv6_sendmsg",
    "inet_sk_error_report",
    "sk_error_report",
];

/// What each map was charged (include/linux/bpf.h, 5.3 to 5.10).
const MAP_MEMORY: &str = "bpf_map_memory";
/// What made maps that allocate at run time safe for tracing programs (6.1), and ended the kernel's warning.
const MEM_ALLOC: &str = "bpf_mem_alloc";

/// As sysctl(8) has it.
pub const PANIC_ON_WARN: &str = "kernel.panic_on_warn";

/// What the kernel's BTF says that it has.
#[derive(Clone, Debug, Default)]
pub struct Features {
    /// `kfree_skb` says why a packet is dropped, and netfilter's reason is among the reasons: since 5.18. 5.17's few are
    /// numbered from 0, which says since then that nothing was dropped.
    pub drop_reasons: bool,
    /// A namespace has its cookie from its making: since 5.12. Before, it was given one when it
    /// was first asked for (`atomic64_t`), so most have none.
    pub net_cookie: bool,
    types: BTreeSet<&'static str>,
    tracepoints: BTreeSet<&'static str>,
    helpers: BTreeSet<String>,
    functions: BTreeSet<&'static str>,
}

impl Features {
    /// Looks everything up.
    pub fn resolve(btf: &Btf) -> Self {
        let reasons = btf.enumeration("skb_drop_reason").unwrap_or_default();
        let wanted = PROGRAMS.iter().flat_map(|needs| needs.tracepoints);
        // The kernel's own list of helpers, as `BPF_FUNC_loop`.
        let helpers = btf.enumeration("bpf_func_id").unwrap_or_default();
        Self {
            drop_reasons: !is_without("drop_reasons")
                && btf
                    .tracepoint_argument("kfree_skb", "skb_drop_reason")
                    .is_ok()
                && reasons.contains_key("SKB_DROP_REASON_NETFILTER_DROP"),
            net_cookie: btf.is_integer("net", "net_cookie"),
            types: [MAP_MEMORY, MEM_ALLOC]
                .into_iter()
                .filter(|name| btf.size(name).is_ok())
                .collect(),
            tracepoints: wanted
                .filter(|name| btf.tracepoint_arguments(name).is_ok() && !is_without(name))
                .copied()
                .collect(),
            helpers: helpers
                .keys()
                .filter_map(|name| Some(format!("bpf_{}", name.strip_prefix("BPF_FUNC_")?)))
                .filter(|name| !is_without(name))
                .collect(),
            functions: FUNCTIONS
                .iter()
                .filter(|name| btf.has_function(name))
                .copied()
                .collect(),
        }
    }

    /// Do maps count against `RLIMIT_MEMLOCK`? Before 5.11.
    pub fn charges_memlock(&self) -> bool {
        self.types.contains(MAP_MEMORY)
    }

    /// Why nothing may be loaded on this node, whatever the kernel would say: before 6.1 loading makes it warn, once, for
    /// maps of tracing programs that allocate at run time (`check_map_prog_compatibility`, kernel/bpf/verifier.c).
    pub fn why_never(&self) -> Option<String> {
        let panics = fs::read_to_string("/proc/sys/kernel/panic_on_warn")
            .is_ok_and(|value| value.trim() != "0");
        (!self.types.contains(MEM_ALLOC) && panics).then(|| {
            format!(
                "the node would panic: this kernel (before 6.1) warns of the maps that tracer's programs use, and \
                 {PANIC_ON_WARN} is set; `sysctl -w {PANIC_ON_WARN}=0`, or a newer kernel"
            )
        })
    }

    /// Why a program cannot be loaded or attached; `None` where nothing is known to be missing.
    pub fn why_not(&self, program: &str) -> Option<String> {
        let needs = PROGRAMS.iter().find(|needs| needs.program == program)?;
        if let Some(name) = needs.tracepoints.iter().find(|n| !self.has_tracepoint(n)) {
            return Some(format!(
                "this kernel has no tracepoint {name}{}",
                since(name)
            ));
        }
        let name = needs.helpers.iter().find(|n| !self.has_helper(n))?;
        Some(format!(
            "this kernel has no BPF helper {name}{}",
            since(name)
        ))
    }

    /// Is there a tracepoint of that name? Only those that a program attaches to are known.
    pub fn has_tracepoint(&self, name: &str) -> bool {
        self.tracepoints.contains(name)
    }

    /// Has BPF that helper, such as `bpf_loop`?
    pub fn has_helper(&self, name: &str) -> bool {
        self.helpers.contains(name)
    }

    /// The functions to attach to that are known, by name.
    pub fn functions(&self) -> impl Iterator<Item = &'static str> {
        self.functions.iter().copied()
    }

    /// Is there a function of that name to attach to? Only those of [`FUNCTIONS`] are known.
    pub fn has_function(&self, name: &str) -> bool {
        self.functions.contains(name)
    }
}

/// In which kernel something came, where it is worth a word.
fn since(name: &str) -> String {
    SINCE
        .iter()
        .find(|(n, _)| *n == name)
        .map_or_else(String::new, |(_, version)| {
            format!(" (it came with {version})")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_lacks_its_tracepoint_or_its_helper() {
        let features = Features {
            tracepoints: ["neigh_create"].into(),
            helpers: ["bpf_jiffies64".to_owned()].into(),
            ..Features::default()
        };
        assert_eq!(features.why_not("neigh_create"), None);
        assert_eq!(
            features.why_not("walk").unwrap(),
            "this kernel has no BPF helper bpf_loop (it came with 5.17)"
        );
        assert_eq!(
            features.why_not("cgroup_mkdir").unwrap(),
            "this kernel has no tracepoint cgroup_mkdir"
        );
    }
}
