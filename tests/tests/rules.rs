//! Alerting rules, their runbooks and what Alertmanager keeps quiet: checked and tested by
//! Prometheus' and Alertmanager's own tools.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tests::alertmanager::{Alertmanager, amtool};
use tests::process::{Ended, run, tracer};
use tests::prometheus::{Prometheus, promtool};

const LIMIT: Duration = Duration::from_mins(2);
const SECTIONS: [&str; 5] = [
    "## What it means",
    "## Whom to wake",
    "## How to confirm",
    "## What to do now",
    "## What to do later",
];

fn workspace(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn rule_files() -> [PathBuf; 2] {
    ["recording", "alerts"]
        .map(|name| workspace(&format!("deploy/helm/tracer/files/rules/{name}.yaml")))
}

fn with_extension(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(workspace(folder))
        .unwrap_or_else(|e| panic!("{folder}: {e}"))
        .map(|entry| entry.expect("folders can be read").path())
        .filter(|path| path.extension() == Some(OsStr::new(extension)))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "no file in {folder}");
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn succeed(command: &mut Command) -> Ended {
    let ended = run(command, LIMIT);
    assert!(
        ended.status.success(),
        "{command:?}:\n{}\n{}",
        ended.stdout,
        ended.stderr
    );
    ended
}

/// All groups of rules as Prometheus has read them.
fn groups() -> Vec<Value> {
    let files = rule_files();
    let prometheus = Prometheus::start("[]", &[&files[0], &files[1]]);
    let groups = prometheus.api("/api/v1/rules");
    groups["groups"].as_array().expect("groups").clone()
}

fn rules() -> Vec<Value> {
    let all: Vec<Value> = groups()
        .iter()
        .flat_map(|group| group["rules"].as_array().expect("rules").clone())
        .collect();
    assert!(all.len() > 40, "few rules: {all:?}");
    all
}

fn alerts() -> Vec<Value> {
    let mut all = rules();
    all.retain(|rule| rule["type"] == "alerting");
    all
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

#[test]
fn promtool_accepts_the_rules_and_their_tests_hold() {
    succeed(
        promtool()
            .args(["check", "rules", "--lint=all", "--lint-fatal"])
            .args(rule_files()),
    );
    thread::scope(|scope| {
        for file in with_extension("tests/rules", "yaml") {
            scope.spawn(move || succeed(promtool().args(["test", "rules"]).arg(file)));
        }
    });
}

/// A test that is too long for a file.
fn promtool_holds(test: &Value) {
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let file = folder.path().join("test.yaml");
    fs::write(&file, test.to_string()).expect("files can be written");
    succeed(promtool().args(["test", "rules"]).arg(file));
}

#[test]
fn each_alert_is_tested_with_its_text() {
    let tests: String = with_extension("tests/rules", "yaml")
        .iter()
        .map(|path| read(path))
        .collect();
    // Labels and text of what is expected, by alert.
    let mut expected: BTreeMap<&str, String> = BTreeMap::new();
    for case in tests.split("- alertname: ").skip(1) {
        let (name, rest) = case.split_once('\n').expect("a case has lines");
        let end = rest.find("  - name: ").unwrap_or(rest.len());
        expected.entry(name).or_default().push_str(&rest[..end]);
    }
    for alert in alerts() {
        let name = text(&alert["name"]);
        let cases = expected.get(name);
        let cases = cases.unwrap_or_else(|| panic!("{name} fires in no test"));
        let scope = format!("scope: {}", text(&alert["labels"]["scope"]));
        let severity = format!("severity: {}", text(&alert["labels"]["severity"]));
        assert!(
            cases
                .lines()
                .any(|line| line.contains(&scope) && line.contains(&severity)),
            "{name} with {severity}, {scope} fires in no test"
        );
        assert!(
            !cases.contains("error expanding template"),
            "{name}: {cases}"
        );
        // Neither must one that never ends be.
        let quiet = tests.split("- expr: ").any(|case| {
            let mut lines = case.lines();
            let expression = lines.next().unwrap_or_default();
            covers(expression, name) && lines.any(|line| line.trim() == "exp_samples: []")
        });
        assert!(quiet, "{name} is quiet in no test");
    }
}

/// Whether an expression on `ALERTS` selects this alert, by name or by the beginning of it.
fn covers(expression: &str, name: &str) -> bool {
    expression.contains(&format!("alertname=\"{name}\""))
        || expression
            .split_once("alertname=~\"")
            .and_then(|(_, rest)| rest.split_once('"'))
            .is_some_and(|(patterns, _)| {
                patterns
                    .split('|')
                    .any(|pattern| match pattern.strip_suffix(".*") {
                        Some(beginning) => name.starts_with(beginning),
                        None => pattern == name,
                    })
            })
}

#[test]
fn each_alert_says_how_urgent_whose_and_what_to_do() {
    let runbooks: BTreeSet<String> = with_extension("docs/runbooks", "md")
        .iter()
        .map(|path| path.file_stem().expect("a name").display().to_string())
        .filter(|name| name != "README")
        .collect();
    let index = read(&workspace("docs/runbooks/README.md"));
    let mut named = BTreeSet::new();
    for alert in alerts() {
        let name = text(&alert["name"]).to_owned();
        let (labels, annotations) = (&alert["labels"], &alert["annotations"]);
        let severity = text(&labels["severity"]);
        assert!(
            ["critical", "warning", "info"].contains(&severity),
            "{name}: {severity}"
        );
        let scope = text(&labels["scope"]);
        assert!(
            ["pod", "node", "cluster"].contains(&scope),
            "{name}: {scope}"
        );
        assert!(
            text(&annotations["runbook_url"]).ends_with(&format!("/docs/runbooks/{name}.md")),
            "{name}: {annotations}"
        );
        let told = format!(
            "{}{}",
            text(&annotations["summary"]),
            text(&annotations["description"])
        );
        let subject: &[&str] = match scope {
            "pod" => &["$labels.namespace", "$labels.pod", "$labels.node"],
            "node" => &["$labels.node"],
            _ => &[],
        };
        for label in subject {
            let peer = *label == "$labels.node" && told.contains("$labels.peer");
            assert!(told.contains(label) || peer, "{name} does not tell {label}");
        }
        let row = format!("| [{name}]({name}.md) |");
        let row = index.lines().find(|line| line.starts_with(&row));
        let row = row.unwrap_or_else(|| panic!("{name} is not in docs/runbooks/README.md"));
        assert!(row.contains(severity), "{name} is {severity}: {row}");
        named.insert(name);
    }
    assert_eq!(named, runbooks, "alerts, and pages in docs/runbooks");

    for name in &runbooks {
        let page = read(&workspace(&format!("docs/runbooks/{name}.md")));
        assert!(
            page.starts_with(&format!("# {name}\n")),
            "{name}: its title"
        );
        let headings: Vec<&str> = page.lines().filter(|l| l.starts_with("## ")).collect();
        assert_eq!(headings, SECTIONS, "{name}");
    }
}

#[test]
fn commands_of_the_runbooks_exist() {
    let mut helps: BTreeMap<String, String> = BTreeMap::new();
    let mut commands = 0;
    for path in with_extension("docs/runbooks", "md") {
        let page = read(&path);
        let blocks = page.split("```").skip(1).step_by(2);
        for line in blocks.flat_map(str::lines) {
            let typed = line.strip_prefix("tracer ");
            let Some(command) = typed.or_else(|| Some(line.split_once("-- tracer ")?.1)) else {
                continue;
            };
            commands += 1;
            let mut words = command.split(' ');
            let verb = words.next().expect("a first word");
            let help = helps
                .entry(verb.to_owned())
                .or_insert_with(|| succeed(tracer().args([verb, "--help"])).stdout);
            for flag in words.filter(|word| word.starts_with("--")) {
                assert!(
                    help.contains(flag),
                    "{}: `{line}`: {verb} has no {flag}",
                    path.display()
                );
            }
        }
    }
    assert!(
        commands > 20,
        "{commands} commands of tracer in the runbooks"
    );
}

/// Of a metric's name.
fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == ':'
}

#[test]
fn rules_rest_on_counters_that_tracer_has() {
    let documented = read(&workspace("docs/metrics.md"));
    let all = rules();
    let recorded: BTreeSet<&str> = all
        .iter()
        .filter(|rule| rule["type"] == "recording")
        .map(|rule| text(&rule["name"]))
        .collect();
    let mut used = BTreeSet::new();
    for rule in &all {
        let query = text(&rule["query"]);
        for word in query.split(|c| !is_name(c)) {
            if word.contains(':') && word.contains("tracer") {
                assert!(recorded.contains(word), "{word} is recorded by no rule");
                used.insert(word.to_owned());
            } else if word.starts_with("tracer_") {
                assert!(
                    documented.contains(&format!("`{word}`")),
                    "{word} is not in docs/metrics.md"
                );
                assert!(
                    !word.ends_with("_failure_ratio"),
                    "{}: the ratio gauges are for people",
                    rule["name"]
                );
            }
        }
    }
    let files = rule_files();
    let texts = read(&files[1]) + &read(&workspace("deploy/grafana/dashboard.toml"));
    let idle: Vec<_> = recorded
        .iter()
        .filter(|name| !used.contains(**name) && !texts.contains(**name))
        .collect();
    assert!(idle.is_empty(), "recorded for nobody: {idle:?}");
}

/// Above the shards of docs/scale.md there is what they recorded and what its `match[]` takes along.
#[test]
fn what_is_federated_is_what_the_other_groups_read() {
    // kube-state-metrics' own; and texts, which go without the pod with most entries.
    let elsewhere = ["kube_node_status_condition", "tracer_pod_neighbour_entries"];
    let manual = read(&workspace("docs/scale.md"));
    let selectors: Vec<&str> = manual
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("- '{")?.strip_suffix("}'"))
        .collect();
    assert_eq!(selectors.len(), 4, "{selectors:?}");

    let mut asked = BTreeSet::new();
    for group in groups() {
        if ["tracer-nodes", "tracer-pods"].contains(&text(&group["name"])) {
            continue;
        }
        for rule in group["rules"].as_array().expect("rules") {
            let told = rule["annotations"].to_string();
            let words = text(&rule["query"]).split(|c| !is_name(c));
            let of_text = told.split(|c| !is_name(c)).filter(|w| w.contains('_'));
            let metrics = words.chain(of_text).filter(|word| {
                *word == "up"
                    || word.contains(":tracer_")
                    || ["tracer_", "process_", "kube_"]
                        .iter()
                        .any(|start| word.starts_with(start))
            });
            asked.extend(metrics.map(str::to_owned));
        }
    }
    // What these groups record is there.
    asked.retain(|name| {
        !["cluster:", "peer:"]
            .iter()
            .any(|own| name.starts_with(own))
    });
    for name in elsewhere {
        assert!(asked.remove(name), "{name} is asked for by no rule");
    }
    assert!(asked.len() > 20, "{asked:?}");

    let series = |name: &String| json!({"series": format!("{name}{{job=\"tracer\",name=\"{name}\"}}"), "values": "1"});
    let taken = selectors
        .iter()
        .map(|s| format!("count by (name) ({{{s}}})"));
    let sample = |name: &String| json!({"labels": format!("{{name=\"{name}\"}}"), "value": 1});
    let test = json!({"tests": [{
        "interval": "1m",
        "input_series": asked.iter().map(series).collect::<Vec<_>>(),
        "promql_expr_test": [{
            "expr": taken.collect::<Vec<_>>().join(" or "),
            "eval_time": "0m",
            "exp_samples": asked.iter().map(sample).collect::<Vec<_>>(),
        }],
    }]});
    promtool_holds(&test);
}

/// What is a page in a small cluster is every day's in a big one; too many lines for a file.
#[test]
fn in_1000_nodes_callers_of_the_dead_are_a_page_when_there_are_more_than_usual() {
    let series = |series: String, values: &str| json!({"series": series, "values": values});
    let mut input: Vec<Value> = (0..1000)
        .map(|n| series(format!("tracer_build_info{{node=\"n{n}\"}}"), "1x95"))
        .collect();
    let caller = |namespace: &str, n: u32, values: &str| {
        let labels = format!(
            "node=\"n{n}\",namespace=\"{namespace}\",pod=\"p\",destination=\"{namespace}-{}:80\"",
            n % 50
        );
        let metric = "tracer_pod_dead_endpoint_attempts_total";
        series(format!("{metric}{{{labels}}}"), values)
    };
    // 19 with old addresses at any time; later 25 more, which is not much, and then 70, with others.
    input.extend((0..19).map(|n| caller("shop", n, "0+10x95")));
    input.extend((0..25).map(|n| caller("bank", n, "_x62 3+10x12 _x20")));
    input.extend((0..70).map(|n| caller("mesh", n, "_x80 3+10x15")));
    let page = "ALERTS{alertname=\"TracerDeadEndpointTrafficWidespread\",alertstate=\"firing\"}";
    let count = |at: &str, of: &str, value: Option<u32>| {
        let samples: Vec<Value> = value
            .map(|value| json!({"labels": "{}", "value": value}))
            .into_iter()
            .collect();
        json!({"expr": format!("count({of})"), "eval_time": at, "exp_samples": samples})
    };
    let ever = format!("max_over_time({page}[2h])");
    let test = json!({
        "rule_files": rule_files(),
        "evaluation_interval": "1m",
        "group_eval_order": ["tracer-nodes", "tracer-pods", "tracer-cluster", "tracer-dead-endpoints"],
        "tests": [{
            "interval": "1m",
            "input_series": input,
            "promql_expr_test": [
                count("80m", &ever, None),
                count("87m", page, Some(1)),
                count("95m", page, Some(1)),
            ],
        }],
    });
    promtool_holds(&test);
}

/// A node's trouble is one page, not one for each of its pods.
#[test]
fn a_wider_alert_silences_the_narrower() {
    let config = workspace("deploy/alertmanager/inhibit.yaml");
    succeed(amtool().arg("check-config").arg(&config));
    let alertmanager = Alertmanager::start(&config);
    let fired = [
        // n1 is sick; all but the first are consequences.
        "TracerNeighbourTableFull critical node node=n1 family=ipv4",
        "TracerNeighbourTableFilling critical node node=n1 family=ipv4",
        "TracerDNSFailingOnNode critical node node=n1 cause=neighbour_table_full",
        "TracerDNSFailingForPod warning pod node=n1 namespace=shop pod=cart cause=neighbour_table_full",
        "TracerDNSFailingForPod warning pod node=n1 namespace=shop pod=web cause=neighbour_table_full",
        "TracerDeadEndpointTraffic warning pod node=n1 namespace=shop pod=web destination=10.0.0.9:80",
        "TracerNodeOutlier warning node node=n1 signal=neighbour",
        // Another node, another table, another cause: each tells something of its own.
        "TracerNeighbourTableFilling critical node node=n1 family=ipv6",
        "TracerDNSFailingForPod warning pod node=n2 namespace=shop pod=cart cause=server",
        "TracerNodeOutlier warning node node=n2 signal=dns",
        // Another cluster, where DNS is down and a mesh calls the dead.
        "TracerDNSFailingEverywhere critical cluster cluster=b cause=server",
        "TracerDNSFailingOnNode critical node cluster=b node=n1 cause=server",
        "TracerDNSFailingForPod warning pod cluster=b node=n2 namespace=shop pod=cart cause=server",
        "TracerManyNodesFailTowardsPeer warning cluster cluster=b peer=10.96.0.10",
        "TracerDeadEndpointTrafficWidespread critical cluster cluster=b",
        "TracerDeadEndpointTraffic warning pod cluster=b node=n3 namespace=bank pod=p destination=10.0.0.9:80",
        // Another one, whose API server is away; one hook is a node's own trouble.
        "TracerManyAgentsUnwell warning cluster cluster=c fault=TracerPodSourceSilent",
        "TracerPodSourceSilent warning node cluster=c node=n1 source=kubernetes",
        "TracerPodSourceSilent warning node cluster=c node=n2 source=kubernetes",
        "TracerHookNotAttached warning node cluster=c node=n1 hook=dns state=degraded",
        // And one where no agent is scraped.
        "TracerAbsent warning cluster cluster=d",
        "TracerManyAgentsUnwell warning cluster cluster=d fault=TracerNodeNotScraped",
        "TracerNodeNotScraped warning node cluster=d node=n1",
        // Of somebody else.
        "KubePodCrashLooping warning pod node=n1 namespace=shop pod=cart",
    ];
    for alert in fired {
        let words: Vec<&str> = alert.split(' ').collect();
        let mut labels = vec![
            ("alertname", words[0]),
            ("severity", words[1]),
            ("scope", words[2]),
        ];
        labels.extend(words[3..].iter().filter_map(|word| word.split_once('=')));
        alertmanager.fire(&labels);
    }
    let mut told: Vec<String> = alertmanager
        .not_inhibited(fired.len())
        .iter()
        .map(|labels| {
            let of = |name: &str| labels.get(name).map_or("", String::as_str);
            format!(
                "{} {} {} {}",
                of("alertname"),
                of("cluster"),
                of("node"),
                of("family")
            )
        })
        .map(|told| told.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    told.sort();
    assert_eq!(
        told,
        [
            "KubePodCrashLooping n1",
            "TracerAbsent d",
            "TracerDNSFailingEverywhere b",
            "TracerDNSFailingForPod n2",
            "TracerDeadEndpointTrafficWidespread b",
            "TracerHookNotAttached c n1",
            "TracerManyAgentsUnwell c",
            "TracerNeighbourTableFilling n1 ipv6",
            "TracerNeighbourTableFull n1 ipv4",
            "TracerNodeOutlier n2",
        ]
    );
}
