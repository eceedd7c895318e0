//! Rights alone do not do: what forbids bpf(2), or a part of it, is named, and nothing else is blamed.

use tests::Agent;
use tests::agent::run_refused;
use tests::doctor::Doctor;
use tests::host::HostLock;
use tests::leftovers::Leftovers;
use tests::rights::{Command, under_a_filter, without_bpf, without_command};

/// Runs `f` alone on this host and panics if it leaves something in the kernel.
fn leaving_nothing(f: impl FnOnce()) {
    let _lock = HostLock::take();
    let before = Leftovers::now();
    f();
    before.assert_none_new();
}

fn assert_filter_is_blamed(doctor: &Doctor, command: &str) {
    assert_eq!(doctor.json["seccomp_filter"], true);
    assert_eq!(doctor.named("capabilities", "CAP_BPF")["held"], true);
    for hook in ["neigh", "dns"] {
        let (_, reason) = doctor.hook(hook);
        for word in ["seccomp", command] {
            assert!(reason.contains(word), "{word} in {reason}");
        }
    }
    assert!(doctor.next().contains("seccomp"), "{}", doctor.next());
}

#[test]
fn bpf_by_a_filter() {
    leaving_nothing(|| {
        let doctor = without_bpf(|| Doctor::ask(&[], &[]));
        assert!(!doctor.will_do());
        assert_eq!(doctor.hook("neigh").0, "unavailable");
        assert_filter_is_blamed(&doctor, "BPF_MAP_CREATE");
        let doctor = Doctor::ask(&["setpriv", "--bounding-set=-all"], &[]);
        assert_eq!(doctor.json["seccomp_filter"], false);
    });
}

/// Loading alone: the loader takes the kernel for one that lacks everything, and doctor and agent do not.
#[test]
fn loading_by_a_filter() {
    leaving_nothing(|| {
        without_command(Command::ProgLoad, || {
            let doctor = Doctor::ask(&[], &[]);
            assert!(!doctor.will_do());
            assert_filter_is_blamed(&doctor, "BPF_PROG_LOAD");
            let (_, reason) = doctor.hook("neigh");
            for nonsense in ["relocating", "BPF_MAP_CREATE", "maps"] {
                assert!(!reason.contains(nonsense), "{reason}");
            }
            run_refused(&[], &[]).assert_refused(1, &["seccomp", "BPF_PROG_LOAD"]);
        });
    });
}

/// Running alone: nobody would end the lookups that nobody answers, so none is counted.
#[test]
fn running_by_a_filter() {
    leaving_nothing(|| {
        let states = [
            ("neigh", "degraded"),
            ("dns", "unavailable"),
            ("tcp", "degraded"),
            ("gc", "attached"),
        ];
        without_command(Command::ProgTestRun, || {
            let doctor = Doctor::ask(&[], &[]);
            assert!(!doctor.will_do());
            assert_filter_is_blamed(&doctor, "BPF_PROG_TEST_RUN");
            let mut agent = Agent::launch(&[], &[]);
            agent.wait_ready();
            let metrics = agent.metrics();
            for (hook, state) in states {
                assert_eq!(doctor.hook(hook).0, state, "{hook}");
                let is = [("hook", hook), ("state", state)];
                assert_eq!(metrics.count("tracer_hook_state", &is), 1, "{hook}");
            }
            let errors = agent.stderr();
            assert!(!errors.contains("cannot read"), "{errors}");
            agent.stop_cleanly();
        });
    });
}

/// A filter is in force in most pods; where it lets bpf(2) through, something else is why no hook runs.
#[test]
fn a_filter_that_refuses_nothing_is_not_blamed() {
    leaving_nothing(|| {
        let refused = [
            "neigh_create",
            "dns_ingress",
            "kfree_skb",
            "neigh_cleanup",
            "tcp_state",
            "cgroup_mkdir",
        ]
        .map(|program| format!("load:{program}"));
        let refused = format!("TRACER_WITHOUT={}", refused.join(","));
        let doctor = under_a_filter(|| Doctor::ask(&["env", &refused], &[]));
        assert!(!doctor.will_do());
        assert_eq!(doctor.json["seccomp_filter"], true);
        let next = doctor.next();
        assert!(!next.is_empty() && !next.contains("seccomp"), "{next}");
        let doctor = under_a_filter(|| Doctor::ask(&[], &[]));
        assert!(doctor.will_do(), "{:#}", doctor.json);
    });
}
