//! `tracer top` in a real terminal, while a neighbour table really overflows.

use std::fs;
use std::time::Duration;

use serde_json::Value;
use tests::overflow::{LIMITS, Overflow};
use tests::process::tracer_path;
use tests::tmux::Terminal;
use tests::wait::ensure;
use tests::{Agent, Lab, Thresholds, eventually};

fn start(terminal: &Terminal, agent: &Agent, more: &str) {
    let binary = tracer_path();
    let line = format!(
        "{} top --agent {} {more}; echo ended=$?",
        binary.display(),
        agent.address()
    );
    terminal.type_line(&line);
}

/// Keeps the screen for a picture, where one is asked for.
fn keep(terminal: &Terminal, name: &str) {
    if let Some(folder) = std::env::var_os("TRACER_PANES") {
        let path = std::path::Path::new(&folder).join(format!("{name}.ansi"));
        fs::write(path, terminal.painted()).expect("the folder can be written");
    }
}

/// The terminal as it was before.
fn assert_given_back(terminal: &Terminal, code: i32) {
    terminal.wait_for(&[&format!("ended={code}")]);
    assert!(!terminal.is_full_screen() && !terminal.wants_mouse());
    // What is typed shows again, and lines end where they should.
    terminal.type_line("stty -a | grep -c ' icanon.* echo '; echo typed");
    terminal.wait(|pane| pane.lines().any(|line| line == "typed"), "echo");
}

/// A word of the pod's name that is on the screen even if its middle is left out.
fn tail(name: &str) -> &str {
    &name[name.len() - 6..]
}

#[test]
fn an_overflow_shows_with_pod_cause_and_since_when() {
    let mut lab = Lab::new();
    let scene = Overflow::new(&lab, &[]);
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let terminal = Terminal::open(80, 24, folder.path());
    start(&terminal, &scene.agent, "");
    // All is well, and says so.
    let [greedy, victim] = [&scene.greedy, &scene.victim].map(|pod| tail(pod.netns.name()));
    terminal.wait_for(&["FINE", "live", "IPv4", "IPv6", "MAIN CAUSE", greedy, victim]);
    keep(&terminal, "idle-80x24");

    let limits = Thresholds::set(lab.lock(), LIMITS);
    let (lost, _) = scene.strike();
    terminal.wait_for(&["SICK", "IPv4 neighbour table full since", "die here"]);
    // Whose lookups died of it is marked, and nobody else.
    let expected = lost.iter().filter(|lost| **lost > 0).count();
    let is_marked = |row: &&str| row.starts_with(['★', '●']) && row.contains(" table full ");
    let pane = terminal.wait(
        |pane| pane.lines().filter(is_marked).count() == expected,
        "marked pods",
    );
    assert!(pane.lines().count() <= 24, "{pane}");
    keep(&terminal, "incident-80x24");

    terminal.resize(200, 60);
    let pane = terminal.wait_for(&["SINCE", "OVERFLOWS", "LAST MINUTE", "newest first"]);
    assert!(pane.lines().any(|l| l.chars().count() > 150), "{pane}");
    keep(&terminal, "incident-200x60");

    // Detail of the worst pod.
    terminal.press(&["Enter"]);
    terminal.wait_for(&[
        "failures, by cause",
        "latency of answers",
        "ok-cold-",
        "last failures",
    ]);
    keep(&terminal, "detail-200x60");
    terminal.resize(80, 24);
    terminal.wait_for(&["failures, by cause", "last failures"]);
    keep(&terminal, "detail-80x24");
    terminal.press(&["Escape"]);
    terminal.wait_for(&["MAIN CAUSE"]);

    // Events, filtered.
    terminal.press(&["e"]);
    terminal.wait_for(&["newest first", "ok-cold-", "timeout"]);
    terminal.press(&["/"]);
    terminal.press(&["-l", "cold-3."]);
    terminal.press(&["Enter"]);
    terminal.wait(
        |pane| {
            let events = pane.lines().filter(|l| l.contains("ok-cold-"));
            events.clone().count() > 0 && events.clone().all(|l| l.contains("ok-cold-3."))
        },
        "filtered events",
    );
    keep(&terminal, "events-80x24");
    // The first clears the filter.
    terminal.press(&["Escape"]);
    terminal.wait(
        |pane| !pane.contains("filter \""),
        "events without a filter",
    );
    terminal.press(&["Escape"]);
    terminal.wait_for(&["MAIN CAUSE"]);

    terminal.press(&["?"]);
    terminal.wait_for(&["gc_thresh3", "suspend;"]);
    keep(&terminal, "help-80x24");
    terminal.press(&["?"]);
    terminal.wait(|pane| !pane.contains("suspend;"), "table without help");

    // Sorted by name, healthy ones hidden.
    terminal.press(&["s", "s", "h"]);
    terminal.wait_for(&["by pod", "healthy ones hidden"]);
    terminal.press(&["w", "h"]);

    terminal.press(&["x"]);
    terminal.wait_for(&["exported to"]);
    let exported = fs::read_dir(folder.path())
        .expect("the folder can be read")
        .next()
        .expect("a file is there")
        .expect("it can be read");
    let text = fs::read_to_string(exported.path()).expect("it is text");
    let seen: Value = serde_json::from_str(&text).expect("it is JSON");
    assert_eq!(seen["node"], "lab");
    assert_eq!(seen["verdict"]["health"], "sick");
    assert_eq!(seen["pods"][0]["main_cause"], "neighbour_table_full");

    terminal.press(&["q"]);
    assert_given_back(&terminal, 0);
    drop(limits);
    scene.agent.stop_cleanly();
}

#[test]
fn the_terminal_comes_back_on_every_way_out() {
    let lab = Lab::new();
    let agent = Agent::start(&[]);
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let terminal = Terminal::open(100, 30, folder.path());
    start(&terminal, &agent, "");
    terminal.wait_for(&["FINE", "live"]);
    assert!(terminal.is_full_screen() && terminal.wants_mouse());

    // Ctrl-Z, and back.
    terminal.press(&["C-z"]);
    terminal.wait_for(&["Stopped"]);
    assert!(!terminal.is_full_screen() && !terminal.wants_mouse());
    terminal.type_line("fg");
    terminal.wait_for(&["FINE", "live"]);
    assert!(terminal.is_full_screen());

    // Frozen, the terminal's own marking works.
    terminal.press(&["Space"]);
    terminal.wait_for(&["FROZEN"]);
    let free = || ensure(!terminal.wants_mouse(), || "the mouse is taken".to_owned());
    eventually(Duration::from_secs(5), free);
    terminal.press(&["Space"]);
    terminal.wait_for(&["live"]);

    terminal.press(&["C-c"]);
    // The shell forgot the rest of the line when it was stopped.
    terminal.wait(|pane| pane.trim_end().ends_with("ready>"), "a prompt");
    terminal.type_line("echo ended=$?");
    assert_given_back(&terminal, 0);

    for signal in ["TERM", "INT"] {
        terminal.type_line("clear");
        start(&terminal, &agent, "--color never");
        terminal.wait_for(&["FINE", "live"]);
        let pattern = agent.address();
        let mut found = std::process::Command::new("pgrep");
        let found = found.args(["-f", &format!("top --agent {pattern}")]);
        let pids = found.output().expect("pgrep runs").stdout;
        for pid in String::from_utf8_lossy(&pids).split_whitespace() {
            let mut kill = std::process::Command::new("kill");
            tests::process::check(kill.args([&format!("-{signal}"), pid]));
        }
        assert_given_back(&terminal, 0);
    }
    agent.stop_cleanly();
    drop(lab);
}

#[test]
fn an_agent_that_goes_leaves_its_figures_and_is_found_again() {
    let lab = Lab::new();
    let pod = lab.pod("stays", 1, 1);
    let agent = Agent::start(&[]);
    tests::neigh::burst(&pod, tests::Family::V4, tests::neigh::FIRST_SILENT, 5);
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let terminal = Terminal::open(100, 30, folder.path());
    start(&terminal, &agent, "");
    let name = tail(pod.netns.name());
    terminal.wait_for(&["FINE", "live", name]);
    let folder_of_socket = agent.kill();
    terminal.wait_for(&["NO ANSWER", "no agent answers", name]);
    keep(&terminal, "lost-100x30");
    let again = {
        let mut again = Agent::launch_in(folder_of_socket, &[], &["--node", "again"]);
        again.wait_ready();
        again
    };
    terminal.wait_for(&["live", "again"]);
    terminal.press(&["q"]);
    assert_given_back(&terminal, 0);
    again.stop_cleanly();
    drop(lab);
}
