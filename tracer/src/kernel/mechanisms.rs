//! What each hook attaches to: its programs, and what takes their place where the kernel has not got what
//! they need. Chosen by [`Features`], never by the kernel's version.

use anyhow::{Result, bail};
use tracer_common::Hook;

use super::{features::Features, sends};

/// Said of the ends of sends where nothing was tried: some kernels take the programs and cannot attach them.
pub const IF_TAKEN: &str = " where the kernel takes it";

/// What a hook attaches to with those of its programs that `has` tells of.
pub fn mechanism(hook: Hook, has: impl Fn(&str) -> bool) -> String {
    if hook == Hook::Dns {
        let cgroup = "cgroup_skb ingress and egress at the root of cgroup2";
        let sends = sends::PROGRAMS.iter().filter(|(program, _)| has(program));
        let sends: Vec<&str> = sends.map(|(_, function)| *function).collect();
        return match &sends[..] {
            [] => cgroup.to_owned(),
            sends => format!("{cgroup}, fexit {}", sends.join(", ")),
        };
    }
    let own = TRACEPOINTS
        .iter()
        .filter(|(program, _)| programs(hook).contains(program) && has(program));
    let mut tracepoints: Vec<&str> = own.map(|(_, tracepoint)| *tracepoint).collect();
    tracepoints.dedup(); // pairs stand beside each other
    let stack = match hook {
        Hook::Gc => ", kernel stack",
        _ => "",
    };
    format!("raw_tracepoint {}{stack}", tracepoints.join(", "))
}

/// All programs of a hook.
pub const fn programs(hook: Hook) -> &'static [&'static str] {
    match hook {
        Hook::Neigh => &[
            "neigh_create",
            "neigh_settle",
            "tables",
            "walk",
            "walk_round",
        ],
        // In the order in which they are unloaded.
        Hook::Dns => &[
            "udp_sent",
            "udpv6_sent",
            "dns_ingress",
            "dns_egress",
            "dns_age",
            "dns_age_one",
        ],
        Hook::Drops => &[
            "kfree_skb",
            "count_drops",
            "udp_fail_queue",
            "conntrack_begin",
        ],
        Hook::Gc => &["neigh_cleanup", "work_start", "work_end"],
        Hook::Tcp => &[
            "tcp_state",
            "tcp_state_again",
            "tcp_retransmit",
            "tcp_retransmit_again",
            "tcp_reset",
            "tcp_reset_again",
            "tcp_error",
            "tcp_error_again",
            "tcp_age",
            "tcp_age_one",
        ],
        Hook::Cgroups => &["cgroup_mkdir"],
    }
}

/// Programs and their tracepoints, in the order in which those of a hook are attached. Ends before
/// begins: nothing is begun whose end could go unseen. The kernel runs those of one tracepoint in this
/// order: the second of a pair after the first.
pub const TRACEPOINTS: [(&str, &str); 14] = [
    ("neigh_create", "neigh_create"),
    ("kfree_skb", "kfree_skb"),
    ("count_drops", "kfree_skb"),
    ("udp_fail_queue", "udp_fail_queue_rcv_skb"),
    ("neigh_cleanup", "neigh_cleanup_and_release"),
    ("tcp_error", "inet_sk_error_report"),
    ("tcp_error_again", "inet_sk_error_report"),
    ("tcp_reset", "tcp_receive_reset"),
    ("tcp_reset_again", "tcp_receive_reset"),
    ("tcp_retransmit", "tcp_retransmit_skb"),
    ("tcp_retransmit_again", "tcp_retransmit_skb"),
    ("tcp_state", "inet_sock_set_state"),
    ("tcp_state_again", "inet_sock_set_state"),
    ("cgroup_mkdir", "cgroup_mkdir"),
];

/// Programs that mark the kernel threads at the periodic collection, and their tracepoints.
pub const PERIODIC_WORK: [(&str, &str); 2] = [
    ("work_start", "workqueue_execute_start"),
    ("work_end", "workqueue_execute_end"),
];

/// Programs, and those that take their place: as exact, but user space runs them more often.
const INSTEAD: [(&str, &str); 3] = [
    ("walk", "walk_round"),
    ("dns_age", "dns_age_one"),
    ("tcp_age", "tcp_age_one"),
];

/// Programs that a hook does without, and what is lost then.
const DISPENSABLE: &[(&str, &str)] = &[
    (
        "conntrack_begin",
        "what conntrack refuses is not told from what rules do",
    ),
    (
        "udp_fail_queue",
        "datagrams lost in full receive buffers are not counted",
    ),
    (
        "tcp_error",
        "attempts that an ICMP error ends early count as result=\"other\" or \"timeout\"",
    ),
    ("tcp_error_again", ""),
];

/// Programs that are attached to nothing, for user space runs them; and what is lost where it cannot.
const RUN: [(Hook, &[&str], &str); 4] = [
    (
        Hook::Dns,
        &["dns_age", "dns_age_one"],
        "a lookup that nobody answers would never end",
    ),
    (
        Hook::Neigh,
        &["neigh_settle", "tables", "walk", "walk_round"],
        "entries of the neighbour tables are not counted, the host's namespace is not known, and a refusal may count \
         late",
    ),
    (
        Hook::Tcp,
        &["tcp_age", "tcp_age_one"],
        "requests that nobody answers are not found",
    ),
    (
        Hook::Drops,
        &["conntrack_begin"],
        "what conntrack refuses is not told from what rules do",
    ),
];

/// What is lost where the kernel gives no reasons with `kfree_skb`.
const NO_REASONS: &str = "packets dropped are not counted by reason, and causes of lookups are told as far as \
     neighbours, netfilter and routes go, and dead backends are not told from their Service: this kernel gives no drop \
     reasons, or few (they came with 5.18)";

/// What of a hook is loaded, and what is lost.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Programs.
    pub load: Vec<&'static str>,
    /// For people; empty where nothing is.
    pub lost: Vec<String>,
}

impl Plan {
    /// Fails where the hook cannot do without what the kernel lacks.
    pub fn of(hook: Hook, features: &Features) -> Result<Self> {
        let mut plan = Self::default();
        for name in programs(hook) {
            if is_extra(name) {
                continue;
            }
            if *name == "count_drops" && !features.drop_reasons {
                plan.lost.push(NO_REASONS.to_owned());
                continue;
            }
            let Some(why) = features.why_not(name) else {
                plan.load.push(name);
                continue;
            };
            if let Some((_, other)) = INSTEAD.iter().find(|(program, _)| program == name) {
                plan.load.push(other);
            } else if let Some(lost) = dispensable(name) {
                if !lost.is_empty() {
                    plan.lost.push(format!("{lost}: {why}"));
                }
            } else {
                bail!(why);
            }
        }
        Ok(plan)
    }

    /// What is left of it where user space cannot run programs. Fails where what the hook counts would be false.
    pub fn without_runs(mut self, hook: Hook, why: &str) -> Result<Self> {
        let Some((_, programs, lost)) = RUN.iter().find(|(of, ..)| *of == hook) else {
            return Ok(self);
        };
        if hook == Hook::Dns {
            bail!("{lost}: {why}");
        }
        let all = self.load.len();
        self.load.retain(|name| !programs.contains(name));
        if self.load.len() < all {
            self.lost.push(format!("{lost}: {why}"));
        }
        Ok(self)
    }

    /// Is the program to be loaded?
    pub fn has(&self, program: &str) -> bool {
        self.load.contains(&program)
    }
}

/// What takes a program's place if the kernel refuses it after all. None for `dns_age`: lookups wait in other maps there,
/// as the other programs were made.
pub fn stand_in(name: &str) -> Option<&'static str> {
    let found = INSTEAD.iter().find(|(program, _)| *program == name);
    found.map(|(_, other)| *other).filter(|_| name != "dns_age")
}

/// What a hook loses that goes on without a program; empty where another says it. `None` where it cannot.
pub fn dispensable(name: &str) -> Option<&'static str> {
    let found = DISPENSABLE.iter().find(|(program, _)| *program == name);
    found.map(|(_, lost)| *lost)
}

/// Is a program not loaded with the others of its hook, but only where it is needed, or possible?
fn is_extra(name: &str) -> bool {
    let mut extra = PERIODIC_WORK.iter().chain(&sends::PROGRAMS);
    extra.any(|(program, _)| *program == name) || INSTEAD.iter().any(|(_, other)| *other == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_gives_way_to_another_or_is_missed() {
        let nothing = Features::default();
        assert!(Plan::of(Hook::Neigh, &nothing).is_err(), "no neigh_create");
        assert!(Plan::of(Hook::Cgroups, &nothing).is_err());
        let plan = Plan::of(Hook::Dns, &nothing).unwrap();
        assert_eq!(plan.load, ["dns_ingress", "dns_egress", "dns_age_one"]);
        assert_eq!(plan.lost, [""; 0]);
    }

    #[test]
    fn where_nothing_can_be_run_no_lookup_is_counted() {
        let features = Features::default();
        let dns = Plan::of(Hook::Dns, &features).unwrap();
        let why = dns.without_runs(Hook::Dns, "refused").unwrap_err();
        assert!(why.to_string().ends_with("never end: refused"), "{why}");
        let tcp = Plan {
            load: vec!["tcp_state", "tcp_age"],
            lost: Vec::new(),
        };
        let tcp = tcp.without_runs(Hook::Tcp, "refused").unwrap();
        assert_eq!((tcp.load, tcp.lost.len()), (vec!["tcp_state"], 1));
        // What is lost anyhow is said once.
        let drops = Plan {
            load: vec!["kfree_skb"],
            lost: Vec::new(),
        };
        let drops = drops.without_runs(Hook::Drops, "refused").unwrap();
        assert_eq!((drops.load, drops.lost.len()), (vec!["kfree_skb"], 0));
    }

    #[test]
    fn what_is_attached_is_told_and_no_more() {
        let all = |hook| mechanism(hook, |_| true);
        assert_eq!(all(Hook::Neigh), "raw_tracepoint neigh_create");
        assert_eq!(
            all(Hook::Drops),
            "raw_tracepoint kfree_skb, udp_fail_queue_rcv_skb"
        );
        assert_eq!(
            all(Hook::Gc),
            "raw_tracepoint neigh_cleanup_and_release, kernel stack"
        );
        assert!(all(Hook::Dns).ends_with("cgroup2, fexit udp_sendmsg, udpv6_sendmsg"));
        let old = mechanism(Hook::Dns, |program| program.starts_with("dns"));
        assert!(old.ends_with("cgroup2"), "{old}");
        assert_eq!(
            mechanism(Hook::Tcp, |program| !program.starts_with("tcp_error")),
            "raw_tracepoint tcp_receive_reset, tcp_retransmit_skb, inet_sock_set_state"
        );
    }
}
