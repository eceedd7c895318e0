//! `tracer top --prometheus` against the real Prometheus. Clusters of sick and healthy nodes are a real
//! agent's exposition, captured here and told again under other names with figures that grow
//! (`tests::replay`), each cluster with a label of its own in one Prometheus; two real agents trace
//! this kernel while its neighbour table really overflows, which to both is the same.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tests::overflow::{LIMITS, Overflow};
use tests::process::{run, tracer, tracer_path};
use tests::prometheus::agents_job;
use tests::replay::{Growth, Replay, grows};
use tests::standin_tls::StandinTls;
use tests::tmux::Terminal;
use tests::wait::ensure;
use tests::{Agent, Lab, Prometheus, Thresholds, eventually};

const LIMIT: Duration = Duration::from_secs(15);
/// Of the figures: four scrapes and more.
const RANGE: &str = "8s";
const LOOKED_UP: &str = "tracer_node_dns_lookups_total{outcome=\"noerror\"}";
const TIMED_OUT: &str = "tracer_node_dns_lookups_total{outcome=\"timeout\"}";
const NO_ANSWER: &str = "tracer_node_dns_failures_total{cause=\"no_answer\"}";
const CONNECTED: &str = "tracer_node_connects_total{result=\"established\"}";
const CONNECT_TIMEOUT: &str = "tracer_node_connects_total{result=\"timeout\"}";
const REFUSED: &str = "tracer_node_neighbour_creates_total{family=\"ipv4\",result=\"table_full\"}";
const RESENT: &str = "tracer_pod_retransmits_total{namespace=\"shop\",pod=\"cart\"}";
const DEAD: &str = "tracer_pod_dead_endpoint_attempts_total{destination=\"10.9.9.9:80\",\
                    namespace=\"shop\",pod=\"cart\"}";
const GONE: &str =
    "tracer_gone_pod_address_info{address=\"10.9.9.9\",namespace=\"pay\",pod=\"db-0\"}";

const NODES: [&str; 4] = ["n1", "n2", "n3", "n4"];

fn top(arguments: &[&str]) -> Command {
    let mut command = tracer();
    command.args(["top", "--once", "--range", RANGE]);
    command.args(arguments);
    command
}

fn json(url: &str, cluster: &str, more: &[&str]) -> Value {
    let matcher = format!("cluster=\"{cluster}\"");
    let arguments = ["--prometheus", url, "--match", &matcher, "--output", "json"];
    let ended = run(top(&arguments).args(more), LIMIT);
    assert!(ended.status.success(), "{cluster}: {ended:#?}");
    serde_json::from_str(&ended.stdout).expect("it is JSON")
}

/// Names of the odd nodes, as they stand.
fn odd(answer: &Value) -> Vec<&str> {
    let nodes = answer["nodes"].as_array().expect("nodes");
    nodes
        .iter()
        .filter(|node| node["odd"] == true)
        .map(|node| node["node"].as_str().expect("a name"))
        .collect()
}

/// Names, scores and reasons, for messages.
fn in_short(answer: &Value) -> String {
    let nodes = answer["nodes"].as_array().expect("nodes");
    let lines = nodes
        .iter()
        .map(|n| format!("{} {} {}\n", n["node"], n["score"], n["reason"]));
    format!("{}\n{}", answer["all_nodes"], lines.collect::<String>())
}

/// What any node does.
fn healthy() -> Vec<Growth> {
    vec![
        grows(LOOKED_UP, 40.0),
        grows(TIMED_OUT, 0.2),
        grows(NO_ANSWER, 0.2),
        grows(CONNECTED, 30.0),
        grows(CONNECT_TIMEOUT, 0.1),
        grows(RESENT, 0.4),
    ]
}

fn failed_towards(peer: &str, rate: f64) -> [Growth; 2] {
    let towards = format!("tracer_node_peer_failures_total{{kind=\"connect\",peer=\"{peer}\"}}");
    [grows(&towards, rate), grows(CONNECT_TIMEOUT, rate)]
}

/// Cluster, what its nodes do beside [`healthy`], and who is to be named first with which words.
type Scene = (
    &'static str,
    fn(&str) -> Vec<Growth>,
    Option<(&'static str, &'static [&'static str])>,
);

const SCENES: [Scene; 7] = [
    ("clean", |_| Vec::new(), None),
    (
        "overflow",
        |node| match node {
            "n3" => vec![grows(REFUSED, 9.0)],
            _ => Vec::new(),
        },
        Some((
            "n3",
            &["neighbour table full:", "refused in 8s; the rest 0"],
        )),
    ),
    (
        "dns",
        |node| match node {
            "n2" => vec![
                grows(TIMED_OUT, 30.0),
                grows(NO_ANSWER, 30.0),
                grows(DEAD, 6.0),
                grows(
                    "tracer_pod_dns_failures_total{cause=\"no_answer\",namespace=\"shop\",pod=\"cart\"}",
                    30.0,
                ),
                grows(
                    "tracer_pod_dns_lookups_total{namespace=\"shop\",outcome=\"timeout\",pod=\"cart\"}",
                    30.0,
                ),
            ],
            "n4" => vec![grows(GONE, 1.0)],
            _ => Vec::new(),
        },
        Some(("n2", &["DNS: 4", "mostly no_answer", "median 0."])),
    ),
    (
        "connect",
        |node| match node {
            "n4" => vec![grows(CONNECT_TIMEOUT, 20.0)],
            _ => Vec::new(),
        },
        Some(("n4", &["TCP: ", "mostly timeout", "median 0."])),
    ),
    (
        "retransmit",
        |node| match node {
            "n1" => vec![grows(RESENT, 60.0)],
            _ => Vec::new(),
        },
        Some(("n1", &["TCP segments sent again in 8s"])),
    ),
    (
        // Its own figures are well.
        "towards",
        |node| match node {
            "n3" => Vec::new(),
            _ => failed_towards("n3", 15.0).to_vec(),
        },
        Some(("n3", &["3 other nodes fail towards it", "connects in 8s"])),
    ),
    (
        // Who fails towards all others accuses none of them.
        "alone",
        |node| match node {
            "n1" => ["n2", "n3", "n4"]
                .map(|peer| failed_towards(peer, 10.0))
                .concat(),
            _ => Vec::new(),
        },
        Some(("n1", &["TCP: "])),
    ),
];

fn await_scene(url: &str, (cluster, _, expected): &Scene) {
    eventually(LIMIT, || {
        let answer = json(url, cluster, &[]);
        let found = odd(&answer);
        let names: Vec<&str> = expected.iter().map(|(node, _)| *node).collect();
        let first = &answer["nodes"][0];
        let reason = first["reason"].as_str().unwrap_or_default();
        let words = expected.map_or(&[][..], |(_, words)| words);
        let is_so = found == names && words.iter().all(|word| reason.contains(word));
        ensure(is_so, || {
            format!("{cluster} has {found:?}: {}", in_short(&answer))
        })
    });
}

#[test]
fn the_sick_node_is_named_first_with_the_reason() {
    let mut lab = Lab::new();
    let scene = Overflow::new(&lab, &[]);
    let mut other = Agent::launch(&[], &["--node", "other", "--dns-timeout", "1s"]);
    other.wait_ready();
    let captured = scene.agent.http("GET", "/metrics").body;

    let mut replay = Replay::start(&captured, "lab");
    for (cluster, growth, _) in &SCENES {
        for node in NODES {
            replay.node(cluster, node, &[healthy(), growth(node)].concat());
        }
    }
    for node in NODES {
        replay.node("quiet", node, &[]);
        replay.node("down", node, &healthy());
        let server_fails = [
            grows("tracer_node_dns_lookups_total{outcome=\"servfail\"}", 30.0),
            grows("tracer_node_dns_failures_total{cause=\"server\"}", 30.0),
        ];
        replay.node("alike", node, &[&healthy()[..], &server_fails].concat());
    }
    for (node, more) in [("n1", 0.0), ("n2", 20.0)] {
        let sick = [grows(NO_ANSWER, more), grows(TIMED_OUT, more)];
        replay.node("two", node, &[&healthy()[..], &sick].concat());
    }
    let addresses = [("lab", scene.agent.listen()), ("other", other.listen())];
    let live = agents_job(&addresses)
        .replace("job_name: tracer", "job_name: live")
        .replace("labels: {", "labels: {cluster: live, ");
    // A scraper that leaves the target's own labels in place, as Google's does.
    let exported = replay
        .job()
        .replace("job_name: tracer", "job_name: exported")
        .replace("honor_labels: true", "honor_labels: false")
        .replace("{__metrics", "{namespace: tracer, pod: agent-x, __metrics")
        .replace("cluster: '", "cluster: 'exported-");
    let jobs = format!("{}{live}{exported}", replay.job());
    let prometheus = Prometheus::start(&jobs, &[]);
    let url = prometheus.url();
    prometheus.await_up("live", 2);
    prometheus.await_up("tracer", 4 * (SCENES.len() + 3) + 2);
    let limits = Thresholds::set(lab.lock(), LIMITS);
    scene.strike();
    drop(limits);
    replay.silence("down", "n2");

    // One kernel, two agents: what both of them see is nobody's own.
    let answer = eventually(LIMIT, || {
        let answer = json(&url, "live", &[]);
        let all = answer["all_nodes"].to_string();
        let is_so = odd(&answer).is_empty() && all.contains("neighbour tables are full");
        ensure(is_so, || in_short(&answer)).map(|()| answer)
    });
    assert_eq!(answer["nodes"].as_array().map(Vec::len), Some(2));
    for scene in &SCENES {
        await_scene(&url, scene);
    }
    await_scene(&url, &("quiet", |_| Vec::new(), None));
    let two = Some(("n2", &["DNS: ", "median 0."][..]));
    await_scene(&url, &("two", |_| Vec::new(), two));
    let down = Some(("n2", &["cannot be scraped"][..]));
    await_scene(&url, &("down", |_| Vec::new(), down));
    let answer = json(&url, "alike", &[]);
    let all = answer["all_nodes"].to_string();
    assert!(odd(&answer).is_empty(), "{answer:#}");
    assert!(
        all.contains("all nodes (4)") && all.contains("the server's side"),
        "{all}"
    );

    one_nodes_pods(&url);
    tables_for_scripts(&url);
    let mixed = run(&mut top(&["--prometheus", &url]), LIMIT).stdout;
    assert!(mixed.contains("clusters are mixed here"), "{mixed}");
    on_a_screen(&url);
    behind_tls(&prometheus);
    drop((other, scene));
}

/// The pods of the node that the table names, and the last owner of its dead destination, which was on
/// another node; by any scraper.
fn one_nodes_pods(url: &str) {
    for cluster in ["dns", "exported-dns"] {
        let answer = json(url, cluster, &["--node", "n2"]);
        let pods = &answer["pods"];
        let worst = &pods["failing"][0];
        assert_eq!(worst["namespace"], "shop", "{answer:#}");
        assert_eq!(worst["pod"], "cart", "{answer:#}");
        assert!(
            worst["dns"]["by"]["no_answer"].as_f64() > Some(20.0),
            "{answer:#}"
        );
        let dead = &pods["dead"][0];
        assert_eq!(dead["destination"], "10.9.9.9:80", "{answer:#}");
        assert_eq!(dead["mostly_by"], "shop/cart", "{answer:#}");
        assert_eq!(
            dead["last_owner"], "pay/db-0 (gone, was on n4)",
            "{answer:#}"
        );
    }
    let unknown = ["--prometheus", url, "--node", "n9"];
    run(&mut top(&unknown), LIMIT).assert_refused(1, &["n9", "such as"]);
}

fn tables_for_scripts(url: &str) {
    let arguments = ["--prometheus", url, "--match", "cluster=\"dns\""];
    let ended = run(&mut top(&arguments), LIMIT);
    let text = &ended.stdout;
    let mut rows = text.lines().skip_while(|line| !line.starts_with("NODE "));
    assert!(
        rows.next().is_some_and(|head| head.ends_with("REASON")),
        "{text}"
    );
    assert!(
        rows.next().is_some_and(|row| row.starts_with("n2 ")),
        "{text}"
    );
    let by_name = run(top(&arguments).args(["--sort", "node"]), LIMIT).stdout;
    let names: Vec<&str> = by_name.lines().filter_map(|l| l.get(..2)).collect();
    assert!(names.ends_with(&NODES), "{by_name}");
    let node = run(top(&arguments).args(["--node", "n2"]), LIMIT).stdout;
    for words in [
        "no_answer",
        "DEAD-DESTINATION",
        "pay/db-0 (gone, was on n4)",
    ] {
        assert!(node.contains(words), "{words} in:\n{node}");
    }
    let printable = |c: char| c == '\n' || c == ' ' || c.is_ascii_graphic();
    assert!(
        text.chars().chain(node.chars()).all(printable),
        "{text}\n{node}"
    );
}

fn behind_tls(prometheus: &Prometheus) {
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let front = StandinTls::start(folder.path(), prometheus.address());
    let url = format!("https://{}", front.address());
    let authority = front.authority().to_str().expect("path is text");
    let answer = json(&url, "dns", &["--ca-file", authority]);
    assert_eq!(odd(&answer), ["n2"], "{answer:#}");
    let refused = |arguments: &[&str], words: &[&str]| {
        run(&mut top(arguments), LIMIT).assert_refused(1, words);
    };
    refused(&["--prometheus", &url], &["certificate", "--ca-file", &url]);
    let plain = url.replace("https", "http");
    refused(&["--prometheus", &plain], &["https://", &plain]);
    let wrong = prometheus.url().replace("http", "https");
    refused(&["--prometheus", &wrong], &["http://", &wrong]);
    let none = Path::new("/nonexistent/ca.crt");
    let missing = [
        "--prometheus",
        &url,
        "--ca-file",
        none.to_str().expect("text"),
    ];
    refused(&missing, &["ca-file", "/nonexistent/ca.crt"]);
}

/// In a terminal: the sick node's reason, then its pods.
fn on_a_screen(url: &str) {
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let terminal = Terminal::open(120, 30, folder.path());
    let binary = tracer_path();
    terminal.type_line(&format!(
        "{} top --prometheus {url} --match 'cluster=\"dns\"' --range {RANGE} --interval 1s; \
         echo ended=$?",
        binary.display()
    ));
    let pane = terminal.wait_for(&["4 nodes, 1 odd", "mostly no_answer", "q quit"]);
    let first = pane.lines().find(|line| line.contains("n2 "));
    assert!(first.is_some_and(|line| line.starts_with('●')), "{pane}");
    terminal.press(&["Enter"]);
    terminal.wait_for(&["shop/cart", "no_answer", "last pay/db-0 (gone, was on n4)"]);
    terminal.press(&["Escape"]);
    terminal.wait_for(&["the oddest first"]);
    terminal.press(&["h"]);
    terminal.wait_for(&["1 of 4 nodes"]);
    terminal.press(&["q"]);
    terminal.wait_for(&["ended=0"]);
}
