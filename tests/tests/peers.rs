//! Failures towards peers, from all hooks: so that many nodes' figures together point at one.

use std::net::SocketAddr;
use std::time::Duration;

use tests::router::Wiring;
use tests::tcp::client::RESULTS;
use tests::tcp::scene::{CLOSED, DROPPED, OPEN, PATIENCE};
use tests::tcp::truth::{NODE_CONNECTS, PEERS};
use tests::tcp::{Attempt, Means, Scene, Tally, run};
use tests::wait::ensure;
use tests::{Family, Metrics, eventually};

const KIND: (&str, &str) = ("kind", "connect");

/// Failures of the node's attempts, and those told of all peers.
fn sums(metrics: &Metrics) -> (u64, u64) {
    let failed = RESULTS[1..]
        .iter()
        .map(|result| metrics.count(NODE_CONNECTS, &[("result", result)]));
    (failed.sum(), metrics.count(PEERS, &[KIND]))
}

#[test]
fn failed_attempts_of_all_pods_add_up_at_the_peer() {
    let (scene, pods) = Scene::new(Wiring::Routed, ["one", "two"]);
    let [v4, v6] = Family::ALL.map(|family| scene.node.far.address(family).to_string());
    let mut failed = [0, 0];
    for (index, pod) in pods.iter().enumerate() {
        for (at, family) in Family::ALL.into_iter().enumerate() {
            let attempt =
                |port, patience| Attempt::new(scene.port(family, port), Means::Polled, patience);
            let mut attempts = vec![attempt(CLOSED, PATIENCE); 3 + index];
            attempts.extend([attempt(DROPPED, Duration::from_millis(200)); 2]);
            attempts.extend([attempt(OPEN, PATIENCE); 4]);
            let tally = Tally::of(&run(&pod.netns, &attempts, 100));
            assert_eq!(
                tally.failed(),
                5 + index as u64,
                "the lab failed: {tally:?}"
            );
            failed[at] += tally.failed();
        }
    }
    // The same destination by a mapped address.
    let mapped = Attempt::new(scene.port(Family::V4, CLOSED), Means::Mapped, PATIENCE);
    assert_eq!(run(&pods[0].netns, &[mapped], 1)[0].result, "refused");
    failed[0] += 1;
    eventually(Duration::from_secs(5), || {
        let metrics = scene.agent.metrics();
        for (peer, expected) in [&v4, &v6].into_iter().zip(failed) {
            let shown = metrics.count(PEERS, &[("peer", peer), KIND]);
            let unseen = scene.unseen();
            ensure(shown <= expected && shown + unseen >= expected, || {
                format!("towards {peer}: {shown}, not {expected}; {unseen} shown to no program")
            })?;
        }
        let (node, peers) = sums(&metrics);
        ensure(node == peers, || format!("node {node}, peers {peers}"))
    });
    scene.agent.stop_cleanly();
}

#[test]
fn twenty_peers_have_names_and_the_sum_is_complete() {
    let (scene, [client]) = Scene::new(Wiring::Routed, ["client"]);
    let attempts: Vec<Attempt> = (0..40)
        .flat_map(|n| {
            let to: SocketAddr = scene.nobody(Family::ALL[n % 2], n as u16);
            vec![Attempt::new(to, Means::Polled, PATIENCE); 3]
        })
        .collect();
    let tally = Tally::of(&run(&client.netns, &attempts, 200));
    assert_eq!(tally.failed(), 120, "the lab failed: {tally:?}");
    eventually(Duration::from_secs(5), || {
        let metrics = scene.agent.metrics();
        let (node, peers) = sums(&metrics);
        let unseen = scene.unseen();
        ensure(node + unseen >= 120 && node == peers, || {
            format!("node {node}, peers {peers}; {unseen} shown to no program")
        })?;
        let named = metrics.matching(PEERS, &[KIND]).count();
        ensure(named <= 21, || format!("{named} peers"))?;
        let other = metrics.get(PEERS, &[("peer", "(other)"), KIND]);
        ensure(other.is_some_and(|n| n + unseen as f64 >= 60.0), || {
            format!("the rest is {other:?}")
        })
    });
    scene.agent.stop_cleanly();
}
