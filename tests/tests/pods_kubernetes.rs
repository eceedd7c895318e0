//! Source `kubernetes`, against a stand-in for the API server: what a real one does is tested by
//! `cargo xtask cluster`.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tests::cgroup::{Container, Version1};
use tests::dns::{A, Client, Lookup};
use tests::doctor::Doctor;
use tests::neigh::{FIRST_SILENT, burst};
use tests::standin_apiserver::{Fault, StandinApiserver, TOKEN, kubeconfig};
use tests::wait::ensure;
use tests::{Agent, Family, Lab, eventually, http};

const SOON: Duration = Duration::from_secs(10);
/// The client's pauses between tries grow from 0.8 s to 30 s, and are up to twice as long by chance.
const AFTER_PAUSES: Duration = Duration::from_mins(1);

/// A server with an agent that watches it.
struct Watched {
    server: StandinApiserver,
    agent: Agent,
    _folder: TempDir,
}

fn launch(config: &Path, arguments: &[&str]) -> Agent {
    let variable = format!("KUBECONFIG={}", config.display());
    let fixed = ["--node", "lab"];
    Agent::launch(&["env", &variable], &[&fixed, arguments].concat())
}

fn watched(server: StandinApiserver, arguments: &[&str]) -> Watched {
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let config = server.kubeconfig(folder.path());
    let mut agent = launch(&config, arguments);
    agent.wait_ready();
    Watched {
        server,
        agent,
        _folder: folder,
    }
}

fn source(agent: &Agent) -> Value {
    let snapshot = agent.snapshot();
    let sources = snapshot["sources"].as_array().expect("there are sources");
    let found = sources.iter().find(|source| source["name"] == "kubernetes");
    found.expect("kubernetes is among them").clone()
}

fn await_pods(agent: &Agent, count: u64, limit: Duration) {
    eventually(limit, || {
        let source = source(agent);
        ensure(source["pods"] == count && source["reason"] == "", || {
            format!(
                "{count} pods wanted: {source}; it said:\n{}",
                agent.stderr()
            )
        })
    });
}

#[test]
fn a_pod_is_named_by_the_namespace_of_its_processes() {
    const UID: &str = "3f2b4c1d-0000-4000-8000-000000000001";
    let lab = Lab::new();
    let pod = lab.pod("named", 1, 1);
    let server = StandinApiserver::start();
    server.apply_pod("cart-7d9f", UID, &pod.address(Family::V4).to_string());
    // There before the agent is, which knows the pod's namespace then once it is ready.
    let _container = Container::start(&pod.netns, UID);
    let Watched { server, agent, .. } = watched(server, &["--pods", "kubernetes"]);
    let created = |labels: &[(&str, &str)]| {
        let fixed = [("family", "ipv4"), ("result", "created")];
        agent.metrics().count(
            "tracer_pod_neighbour_creates_total",
            &[&fixed, labels].concat(),
        )
    };
    let labels = [("namespace", "shop"), ("pod", "cart-7d9f")];
    burst(&pod, Family::V4, FIRST_SILENT, 10);
    eventually(SOON, || {
        let count = created(&labels);
        ensure(count == 10, || format!("shop/cart-7d9f has {count}"))
    });
    assert_eq!(created(&pod.labels()), 0, "not by the namespace's name");
    // Deleted: it keeps its figures, and its address is told.
    server.delete_pod(UID);
    await_pods(&agent, 0, SOON);
    assert_eq!(created(&labels), 10);
    let address = pod.address(Family::V4).to_string();
    let gone = [labels[0], labels[1], ("address", &address)];
    let told = agent.metrics().get("tracer_gone_pod_address_info", &gone);
    assert_eq!(told, Some(1.0));
    agent.stop_cleanly();
}

/// A kubelet that makes cgroups itself, on a host of both versions, makes none in cgroup2.
#[test]
fn a_pod_whose_cgroup_is_of_version_1_is_named_by_the_namespace_of_its_processes() {
    const UID: &str = "3f2b4c1d-0000-4000-8000-000000000001";
    let lab = Lab::new();
    let pod = lab.pod("old", 1, 1);
    let hierarchy = Version1::mount();
    let _container = Container::start_in(hierarchy.path(), &pod.netns, UID);
    let server = StandinApiserver::start();
    server.apply_pod("cart-7d9f", UID, &pod.address(Family::V4).to_string());
    let watched = watched(server, &["--pods", "kubernetes", "--dns-timeout", "1s"]);
    await_pods(&watched.agent, 1, SOON);
    burst(&pod, Family::V4, FIRST_SILENT, 20);
    let lookup = Lookup::new("nobody.test", A, pod.neighbour(Family::V4, 2000));
    let client = Client {
        timeout: Duration::from_secs(1),
        linger: Duration::ZERO,
    };
    let seen = client.run(&pod, vec![lookup]);
    assert_eq!(seen.outcome("timeout"), 1, "the lab failed: {seen:?}");
    let labels = [("namespace", "shop"), ("pod", "cart-7d9f")];
    eventually(SOON, || {
        let metrics = watched.agent.metrics();
        let shown = [
            "tracer_pod_neighbour_creates_total",
            "tracer_pod_dns_failures_total",
        ]
        .map(|name| metrics.count(name, &labels));
        ensure(shown[0] > 20 && shown[1] == 1, || format!("{shown:?}"))
    });
    watched.agent.stop_cleanly();
}

#[test]
fn a_server_has_its_nodes_name() {
    let lab = Lab::new();
    let pod = lab.pod("asks", 1, 1);
    let server = StandinApiserver::start();
    let hub = Family::ALL.map(|family| pod.hub(family).to_string());
    server.apply_node("node-2", &hub[0]);
    let watched = watched(server, &["--pods", "kubernetes", "--dns-timeout", "1s"]);
    let failures = |peer: &str| {
        let labels = [("peer", peer), ("kind", "dns")];
        watched
            .agent
            .metrics()
            .count("tracer_node_peer_failures_total", &labels)
    };
    // Nobody listens there.
    let lookups = |family: Family, count: u16| {
        (0..count)
            .map(|n| Lookup::new(format!("n{n}.test"), A, pod.hub(family)))
            .collect::<Vec<_>>()
    };
    let client = Client {
        timeout: Duration::from_secs(1),
        linger: Duration::ZERO,
    };
    client.run(
        &pod,
        [lookups(Family::V4, 3), lookups(Family::V6, 2)].concat(),
    );
    eventually(SOON, || {
        let (named, address) = (failures("node-2"), failures(&hub[1]));
        ensure(named == 3 && address == 2, || {
            format!("node-2 has {named}, {} has {address}", hub[1])
        })
    });
    assert_eq!(failures("(other)"), 0);
    watched.agent.stop_cleanly();
}

/// Where the network gives pods addresses of its own choice, a node's range says nothing of who has them.
#[test]
fn a_pods_node_is_told_only_where_pods_are_in_their_nodes_ranges() {
    let lab = Lab::new();
    let pod = lab.pod("asks", 1, 1);
    let server = StandinApiserver::start();
    // This node's pods are in its range.
    server.apply_node_with("lab", "172.30.0.11", "10.9.0.0/24");
    server.apply_node_with("node-2", "172.30.0.12", "10.1.0.0/16");
    server.apply_pod("own", "uid-0", "10.9.0.1");
    let Watched { server, agent, .. } =
        watched(server, &["--pods", "kubernetes", "--dns-timeout", "1s"]);
    let to = pod.hub(Family::V4);
    let client = Client {
        timeout: Duration::from_secs(1),
        linger: Duration::ZERO,
    };
    let fail = |expected: [u64; 2]| {
        client.run(&pod, vec![Lookup::new("gone.test", A, to)]);
        eventually(SOON, || {
            let metrics = agent.metrics();
            let shown = ["node-2", &to.to_string()].map(|peer| {
                let labels = [("peer", peer), ("kind", "dns")];
                metrics.count("tracer_node_peer_failures_total", &labels)
            });
            ensure(shown == expected, || format!("{shown:?}, not {expected:?}"))
        });
    };
    fail([1, 0]);
    // One is not: then nobody's need be.
    server.apply_pod("elsewhere", "uid-1", "10.1.0.77");
    await_pods(&agent, 2, SOON);
    fail([1, 1]);
    agent.stop_cleanly();
}

#[test]
fn a_watch_goes_on_after_every_fault() {
    let server = StandinApiserver::start();
    server.apply_pod("first", "uid-0", "10.9.0.1");
    let Watched { server, agent, .. } =
        watched(server, &["--pods", "auto", "--log-level", "trace"]);
    await_pods(&agent, 1, SOON);
    let requests = server.take_requests();
    assert!(
        requests.iter().all(|head| head.starts_with("GET ")),
        "{requests:?}"
    );
    let pods: Vec<&String> = requests
        .iter()
        .filter(|head| head.contains("/api/v1/pods"))
        .collect();
    assert!(
        pods.iter()
            .all(|head| head.contains("fieldSelector=spec.nodeName%3Dlab")),
        "{pods:?}"
    );
    // Such a list comes from the server's cache, not from etcd.
    assert!(
        pods.iter()
            .filter(|head| !head.contains("watch=true"))
            .all(|head| head.contains("&resourceVersion=0&")),
        "{pods:?}"
    );

    let mut count = 1;
    let mut one_more = |what: &str| {
        count += 1;
        server.apply_pod(&format!("pod-{count}"), &format!("uid-{count}"), "10.9.0.2");
        eprintln!("after {what}");
        await_pods(&agent, count, AFTER_PAUSES);
    };
    one_more("nothing");
    server.bookmark();
    one_more("a bookmark");
    server.end_watches("");
    one_more("the end of a watch");
    server.end_watches("{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"na");
    one_more("half an object");
    server.end_watches("{\"type\":\"ADDED\",\"object\":7}\nnonsense\n");
    one_more("nonsense");
    server.fail(&[Fault::Status(500), Fault::HangUp]);
    server.end_watches("");
    one_more("an error and a closed connection");
    server.take_requests();
    server.forget();
    server.end_watches("");
    one_more("410");
    let requests = server.take_requests();
    let is_list = |head: &String| head.contains("/pods?") && !head.contains("watch=true");
    assert!(requests.iter().any(is_list), "no list anew: {requests:?}");
    server.forget();
    server.fail(&[Fault::Status(410), Fault::HalfAnswer, Fault::Status(503)]);
    server.end_watches("");
    one_more("410, half a list, a server that is busy");

    let said = agent.stderr();
    assert!(!said.contains(TOKEN), "the token shows:\n{said}");
    assert!(
        !said.contains('\u{1b}'),
        "text of others unescaped:\n{said}"
    );
    agent.stop_cleanly();
}

#[test]
fn while_the_server_is_away_the_last_pods_stay_and_age() {
    let server = StandinApiserver::start();
    server.apply_pod("cart", "uid-1", "10.9.0.1");
    let Watched { server, agent, .. } = watched(server, &["--pods", "kubernetes"]);
    await_pods(&agent, 1, SOON);
    server.set_down(true);
    let label = [("source", "kubernetes")];
    eventually(AFTER_PAUSES, || {
        let metrics = agent.metrics();
        let age = metrics.get("tracer_source_age_seconds", &label);
        let pods = metrics.get("tracer_node_pods", &label);
        let reason = source(&agent)["reason"].to_string();
        ensure(
            pods == Some(1.0) && age.is_some_and(|age| age > 3.0) && reason.len() > 10,
            || format!("{pods:?} pods, age {age:?}, reason {reason}"),
        )
    });
    assert_eq!(agent.http("GET", "/readyz").status, 200);
    server.set_down(false);
    server.apply_pod("till", "uid-2", "10.9.0.2");
    await_pods(&agent, 2, AFTER_PAUSES);
    agent.stop_cleanly();
}

#[test]
fn without_a_server_the_agent_comes_up_and_says_what_it_lacks() {
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("a port is free");
    let config = kubeconfig(folder.path(), address);
    let agent = launch(&config, &["--pods", "kubernetes"]);
    eventually(Duration::from_secs(15), || {
        let ready = http::tcp(agent.listen(), "GET", "/readyz").map_err(|e| e.to_string())?;
        let why = ["kubernetes", "refused"];
        ensure(
            ready.status == 503 && why.iter().all(|word| ready.body.contains(word)),
            || format!("{ready:?}"),
        )
    });
    assert_eq!(agent.http("GET", "/healthz").status, 200);
    agent.stop_cleanly();
}

#[test]
fn a_server_that_forbids_is_told_to_the_user() {
    let server = StandinApiserver::start();
    server.fail(&[Fault::Status(403); 5]);
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let agent = launch(&server.kubeconfig(folder.path()), &["--pods", "kubernetes"]);
    eventually(Duration::from_secs(15), || {
        let ready = http::tcp(agent.listen(), "GET", "/readyz").map_err(|e| e.to_string())?;
        ensure(
            ready.status == 503 && ready.body.contains("cannot list resource"),
            || format!("{ready:?}"),
        )
    });
    agent.stop_cleanly();
}

/// Which it has under another name too.
#[test]
fn a_node_without_pods_is_told_of_once() {
    let hint = |node| format!("no pods: is {node} the name that `kubectl get nodes` shows?");
    let Watched {
        server,
        agent,
        _folder: folder,
    } = watched(StandinApiserver::start(), &["--pods", "kubernetes"]);
    // A list anew is no news.
    server.take_requests();
    server.forget();
    server.end_watches("");
    let is_list = |head: &String| head.contains("/pods?") && !head.contains("watch=true");
    eventually(AFTER_PAUSES, || {
        let requests = server.take_requests();
        ensure(requests.iter().any(is_list), || "no list anew".to_owned())
    });
    server.apply_pod("cart", "uid-1", "10.9.0.1");
    await_pods(&agent, 1, SOON);
    let said = agent.stderr();
    assert_eq!(said.matches(&hint("lab")).count(), 1, "{said}");
    agent.stop_cleanly();

    let doctor = |node: &str| {
        let config = format!("KUBECONFIG={}", folder.path().join("kubeconfig").display());
        let name = format!("NODE_NAME={node}");
        let doctor = Doctor::ask(&["env", &config, &name], &[]);
        let source = doctor.named("sources", "kubernetes").clone();
        assert_eq!(source["ok"], true, "{source}");
        source["detail"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(doctor("lab"), "1 pods on node lab");
    server.delete_pod("uid-1");
    let told = doctor("strange");
    assert!(told.contains(&hint("strange")), "{told}");
}

#[test]
fn many_pods_and_much_churn_take_little_memory() {
    const PODS: usize = 250;
    const CHURN: usize = 100;
    let address = |n: usize| format!("10.8.{}.{}", n / 250, n % 250 + 1);
    let uid = |n: usize| format!("3f2b4c1d-0000-4000-8000-{n:012}");
    let server = StandinApiserver::start();
    let Watched { server, agent, .. } = watched(server, &["--pods", "kubernetes"]);
    let resident = || {
        agent
            .metrics()
            .get("process_resident_memory_bytes", &[])
            .expect("the agent tells its size")
    };
    let empty = resident();
    for n in 0..PODS {
        server.apply_pod(&format!("pod-{n}"), &uid(n), &address(n));
    }
    await_pods(&agent, PODS as u64, SOON);
    let full = resident();
    // Twenty a second come and go, each told of four times.
    let churn = || {
        for n in PODS..PODS + CHURN {
            let next = Instant::now() + Duration::from_millis(50);
            for _ in 0..4 {
                server.apply_pod(&format!("pod-{n}"), &uid(n), &address(n));
            }
            server.delete_pod(&uid(n));
            sleep(next.saturating_duration_since(Instant::now()));
        }
        await_pods(&agent, PODS as u64, SOON);
        resident()
    };
    let once = churn();
    let twice = churn();
    eprintln!(
        "resident: {empty} bytes without pods, {full} with {PODS}, {once} and {twice} after churn"
    );
    assert!(
        full - empty < 4e6,
        "{PODS} pods take {} bytes",
        full - empty
    );
    assert!(twice - once < 1e6, "churn takes {} bytes", twice - once);
    agent.stop_cleanly();
}
