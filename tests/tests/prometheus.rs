//! What a real Prometheus has of an agent, and what the agent offers to it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tests::dns::scene::{CLIENT, lookups};
use tests::http::{self, Response};
use tests::metrics::Labels;
use tests::neigh::{FIRST_SILENT, burst, table_fulls};
use tests::prometheus::{Sample, promtool};
use tests::router::Wiring;
use tests::tcp::scene::{CLOSED, OPEN, PATIENCE, prepare};
use tests::tcp::{Attempt, Means, Scene, run};
use tests::wait::ensure;
use tests::{Agent, Family, Metrics, Prometheus, Thresholds, dns, eventually};

/// Every metric of the contract, without `tracer_`. Conntrack's come after it.
const CONTRACT: &str = "node_neighbour_entries node_neighbour_entries_peak node_neighbour_entries_limit \
    node_neighbour_time_until_full_seconds node_neighbour_table_fulls_total \
    node_neighbour_gc_runs_total node_neighbour_creates_total pod_neighbour_creates_total \
    pod_neighbour_entries pod_neighbour_forced_gc_total node_neighbour_evictions_total \
    pod_neighbour_evictions_total node_drops_total pod_drops_total pod_dns_queries_total \
    node_dns_lookups_total pod_dns_lookups_total node_dns_failures_total pod_dns_failures_total \
    node_dns_lookup_duration_seconds_bucket node_dns_lookup_duration_seconds_sum \
    node_dns_lookup_duration_seconds_count pod_dns_lookup_duration_seconds_sum \
    pod_dns_lookup_duration_seconds_count node_dns_lookups_started_total node_dns_pending \
    pod_dns_untracked_total pod_dns_late_responses_total pod_dns_unmatched_responses_total \
    pod_dns_served_total node_connects_total pod_connects_total pod_retransmits_total \
    pod_resets_total pod_udp_receive_drops_total pod_dead_endpoint_attempts_total \
    dead_endpoint_info gone_pod_address_info node_peer_failures_total pod_failure_ratio \
    node_failure_ratio node_pods source_age_seconds hook_state events_total events_lost_total \
    events_suppressed_total program_misses_total bpf_map_entries bpf_map_max_entries \
    bpf_map_full_total unattributed_pending unattributed_total build_info";
const CONNTRACK: &str = "node_conntrack_entries node_conntrack_entries_limit \
    node_conntrack_insert_failed_total node_conntrack_drops_total";

/// What moves without anything happening.
const MOVING: [&str; 2] = ["process_", "tracer_source_age_seconds"];

const SOON: Duration = Duration::from_secs(10);

const OPENMETRICS: &str = "application/openmetrics-text;version=1.0.0";

/// A name and labels, bounds of buckets as `+Inf` and `1`, as in the older format.
type Key = (String, Labels);

#[test]
fn a_real_prometheus_has_every_metric_as_the_agent_has_it() {
    let (node, [client]) = prepare(Wiring::Routed, ["client"]);
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let file = folder.path().join("pods.toml");
    let write = |pods: &[(&str, String)]| {
        let mut text = String::new();
        for (name, what) in pods {
            writeln!(
                text,
                "[[pod]]\nnamespace = \"shop\"\nname = \"{name}\"\n{what}"
            )
            .expect("text grows");
        }
        replace(&file, &text);
    };
    let netns = |pod: &tests::netns::Pod| format!("netns = \"{}\"", pod.netns.path().display());
    let lasting = [("client", netns(&client)), ("far", netns(&node.far))];
    let gone = ("old", "ips = [\"10.200.77.7\"]".to_owned());
    write(&[&lasting[..], &[gone]].concat());
    let pods = format!("file:{}", file.display());
    let mut scene = Scene::begin(node, &["--pods", &pods, "--dns-timeout", "1s"]);
    let prometheus = Prometheus::of_agents(&[("lab", scene.agent.listen())], &[]);
    write(&lasting);

    let far = &scene.node.far;
    let servers = Family::ALL.map(|family| far.address(family));
    let _names = dns::Server::start(&far.netns, &servers);
    let well = CLIENT.run(&client, lookups(&["ok"], &servers));
    assert_eq!(well.answered(), 4, "the lab failed: {well:?}");
    prometheus.await_up("tracer", 1);
    // The first failure shows in `increase()`, for there is a 0 before it.
    let failures = "tracer_pod_dns_failures_total{pod=\"client\",cause=\"server\"}";
    let is = |value: f64| {
        move |has: &[Sample]| has.len() == 1 && (has[0].value - value).abs() < f64::EPSILON
    };
    prometheus.await_query(SOON, failures, is(0.0));
    let asked = lookups(&["nx", "servfail", "drop"], &servers);
    let tally = CLIENT.run(&client, asked);
    assert_eq!(tally.outcome("timeout"), 4, "the lab failed: {tally:?}");
    let open = scene.port(Family::V4, OPEN);
    let closed = scene.port(Family::V4, CLOSED);
    // More than a destination that answers nobody needs.
    for to in [open, closed, closed, closed, closed] {
        run(
            &client.netns,
            &[Attempt::new(to, Means::Polled, PATIENCE)],
            1,
        );
    }
    let fulls = table_fulls(Family::V4);
    let limits = Thresholds::set(scene.node.lab.lock(), [32, 64, 64]);
    burst(&client, Family::V4, FIRST_SILENT, 100);
    drop(limits);
    assert!(table_fulls(Family::V4) > fulls, "the lab failed");

    let mut contract = CONTRACT.to_owned();
    if Path::new("/proc/sys/net/netfilter/nf_conntrack_max").exists() {
        contract = format!("{contract} {CONNTRACK}");
    }
    eventually(SOON, || {
        let metrics = scene.agent.metrics();
        let missing = |name: &&str| {
            let name = format!("tracer_{name}");
            !metrics.samples.keys().any(|(n, _)| *n == name)
        };
        let missing: Vec<_> = contract.split_whitespace().filter(missing).collect();
        ensure(missing.is_empty(), || format!("no {missing:?}"))
    });
    let metrics = eventually(Duration::from_secs(20), || {
        let before = scene.agent.metrics();
        let has = samples(&prometheus);
        let after = scene.agent.metrics();
        same(&before, &has, &after).map(|()| after)
    });
    prometheus.await_query(SOON, failures, is(4.0));
    let increase = prometheus.query(&format!("increase({failures}[1m])"));
    assert!(increase[0].value > 3.0, "{increase:?}");
    check_types(&prometheus, &metrics);
    check_formats(&scene.agent);
    scene.agent.stop_cleanly();
}

/// By rename, so that no half of it is read.
fn replace(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).expect("files can be written");
    fs::rename(&new, file).expect("files can be renamed");
}

/// All that Prometheus has of the job now, without what it added itself.
fn samples(prometheus: &Prometheus) -> BTreeMap<Key, f64> {
    // {job="tracer",node="lab"}
    let query = "%7Bjob%3D%22tracer%22%2Cnode%3D%22lab%22%7D";
    let data = prometheus.api(&format!("/api/v1/query?query={query}"));
    let result = data["result"].as_array().expect("a vector");
    result.iter().map(sample).collect()
}

fn sample(series: &Value) -> (Key, f64) {
    let mut labels: Labels =
        serde_json::from_value(series["metric"].clone()).expect("labels are text");
    let name = labels.remove("__name__").expect("series have names");
    assert_eq!(labels.remove("job").as_deref(), Some("tracer"));
    assert_eq!(labels.remove("instance").as_deref(), Some("lab"));
    if let Some(bound) = labels.get_mut("le")
        && let Some(whole) = bound.strip_suffix(".0")
    {
        *bound = whole.to_owned();
    }
    let value = series["value"][1].as_str().expect("values are text");
    ((name, labels), value.parse().expect("values are numbers"))
}

/// The same series with the same values, as far as they stood still meanwhile.
fn same(before: &Metrics, has: &BTreeMap<Key, f64>, after: &Metrics) -> Result<(), String> {
    let still = |(name, _): &Key| !MOVING.iter().any(|moving| name.starts_with(moving));
    let (mut compared, mut moved) = (0, 0);
    for (key, value) in before.samples.iter().filter(|(key, _)| still(key)) {
        if after.samples.get(key) != Some(value) {
            moved += 1;
            continue;
        }
        compared += 1;
        ensure(has.get(key) == Some(value), || {
            format!("{key:?} is {value}, Prometheus has {:?}", has.get(key))
        })?;
    }
    for key in has.keys().filter(|key| still(key)) {
        ensure(before.samples.contains_key(key), || {
            format!("Prometheus has {key:?}, which is not there")
        })?;
    }
    ensure(compared > 9 * moved, || {
        format!("{moved} moved, {compared} stood still")
    })
}

/// Prometheus knows each family's type, and units, which only OpenMetrics tells.
fn check_types(prometheus: &Prometheus, metrics: &Metrics) {
    let known = prometheus.api("/api/v1/metadata");
    for (name, kind) in &metrics.types {
        let (family, kind) = match (&**kind, name.strip_suffix("_info")) {
            ("gauge", Some(family)) => (family, "info"),
            ("counter", _) => (name.trim_end_matches("_total"), "counter"),
            (kind, _) => (&**name, kind),
        };
        let told = &known[family][0];
        assert_eq!(told["type"], *kind, "{family}: {told}");
        assert_ne!(told["help"], "", "{family}");
        let unit = ["seconds", "bytes", "ratio"]
            .into_iter()
            .find(|unit| family.ends_with(&format!("_{unit}")));
        assert_eq!(told["unit"], unit.unwrap_or_default(), "{family}");
    }
}

/// Who asks for nothing gets the older format as promtool wants it; who asks for OpenMetrics or gzip
/// gets that.
fn check_formats(agent: &Agent) {
    let ask = |headers: &[(&str, &str)]| -> Response {
        let response = http::tcp_with(agent.listen(), "GET", "/metrics", headers);
        let response = response.expect("the agent answers");
        assert_eq!(response.status, 200, "{headers:?}");
        response
    };
    let plain = ask(&[]);
    let kind = plain.header("content-type");
    assert_eq!(kind, Some("text/plain; version=0.0.4; charset=utf-8"));
    assert_eq!(plain.header("content-encoding"), None);
    let mut checked = promtool();
    checked.args(["check", "metrics"]);
    let output = pipe(&mut checked, plain.body.as_bytes());
    let said = String::from_utf8_lossy(&output);
    assert_eq!(said, "", "promtool check metrics");

    let open = ask(&[("accept", &format!("text/plain;q=0.9,{OPENMETRICS}"))]);
    let kind = open.header("content-type").unwrap_or_default();
    assert!(
        kind.starts_with("application/openmetrics-text; version=1.0.0"),
        "{kind}"
    );
    assert!(open.body.ends_with("\n# EOF\n"), "{}", open.body);
    assert_eq!(open.body.matches("# EOF").count(), 1);
    let liked_less = ask(&[("accept", &format!("text/plain,{OPENMETRICS};q=0.9"))]);
    assert_eq!(
        liked_less.header("content-type"),
        plain.header("content-type")
    );

    let small = ask(&[
        ("accept", OPENMETRICS),
        ("accept-encoding", "gzip, deflate"),
    ]);
    assert_eq!(small.header("content-encoding"), Some("gzip"));
    assert_eq!(small.header("content-type"), open.header("content-type"));
    let text = pipe(Command::new("gzip").arg("-dc"), &small.bytes);
    let text = String::from_utf8(text).expect("it is text");
    assert!(text.ends_with("\n# EOF\n"), "{text}");
    assert!(
        4 * small.bytes.len() < text.len(),
        "{} of {}",
        small.bytes.len(),
        text.len()
    );
}

/// What a program says on stdout to this on stdin, or all it says where it fails.
fn pipe(command: &mut Command, input: &[u8]) -> Vec<u8> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).expect("it reads all"));
        child.wait_with_output().expect("it ends")
    });
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}
