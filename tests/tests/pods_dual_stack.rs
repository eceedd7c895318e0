//! Pods with an address of each family.

use std::time::Duration;

use tests::cgroup::Container;
use tests::dns::{A, Client, Lookup};
use tests::neigh::send;
use tests::router::{Node, Wiring};
use tests::standin_apiserver::StandinApiserver;
use tests::wait::ensure;
use tests::{Agent, Family, Thresholds, eventually};

const SOON: Duration = Duration::from_secs(10);
const UID: &str = "3f2b4c1d-0000-4000-8000-000000000001";
const LABELS: [(&str, &str); 2] = [("namespace", "shop"), ("pod", "cart-dual")];

#[test]
fn sockets_and_forwarded_packets_of_both_families_are_their_pods() {
    let (mut node, [pod]) = Node::new(Wiring::Routed, ["dual"]);
    // There before the agent is, which knows the pod's namespace then once it is ready.
    let _container = Container::start(&pod.netns, UID);
    let server = StandinApiserver::start();
    let addresses = Family::ALL.map(|family| pod.address(family).to_string());
    server.apply_dual_pod("cart-dual", UID, &addresses.each_ref().map(String::as_str));
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let config = server.kubeconfig(folder.path());
    let variable = format!("KUBECONFIG={}", config.display());
    let arguments = [
        "--node",
        "lab",
        "--pods",
        "kubernetes",
        "--dns-timeout",
        "1s",
    ];
    let mut agent = Agent::launch(&["env", &variable], &arguments);
    agent.wait_ready();

    for family in Family::ALL {
        let wanted = node.beyond(family, 1000..1200);
        let limits = Thresholds::set(node.lab.lock(), [64, 128, 128]);
        for some in wanted.chunks(25) {
            send(&pod.netns, pod.address(family), some);
        }
        drop(limits);
        let refused = node.refused(family, &wanted);
        assert!(refused >= 72, "the lab failed: {refused} {family:?}");
        let fixed = [("family", family.label()), ("result", "table_full")];
        let labels = [&LABELS[..], &fixed].concat();
        eventually(SOON, || {
            let metrics = agent.metrics();
            let count = metrics.count("tracer_pod_neighbour_creates_total", &labels);
            ensure(count == refused, || {
                format!("{family:?}: the pod has {count} refusals, not {refused}")
            })
        });
        eprintln!("{family:?}: {refused} refusals of forwarded packets by address");
    }

    let lookups = Family::ALL.map(|family| {
        // Nobody listens there.
        let server = pod.hub(family);
        (0..3).map(move |n| Lookup::new(format!("n{n}.test"), A, server))
    });
    let client = Client {
        timeout: Duration::from_secs(1),
        linger: Duration::ZERO,
    };
    client.run(&pod, lookups.into_iter().flatten().collect::<Vec<_>>());
    eventually(SOON, || {
        let count = agent
            .metrics()
            .count("tracer_pod_dns_failures_total", &LABELS);
        ensure(count == 6, || {
            format!("the pod has {count} failures, not 6")
        })
    });

    server.delete_pod(UID);
    eventually(SOON, || {
        let metrics = agent.metrics();
        for address in &addresses {
            let labels = [&LABELS[..], &[("address", address)]].concat();
            let told = metrics.get("tracer_gone_pod_address_info", &labels);
            ensure(told == Some(1.0), || {
                format!("{address} is not told as gone")
            })?;
        }
        Ok::<(), String>(())
    });
    agent.stop_cleanly();
}
