//! `tracer why` on real incidents: it names what the lab did, with the lab's figures.

use std::time::Duration;

use tests::dns::{A, Client, Lookup, Server};
use tests::nft::Rules;
use tests::overflow::{LIMITS, Overflow};
use tests::process::{run, tracer};
use tests::wait::ensure;
use tests::{Agent, Family, Lab, Thresholds, eventually};

const LIMIT: Duration = Duration::from_secs(10);

fn text(agent: &Agent, pod: Option<&str>) -> String {
    let mut command = tracer();
    let ended = run(
        command.args(["why", "--agent", &agent.address()]).args(pod),
        LIMIT,
    );
    assert!(ended.status.success(), "{ended:#?}");
    ended.stdout
}

/// Keeps what the agent knows, to be judged again by the rules' own tests.
fn record(agent: &Agent, name: &str) {
    if let Some(folder) = std::env::var_os("TRACER_RECORD") {
        let folder = std::path::Path::new(&folder);
        let snapshot = agent.api("GET", "/api/v1/snapshot").body;
        let events = agent
            .api("GET", "/api/v1/events?since=1h&follow=false")
            .body;
        std::fs::write(folder.join(format!("{name}.json")), snapshot).expect("it is written");
        std::fs::write(folder.join(format!("{name}.ndjson")), events).expect("it is written");
    }
}

#[test]
fn an_overflow_is_named_with_figures_and_the_command_that_ends_it() {
    let mut lab = Lab::new();
    let scene = Overflow::new(&lab, &[]);
    let healthy = scene.agent.why(None);
    assert_eq!(healthy["health"], "fine", "{healthy:#}");
    assert_eq!(healthy["findings"], serde_json::json!([]), "{healthy:#}");
    let said = text(&scene.agent, None);
    assert!(said.contains("Nothing is wrong on this node"), "{said}");
    record(&scene.agent, "fine");

    let limits = Thresholds::set(lab.lock(), LIMITS);
    let (lost, refused) = scene.strike();
    let all_lost = lost[0] + lost[1];
    let verdict = eventually(Duration::from_secs(10), || {
        let verdict = scene.agent.why(None);
        let figures = &verdict["findings"][0]["figures"];
        let right = figures["lookups_failed"] == all_lost && figures["refused"] == refused;
        ensure(right, || {
            format!("{all_lost} lookups died, {refused} were refused: {verdict:#}")
        })
        .map(|()| verdict)
    });
    record(&scene.agent, "overflow");
    let worst = &verdict["findings"][0];
    assert_eq!(worst["rule"], "table-full", "{verdict:#}");
    assert_eq!(verdict["health"], "sick", "{verdict:#}");
    assert_eq!(worst["figures"]["limit"], LIMITS[2], "{verdict:#}");
    let greedy = format!("(netns)/{}", scene.greedy.netns.name());
    assert_eq!(worst["figures"]["top_holder"], greedy, "{verdict:#}");
    assert!(worst["since"].is_string(), "{verdict:#}");
    let next = verdict["next"].as_str().expect("it is text");
    assert!(
        next.starts_with("sysctl -w net.ipv4.neigh.default.gc_thresh3="),
        "{next}"
    );

    let said = text(&scene.agent, None);
    for words in [
        "sick",
        "IPv4 neighbour table full since",
        &greedy,
        "next: sysctl",
    ] {
        assert!(said.contains(words), "{words} in:\n{said}");
    }
    eprintln!("{said}");
    // The pod: its own share of it.
    let pod = scene.agent.why(Some(&greedy));
    assert_eq!(
        pod["findings"][0]["figures"]["lookups_failed"], lost[0],
        "{pod:#}"
    );
    eprintln!("{}", text(&scene.agent, Some(&greedy)));
    drop(limits);
    scene.agent.stop_cleanly();
}

#[test]
fn an_incident_that_is_over_is_told_as_over() {
    let mut lab = Lab::new();
    let scene = Overflow::new(&lab, &["--window", "3s"]);
    let limits = Thresholds::set(lab.lock(), LIMITS);
    let (_, refused) = scene.strike();
    drop(limits);
    let verdict = eventually(Duration::from_secs(15), || {
        let verdict = scene.agent.why(None);
        let over = verdict["health"] == "fine" && verdict["findings"][0]["rule"] == "was-full";
        ensure(over, || format!("not over: {verdict:#}")).map(|()| verdict)
    });
    let figures = &verdict["findings"][0]["figures"];
    assert_eq!(figures["refused"], refused, "{verdict:#}");
    record(&scene.agent, "was-full");
    scene.agent.stop_cleanly();
}

#[test]
fn a_server_that_refuses_is_not_the_nodes_fault() {
    let lab = Lab::new();
    let pod = lab.pod("refused", 1, 1);
    let at = pod.hub(Family::V4);
    let _server = Server::start(&lab.hub, &[at]);
    let agent = Agent::start(&["--dns-timeout", "1s"]);
    let client = Client {
        timeout: Duration::from_secs(1),
        linger: Duration::ZERO,
    };
    let of = |script: &str, n: usize| Lookup::new(format!("{script}-{n}.test"), A, at);
    let lookups = (0..30)
        .map(|n| of("ok", n))
        .chain((0..10).map(|n| of("refused", n)));
    let tally = client.run(&pod, lookups.collect());
    assert_eq!(tally.outcome("refused"), 10, "the lab failed: {tally:?}");
    let verdict = eventually(Duration::from_secs(5), || {
        let verdict = agent.why(None);
        let figures = &verdict["findings"][0]["figures"];
        let right = figures["lookups_failed"] == 10 && figures["lookups"] == 40;
        ensure(right, || format!("10 of 40 were refused: {verdict:#}")).map(|()| verdict)
    });
    record(&agent, "server");
    assert_eq!(verdict["health"], "fails_elsewhere", "{verdict:#}");
    assert_eq!(verdict["findings"][0]["rule"], "dns-killed-elsewhere");
    assert_eq!(
        verdict["findings"][0]["figures"]["server"],
        format!("{at}:53")
    );
    let said = text(&agent, None);
    assert!(said.contains("Nothing is wrong on this node"), "{said}");
    assert!(said.contains("25.0 % of the lookups"), "{said}");
    eprintln!("{said}");
    agent.stop_cleanly();
}

#[test]
fn a_rule_that_drops_queries_is_the_nodes() {
    let lab = Lab::new();
    let pod = lab.pod("firewalled", 1, 1);
    let at = pod.hub(Family::V4);
    let _server = Server::start(&lab.hub, &[at]);
    let agent = Agent::start(&["--dns-timeout", "1s"]);
    let client = Client {
        timeout: Duration::from_secs(1),
        linger: Duration::ZERO,
    };
    let ask = |n| Lookup::new(format!("ok-{n}.test"), A, at);
    assert_eq!(client.run(&pod, vec![ask(0)]).outcome("noerror"), 1);
    let _rule = Rules::drop(&lab.hub, "input", "udp dport 53");
    let tally = client.run(&pod, (1..8).map(ask).collect());
    assert_eq!(tally.outcome("timeout"), 7, "the lab failed: {tally:?}");
    let verdict = eventually(Duration::from_secs(5), || {
        let verdict = agent.why(None);
        let right = verdict["findings"][0]["figures"]["lookups_failed"] == 7;
        ensure(right, || format!("7 lookups died: {verdict:#}")).map(|()| verdict)
    });
    record(&agent, "netfilter");
    assert_eq!(verdict["health"], "sick", "{verdict:#}");
    assert_eq!(verdict["findings"][0]["figures"]["cause"], "netfilter");
    assert_eq!(verdict["next"], "nft list ruleset");
    agent.stop_cleanly();
}

#[test]
fn a_pod_that_nobody_knows_is_an_error_that_helps() {
    let _lock = tests::host::HostLock::take();
    let agent = Agent::start(&[]);
    let mut command = tracer();
    command.args(["why", "shop/nobody", "--agent", &agent.address()]);
    run(&mut command, LIMIT).assert_refused(1, &["shop/nobody", "node lab", "tracer top"]);
    let mut command = tracer();
    command.args(["why", "nobody", "--agent", &agent.address()]);
    run(&mut command, LIMIT).assert_refused(2, &["NS/NAME"]);
    agent.stop_cleanly();
}
