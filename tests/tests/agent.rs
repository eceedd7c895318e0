//! An agent's life: what it serves, how it ends, what it leaves.

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use rustix::process::Signal;
use tests::host::HostLock;
use tests::leftovers::{Leftovers, programs};
use tests::{Agent, Lab};

const HOOKS: [&str; 3] = ["neigh", "dns", "drops"];
const STATES: [&str; 4] = ["attached", "degraded", "unavailable", "off"];

#[test]
fn signals_end_it_and_nothing_is_left() {
    let _lock = HostLock::take();
    for signal in [Signal::TERM, Signal::INT] {
        let before = Leftovers::now();
        let known = programs();
        let mut agent = Agent::start(&[]);
        // A stream that is open must not hold the end up.
        let events = agent.events();
        assert!(programs().len() > known.len(), "its programs are found");
        let mode = std::fs::metadata(agent.socket())
            .expect("the socket is there")
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o600, "mode of the API's socket");
        let (status, took) = agent.stop(signal);
        assert_eq!(status.code(), Some(0), "{signal:?}: {}", agent.stderr());
        assert!(
            took < Duration::from_secs(5),
            "{signal:?}: stopping took {took:?}"
        );
        assert!(!agent.socket().exists(), "the socket is removed");
        assert!(
            TcpStream::connect(agent.listen()).is_err(),
            "nobody listens"
        );
        drop(events);
        before.assert_none_new();
    }
}

#[test]
fn a_kill_leaves_nothing_attached_without_a_state_folder() {
    let _lock = HostLock::take();
    let before = Leftovers::now();
    drop(Agent::start(&[]).kill());
    before.assert_none_new();
}

#[test]
fn one_line_says_that_it_is_ready() {
    let _lock = HostLock::take();
    let agent = Agent::start(&[]);
    let stderr = agent.stderr();
    let ready = stderr.lines().filter(|line| line.contains("ready")).count();
    assert_eq!(ready, 1, "{stderr}");
    assert!(stderr.contains(&agent.listen().to_string()), "{stderr}");
    agent.stop_cleanly();
}

#[test]
fn http_is_what_the_contract_says() {
    let _lock = HostLock::take();
    let agent = Agent::start(&[]);
    for target in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(agent.http("GET", target).status, 200, "{target}");
        for method in ["HEAD", "POST", "PUT", "DELETE"] {
            let refused = agent.http(method, target);
            assert_eq!(refused.status, 405, "{method} {target}");
            let allow = ("allow".to_owned(), "GET".to_owned());
            assert!(refused.headers.contains(&allow), "{refused:?}");
        }
    }
    // What was asked for is private: it is on the API's socket only.
    for target in [
        "/",
        "/metrics/",
        "/api/v1/snapshot",
        "/api/v1/events",
        "/../etc/passwd",
    ] {
        assert_eq!(agent.http("GET", target).status, 404, "{target}");
    }
    assert_eq!(agent.api("GET", "/api/v1/snapshot").status, 200);
    for target in ["/api/v1/snapshot", "/api/v1/events"] {
        assert_eq!(agent.api("POST", target).status, 405, "POST {target}");
    }
    for target in ["/", "/api/v2/snapshot", "/api/v1/secrets"] {
        assert_eq!(agent.api("GET", target).status, 404, "{target}");
    }
    assert_eq!(agent.api("GET", "/api/v1/events?since=soon").status, 400);
    let metrics = agent.http("GET", "/metrics");
    let kind = metrics.header("content-type").unwrap_or_default();
    assert!(kind.starts_with("text/plain"), "{kind}");
    agent.stop_cleanly();
}

#[test]
fn every_series_is_described_and_carries_the_node() {
    let lab = Lab::new();
    let pod = lab.pod("some", 1, 1);
    let agent = Agent::start(&[]);
    tests::neigh::burst(&pod, tests::Family::V4, tests::neigh::FIRST_SILENT, 5);
    let metrics = agent.metrics();
    for (name, labels) in metrics.samples.keys() {
        assert_eq!(
            labels.get("node").map(String::as_str),
            Some("lab"),
            "{name} {labels:?}"
        );
        assert!(
            name.starts_with("tracer_") || name.starts_with("process_"),
            "{name}"
        );
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| {
                name.strip_suffix(end)
                    .filter(|f| metrics.types.contains_key(*f))
            })
            .unwrap_or(name);
        assert!(metrics.types.contains_key(family), "{name} has a TYPE");
        if family.ends_with("_total") {
            assert_eq!(metrics.types[family], "counter", "{name}");
        }
    }
    for hook in HOOKS {
        let on: Vec<&str> = STATES
            .into_iter()
            .filter(|state| {
                let labels = [("hook", hook), ("state", *state)];
                metrics.get("tracer_hook_state", &labels) == Some(1.0)
            })
            .collect();
        assert_eq!(on, ["attached"], "{hook}");
        for counter in [
            "events_total",
            "events_lost_total",
            "events_suppressed_total",
        ] {
            let name = format!("tracer_{counter}");
            assert!(
                metrics.get(&name, &[("hook", hook)]).is_some(),
                "{name} of {hook}"
            );
        }
    }
    assert_eq!(metrics.count("tracer_build_info", &[]), 1);
    assert!(metrics.count("tracer_node_pods", &[]) >= 1);
    agent.stop_cleanly();
}
