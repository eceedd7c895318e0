//! The dashboard and the rules on real figures: a real Prometheus scrapes a real agent that has seen
//! real failures, every query of the dashboard has an answer, and the rules record and accuse.

use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tests::metrics::Labels;
use tests::neigh::table_fulls;
use tests::nft::Rules;
use tests::overflow::{LIMITS, Overflow};
use tests::prometheus::{INTERVAL, Prometheus, Sample};
use tests::tcp::{Attempt, Manner, Means, Server, run};
use tests::wait::ensure;
use tests::{Family, Lab, Thresholds, eventually};

const OPEN: u16 = 8080;
const CLOSED: u16 = 8081;
const PATIENCE: Duration = Duration::from_secs(2);
/// Until figures of what happened have been read, scraped and make a rate.
const SOON: Duration = Duration::from_secs(15);
const SPAN: Duration = Duration::from_mins(1);

/// A query of a panel, as Grafana sends it.
struct Query {
    panel: String,
    expr: String,
    instant: bool,
}

fn workspace(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn dashboard() -> Value {
    let path = workspace("deploy/helm/tracer/files/dashboard.json");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).expect("the dashboard is JSON")
}

/// What Grafana makes of `$NAME`, for these variables and its own ones.
fn substituted(text: &str, variables: &[(String, String)]) -> String {
    let mut all = text
        .replace("$__rate_interval", "10s")
        .replace("$__range", "1m");
    for (name, value) in variables {
        all = all.replace(&format!("${name}"), value);
    }
    assert!(
        !all.contains('$') || all.contains("\"$1\""),
        "unknown variable in {all}"
    );
    all
}

/// Several values of a variable, as Grafana's Prometheus data source writes them into a regular
/// expression inside quotes.
fn chosen(values: &[String]) -> String {
    let escaped: Vec<String> = values
        .iter()
        .map(|value| {
            let mut escaped = String::new();
            for character in value.chars() {
                if "\\^$*+?.()|[]{}".contains(character) {
                    escaped += "\\\\";
                }
                escaped.push(character);
            }
            escaped
        })
        .collect();
    match &escaped[..] {
        [one] => one.clone(),
        several => format!("({})", several.join("|")),
    }
}

/// `label_values(SELECTOR, LABEL)` of a variable.
fn label_values(prometheus: &Prometheus, query: &str) -> Vec<String> {
    let inside = query
        .strip_prefix("label_values(")
        .and_then(|rest| rest.strip_suffix(')'))
        .unwrap_or_else(|| panic!("not a query of label values: {query}"));
    let (selector, label) = inside.rsplit_once(", ").expect("a selector and a label");
    let by = format!("count by ({label}) ({selector})");
    let values: Vec<String> = prometheus
        .query(&by)
        .into_iter()
        .filter_map(|mut sample| sample.labels.remove(label))
        .collect();
    assert!(!values.is_empty(), "no value of {query}");
    values
}

/// The variables in their order, all of them with "All" chosen, or with every value by name.
fn variables(dashboard: &Value, prometheus: &Prometheus, all: bool) -> Vec<(String, String)> {
    let mut known = Vec::new();
    let list = dashboard["templating"]["list"].as_array();
    for variable in list.expect("variables") {
        if variable["type"] == "datasource" {
            continue;
        }
        let name = variable["name"].as_str().expect("a name").to_owned();
        let query = variable["query"]["query"].as_str().expect("a query");
        let values = label_values(prometheus, &substituted(query, &known));
        let value = if all {
            variable["allValue"].as_str().expect("a value").to_owned()
        } else {
            chosen(&values)
        };
        known.push((name, value));
    }
    known
}

/// Panels of rows that are open, or closed.
fn panels(dashboard: &Value, closed: bool) -> Vec<&Value> {
    let all = dashboard["panels"].as_array().expect("panels").iter();
    let (rows, open): (Vec<_>, Vec<_>) = all.partition(|panel| panel["type"] == "row");
    if !closed {
        return open;
    }
    rows.into_iter()
        .flat_map(|row| row["panels"].as_array().expect("panels"))
        .collect()
}

fn queries(dashboard: &Value, variables: &[(String, String)]) -> Vec<Query> {
    let mut queries = Vec::new();
    for panel in [false, true]
        .map(|closed| panels(dashboard, closed))
        .concat()
    {
        let title = panel["title"].as_str().expect("a title");
        let targets = panel["targets"].as_array().expect("targets");
        assert!(!targets.is_empty(), "{title} asks for nothing");
        for target in targets {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            queries.push(Query {
                panel: title.to_owned(),
                expr: substituted(target["expr"].as_str().expect("an expression"), variables),
                instant: target["instant"] == true,
            });
        }
    }
    assert!(queries.len() > 30, "{} queries", queries.len());
    queries
}

/// What is asked as soon as it is opened, for all nodes, does not read a series of each pod over time, and
/// draws no line for each node.
#[test]
fn open_rows_bear_thousands_of_nodes() {
    let dashboard = dashboard();
    let open = panels(&dashboard, false);
    assert!(open.len() > 20 && panels(&dashboard, true).len() > 5);
    for panel in open {
        let title = panel["title"].as_str().expect("a title");
        for target in panel["targets"].as_array().expect("targets") {
            if target["range"] != true {
                continue;
            }
            let expr = target["expr"].as_str().expect("an expression");
            assert!(!expr.contains("tracer_pod_"), "{title}: {expr}");
            let legend = target["legendFormat"].as_str().expect("a legend");
            let lines = ["{{node}}", "{{pod}}", "{{peer}}"];
            if lines.iter().any(|line| legend.contains(line)) {
                assert!(
                    expr.contains("topk(") || expr.contains("bottomk("),
                    "{title}: {expr}"
                );
            }
        }
    }
}

/// Samples that can be drawn: of a range, the last one of each series.
fn answer(prometheus: &Prometheus, query: &Query) -> Vec<Sample> {
    if query.instant {
        let mut samples = prometheus.query(&query.expr);
        samples.retain(|sample| sample.value.is_finite());
        return samples;
    }
    let series = prometheus.query_range(&query.expr, SPAN, INTERVAL);
    series
        .into_iter()
        .filter_map(|series| {
            let value = series.values.iter().rev().find(|(_, v)| v.is_finite())?.1;
            Some(Sample {
                labels: series.labels,
                value,
            })
        })
        .collect()
}

/// The rules, evaluated every second instead of twice a minute.
fn hurried_rules() -> TempDir {
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let from = workspace("deploy/helm/tracer/files/rules");
    for name in ["recording.yaml", "alerts.yaml"] {
        let text = fs::read_to_string(from.join(name)).expect("rules can be read");
        let lines = text.lines().map(|line| {
            if line.starts_with("    interval: ") {
                "    interval: 1s"
            } else {
                line
            }
        });
        let text: Vec<&str> = lines.collect();
        fs::write(folder.path().join(name), text.join("\n")).expect("files can be written");
    }
    folder
}

/// What the rules make of the same failures; alerts of them wait for some minutes, and so are pending.
fn check_rules(prometheus: &Prometheus, scene: &Overflow, dead: &str) {
    let greedy = scene.greedy.netns.name();
    let victim = scene.victim.netns.name();
    let recorded = [
        "node:tracer_agents:count{node=\"lab\"} == 1".to_owned(),
        "node:tracer_failures:rate3m{signal=\"dns\"} > 0".to_owned(),
        "node:tracer_failures:rate3m{signal=\"connect\"} > 0".to_owned(),
        "node:tracer_failures:rate3m{signal=\"neighbour\"} > 0".to_owned(),
        "node:tracer_failures:ratio_rate3m{signal=\"dns\"} > 0 < 1".to_owned(),
        "node:tracer_failures:increase5m{signal=\"retransmit\"} > 0".to_owned(),
        "node:tracer_dns_failures:rate3m{cause=\"neighbour_table_full\"} > 0".to_owned(),
        "node:tracer_neighbour_entries:ratio{family=\"ipv4\"} > 0".to_owned(),
        format!(
            "pod:tracer_dns_failures:rate3m{{pod=\"{greedy}\",cause=\"neighbour_table_full\"}} > 0"
        ),
        format!("pod:tracer_dns_failures:ratio_rate3m{{pod=\"{greedy}\"}} > 0"),
        "node:tracer_outlier:figure{signal=\"neighbour\"} > 0".to_owned(),
        "node:tracer_failures:rate1h{signal=\"dns\"} > 0".to_owned(),
        "node:tracer_neighbour_table_fulls:increase1d{family=\"ipv4\"} > 0".to_owned(),
        "ALERTS{alertname=\"TracerNeighbourTableFull\",family=\"ipv4\",node=\"lab\"}".to_owned(),
        "ALERTS{alertname=\"TracerNeighbourTableWasFull\",family=\"ipv4\",alertstate=\"firing\"}"
            .to_owned(),
        format!(
            "ALERTS{{alertname=\"TracerDeadEndpointTraffic\",pod=\"{victim}\",destination=\"{dead}\"}}"
        ),
    ];
    for expression in recorded {
        prometheus.await_query(SOON, &expression, |found| !found.is_empty());
    }
    let groups = prometheus.api("/api/v1/rules");
    for group in groups["groups"].as_array().expect("groups") {
        for rule in group["rules"].as_array().expect("rules") {
            assert_eq!(rule["health"], "ok", "{rule:#}");
        }
    }
}

fn has(labels: &Labels, wanted: &[(&str, &str)]) -> bool {
    wanted
        .iter()
        .all(|(name, value)| labels.get(*name).is_some_and(|v| v == value))
}

#[test]
fn no_panel_is_empty_and_no_rule_fails() {
    let mut lab = Lab::new();
    let scene = Overflow::new(&lab, &[]);
    let (greedy, victim) = (&scene.greedy, &scene.victim);
    let open = SocketAddr::new(greedy.hub(Family::V4), OPEN);
    let closed = SocketAddr::new(victim.hub(Family::V4), CLOSED);
    let also_open = SocketAddr::new(victim.hub(Family::V4), OPEN);
    let _server = Server::start(&lab.hub, &[open, also_open], Manner::Hold);
    let connect = |to| TcpStream::connect(to).expect("it listens");
    let mut stream = greedy.netns.run(|| connect(open));
    // A pod's failures count from its first traffic of that kind.
    drop(victim.netns.run(|| connect(also_open)));
    let rules = hurried_rules();
    let files = ["recording.yaml", "alerts.yaml"].map(|name| rules.path().join(name));
    let agents = [("lab", scene.agent.listen())];
    let prometheus = Prometheus::of_agents(&agents, &[&files[0], &files[1]]);
    prometheus.await_up("tracer", 1);

    // An established connection that nobody hears any more.
    let _silence = Rules::drop(&lab.hub, "input", &format!("tcp dport {OPEN}"));
    stream
        .write_all(b"anybody there?")
        .expect("the kernel takes it");
    // Calls to a port where nobody is.
    let attempt = Attempt::new(closed, Means::Polled, PATIENCE);
    for ended in run(&victim.netns, &[attempt; 5], 100) {
        assert_eq!(ended.result, "refused", "the lab failed: {ended:?}");
    }
    // More datagrams than a socket that nobody reads has room for.
    let at = SocketAddr::new(victim.address(Family::V4), OPEN);
    let _unread = victim
        .netns
        .run(|| UdpSocket::bind(at).expect("the port is free"));
    let flood = || {
        lab.hub.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a port is free");
            for _ in 0..500 {
                socket.send_to(&[0; 1400], at).expect("it can be sent");
            }
        });
    };
    flood();
    // A port has its series from its first loss on; its rate is what comes after.
    let lost = format!("tracer_pod_udp_receive_drops_total{{port=\"{OPEN}\"}}");
    prometheus.await_query(SOON, &lost, |lost| !lost.is_empty());
    flood();
    // A full table, and lookups that die of it.
    let before = table_fulls(Family::V4);
    let limits = Thresholds::set(lab.lock(), LIMITS);
    scene.strike();
    drop(limits);
    scene.look_up_well();
    assert!(table_fulls(Family::V4) > before, "the lab failed");

    let dashboard = dashboard();
    for all in [true, false] {
        let mut left = None;
        eventually(SOON, || {
            let variables = variables(&dashboard, &prometheus, all);
            let left = left.get_or_insert_with(|| queries(&dashboard, &variables));
            left.retain(|query| answer(&prometheus, query).is_empty());
            ensure(left.is_empty(), || {
                let left: Vec<String> = left
                    .iter()
                    .map(|query| format!("{}: {}", query.panel, query.expr))
                    .collect();
                format!("no answer to\n{}", left.join("\n"))
            })
        });
    }

    // What is shown is what happened, and to whom.
    let pod = |pod: &'static str, name: &str| (pod, name.to_owned());
    let (greedy, victim) = (greedy.netns.name(), victim.netns.name());
    let destination = closed.to_string();
    let shown = [
        ("Pods that are refused", vec![pod("pod", greedy)]),
        ("Pods with most entries", vec![pod("pod", greedy)]),
        (
            "Pods whose lookups fail, by cause",
            vec![pod("pod", greedy), pod("cause", "neighbour_table_full")],
        ),
        (
            "Pods whose connects fail, by result",
            vec![pod("pod", victim), pod("result", "refused")],
        ),
        (
            "Calls to the dead",
            vec![pod("pod", victim), pod("destination", &destination)],
        ),
        ("Pods that send segments again", vec![pod("pod", greedy)]),
        (
            "Datagrams lost in full receive buffers",
            vec![pod("pod", victim), pod("port", &OPEN.to_string())],
        ),
    ];
    let variables = variables(&dashboard, &prometheus, true);
    let queries = queries(&dashboard, &variables);
    for (panel, labels) in shown {
        let query = queries.iter().find(|query| query.panel == panel);
        let query = query.unwrap_or_else(|| panic!("no panel {panel}"));
        let wanted: Vec<(&str, &str)> = labels.iter().map(|(n, v)| (*n, &**v)).collect();
        eventually(SOON, || {
            let series = prometheus.query_range(&query.expr, SPAN, INTERVAL);
            let moved = series.iter().any(|series| {
                has(&series.labels, &wanted) && series.values.iter().any(|(_, value)| *value > 0.0)
            });
            ensure(moved, || {
                format!("{panel} does not show {wanted:?}: {series:?}")
            })
        });
    }

    // The alerts of the annotations, of which there are none yet.
    for annotation in dashboard["annotations"]["list"].as_array().expect("a list") {
        let expr = annotation["expr"].as_str().expect("an expression");
        prometheus.query(&substituted(expr, &variables));
    }
    // More calls to the dead: a destination has its series from its first failures on.
    for ended in run(&scene.victim.netns, &[attempt; 5], 100) {
        assert_eq!(ended.result, "refused", "the lab failed: {ended:?}");
    }
    check_rules(&prometheus, &scene, &destination);
    scene.agent.stop_cleanly();
}
