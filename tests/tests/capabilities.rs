//! The least that tracer needs of the kernel, and what each capability more buys. Several agents with
//! different rights see the same trouble, so that their counts differ by their rights only.

use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;
use tests::agent::run_refused;
use tests::cgroup::Container;
use tests::daemonset::capabilities;
use tests::doctor::Doctor;
use tests::entries::add;
use tests::host::HostLock;
use tests::kubernetes::{objects, only, read};
use tests::leftovers::Leftovers;
use tests::neigh::{FIRST_SILENT, burst, send, statistics};
use tests::netns::Pod;
use tests::overflow::{self, Overflow};
use tests::point::{NODE_CREATES, NODE_EVICTIONS, POD_CREATES};
use tests::rights::{ForAnyone, LEAST, root_with, words};
use tests::router::{Node, Wiring};
use tests::standin_apiserver::StandinApiserver;
use tests::wait::ensure;
use tests::{Agent, Family, Lab, Metrics, Thresholds, eventually};

const SOON: Duration = Duration::from_secs(10);
const TIMEOUT: [&str; 2] = ["--dns-timeout", "1s"];

/// The least and these.
fn least_and<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [LEAST, more].concat()
}

fn launch(capabilities: &[&str], variables: &[&str], arguments: &[&str]) -> Agent {
    let wrapper = root_with(capabilities);
    let wrapper = [&words(&wrapper), &["env"][..], variables].concat();
    let mut agent = Agent::launch(&wrapper, arguments);
    agent.wait_ready();
    agent
}

/// Creations of IPv4 entries that the node refused, and a pod.
fn refused(metrics: &Metrics, pod: Option<[(&str, &str); 2]>) -> u64 {
    let fixed = [("family", "ipv4"), ("result", "table_full")];
    match pod {
        Some(labels) => metrics.count(POD_CREATES, &[&fixed[..], &labels].concat()),
        None => metrics.count(NODE_CREATES, &fixed),
    }
}

fn killed_by_the_table(metrics: &Metrics, pod: &Pod) -> u64 {
    let labels = [&pod.labels()[..], &[("cause", "neighbour_table_full")]].concat();
    metrics.count("tracer_pod_dns_failures_total", &labels)
}

fn state(metrics: &Metrics, hook: &str) -> String {
    let hook = [("hook", hook)];
    let mut states = metrics
        .matching("tracer_hook_state", &hook)
        .filter(|(_, value)| *value > 0.0)
        .map(|(labels, _)| labels["state"].clone());
    states.next().expect("every hook has a state")
}

/// The main job with the least set, as root and as a user without rights; with CAP_SYSLOG the entries
/// that a forced collection threw out are known as such.
#[test]
fn the_least_set_counts_an_overflow_exactly() {
    let mut lab = Lab::new();
    let before = Leftovers::now();
    let copy = ForAnyone::copy();
    let old = lab.pod("old", 3, 1);
    add(&old, Family::V4, 1000..1040, "stale");
    // Younger ones are not evicted.
    sleep(Duration::from_millis(5200));

    let local = [&TIMEOUT[..], &["--node", "lab", "--pods", "local"]].concat();
    let mut others = Vec::new();
    let scene = Overflow::with(&lab, || {
        let mut nobody = copy.agent(LEAST, &local);
        nobody.wait_ready();
        let syslog = launch(&least_and(&["syslog"]), &[], &local);
        others.extend([("nobody", nobody), ("root with CAP_SYSLOG", syslog)]);
        launch(LEAST, &[], &local)
    });
    let kernel = statistics(Family::V4);
    let limits = Thresholds::set(lab.lock(), overflow::LIMITS);
    let (lost, refusals) = scene.strike();
    drop(limits);

    let Overflow {
        agent,
        greedy,
        victim,
        ..
    } = scene;
    others.push(("root", agent));
    for (who, agent) in &others {
        let metrics = eventually(SOON, || {
            let metrics = agent.metrics();
            let removed = statistics(Family::V4).removed_since(&kernel);
            let found = (
                refused(&metrics, None),
                metrics.sum(POD_CREATES, &[("family", "ipv4"), ("result", "table_full")]),
                [&greedy, &victim].map(|pod| killed_by_the_table(&metrics, pod)),
                metrics.count(NODE_EVICTIONS, &[("family", "ipv4")]),
            );
            let truth = (refusals, refusals as f64, lost, removed);
            ensure(found == truth, || {
                format!(
                    "{who}: {found:?}, not {truth:?}; it said:\n{}",
                    agent.stderr()
                )
            })
            .map(|()| metrics)
        });
        let by = |gc| metrics.count(NODE_EVICTIONS, &[("family", "ipv4"), ("gc", gc)]);
        let known = who.contains("SYSLOG");
        let expected = if known { "attached" } else { "degraded" };
        assert_eq!(state(&metrics, "gc"), expected, "{who}");
        assert_eq!(by("forced") >= 40, known, "{who}: {}", by("forced"));
        for hook in ["neigh", "dns", "drops", "tcp", "cgroups"] {
            assert_eq!(state(&metrics, hook), "attached", "{who}: {hook}");
        }
        eprintln!(
            "{who}: {refusals} refusals, {lost:?} lookups, {} forced",
            by("forced")
        );
    }
    for (_, agent) in others {
        agent.stop_cleanly();
    }
    before.assert_none_new();
}

/// With CAP_SYS_PTRACE a pod's namespace is found by its processes. The node's figures need nothing.
#[test]
fn ptrace_names_what_a_pods_devices_do() {
    const UID: &str = "3f2b4c1d-0000-4000-8000-000000000001";
    let mut lab = Lab::new();
    let pod = lab.pod("named", 1, 1);
    let server = StandinApiserver::start();
    server.apply_pod("cart-7d9f", UID, &pod.address(Family::V4).to_string());
    let _container = Container::start(&pod.netns, UID);
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let config = server.kubeconfig(folder.path());
    let variable = format!("KUBECONFIG={}", config.display());
    let arguments = ["--node", "lab", "--pods", "kubernetes"];
    let agents =
        [&[][..], &["sys_ptrace"]].map(|more| launch(&least_and(more), &[&variable], &arguments));

    let before = statistics(Family::V4);
    let limits = Thresholds::set(lab.lock(), overflow::LIMITS);
    burst(&pod, Family::V4, FIRST_SILENT, 150);
    drop(limits);
    let truth = statistics(Family::V4).table_fulls - before.table_fulls;
    assert!(truth >= 86, "the lab failed: {truth} were refused");
    let labels = [("namespace", "shop"), ("pod", "cart-7d9f")];
    for (agent, named) in agents.iter().zip([0, truth]) {
        eventually(SOON, || {
            let metrics = agent.metrics();
            let found = (refused(&metrics, None), refused(&metrics, Some(labels)));
            ensure(found == (truth, named), || {
                format!(
                    "{found:?}, not {:?}; it said:\n{}",
                    (truth, named),
                    agent.stderr()
                )
            })
        });
    }
    for agent in agents {
        agent.stop_cleanly();
    }
}

/// With CAP_SYS_ADMIN a namespace is asked for its addresses: what a router drops for it is its own.
#[test]
fn admin_names_the_senders_of_forwarded_packets() {
    let family = Family::V4;
    let (mut node, [pod]) = Node::new(Wiring::Routed, ["sender"]);
    let arguments = ["--node", "lab", "--pods", "local"];
    let agents = [&[][..], &["sys_admin"]].map(|more| launch(&least_and(more), &[], &arguments));
    let wanted = node.beyond(family, 1000..1150);
    let limits = Thresholds::set(node.lab.lock(), overflow::LIMITS);
    send(&pod.netns, pod.address(family), &wanted);
    drop(limits);
    let truth = node.refused(family, &wanted);
    assert!(truth >= 86, "the lab failed: {truth} were refused");
    for (agent, named) in agents.iter().zip([0, truth]) {
        eventually(SOON, || {
            let metrics = agent.metrics();
            let found = (
                refused(&metrics, None),
                refused(&metrics, Some(pod.labels())),
            );
            ensure(found == (truth, named), || {
                format!(
                    "{found:?}, not {:?}; it said:\n{}",
                    (truth, named),
                    agent.stderr()
                )
            })
        });
    }
    for agent in agents {
        agent.stop_cleanly();
    }
}

/// Each one taken from all that there are: what is lost is what `doctor` says.
#[test]
fn without_each_capability_what_is_lost_is_said() {
    let _lock = HostLock::take();
    let before = Leftovers::now();
    let all = ["bpf", "perfmon", "net_admin", "syslog", "sys_ptrace"];
    for missing in all {
        let rest: Vec<&str> = all.into_iter().filter(|one| *one != missing).collect();
        let wrapper = root_with(&rest);
        let wrapper = words(&wrapper);
        let doctor = Doctor::ask(&wrapper, &[]);
        let name = format!("CAP_{}", missing.to_uppercase());
        for capability in doctor.json["capabilities"].as_array().expect("a list") {
            // Never given here.
            let held = capability["name"] != name.as_str() && capability["name"] != "CAP_SYS_ADMIN";
            assert_eq!(capability["held"], held, "without {name}: {capability}");
        }
        let required = LEAST.contains(&missing);
        assert_eq!(doctor.will_do(), !required, "without {name}");
        let lost: &[(&str, &str)] = match missing {
            "bpf" | "perfmon" => &[
                ("neigh", "unavailable"),
                ("dns", "unavailable"),
                ("drops", "unavailable"),
                ("gc", "unavailable"),
                ("tcp", "unavailable"),
                ("cgroups", "unavailable"),
            ],
            "net_admin" => &[("dns", "unavailable")],
            "syslog" => &[("gc", "degraded")],
            _ => &[],
        };
        for hook in doctor.json["hooks"].as_array().expect("a list") {
            let hook = hook["name"].as_str().expect("it is text");
            let (state, reason) = doctor.hook(hook);
            let expected = lost.iter().find(|(lost, _)| *lost == hook);
            assert_eq!(
                state,
                expected.map_or("attached", |(_, state)| state),
                "without {name}: {hook}: {reason}"
            );
            assert_eq!(
                reason.contains(&name),
                expected.is_some(),
                "{hook}: {reason}"
            );
        }
        if required {
            run_refused(&wrapper, &[]).assert_refused(1, &[&name]);
            assert!(doctor.next().contains(&name), "{}", doctor.next());
        }
    }
    before.assert_none_new();
}

/// The manual, the manifest and the unit, against what `doctor` says; that the manifest is what the
/// chart makes is in `manifests.rs`, that a runtime runs it in `image.rs`.
#[test]
fn manual_manifest_and_doctor_agree() {
    let doctor = Doctor::ask(&["setpriv", "--bounding-set=-all"], &[]);
    let known = doctor.json["capabilities"].as_array().expect("a list");
    let text = |capability: &Value, field: &str| -> String {
        capability[field].as_str().expect("it is text").to_owned()
    };
    let manual = read("docs/security.md");
    let rows: Vec<&str> = manual
        .lines()
        .filter(|line| line.starts_with("| `CAP_"))
        .collect();
    let expected: Vec<String> = known
        .iter()
        .map(|capability| {
            let [name, purpose, without] =
                ["name", "purpose", "without"].map(|field| text(capability, field));
            format!("| `{name}` | {purpose} | {without} |")
        })
        .collect();
    assert_eq!(rows, expected, "docs/security.md and doctor differ");

    let names = |some: &dyn Fn(&Value) -> bool| -> Vec<String> {
        let some = known.iter().filter(|capability| some(capability));
        some.map(|capability| text(capability, "name").replace("CAP_", ""))
            .collect()
    };
    let manifest = objects(&read("deploy/tracer.yaml"));
    let container = &only(&manifest, "DaemonSet")["spec"]["template"]["spec"]["containers"][0];
    let context = &container["securityContext"];
    assert_eq!(capabilities(context, "drop"), ["ALL"]);
    let mut added = capabilities(context, "add");
    let mut expected = names(&|capability| capability["name"] != "CAP_SYS_ADMIN");
    added.sort();
    expected.sort();
    assert_eq!(added, expected, "deploy/tracer.yaml and doctor differ");
    let least = LEAST.iter().map(|name| name.to_uppercase());
    assert_eq!(
        names(&|capability| capability["required"] == true),
        least.collect::<Vec<_>>()
    );
}
