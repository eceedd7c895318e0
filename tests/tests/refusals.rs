//! What an agent cannot have: exit code 1, one line that says what and what to do, nothing left.

use std::fs;
use std::net::TcpListener;

use tests::Agent;
use tests::agent::run_refused;
use tests::bpffs::BpfFs;
use tests::host::HostLock;
use tests::leftovers::Leftovers;
use tests::rights::{ForAnyone, words};

/// Runs `f` alone on this host and panics if it leaves something in the kernel.
fn leaving_nothing(f: impl FnOnce()) {
    let _lock = HostLock::take();
    let before = Leftovers::now();
    f();
    before.assert_none_new();
}

#[test]
fn without_root() {
    leaving_nothing(|| {
        let copy = ForAnyone::copy();
        let wrapper = copy.wrapper(&[]);
        let wrapper = words(&wrapper);
        run_refused(&wrapper, &[]).assert_refused(1, &["root"]);
        // With its default sockets and folders too: what it lacks is said first.
        let [api, state] = ["unix:/run/tracer.sock", "/sys/fs/bpf/tracer"];
        run_refused(&wrapper, &["--api", api, "--state-dir", state]).assert_refused(1, &["root"]);
    });
}

#[test]
fn as_root_of_a_user_namespace() {
    leaving_nothing(|| {
        let wrapper = ["unshare", "--user", "--map-root-user"];
        run_refused(&wrapper, &[]).assert_refused(1, &["CAP_BPF", "user namespace"]);
    });
}

#[test]
fn without_type_information() {
    leaving_nothing(|| {
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        let empty = folder.path().to_str().expect("path is text");
        let script = "mount --bind \"$0\" /sys/kernel/btf && exec \"$@\"";
        let wrapper = ["unshare", "--mount", "sh", "-c", script, empty];
        run_refused(&wrapper, &[]).assert_refused(1, &["BTF"]);
    });
}

#[test]
fn without_cgroup2_the_other_hooks_go_on() {
    leaving_nothing(|| {
        let script = "while read -r _ where type _; do \
                      if [ \"$type\" = cgroup2 ]; then umount --lazy \"$where\" || exit 9; fi; \
                      done </proc/self/mounts; exec \"$@\"";
        let wrapper = ["unshare", "--mount", "sh", "-c", script, "sh"];
        let mut agent = Agent::launch(&wrapper, &[]);
        agent.wait_ready();
        let metrics = agent.metrics();
        let state =
            |hook, state| metrics.get("tracer_hook_state", &[("hook", hook), ("state", state)]);
        assert_eq!(state("dns", "unavailable"), Some(1.0));
        assert_eq!(state("neigh", "attached"), Some(1.0));
        let snapshot = agent.snapshot();
        let hooks = snapshot["hooks"]
            .as_array()
            .expect("the snapshot has hooks");
        let dns = hooks.iter().find(|hook| hook["name"] == "dns");
        let reason = dns
            .and_then(|dns| dns["reason"].as_str())
            .unwrap_or_default();
        assert!(reason.contains("cgroup"), "{snapshot}");
        assert!(
            agent.stderr().contains("cgroup"),
            "it says so: {}",
            agent.stderr()
        );
        agent.stop_cleanly();
    });
}

#[test]
fn a_port_in_use() {
    leaving_nothing(|| {
        let taken = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
        let address = taken.local_addr().expect("it has an address").to_string();
        run_refused(&[], &["--listen", &address]).assert_refused(1, &[&address, "in use"]);
    });
}

#[test]
fn a_state_folder_that_cannot_be() {
    leaving_nothing(|| {
        let file = tempfile::NamedTempFile::new().expect("temporary files can be made");
        let path = file.path().join("state");
        let path = path.to_str().expect("path is text");
        run_refused(&[], &["--state-dir", path]).assert_refused(1, &[path]);
    });
}

#[test]
fn a_state_folder_that_another_agent_holds() {
    leaving_nothing(|| {
        let bpffs = BpfFs::mount();
        let path = bpffs.join("tracer");
        let path = path.to_str().expect("path is text");
        let first = Agent::start(&["--state-dir", path]);
        let pid = first.pid().to_string();
        run_refused(&[], &["--state-dir", path]).assert_refused(1, &[path, &pid]);
        assert_eq!(first.snapshot()["node"], "lab", "the first one goes on");
        first.stop_cleanly();
        let second = Agent::start(&["--state-dir", path]);
        second.stop_cleanly();
    });
}

#[test]
fn a_state_folder_on_another_file_system() {
    leaving_nothing(|| {
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        let path = folder.path().to_str().expect("path is text");
        run_refused(&[], &["--state-dir", path]).assert_refused(1, &[path, "bpf"]);
    });
}

#[test]
fn a_socket_path_that_is_something_else() {
    leaving_nothing(|| {
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        let file = folder.path().join("precious");
        fs::write(&file, "keep me").expect("file can be written");
        let path = file.to_str().expect("path is text");
        run_refused(&[], &["--api", &format!("unix:{path}")]).assert_refused(1, &[path]);
        let text = fs::read_to_string(&file).expect("the file is still there");
        assert_eq!(text, "keep me");

        let missing = folder.path().join("no/such/folder/api.sock");
        let path = missing.to_str().expect("path is text");
        run_refused(&[], &["--api", &format!("unix:{path}")]).assert_refused(1, &[path]);
    });
}

#[test]
fn a_second_agent_on_the_same_socket() {
    let _lock = HostLock::take();
    let first = Agent::start(&[]);
    let path = first.socket();
    let path = path.to_str().expect("path is text");
    run_refused(&[], &["--api", &first.address()]).assert_refused(1, &[path]);
    assert_eq!(first.snapshot()["node"], "lab", "the first one goes on");
    first.stop_cleanly();
}

#[test]
fn a_socket_left_by_a_killed_agent_is_taken_over() {
    leaving_nothing(|| {
        let folder = Agent::start(&[]).kill();
        assert!(folder.path().join("api.sock").exists());
        let mut agent = Agent::launch_in(folder, &[], &["--node", "lab"]);
        agent.wait_ready();
        assert_eq!(agent.snapshot()["node"], "lab");
        agent.stop_cleanly();
    });
}
