//! What an agent cannot have: exit code 1, one line that says what and what to do, nothing left.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use tests::Agent;
use tests::agent::run_refused;
use tests::host::HostLock;
use tests::leftovers::Leftovers;
use tests::process::{check, run, tracer_path, without_settings};

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
        // Wherever the build is, this copy may be run by anyone.
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755))
            .expect("folder can be opened");
        let copy = folder.path().join("tracer");
        fs::copy(tracer_path(), &copy).expect("binary can be copied");
        let nobody = |arguments: &[&str]| {
            let mut command = Command::new("setpriv");
            without_settings(&mut command);
            command
                .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
                .arg(&copy)
                .args(arguments);
            run(&mut command, Duration::from_secs(5))
        };
        let api = ["agent", "--api", "none", "--state-dir", "none"];
        nobody(&api).assert_refused(1, &["root"]);
        // With its default sockets and folders too: what it lacks is said first.
        nobody(&["agent"]).assert_refused(1, &["root"]);
        let doctor = nobody(&["doctor"]);
        assert_eq!(doctor.status.code(), Some(1), "{doctor:#?}");
        assert!(
            doctor.stdout.contains("root") || doctor.stdout.contains("CAP_"),
            "{doctor:#?}"
        );
    });
}

#[test]
fn without_one_capability_of_three() {
    let have = |set: &str| format!("--bounding-set=-all,{set}");
    leaving_nothing(|| {
        for (missing, set) in [
            ("CAP_BPF", "+perfmon,+net_admin"),
            ("CAP_PERFMON", "+bpf,+net_admin"),
            ("CAP_NET_ADMIN", "+bpf,+perfmon"),
        ] {
            let wrapper = ["setpriv", "--inh-caps=-all", &have(set)];
            run_refused(&wrapper, &[]).assert_refused(1, &[missing]);
        }
        let wrapper = [
            "setpriv",
            "--inh-caps=-all",
            &have("+bpf,+perfmon,+net_admin"),
        ];
        let mut agent = Agent::launch(&wrapper, &[]);
        agent.wait_ready();
        agent.stop_cleanly();
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

        let mut doctor = Command::new(wrapper[0]);
        doctor.args(&wrapper[1..]).arg(tracer_path()).arg("doctor");
        let ended = run(&mut doctor, Duration::from_secs(5));
        assert_eq!(ended.status.code(), Some(1), "{ended:#?}");
        assert!(ended.stdout.contains("BTF"), "{ended:#?}");
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
        let path = bpffs.path("tracer");
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
