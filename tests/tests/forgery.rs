//! Names that whoever is watched chooses: of processes, network namespaces, cgroups, and in questions. None
//! of them ends a line, moves a cursor or closes a quote in anything that tracer writes. And pods that come
//! and go by the dozen.

use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::cgroup::Cgroup;
use tests::dns::scene::CLIENT;
use tests::dns::{A, Lookup, Server};
use tests::memory::{most_resident, resident_from_now};
use tests::netns::Netns;
use tests::process::{check, run, tracer, tracer_path};
use tests::tmux::Terminal;
use tests::wait::ensure;
use tests::{Agent, Family, Lab, Metrics, eventually};

const SOON: Duration = Duration::from_secs(10);
/// Ends a line, makes another, colours it, names the terminal, closes a string, turns the direction of
/// writing.
const EVIL: &str = "e\nx 1\r\u{1b}[31m\u{1b}]0;forged\u{7}\"},\\\u{9b}2J\u{202e}\u{7f}'`$(x)";
/// As long as a process' name may be, and no UTF-8.
const COMM: &[u8] = b"c\n\x1b[2J\"\\\xff\xc2\x9b\x07\r";

/// As tracer shows it: what is not printable ASCII escaped.
fn shown(name: &str) -> String {
    name.chars()
        .map(|c| match c {
            ' '..='~' => c.to_string(),
            _ => c.escape_default().to_string(),
        })
        .collect()
}

/// Only printable ASCII, in lines.
fn assert_plain(what: &str, text: &str) {
    let found = text
        .chars()
        .find(|c| *c != '\n' && *c != ' ' && !c.is_ascii_graphic());
    assert_eq!(found, None, "{what}: {text:?}");
}

/// JSON may hold letters of all languages, escaped or not, but nothing that a terminal obeys.
fn assert_tame(what: &str, text: &str) {
    let unruly = |c: char| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c);
    assert_eq!(text.chars().find(|c| unruly(*c)), None, "{what}: {text:?}");
}

fn tracer_says(agent: &Agent, arguments: &[&str]) -> String {
    let address = agent.address();
    let mut command: Command = tracer();
    command.args(arguments);
    if arguments[0] != "doctor" {
        command.args(["--agent", &address]);
    }
    let ended = run(&mut command, Duration::from_secs(20));
    assert!(ended.status.success(), "{arguments:?}: {ended:#?}");
    assert_tame(&format!("{arguments:?} on stderr"), &ended.stderr);
    ended.stdout
}

/// Fails under that process name: one lookup that nobody answers, one connection that is refused.
fn fail(netns: &Netns, server: std::net::IpAddr) {
    netns.run(|| {
        let name = std::ffi::CString::new(COMM).expect("no NUL");
        rustix::thread::set_name(&name).expect("threads can be named");
        let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in [EVIL.as_bytes(), b"\xff\xfe", b"a.b"] {
            query.push(label.len() as u8);
            query.extend(label);
        }
        query.extend([0, 0, 1, 0, 1]);
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port is free");
        socket.send_to(&query, (server, 53)).expect("it is sent");
        let to = SocketAddr::new(server, 9);
        TcpStream::connect_timeout(&to, Duration::from_secs(2)).expect_err("nobody listens");
    });
}

#[test]
fn no_name_forges_output() {
    let lab = Lab::new();
    // The name of a namespace is the pod's, with the local source.
    let pod = lab.pod(EVIL, 1, 1);
    let server = pod.hub(Family::V4);
    let _silent = lab
        .hub
        .run(|| UdpSocket::bind((server, 53)).expect("the port is free"));
    let mut agent = Agent::launch(
        &[],
        &[
            "--node",
            "lab",
            "--dns-timeout",
            "500ms",
            "--log-level",
            "debug",
        ],
    );
    agent.wait_ready();
    let mut json_agent = None;
    let mut events = agent.events();
    let name = shown(pod.netns.name());
    fail(&pod.netns, server);
    // A process of the host whose cgroup has such a name; the kernel refuses line feeds there.
    let cgroup = Cgroup::make(&format!("{}.slice", EVIL.replace('\n', "")));
    check(
        Command::new("bash")
            .arg("-c")
            .arg("echo $$ > \"$0/cgroup.procs\" && ! (exec 3<>/dev/tcp/127.0.0.1/9) 2>/dev/null")
            .arg(cgroup.path()),
    );
    let dns = events.wait(SOON, |event| event.is("dns_failure", &name));
    let tcp = events.wait(SOON, |event| event.is("connect_failure", &name));
    for event in [&dns, &tcp] {
        assert_plain("comm", event.text("comm"));
        assert_plain("qname", event.text("qname"));
    }
    assert_eq!(dns.text("comm"), COMM.escape_ascii().to_string());
    events.wait(SOON, |event| {
        event.text("kind") == "connect_failure"
            && event.json["pod"]["namespace"] == "(host)"
            && event.json["pod"]["name"]
                .as_str()
                .is_some_and(|name| name.contains("forged"))
    });

    let response = agent.http("GET", "/metrics");
    assert_tame("metrics", &response.body);
    let metrics = Metrics::parse(&response.body);
    assert_eq!(
        metrics.count("tracer_pod_dns_failures_total", &[("cause", "no_answer")]),
        1
    );
    let api = agent.api("GET", "/api/v1/snapshot");
    assert_tame("snapshot", &api.body);
    serde_json::from_str::<Value>(&api.body).expect("the snapshot is JSON");
    let stream = tracer_says(
        &agent,
        &[
            "events", "--since", "10m", "--for", "1s", "--output", "json",
        ],
    );
    assert_tame("events", &stream);
    for line in stream.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    }
    let count = stream.lines().count();
    let text = tracer_says(
        &agent,
        &[
            "events", "--since", "10m", "--for", "1s", "--output", "text",
        ],
    );
    assert_plain("events", &text);
    assert!(text.lines().count() >= count, "{text}");
    for arguments in [
        &["top", "--once"][..],
        &["why"],
        &["why", &format!("(netns)/{name}")],
        &["doctor"],
    ] {
        let text = tracer_says(&agent, arguments);
        // Its own signs are beyond ASCII, nobody else's are.
        assert_tame(&format!("{arguments:?}"), &text);
        assert!(!text.contains("\nx 1"), "{text}");
    }
    for arguments in [
        &["why", "--output", "json"][..],
        &["doctor", "--output", "json"],
    ] {
        let text = tracer_says(&agent, arguments);
        assert_tame(&format!("{arguments:?}"), &text);
        serde_json::from_str::<Value>(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    }
    assert_tame("the log", &agent.stderr());

    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let terminal = Terminal::open(200, 50, folder.path());
    let title = terminal.title();
    terminal.type_line(&format!(
        "{} top --agent {}",
        tracer_path().display(),
        agent.address()
    ));
    terminal.wait_for(&["live", "\\u{1b}[31m"]);
    terminal.press(&["e"]);
    let pane = terminal.wait_for(&["newest first", "forged"]);
    assert_eq!(
        terminal.title(),
        title,
        "a name reached the terminal:\n{pane}"
    );
    assert_tame("live", &pane);
    terminal.press(&["q"]);
    drop(terminal);
    agent.stop_cleanly();

    // The log as JSON, of an agent that says all it can.
    let arguments = [
        "--node",
        "lab",
        "--log-format",
        "json",
        "--log-level",
        "debug",
    ];
    let agent = json_agent.insert(Agent::launch(&[], &arguments));
    agent.wait_ready();
    fail(&pod.netns, server);
    let refused = [("result", "refused")];
    eventually(SOON, || {
        let count = agent.metrics().count("tracer_pod_connects_total", &refused);
        ensure(count > 0, || "no failure yet".to_owned())
    });
    let said = agent.stderr();
    assert_tame("the log", &said);
    for line in said.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    }
    json_agent.expect("it runs").stop_cleanly();
}

#[test]
fn pods_that_come_and_go_take_no_memory_and_no_counts() {
    const TIME: Duration = Duration::from_secs(10);
    /// Made and deleted in that time.
    const PODS: usize = 500;
    let lab = Lab::new();
    let stays = lab.pod("stays", 1, 1);
    let _server = Server::start(&lab.hub, &[stays.hub(Family::V4)]);
    let agent = Agent::start(&["--dns-timeout", "1s", "--max-pods", "50"]);
    let memory = resident_from_now(agent.pid());
    let begun = Instant::now();
    let done = AtomicBool::new(false);
    let (asked, refused) = thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut asked = 0;
            while !done.load(Ordering::Relaxed) {
                let lookups = ["ok", "servfail"]
                    .map(|name| Lookup::new(format!("{name}-x.test"), A, stays.hub(Family::V4)));
                let tally = CLIENT.run(&stays, lookups.to_vec());
                assert_eq!(
                    (tally.outcome("noerror"), tally.outcome("servfail")),
                    (1, 1),
                    "the lab failed"
                );
                asked += 1;
            }
            asked
        });
        let makers: Vec<_> = (0..2)
            .map(|maker| {
                scope.spawn(move || {
                    let mut refused = 0;
                    for number in 0..PODS / 2 {
                        let due = TIME * number as u32 / (PODS as u32 / 2);
                        thread::sleep(due.saturating_sub(begun.elapsed()));
                        let pod = Netns::new(&format!("short{maker}"));
                        // On its own loopback.
                        refused += pod.run(|| {
                            let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
                            u64::from(TcpStream::connect(to).is_err())
                        });
                    }
                    refused
                })
            })
            .collect();
        let refused: u64 = makers
            .into_iter()
            .map(|maker| maker.join().expect("it ends"))
            .sum();
        done.store(true, Ordering::Relaxed);
        (asking.join().expect("the client ends"), refused)
    });
    eprintln!("{PODS} namespaces in {:?}", begun.elapsed());
    assert_eq!(refused, PODS as u64, "the lab failed");
    let metrics = eventually(SOON, || {
        let metrics = agent.metrics();
        let connects = [("result", "refused")];
        let node = metrics.count("tracer_node_connects_total", &connects);
        ensure(node == refused, || {
            format!("{node} connections of {refused}")
        })?;
        for outcome in ["noerror", "servfail"] {
            let labels = [&stays.labels()[..], &[("outcome", outcome)]].concat();
            let seen = metrics.count("tracer_pod_dns_lookups_total", &labels);
            ensure(seen == asked, || format!("{outcome}: {seen} of {asked}"))?;
        }
        // Who lived for less than a look at the names waits for one, half a minute.
        let waiting = metrics.count("tracer_unattributed_pending", &[("hook", "tcp")]);
        let pods = metrics.count("tracer_pod_connects_total", &connects);
        ensure(pods + waiting == refused, || {
            format!("{pods} of pods and {waiting} without a name, {refused} of the node")
        })?;
        Ok::<_, String>(metrics)
    });
    // Label sets are bounded, and those past the bound are in the sum.
    let mut pods: Vec<&String> = metrics
        .matching("tracer_pod_connects_total", &[])
        .map(|(labels, _)| &labels["pod"])
        .collect();
    pods.sort_unstable();
    pods.dedup();
    assert!(pods.len() <= 53, "{} pods have series", pods.len());
    let connects = |namespace: &str| {
        let labels = [("namespace", namespace), ("result", "refused")];
        metrics.count("tracer_pod_connects_total", &labels)
    };
    let [named, other] = ["(netns)", "(other)"].map(connects);
    let more = most_resident(agent.pid()) - memory;
    eprintln!(
        "{named} with their names, {other} in (other); {} kB more, of {}",
        more >> 10,
        memory >> 10
    );
    assert!(
        named > 20 && other > 0,
        "the lab failed: {named} named, {other} not"
    );
    assert!(more < 24 << 20, "{more} bytes more");
    agent.stop_cleanly();
}
