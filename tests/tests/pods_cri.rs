//! Pods of a real containerd: each failure gets its pod's name.

use std::net::UdpSocket;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tests::containerd::{Containerd, CriPod, PREFIX_V6};
use tests::host::HostLock;
use tests::neigh::table_fulls;
use tests::wait::ensure;
use tests::{Agent, Family, Metrics, Thresholds, eventually};

const DNS_FAILURES: &str = "tracer_pod_dns_failures_total";
const CREATES: &str = "tracer_pod_neighbour_creates_total";
/// The node, as the pods reach it: a server that never answers is there.
const NODE: &str = "10.244.0.1";
/// A network behind the node where nobody is.
const NOWHERE: &str = "10.99.0";

/// Takes queries and never answers.
fn silent_server(lab: &Containerd) -> UdpSocket {
    lab.node
        .run(|| UdpSocket::bind("0.0.0.0:53").expect("port 53 is free"))
}

fn agent(lab: &Containerd, pods: &str) -> Agent {
    let endpoint = lab.endpoint();
    Agent::start(&[
        "--pods",
        pods,
        "--cri-endpoint",
        &endpoint,
        "--dns-timeout",
        "500ms",
    ])
}

/// Words for a shell: so many lookups that nobody answers, one query each.
fn lookups(count: u32) -> String {
    format!(
        "for i in $(seq {count}); do nslookup -type=a name$i {NODE} >/dev/null 2>&1 & p=\"$p $!\"; \
         done; sleep 0.9; kill $p; wait; true"
    )
}

/// Words for a shell: a packet to each of 150 addresses that nobody has.
fn burst(network: &str) -> String {
    format!(
        "for i in $(seq 100 249); do ping -c 1 -W 1 {network}.$i >/dev/null 2>&1 & done; wait; true"
    )
}

fn dns_failures(metrics: &Metrics, pod: &CriPod) -> u64 {
    metrics.count(DNS_FAILURES, &pod.labels())
}

fn refused(metrics: &Metrics, labels: &[(&str, &str)]) -> u64 {
    let fixed = [("family", "ipv4"), ("result", "table_full")];
    metrics.count(CREATES, &[&fixed, labels].concat())
}

fn await_dns_failures(agent: &Agent, pod: &CriPod, expected: u64) {
    eventually(Duration::from_secs(5), || {
        let count = dns_failures(&agent.metrics(), pod);
        ensure(count == expected, || {
            format!("{} has {count} failed lookups, not {expected}", pod.name)
        })
    });
}

fn source(agent: &Agent) -> serde_json::Value {
    let snapshot = agent.snapshot();
    let sources = snapshot["sources"].as_array().expect("there are sources");
    let found = sources.iter().find(|source| source["name"] == "cri");
    found.expect("there is the source cri").clone()
}

#[test]
fn pods_fail_each_in_its_own_way_and_are_named() {
    let mut lock = HostLock::take();
    let mut lab = Containerd::start(10, 60);
    let _server = silent_server(&lab);
    let agent = agent(&lab, "cri");
    let [asker, crowd] = ["asker", "crowd"].map(|name| lab.pod(name));
    let host = lab.host_pod("on-host");
    assert_eq!(host.address, None);
    // The same cgroup namespace and network as the node's own processes have.
    lab.sh(&host, &lookups(2));
    lab.sh(&asker, &lookups(3));
    await_dns_failures(&agent, &host, 2);
    await_dns_failures(&agent, &asker, 3);

    let before = table_fulls(Family::V4);
    let limits = Thresholds::set(&mut lock, [8, 16, 64]);
    lab.sh(&crowd, &burst("10.244.0"));
    drop(limits);
    let truth = table_fulls(Family::V4) - before;
    assert!(truth >= 50, "the lab failed: {truth} were refused");
    eventually(Duration::from_secs(5), || {
        let metrics = agent.metrics();
        let count = refused(&metrics, &crowd.labels());
        let all = refused(&metrics, &[]);
        ensure(all == truth && count + 10 >= truth, || {
            format!("crowd has {count} of {all}, the kernel refused {truth}")
        })
    });
    let metrics = agent.metrics();
    eprintln!(
        "by namespace: {} of {truth} refusals; by cgroup alone: 2 of 2 lookups",
        refused(&metrics, &crowd.labels())
    );
    assert_eq!(dns_failures(&metrics, &crowd), 0);
    assert_eq!(refused(&metrics, &asker.labels()), 0);
    assert_eq!(
        metrics.get("tracer_node_pods", &[("source", "cri")]),
        Some(3.0)
    );
    // A namespace that somebody else has just made may wait a moment.
    eventually(Duration::from_secs(5), || {
        let held = agent.metrics().count("tracer_unattributed_pending", &[]);
        ensure(held == 0, || format!("{held} events wait for a name"))
    });
    let said = source(&agent);
    assert_eq!((&said["pods"], &said["reason"]), (&3.into(), &"".into()));
    agent.stop_cleanly();
    lab.end();
}

#[test]
fn an_address_that_is_given_to_a_new_pod_moves_no_count() {
    let mut lock = HostLock::take();
    // One address for all.
    let mut lab = Containerd::start(10, 10);
    lab.node.ip("link add dead0 type veth peer name dead1");
    lab.node
        .ip(&format!("address add {NOWHERE}.1/24 dev dead0"));
    lab.node.ip("link set dead0 up");
    lab.node.ip("link set dead1 up");
    let agent = agent(&lab, "auto");
    let start = table_fulls(Family::V4);
    let mut pods: Vec<(CriPod, u64)> = Vec::new();
    for name in ["first", "second"] {
        let pod = lab.pod(name);
        // The way to the node is known before the table is full.
        lab.sh(&pod, &format!("ping -c 1 -W 1 {NODE} >/dev/null"));
        let before = table_fulls(Family::V4);
        let limits = Thresholds::set(&mut lock, [8, 16, 64]);
        lab.sh(&pod, &burst(NOWHERE));
        drop(limits);
        let truth = table_fulls(Family::V4) - before;
        assert!(truth >= 50, "the lab failed: {truth} were refused");
        lab.remove(&pod);
        let count = eventually(Duration::from_secs(5), || {
            let count = refused(&agent.metrics(), &pod.labels());
            // Whoever else asked meanwhile was refused too.
            ensure(count <= truth && count + 10 >= truth, || {
                format!("{name} has {count}, the kernel refused {truth}")
            })
            .map(|()| count)
        });
        eprintln!("by address: {count} of {truth} refusals");
        pods.push((pod, count));
    }
    let metrics = agent.metrics();
    for (pod, count) in &pods {
        assert_eq!(refused(&metrics, &pod.labels()), *count, "{}", pod.name);
    }
    assert_eq!(pods[0].0.address, pods[1].0.address, "the lab failed");
    assert_eq!(refused(&metrics, &[]), table_fulls(Family::V4) - start);
    agent.stop_cleanly();
    lab.end();
}

/// They ask in their first packet and are gone before anybody has looked twice.
#[test]
fn pods_that_live_for_a_moment_are_named() {
    const LIFE: Duration = Duration::from_millis(300);
    const LIMIT: Duration = Duration::from_secs(5);
    let _lock = HostLock::take();
    let mut lab = Containerd::start(10, 60);
    let server = silent_server(&lab);
    server
        .set_read_timeout(Some(LIMIT))
        .expect("timeout is set");
    let agent = agent(&lab, "cri");
    let mut events = agent.events();
    let mut pods = Vec::new();
    for (name, host_network) in [("short-1", false), ("short-host", true), ("short-2", false)] {
        let command = ["nslookup", "-type=a", name, NODE];
        let pod = lab.run(name, host_network, &command);
        // Or it dies before it has asked, where starting it took longer than it is to live.
        server
            .recv(&mut [0; 512])
            .unwrap_or_else(|e| panic!("the lab failed: {name} has not asked: {e}"));
        std::thread::sleep(LIFE.saturating_sub(pod.asked.elapsed()));
        lab.remove(&pod);
        eprintln!("{name} lived {:?}", pod.asked.elapsed());
        pods.push(pod);
    }
    for pod in &pods {
        await_dns_failures(&agent, pod, 1);
        let event = events.wait(LIMIT, |event| event.is("dns_failure", &pod.name));
        let delay = event.at - pod.asked;
        eprintln!("{}: named {delay:?} after it was asked for", pod.name);
    }
    let metrics = agent.metrics();
    assert_eq!(
        metrics.count("tracer_unattributed_total", &[("hook", "dns")]),
        0
    );
    agent.stop_cleanly();
    lab.end();
}

#[test]
fn a_runtime_that_comes_late_and_goes_away_is_waited_for() {
    let _lock = HostLock::take();
    let mut lab = Containerd::prepare(10, 60);
    let endpoint = lab.endpoint();
    let mut agent = Agent::launch(
        &[],
        &[
            "--pods",
            "cri",
            "--cri-endpoint",
            &endpoint,
            "--dns-timeout",
            "500ms",
            "--node",
            "lab",
        ],
    );
    eventually(Duration::from_secs(15), || {
        let said = agent.stderr();
        ensure(said.contains("tracer: ready"), || {
            format!("it said:\n{said}")
        })
    });
    let not_ready = agent.http("GET", "/readyz");
    assert_eq!(not_ready.status, 503);
    assert!(
        not_ready
            .body
            .contains("pod source cri: no container runtime"),
        "{}",
        not_ready.body
    );

    lab.start_with_image();
    agent.wait_ready();
    let _server = silent_server(&lab);
    let old = lab.pod("old");
    lab.sh(&old, &lookups(2));
    await_dns_failures(&agent, &old, 2);

    lab.kill_containerd();
    eventually(Duration::from_secs(5), || {
        let said = source(&agent);
        let silent = said["reason"].as_str().is_some_and(|why| !why.is_empty());
        ensure(silent && said["age_seconds"].as_f64() > Some(1.5), || {
            said.to_string()
        })
    });
    assert_eq!(source(&agent)["pods"], 1, "the last pods known stay");
    let age = agent
        .metrics()
        .sum("tracer_source_age_seconds", &[("source", "cri")]);
    assert!(age > 1.5, "{age}");
    assert_eq!(agent.http("GET", "/readyz").status, 200);

    lab.start_containerd();
    eventually(Duration::from_secs(15), || {
        let said = source(&agent);
        ensure(said["reason"] == "", || said.to_string())
    });
    let new = lab.pod("new");
    let started = Instant::now();
    lab.sh(&new, &lookups(2));
    await_dns_failures(&agent, &new, 2);
    eprintln!(
        "named {:?} after the first query, which times out after 0.5 s",
        started.elapsed()
    );
    lab.sh(&old, &lookups(1));
    await_dns_failures(&agent, &old, 3);
    agent.stop_cleanly();
    lab.end();
}

#[test]
fn a_pod_of_both_families_is_named_for_each() {
    let _lock = HostLock::take();
    let mut lab = Containerd::start_dual_stack();
    // For both families.
    let _server = lab
        .node
        .run(|| UdpSocket::bind("[::]:53").expect("port 53 is free"));
    let agent = agent(&lab, "cri");
    let dual = lab.pod("dual");
    let server = format!("{PREFIX_V6}:1");
    lab.sh(&dual, &lookups(2));
    lab.sh(&dual, &lookups(3).replace(NODE, &server));
    await_dns_failures(&agent, &dual, 5);
    lab.remove(&dual);
    // Both addresses went with it.
    eventually(Duration::from_secs(5), || {
        let metrics = agent.metrics();
        let told = metrics.sum("tracer_gone_pod_address_info", &dual.labels());
        ensure(told > 1.5 && told < 2.5, || {
            format!("{told} addresses are told")
        })
    });
    agent.stop_cleanly();
    lab.end();
}

#[test]
fn a_node_leaves_nothing_behind_on_panic() {
    let _lock = HostLock::take();
    let panicked = std::panic::catch_unwind(|| {
        let mut lab = Containerd::start(10, 60);
        let pod = lab.pod("doomed");
        lab.kill_containerd();
        std::panic::panic_any((lab.places(), pod.netns));
    });
    let places = panicked.expect_err("it panicked");
    let ((folder, cgroup), netns) = *places
        .downcast::<((PathBuf, String), Option<PathBuf>)>()
        .expect("with its places");
    let left = Containerd::leftovers(&folder, &cgroup);
    assert!(left.is_empty(), "left behind: {left:?}");
    let netns = netns.expect("the pod has a namespace");
    assert!(!netns.exists(), "{} is left", netns.display());
}
