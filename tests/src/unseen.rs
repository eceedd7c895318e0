//! Kernel events that no BPF program gets to see.
//!
//! Some virtual machines run with a kernel that keeps their supervisor, process 1, from being traced:
//! what a softirq does while it interrupts one of its threads reaches ftrace's ring, but neither a BPF
//! program nor a stack trace (measured on a 6.18.44 of such a machine: of 10,000 connection attempts 0
//! to 16 ended so, the kernel counts no miss, and all others were seen). Nothing that runs as a BPF
//! program could count these; so tests that compare exactly ask here how many there were.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};

const TRACEFS: &str = "/sys/kernel/tracing";

/// Notes every occurrence of some tracepoints while it lives.
#[derive(Debug)]
pub struct Unseen {
    /// A trace instance of its own.
    instance: PathBuf,
}

/// One occurrence.
#[derive(Clone, Debug)]
pub struct Traced {
    /// As ftrace prints it.
    pub line: String,
    /// A thread of process 1 was current: no BPF program saw it.
    pub unseen: bool,
}

impl Traced {
    /// Is it of this tracepoint, with these fields? `… neigh_create: family 2 dev e7 …`
    pub fn is(&self, tracepoint: &str, fields: &[(&str, &str)]) -> bool {
        let name = tracepoint.rsplit('/').next().unwrap_or(tracepoint);
        let Some((_, said)) = self.line.split_once(&format!(" {name}: ")) else {
            return false;
        };
        let words: Vec<&str> = said.split_whitespace().collect();
        let has =
            |(field, value): &(&str, &str)| words.windows(2).any(|two| two == [*field, *value]);
        fields.iter().all(has)
    }
}

fn mount_tracefs() {
    if !Path::new(TRACEFS).join("instances").exists() {
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tracefs", TRACEFS, "tracefs", flags, None)
            .unwrap_or_else(|e| panic!("cannot mount tracefs on {TRACEFS}: {e}"));
    }
}

/// Does this kernel's tracepoint (`tcp/tcp_retransmit_skb`) have such a field?
pub fn has_field(tracepoint: &str, field: &str) -> bool {
    format_of(tracepoint).contains(&format!(" {field};"))
}

/// Does this kernel's tracepoint know a value by such a name?
pub fn has_value(tracepoint: &str, value: &str) -> bool {
    format_of(tracepoint).contains(&format!("\"{value}\""))
}

fn format_of(tracepoint: &str) -> String {
    mount_tracefs();
    let path = format!("{TRACEFS}/events/{tracepoint}/format");
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {path}: {e}"))
}

/// Has this kernel such a tracepoint, `group/name` as in tracefs?
pub fn has_tracepoint(tracepoint: &str) -> bool {
    mount_tracefs();
    Path::new(TRACEFS).join("events").join(tracepoint).exists()
}

/// Does this kernel say why it frees a packet? 5.17's few reasons are taken for none.
pub fn has_drop_reasons() -> bool {
    has_field("skb/kfree_skb", "reason") && has_type_name("SKB_DROP_REASON_NETFILTER_DROP")
}

/// Do the kernel's types have this name: of a type, a member, a value?
pub fn has_type_name(name: &str) -> bool {
    let types = fs::read("/sys/kernel/btf/vmlinux").expect("the kernel has BTF");
    types
        .split(|byte| *byte == 0)
        .any(|word| word == name.as_bytes())
}

impl Unseen {
    /// Watches tracepoints, each `group/name` as in tracefs, with a filter. One that this kernel has not
    /// is left out: no program of tracer's can be there either.
    pub fn watch(tracepoints: &[(&str, &str)]) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        mount_tracefs();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("tracer-tests-{}-{number}", process::id());
        let instance = Path::new(TRACEFS).join("instances").join(name);
        fs::create_dir(&instance)
            .unwrap_or_else(|e| panic!("cannot make {}: {e}", instance.display()));
        let unseen = Self { instance };
        unseen.set("buffer_size_kb", "16384"); // for each CPU: 100,000 events
        for (tracepoint, filter) in tracepoints {
            let events = format!("events/{tracepoint}");
            if unseen.instance.join(&events).exists() {
                unseen.set(&format!("{events}/filter"), filter);
                unseen.set(&format!("{events}/enable"), "1");
            }
        }
        unseen
    }

    /// How many there were so far while a thread of process 1 was current.
    pub fn count(&self) -> u64 {
        let unseen = |traced: &&Traced| traced.unseen;
        self.all().iter().filter(unseen).count() as u64
    }

    /// All of them so far.
    pub fn all(&self) -> Vec<Traced> {
        for entry in fs::read_dir(self.instance.join("per_cpu")).expect("the instance is there") {
            let path = entry.expect("the folder can be read").path().join("stats");
            let text = fs::read_to_string(path).expect("the statistics can be read");
            assert!(
                text.lines().any(|line| line == "overrun: 0"),
                "the lab failed: more events than its trace holds: {text}"
            );
        }
        let threads: Vec<String> = fs::read_dir("/proc/1/task")
            .expect("process 1 is there")
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        let trace = fs::read(self.instance.join("trace")).expect("the trace can be read");
        String::from_utf8_lossy(&trace)
            .lines()
            .filter_map(|line| {
                let thread = thread(line)?;
                Some(Traced {
                    line: line.to_owned(),
                    unseen: threads.iter().any(|one| one == thread),
                })
            })
            .collect()
    }

    fn set(&self, file: &str, value: &str) {
        let path = self.instance.join(file);
        fs::write(&path, value)
            .unwrap_or_else(|e| panic!("cannot write {value} to {}: {e}", path.display()));
    }
}

impl Drop for Unseen {
    fn drop(&mut self) {
        // Else the folder is busy.
        let _ = fs::write(self.instance.join("events/enable"), "0");
        if let Err(e) = fs::remove_dir(&self.instance) {
            eprintln!("cannot remove {}: {e}", self.instance.display());
        }
    }
}

/// The current thread of a line such as `tokio-rt-worker-75   [001] ..s1. 39002.324022: …`.
fn thread(line: &str) -> Option<&str> {
    let (task, _) = line.split_once(" [")?;
    let (_, thread) = task.trim_end().rsplit_once('-')?;
    thread
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then_some(thread)
}

#[cfg(test)]
mod tests {
    use super::{Traced, thread};

    #[test]
    fn the_thread_of_a_line_is_found_whatever_its_name() {
        let line = "          <idle>-0       [001] ..s1. 39002.324022: inet_sock_set_state: family=AF_INET";
        assert_eq!(thread(line), Some("0"));
        assert_eq!(
            thread(" tokio-rt-worker-75      [001] ..s1. 1.0: x: y"),
            Some("75")
        );
        assert_eq!(
            thread("# entries-in-buffer/entries-written: 4/4   #P:2"),
            None
        );
    }

    #[test]
    fn a_line_is_told_by_its_tracepoint_and_fields() {
        let line = "tokio-rt-worker-75 [001] ..s1. 1.0: neigh_create: family 10 dev eth0 entries 2 \
                    primary_key4 0.0.0.0 primary_key6 ff02::16 created 1 gc_exempt 0";
        let traced = Traced {
            line: line.to_owned(),
            unseen: true,
        };
        let creation = "neigh/neigh_create";
        let (ipv6, created) = (("family", "10"), ("created", "1"));
        assert!(traced.is(creation, &[ipv6, created]));
        assert!(!traced.is(creation, &[("family", "2"), created]));
        assert!(!traced.is(creation, &[ipv6, ("created", "0")]));
        assert!(!traced.is("neigh/neigh_cleanup_and_release", &[ipv6]));
        let line = "x-75 [001] ..s1. 1.0: kfree_skb: skbaddr=0 rx_sk=0 protocol=2048 \
                    location=arp_solicit+0x1/0x2 reason: NEIGH_CREATEFAIL";
        let traced = Traced {
            line: line.to_owned(),
            unseen: true,
        };
        assert!(traced.is("skb/kfree_skb", &[("reason:", "NEIGH_CREATEFAIL")]));
        assert!(!traced.is("skb/kfree_skb", &[("reason:", "NEIGH_FAILED")]));
    }
}
