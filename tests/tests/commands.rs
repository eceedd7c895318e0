//! `events`, `top` and `doctor` against a running agent.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tests::dns::{A, Client, Lookup, Server};
use tests::netns::Pod;
use tests::process::{Reaped, run, tracer};
use tests::wait::ensure;
use tests::{Agent, Family, Lab, eventually};

const LIMIT: Duration = Duration::from_secs(5);

/// A pod whose lookups are refused, and an agent that has seen it.
struct Scene {
    agent: Agent,
    pod: Pod,
    _server: Server,
    // Last: it holds the lock.
    _lab: Lab,
}

impl Scene {
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(arguments: &[&str]) -> Self {
        let lab = Lab::new();
        let pod = lab.pod("refused", 1, 1);
        let server = Server::start(&lab.hub, &[pod.hub(Family::V4)]);
        let scene = Self {
            agent: Agent::start(arguments),
            pod,
            _server: server,
            _lab: lab,
        };
        scene.fail(3);
        scene
    }

    /// `count` lookups that the server refuses.
    fn fail(&self, count: usize) {
        let client = Client {
            timeout: Duration::from_secs(1),
            linger: Duration::ZERO,
        };
        let lookup = |n| Lookup::new(format!("refused-{n}.test"), A, self.pod.hub(Family::V4));
        let tally = client.run(&self.pod, (0..count).map(lookup).collect());
        assert_eq!(tally.outcome("refused"), count as u64, "{tally:?}");
    }

    fn name(&self) -> &str {
        self.pod.netns.name()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = tracer();
        command
            .args(arguments)
            .args(["--agent", &self.agent.address()]);
        command
    }

    /// `tracer events` as a child, with its stdout.
    fn events(&self, arguments: &[&str]) -> (Reaped, impl BufRead + use<>) {
        let mut command = self.command(&[&["events"], arguments].concat());
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tracer runs");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        (Reaped(child), stdout)
    }
}

#[test]
fn events_are_filtered_and_end_in_time() {
    let scene = Scene::new();
    let pod = format!("(netns)/{}", scene.name());
    let follow = |more: &[&str]| {
        let fixed = ["events", "--since", "10m", "--for", "500ms"];
        let ended = run(&mut scene.command(&[&fixed, more].concat()), LIMIT);
        assert!(ended.status.success(), "{ended:#?}");
        ended.stdout
    };
    let text = follow(&["--pod", &pod]);
    assert_eq!(text.lines().count(), 3, "{text}");
    for line in text.lines() {
        for word in [scene.name(), "dns_failure", "refused-", "server"] {
            assert!(line.contains(word), "{word} in {line}");
        }
    }
    let json = follow(&["--output", "json", "--kind", "dns_failure", "--pod", &pod]);
    assert_eq!(json.lines().count(), 3, "{json}");
    for line in json.lines() {
        let event: Value = serde_json::from_str(line).expect("each line is JSON");
        assert_eq!(event["pod"]["name"], scene.name());
    }
    assert_eq!(follow(&["--kind", "neighbour_overflow", "--pod", &pod]), "");
    assert_eq!(follow(&["--pod", "(netns)/nobody"]), "");
    // Whatever is told of names, more people read these.
    for text in [
        scene.agent.http("GET", "/metrics").body,
        scene.agent.stderr(),
    ] {
        assert!(!text.contains("refused-"), "{text}");
    }
    scene.agent.stop_cleanly();
}

/// In events, API, metrics, verdict, tables and log alike.
#[test]
fn names_asked_for_show_nowhere_when_told_so() {
    let scene = Scene::with(&["--redact-names", "--log-level", "trace"]);
    let events = ["events", "--since", "10m", "--for", "500ms"];
    let json = ["--output", "json"];
    let mut said = vec![scene.agent.http("GET", "/metrics").body];
    said.push(scene.agent.api("GET", "/api/v1/snapshot").body);
    for arguments in [
        &events[..],
        &[&events[..], &json].concat(),
        &["why"],
        &[&["why"][..], &json].concat(),
        &["top", "--once"],
    ] {
        let ended = run(&mut scene.command(arguments), LIMIT);
        assert!(ended.status.success(), "{ended:#?}");
        said.push(ended.stdout);
    }
    assert_eq!(said[2].matches("(redacted)").count(), 3, "{}", said[2]);
    assert!(said[4].contains(scene.name()), "{}", said[4]);
    said.push(scene.agent.stderr());
    for text in said {
        assert!(!text.contains("refused-"), "{text}");
    }
    scene.agent.stop_cleanly();
}

#[test]
fn a_closed_pipe_is_no_error() {
    let scene = Scene::new();
    let (mut child, mut stdout) = scene.events(&["--since", "10m"]);
    let mut line = String::new();
    stdout.read_line(&mut line).expect("a line comes");
    assert!(line.contains("refused"), "{line}");
    drop(stdout);
    // It may notice only when it writes.
    scene.fail(2);
    let status = child.wait(LIMIT);
    assert!(status.success(), "{status}");

    for arguments in [["top", "--once"].as_slice(), &["doctor"], &["--help"]] {
        let mut command = tracer();
        command.args(arguments);
        if arguments[0] == "top" {
            command.args(["--agent", &scene.agent.address()]);
        }
        let (reader, writer) = std::io::pipe().expect("pipes can be made");
        drop(reader);
        let child = command
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(Stdio::null());
        let status = Reaped(child.spawn().expect("tracer runs")).wait(LIMIT);
        assert!(status.success(), "{arguments:?}: {status}");
    }
    scene.agent.stop_cleanly();
}

#[test]
fn events_end_with_a_signal_or_with_the_agent() {
    let mut scene = Scene::new();
    for signal in [Signal::INT, Signal::TERM] {
        let (mut child, mut stdout) = scene.events(&["--since", "10m"]);
        stdout.read_line(&mut String::new()).expect("a line comes");
        child.signal(signal);
        let status = child.wait(LIMIT);
        assert!(status.success(), "{signal:?}: {status}");
    }
    let (mut child, mut stdout) = scene.events(&["--since", "10m"]);
    stdout.read_line(&mut String::new()).expect("a line comes");
    let stderr = child.0.stderr.take().expect("stderr is piped");
    scene.agent.stop(Signal::TERM);
    assert_eq!(child.wait(LIMIT).code(), Some(1));
    let said: Vec<String> = BufReader::new(stderr)
        .lines()
        .map_while(Result::ok)
        .collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("agent"), "{said:?}");
}

#[test]
fn commands_say_that_no_agent_answers() {
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let path = folder.path().join("none.sock");
    let address = format!("unix:{}", path.display());
    for arguments in [["events"].as_slice(), &["top", "--once"]] {
        let mut command = tracer();
        let command = command.args(arguments).args(["--agent", &address]);
        run(command, LIMIT).assert_refused(1, &[&address, "tracer agent"]);
    }
}

#[test]
fn top_once_shows_the_pod_and_its_failure() {
    let scene = Scene::new();
    let ended = run(&mut scene.command(&["top", "--once"]), LIMIT);
    assert!(ended.status.success(), "{ended:#?}");
    assert!(ended.stderr.is_empty(), "{ended:#?}");
    let row = ended
        .stdout
        .lines()
        .find(|line| line.contains(scene.name()));
    let row = row.unwrap_or_else(|| panic!("the pod has a row:\n{}", ended.stdout));
    assert!(row.contains("(netns)") && row.contains("server"), "{row}");
    assert!(ended.stdout.contains("lab"), "{}", ended.stdout);
    for family in Family::ALL {
        assert!(ended.stdout.contains(family.label()), "{}", ended.stdout);
    }
    let sorted = run(
        &mut scene.command(&["top", "--once", "--sort", "pod"]),
        LIMIT,
    );
    assert!(sorted.status.success(), "{sorted:#?}");
    scene.agent.stop_cleanly();
}

#[test]
fn doctor_says_that_this_node_will_do() {
    let _lock = tests::host::HostLock::take();
    let before = tests::leftovers::Leftovers::now();
    let text = run(tracer().arg("doctor"), LIMIT);
    assert!(text.status.success(), "{text:#?}");
    let json = run(tracer().args(["doctor", "--output", "json"]), LIMIT);
    assert!(json.status.success(), "{json:#?}");
    let value: Value = serde_json::from_str(&json.stdout).expect("it is JSON");
    assert!(value.is_object(), "{value}");
    for word in ["neigh", "dns", "drops", "BTF", "cgroup", "ipv4", "ipv6"] {
        assert!(text.stdout.contains(word), "{word} in:\n{}", text.stdout);
        let in_json = json.stdout.to_lowercase().contains(&word.to_lowercase());
        assert!(in_json, "{word} in:\n{}", json.stdout);
    }
    before.assert_none_new();
}

#[test]
fn the_api_is_served_over_tcp_when_asked() {
    let _lock = tests::host::HostLock::take();
    let address: SocketAddr = tests::agent::free_address();
    let mut agent = Agent::launch(&[], &["--node", "lab", "--api", &address.to_string()]);
    agent.wait_ready();
    let response = tests::http::tcp(address, "GET", "/api/v1/snapshot").expect("it answers");
    assert_eq!(response.status, 200, "{}", response.body);
    let url = format!("http://{address}");
    let ended = run(tracer().args(["top", "--once", "--agent", &url]), LIMIT);
    assert!(ended.status.success(), "{ended:#?}");
    agent.stop_cleanly();
}

#[test]
fn top_traces_by_itself_where_no_agent_answers() {
    let lab = Lab::new();
    assert!(
        std::os::unix::net::UnixStream::connect("/run/tracer.sock").is_err(),
        "an agent runs at the default address of this host: stop it"
    );
    let before = tests::leftovers::Leftovers::now();
    let pod = lab.pod("alone", 1, 1);
    let mut command = tracer();
    let command = command.args(["top", "--once", "--interval", "2s"]);
    let known = tests::leftovers::programs();
    let ended = std::thread::scope(|scope| {
        let top = scope.spawn(|| run(command, Duration::from_secs(15)));
        eventually(Duration::from_secs(10), || {
            let new = tests::leftovers::programs().len() > known.len();
            ensure(new, || "it does not trace".to_owned())
        });
        // New addresses all the while, for its first look comes some time after the programs.
        for round in 0..20 {
            let first = tests::neigh::FIRST_SILENT + round * 5;
            tests::neigh::burst(&pod, Family::V4, first, 5);
            std::thread::sleep(Duration::from_millis(100));
        }
        top.join().expect("top ends")
    });
    assert!(ended.status.success(), "{ended:#?}");
    assert!(ended.stdout.contains(pod.netns.name()), "{ended:#?}");
    before.assert_none_new();
}
