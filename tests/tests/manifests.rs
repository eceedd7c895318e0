//! The chart and what is rendered from it. That a kubelet's runtime runs it is in `image.rs`, that a
//! cluster does in `cargo xtask cluster`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tests::daemonset::capabilities;
use tests::kubernetes::{objects, only, read, template};
use tests::metrics::Labels;
use tests::process::{run, tracer_path};
use tests::prometheus::{Prometheus, promtool};
use tests::xtask::xtask;

fn rendered(values: &str) -> Vec<Value> {
    template(&["--set", values]).unwrap_or_else(|why| panic!("{values}: {why}"))
}

fn container(objects: &[Value]) -> &Value {
    &only(objects, "DaemonSet")["spec"]["template"]["spec"]["containers"][0]
}

fn kinds(objects: &[Value]) -> BTreeSet<&str> {
    objects.iter().filter_map(|o| o["kind"].as_str()).collect()
}

#[test]
fn the_rendered_files_are_what_the_chart_makes_and_kubernetes_takes_them() {
    let ended = run(
        &mut xtask(&["manifests", "--check"]),
        Duration::from_mins(1),
    );
    assert!(ended.status.success(), "{ended:#?}");
}

/// Every agent of a large cluster watching every node is too much for its API server.
#[test]
fn nodes_are_seen_unless_it_is_not_wanted() {
    for (values, expected) in [
        ("", json!(["pods", "nodes"])),
        ("rbac.nodes=false", json!(["pods"])),
    ] {
        let objects = rendered(values);
        let role = only(&objects, "ClusterRole");
        assert_eq!(role["rules"][0]["resources"], expected, "{values}");
    }
}

/// The chart with and without what can be chosen, the unit, and what `doctor` tells; the manual and
/// the rendered manifest are in `capabilities.rs`.
#[test]
fn capabilities_are_the_same_everywhere() {
    let plain = rendered("");
    let context = &container(&plain)["securityContext"];
    let added: BTreeSet<String> = capabilities(context, "add").into_iter().collect();
    assert_eq!(capabilities(context, "drop"), ["ALL"]);
    assert_eq!(context["privileged"], Value::Null);

    let said = Command::new(tracer_path())
        .args(["doctor", "--output", "json"])
        .output()
        .expect("doctor can be run");
    let doctor: Value = serde_json::from_slice(&said.stdout).expect("it writes JSON");
    let known = doctor["capabilities"].as_array().expect("it lists them");
    let known: BTreeSet<String> = known
        .iter()
        .filter_map(|c| Some(c["name"].as_str()?.trim_start_matches("CAP_").to_owned()))
        .collect();
    let exact = rendered("exactNamespaces=true");
    let exact = capabilities(&container(&exact)["securityContext"], "add");
    assert_eq!(exact.into_iter().collect::<BTreeSet<_>>(), known);
    let less: Vec<_> = known.difference(&added).collect();
    assert_eq!(less, ["SYS_ADMIN"]);

    let unit = read("deploy/debian/tracer.service");
    let bounding = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .expect("the unit has a bounding set");
    let bounding: BTreeSet<String> = bounding
        .split(' ')
        .map(|name| name.trim_start_matches("CAP_").to_owned())
        .collect();
    assert_eq!(bounding, added);

    // For want of CAP_SYS_RESOURCE.
    assert!(unit.lines().any(|line| line == "LimitMEMLOCK=infinity"));

    // Each takes away what one of these is for (systemd.exec(5)).
    for setting in [
        "ProtectKernelTunables=",
        "ProtectKernelLogs=",
        "ProtectProc=",
    ] {
        let sets = |line: &str| line.starts_with(setting);
        assert!(!unit.lines().any(sets), "the unit has {setting}");
    }
}

#[test]
fn values_do_what_they_say() {
    let privileged = rendered("privileged=true");
    let context = &container(&privileged)["securityContext"];
    assert_eq!(context["privileged"], true);
    assert_eq!(context["capabilities"], Value::Null);

    let cri = rendered("podSource=cri,criEndpoint=unix:///run/crio/crio.sock");
    assert!(!kinds(&cri).contains("ClusterRole"), "{:?}", kinds(&cri));
    let pod = &only(&cri, "DaemonSet")["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    let mounts = container(&cri)["volumeMounts"].to_string();
    assert!(mounts.contains("\"/run/crio\""), "{mounts}");

    let plain = rendered("");
    let role = only(&plain, "ClusterRole");
    assert_eq!(
        role["rules"],
        json!([{"apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]}])
    );
    let pod = &only(&plain, "DaemonSet")["spec"]["template"]["spec"];
    assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(
        container(&plain)["securityContext"]["readOnlyRootFilesystem"],
        true
    );

    let arguments = |values: &str| container(&rendered(values))["args"].to_string();
    assert!(!arguments("").contains("redact"));
    assert!(arguments("redactNames=true").contains("--redact-names"));
    assert!(arguments("extraArgs={--dns-port=5353}").contains("--dns-port=5353"));
    let stateless = rendered("stateDir=none");
    let mounts = container(&stateless)["volumeMounts"].to_string();
    assert!(!mounts.contains("/sys/fs/bpf"), "{mounts}");

    let digest = format!("sha256:{}", "0a".repeat(32));
    let image = rendered(&format!("image.repository=r.test/t,image.digest={digest}"));
    assert_eq!(container(&image)["image"], format!("r.test/t@{digest}"));
    let with = rendered("dashboard.enabled=true");
    let handed_out = only(&with, "ConfigMap")["data"]["tracer.json"].as_str();
    let dashboard = |text: &str| -> Value { serde_json::from_str(text).expect("it is JSON") };
    assert_eq!(
        dashboard(handed_out.expect("it is text")),
        dashboard(&read("deploy/helm/tracer/files/dashboard.json"))
    );
    // AppArmor's annotation of old became a field.
    for (version, place) in [
        (
            "1.29.0",
            "container.apparmor.security.beta.kubernetes.io/tracer",
        ),
        ("1.30.0", "appArmorProfile"),
    ] {
        let made = template(&["--kube-version", version]).expect("it is known");
        let text = only(&made, "DaemonSet").to_string();
        assert!(text.contains(place), "{version}: {text}");
    }
}

/// Pods that detach are never ready, and the next would wait for them.
#[test]
fn all_nodes_detach_at_once() {
    let strategy =
        |values: &str| only(&rendered(values), "DaemonSet")["spec"]["updateStrategy"].clone();
    let at_a_time =
        |share: &str| json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": share}});
    assert_eq!(strategy(""), at_a_time("10%"));
    assert_eq!(strategy("detachAll=true"), at_a_time("100%"));
    let by_hand = "updateStrategy.type=OnDelete,detachAll=true";
    assert_eq!(strategy(by_hand), at_a_time("100%"));
}

#[test]
fn capabilities_can_be_added() {
    let more = rendered("extraCapabilities={SYS_RESOURCE}");
    let more = capabilities(&container(&more)["securityContext"], "add");
    let mut all = capabilities(&container(&rendered(""))["securityContext"], "add");
    all.push("SYS_RESOURCE".to_owned());
    assert_eq!(more, all);
}

/// In an outage the probe's connection may be what dies first.
#[test]
fn no_kubelet_kills_an_agent_that_it_cannot_reach() {
    let plain = rendered("");
    assert_eq!(container(&plain)["livenessProbe"], Value::Null);
    assert_eq!(
        container(&plain)["readinessProbe"]["httpGet"]["path"],
        "/readyz"
    );
    let daemonset = only(&plain, "DaemonSet");
    assert_eq!(daemonset["spec"]["minReadySeconds"], 10);
}

#[test]
fn monitoring_is_asked_for_where_the_cluster_knows_it() {
    let operator = ["--api-versions", "monitoring.coreos.com/v1"];
    let kinds_with = |arguments: &[&str]| -> BTreeSet<String> {
        let objects = template(arguments).expect("the values are right");
        kinds(&objects).into_iter().map(str::to_owned).collect()
    };
    assert!(!kinds_with(&[]).contains("PodMonitor"));
    assert!(kinds_with(&operator).contains("PodMonitor"));
    let never = [&operator[..], &["--set", "podMonitor.enabled=false"]].concat();
    assert!(!kinds_with(&never).contains("PodMonitor"));
    let rules = rendered("prometheusRule.enabled=true,managedPrometheus.enabled=true");
    let groups = |kind: &str| only(&rules, kind)["spec"]["groups"].clone();
    assert_eq!(groups("PrometheusRule"), groups("ClusterRules"));
    // All that the files have, in a form that Prometheus takes.
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let file = folder.path().join("rules.yaml");
    let text = json!({"groups": groups("PrometheusRule")}).to_string();
    fs::write(&file, text).expect("files can be written");
    promtool_takes(&["check", "rules"], &file);
}

#[test]
fn a_value_that_is_wrong_is_named() {
    for (values, words) in [
        ("privileged=yes", "/privileged"),
        ("prvileged=true", "prvileged"),
        ("listen=9773", "/listen"),
        ("listen=127.0.0.1:9773", "/listen"),
        ("listen=0.0.0.0:65536", "/listen"),
        ("criEndpoint=unix:///run/some.sock", "/criEndpoint"),
        ("apiFolder=run", "/apiFolder"),
        ("extraCapabilities={CAP_BPF}", "/extraCapabilities/0"),
        ("runbookUrl=runbooks", "/runbookUrl"),
        ("podSource=k8s", "'kubernetes', 'cri'"),
        ("stateDir=/var/lib/tracer", "/stateDir"),
        ("image.digest=latest", "/image/digest"),
        ("podMonitor.enabled=perhaps", "/podMonitor/enabled"),
    ] {
        let why = template(&["--set", values]).expect_err(values);
        assert!(why.contains(words), "{values}: {why}");
    }
}

/// Every value has a rule in the schema, and none is told of that is not there.
#[test]
fn values_schema_and_manual_agree() {
    let values = objects(&read("deploy/helm/tracer/values.yaml")).remove(0);
    let schema: Value = serde_json::from_str(&read("deploy/helm/tracer/values.schema.json"))
        .expect("the schema is JSON");
    let keys = |object: &Value| -> BTreeSet<String> {
        let object = object.as_object().expect("it is an object");
        object.keys().cloned().collect()
    };
    let mut known = keys(&schema["properties"]);
    // helm's own.
    known.remove("global");
    assert_eq!(keys(&values), known);
    let manual = read("docs/install.md");
    let named = manual
        .lines()
        .skip_while(|line| !line.starts_with("| value |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .flat_map(|line| line.split('|').nth(1).unwrap_or_default().split(", "))
        .map(|name| name.trim().trim_matches('`'))
        // `image.repository`, `.tag`
        .filter(|name| !name.starts_with('.'));
    let mut count = 0;
    for name in named {
        let pointer = format!("/{}", name.replace('.', "/"));
        assert!(values.pointer(&pointer).is_some(), "{name} is no value");
        count += 1;
    }
    assert!(count > 10, "the table is not found");
}

/// `promtool WORDS FILE` finds nothing wrong.
fn promtool_takes(words: &[&str], file: &Path) {
    let output = promtool().args(words).arg(file).output();
    let output = output.expect("promtool can be run");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Serves an exposition in which a pod's figure has labels that a target may have too.
fn exposition() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let address = listener.local_addr().expect("it has an address");
    thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let body = "tracer_pod_resets_total{node=\"n1\",namespace=\"shop\",pod=\"cart\"} 3\n";
            // Prometheus asks again where it got nothing.
            let _ = connection.read(&mut request).and_then(|_| {
                write!(
                    connection,
                    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
                     Connection: close\r\n\r\n{body}",
                    body.len()
                )
            });
        }
    });
    address
}

/// What service discovery says of a node's agent before and after a roll-out. Both at once, so that
/// Prometheus tells whether it takes them for the same target: it does by address and labels.
fn discovered(address: SocketAddr) -> Value {
    let target = |pod: &str| {
        json!({"targets": [address.to_string()], "labels": {
            "__meta_kubernetes_namespace": "tracer",
            "__meta_kubernetes_pod_name": pod,
            "__meta_kubernetes_pod_node_name": "n1",
            "__meta_kubernetes_pod_phase": "Running",
            "__meta_kubernetes_pod_container_name": "tracer",
            "__meta_kubernetes_pod_container_port_name": "metrics",
            "__meta_kubernetes_pod_label_app_kubernetes_io_name": "tracer",
        }})
    };
    json!([target("tracer-aaaaa"), target("tracer-bbbbb")])
}

/// The keys of a PodMonitor's relabelling as Prometheus writes them.
fn snake(relabelling: &Value) -> Value {
    let known = [
        ("sourceLabels", "source_labels"),
        ("targetLabel", "target_label"),
    ];
    let object = relabelling.as_object().expect("it is an object");
    object
        .iter()
        .map(|(key, value)| {
            let key = known
                .iter()
                .find(|(camel, _)| camel == key)
                .map_or(&**key, |(_, s)| s);
            (key.to_owned(), value.clone())
        })
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn copies(pairs: &[(&str, &str)]) -> Vec<Value> {
    pairs
        .iter()
        .map(|(from, to)| json!({"source_labels": [from], "target_label": to}))
        .collect()
}

/// Each of the three ways to scrape, as the real Prometheus does it with the targets of a cluster.
#[test]
fn a_roll_out_starts_no_new_series() {
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let targets = folder.path().join("targets.json");
    let address = exposition();
    fs::write(&targets, discovered(address).to_string()).expect("files can be written");
    let found = json!([{"files": [targets]}]);

    let mut plain = objects(&read("deploy/prometheus/scrape.yaml"))[0]["scrape_configs"][0].clone();
    // Debian's Prometheus is built without it.
    let role = plain
        .as_object_mut()
        .and_then(|job| job.remove("kubernetes_sd_configs"));
    assert_eq!(role.expect("it discovers pods")[0]["role"], "pod");
    plain["file_sd_configs"] = found.clone();

    // What the operators put before a monitor's own relabelling.
    let monitor = objects(&read("deploy/prometheus/operator.yaml"));
    let monitor = &only(&monitor, "PodMonitor")["spec"];
    assert_eq!(monitor["jobLabel"], "app.kubernetes.io/name");
    let endpoint = &monitor["podMetricsEndpoints"][0];
    let mut relabelling = copies(&[
        ("__meta_kubernetes_namespace", "namespace"),
        ("__meta_kubernetes_pod_container_name", "container"),
        ("__meta_kubernetes_pod_name", "pod"),
        ("__meta_kubernetes_pod_container_port_name", "endpoint"),
    ]);
    let own = endpoint["relabelings"].as_array().expect("it has some");
    relabelling.extend(own.iter().map(snake));
    let operator = json!({
        "job_name": "operator", "honor_labels": endpoint["honorLabels"],
        "file_sd_configs": found, "relabel_configs": relabelling,
    });

    let managed = objects(&read("deploy/prometheus/managed.yaml"));
    let monitoring = only(&managed, "PodMonitoring");
    assert_eq!(monitoring["spec"]["targetLabels"]["metadata"], json!([]));
    let managed = json!({
        "job_name": "managed", "file_sd_configs": found,
        "relabel_configs": copies(&[
            ("__meta_kubernetes_namespace", "namespace"),
            ("__meta_kubernetes_pod_node_name", "instance"),
        ]),
    });

    let prometheus = Prometheus::start(&json!([plain, operator, managed]).to_string(), &[]);
    for job in ["tracer", "operator", "managed"] {
        prometheus.await_up(job, 1);
    }
    let up = |job: &str| Labels::from([("job", job), ("instance", "n1")].map(owned));
    let ours = [("node", "n1"), ("namespace", "shop"), ("pod", "cart")].map(owned);
    for job in ["tracer", "operator"] {
        assert_eq!(series(&prometheus, "up", job), [up(job)]);
        let mut wanted = up(job);
        wanted.extend(ours.clone());
        assert_eq!(
            series(&prometheus, "tracer_pod_resets_total", job),
            [wanted]
        );
    }
    let mut wanted = up("managed");
    wanted.extend(ours);
    wanted.extend([("exported_namespace", "shop"), ("namespace", "tracer")].map(owned));
    assert_eq!(
        series(&prometheus, "tracer_pod_resets_total", "managed"),
        [wanted]
    );
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// All series of a metric and a job.
fn series(prometheus: &Prometheus, metric: &str, job: &str) -> Vec<Labels> {
    let samples = prometheus.query(&format!("{metric}{{job=\"{job}\"}}"));
    samples.into_iter().map(|sample| sample.labels).collect()
}
