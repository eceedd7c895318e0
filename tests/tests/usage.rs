//! Wrong usage and configuration: exit code 2, one line that names what is wrong.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tests::Agent;
use tests::agent::run_refused;
use tests::host::HostLock;
use tests::process::{run, tracer};

const LIMIT: Duration = Duration::from_secs(5);

fn with(arguments: &[&str]) -> Command {
    let mut command = tracer();
    command.args(arguments);
    command
}

#[test]
fn unknown_flags_and_commands_are_refused() {
    run_refused(&[], &["--no-such-flag"]).assert_refused(2, &["--no-such-flag"]);
    run(&mut with(&["no-such-command"]), LIMIT).assert_refused(2, &["no-such-command"]);
}

#[test]
fn bad_values_are_refused_by_flag_name() {
    for (flag, value) in [
        ("--listen", "here"),
        ("--api", "ftp:x"),
        ("--dns-port", "0"),
        ("--dns-port", "65536"),
        ("--dns-timeout", "soon"),
        ("--dns-timeout", "0s"),
        ("--window", "1.5s"),
        ("--window", "0s"),
        ("--event-rate", "-1"),
        ("--max-pods", "many"),
        ("--pods", "everywhere"),
        ("--node", ""),
        ("--log-format", "xml"),
        ("--log-level", "loud"),
    ] {
        let name = flag.trim_start_matches('-');
        let ended = run_refused(&[], &[&format!("{flag}={value}")]);
        ended.assert_refused(2, &[name]);
    }
}

#[test]
fn kubernetes_without_a_cluster_is_refused_with_what_to_do() {
    let nowhere = ["env", "-u", "KUBECONFIG", "HOME=/nonexistent"];
    run_refused(&nowhere, &["--pods", "kubernetes"]).assert_refused(2, &["pods", "KUBECONFIG"]);
    let lost = ["env", "KUBECONFIG=/nonexistent/config"];
    for pods in ["kubernetes", "auto"] {
        run_refused(&lost, &["--pods", pods]).assert_refused(2, &["KUBECONFIG", "/nonexistent"]);
    }
    let cluster = ["env", "KUBECONFIG=/dev/null"];
    let named = ["--pods", "kubernetes", "--node", "a,b=c"];
    run_refused(&cluster, &named).assert_refused(2, &["--node", "a,b=c"]);
}

#[test]
fn a_pod_file_that_is_none_is_refused() {
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let path = folder.path().join("pods.toml");
    let pods = format!("file:{}", path.display());
    run_refused(&[], &["--pods", &pods]).assert_refused(2, &["pods.toml", "No such file"]);
    for (text, word) in [
        ("[[pod]]\nnam", "line 2"),
        ("[[pod]]\nnamespace = \"a\"\n", "name"),
        (
            "[[pod]]\nnamespace = \"a\"\nname = \"b\"\nips = [\"1.2.3\"]\n",
            "line 4",
        ),
        ("[[pod]]\nnamespace = \"\"\nname = \"b\"\n", "namespace"),
        // It would pass for a process of the host.
        ("[[pod]]\nnamespace = \"(host)\"\nname = \"b\"\n", "(host)"),
    ] {
        std::fs::write(&path, text).expect("files can be written");
        run_refused(&[], &["--pods", &pods]).assert_refused(2, &["pods.toml", word]);
    }
}

#[test]
fn a_runtimes_socket_is_one() {
    let word = "cri-endpoint";
    for bad in ["tcp://127.0.0.1:1", "run/containerd.sock", ""] {
        run_refused(&[], &["--cri-endpoint", bad]).assert_refused(2, &[word]);
    }
    let useless = [
        "--pods",
        "local",
        "--cri-endpoint",
        "unix:///run/containerd/containerd.sock",
    ];
    run_refused(&[], &useless).assert_refused(2, &[word]);
}

#[test]
fn other_commands_refuse_bad_values_too() {
    run(&mut with(&["top", "--once", "--sort", "beauty"]), LIMIT).assert_refused(2, &["sort"]);
    run(&mut with(&["events", "--since", "long"]), LIMIT).assert_refused(2, &["since"]);
    run(&mut with(&["events", "--output", "xml"]), LIMIT).assert_refused(2, &["output"]);
    run(&mut with(&["doctor", "--output", "xml"]), LIMIT).assert_refused(2, &["output"]);
}

#[test]
fn files_are_refused_with_their_name() {
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let path = folder.path().join("tracer.toml");
    let path = path.to_str().expect("path is text");
    run_refused(&[], &["--config", path]).assert_refused(2, &[path]);
    for (text, word) in [
        ("no-such-key = 1\n", "no-such-key"),
        ("dns-timeout = \"soon\"\n", "dns-timeout"),
        ("window = 5\n", "window"),
        ("listen = \n", "line 1"),
    ] {
        std::fs::write(path, text).expect("file can be written");
        run_refused(&[], &["--config", path]).assert_refused(2, &[path, word]);
    }
}

/// The node's name as the agent took it from `wrapper` (environment), file and flags.
fn node_of(wrapper: &[&str], arguments: &[&str]) -> String {
    let mut agent = Agent::launch(wrapper, arguments);
    agent.wait_ready();
    let node = agent.snapshot()["node"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    agent.stop_cleanly();
    node
}

#[test]
fn flag_beats_environment_beats_file() {
    let _lock = HostLock::take();
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let path = folder.path().join("tracer.toml");
    write(&path, "node = \"of-file\"\ndns-timeout = \"2s\"\n");
    let path = path.to_str().expect("path is text");
    let config = ["--config", path];
    let kubernetes = ["env", "NODE_NAME=of-kubernetes"];
    let both = [kubernetes.as_slice(), &["TRACER_NODE=of-env"]].concat();
    assert_eq!(node_of(&kubernetes, &[]), "of-kubernetes");
    assert_eq!(node_of(&kubernetes, &config), "of-file");
    assert_eq!(node_of(&both, &config), "of-env");
    let flag = [config.as_slice(), &["--node", "of-flag"]].concat();
    assert_eq!(node_of(&both, &flag), "of-flag");
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("file can be written");
}

#[test]
fn help_version_completions_and_manual_are_printed() {
    for (arguments, word) in [
        (["--version", ""], "tracer "),
        (["--help", ""], "agent"),
        (["agent", "--help"], "--dns-timeout"),
        (["completions", "bash"], "tracer"),
        (["man", ""], "tracer"),
    ] {
        let words: Vec<&str> = arguments
            .into_iter()
            .filter(|word| !word.is_empty())
            .collect();
        let ended = run(&mut with(&words), LIMIT);
        assert!(ended.status.success(), "{ended:#?}");
        assert!(ended.stdout.contains(word), "{word:?}: {ended:#?}");
        assert!(ended.stderr.is_empty(), "{ended:#?}");
    }
}
