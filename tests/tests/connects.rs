//! Hook `tcp`: connection attempts by result, as the clients saw them.

use std::net::SocketAddr;
use std::time::Duration;

use tests::entries::mac;
use tests::neigh::{FIRST_SILENT, burst, table_fulls};
use tests::netns::DEVICE;
use tests::router::Wiring;
use tests::tcp::client::RESULTS;
use tests::tcp::scene::{CLOSED, DROPPED, OPEN, PATIENCE, by_all_means};
use tests::tcp::truth::{NODE_CONNECTS, POD_CONNECTS, compare};
use tests::tcp::{Attempt, Ended, Means, Scene, Tally, every_way, run};
use tests::wait::ensure;
use tests::{Family, Metrics, Thresholds, eventually};

/// All at once.
const FAST: u32 = 1000;

/// How often a result came.
fn count(ended: &[Ended], result: &str) -> usize {
    ended.iter().filter(|one| one.result == result).count()
}

/// Every way to fail that the node has, by every means: each counted once, each told.
fn all_results(wiring: Wiring) {
    let (mut scene, [client]) = Scene::new(wiring, ["client"]);
    let tally = every_way(&mut scene, &client);
    scene.settle(&[(&client, &tally)]);
}

#[test]
fn every_result_of_a_routed_pod_is_what_the_client_saw() {
    all_results(Wiring::Routed);
}

#[test]
fn every_result_of_a_bridged_pod_is_what_the_client_saw() {
    all_results(Wiring::Bridged);
}

/// The kernel's own verdict, after all its SYNs.
#[test]
fn an_attempt_that_the_kernel_gives_up_is_a_timeout() {
    let (mut scene, [client]) = Scene::new(Wiring::Routed, ["client"]);
    client.netns.sysctl("ipv4/tcp_syn_retries", "1");
    let mut attempts = Vec::new();
    for family in Family::ALL {
        for means in [Means::Polled, Means::Blocking] {
            attempts.push(Attempt::endless(scene.port(family, DROPPED), means));
        }
    }
    let ended = run(&client.netns, &attempts, FAST);
    let tally = Tally::of(&ended);
    assert_eq!(tally.count("timeout"), 4, "the lab failed: {ended:?}");
    let took = ended.iter().map(|one| one.took).min();
    assert!(
        took > Some(Duration::from_secs(1)),
        "the lab failed: {took:?}"
    );
    scene.expect_events(&client, &ended);
    scene.settle(&[(&client, &tally)]);
}

/// A program that gives up before the first SYN is sent again, and one long after.
#[test]
fn an_attempt_that_the_program_gives_up_is_a_timeout() {
    let (mut scene, [client]) = Scene::new(Wiring::Routed, ["client"]);
    let mut ended = Vec::new();
    for patience in [20, 300, 1500] {
        let to = Family::ALL.map(|family| scene.port(family, DROPPED));
        let attempts = by_all_means(&to, Duration::from_millis(patience));
        ended.extend(run(&client.netns, &attempts, FAST));
    }
    let tally = Tally::of(&ended);
    assert_eq!(tally.count("timeout"), 15, "the lab failed: {ended:?}");
    scene.expect_events(&client, &ended);
    scene.settle(&[(&client, &tally)]);
}

/// What was answered is established, however soon the program closes it.
#[test]
fn a_connection_closed_at_once_is_established_once() {
    let (scene, [client]) = Scene::new(Wiring::Bridged, ["client"]);
    let to = Family::ALL.map(|family| scene.port(family, OPEN));
    let attempts = by_all_means(&to, PATIENCE).repeat(40);
    let tally = Tally::of(&run(&client.netns, &attempts, FAST));
    assert_eq!(tally.count("established"), 200, "the lab failed: {tally:?}");
    eventually(Duration::from_secs(2), || {
        let accepted = scene.server.accepted();
        ensure(accepted == 200, || format!("{accepted} accepted"))
    });
    scene.settle(&[(&client, &tally)]);
}

/// So that the first failure shows in `increase()`.
#[test]
fn a_pod_that_has_connected_has_the_usual_failures_at_zero() {
    let (scene, [client, idle]) = Scene::new(Wiring::Routed, ["client", "idle"]);
    let to = [scene.port(Family::V4, OPEN)];
    let attempts = [Attempt::new(to[0], Means::Polled, PATIENCE)];
    let tally = Tally::of(&run(&client.netns, &attempts, FAST));
    assert_eq!(tally.count("established"), 1, "the lab failed");
    eventually(Duration::from_secs(5), || {
        compare(&scene.agent.metrics(), client.labels(), &tally)
    });
    let metrics = scene.agent.metrics();
    for result in RESULTS {
        let node = metrics.get(NODE_CONNECTS, &[("result", result)]);
        assert!(node.is_some(), "the node has no {result}");
        let labels = [&idle.labels()[..], &[("result", result)]].concat();
        let shown = metrics.get(POD_CONNECTS, &labels);
        assert!(shown.unwrap_or(0.0).abs() < 0.5, "the idle pod: {shown:?}");
    }
    let rare = ["retransmits", "resets", "silent_connections"];
    let shown = |metrics: &Metrics| {
        rare.map(|name| metrics.get(&format!("tracer_pod_{name}_total"), &client.labels()))
    };
    assert_eq!(shown(&metrics), [None; 3], "of {rare:?}");
    // All of them once an attempt has failed.
    let refused = [Attempt::new(
        scene.port(Family::V4, CLOSED),
        Means::Polled,
        PATIENCE,
    )];
    let ended = run(&client.netns, &refused, FAST);
    let mut tally = tally;
    tally.join(&Tally::of(&ended));
    assert_eq!(tally.count("refused"), 1, "the lab failed");
    eventually(Duration::from_secs(5), || {
        compare(&scene.agent.metrics(), client.labels(), &tally)
    });
    assert_eq!(shown(&scene.agent.metrics()), [Some(0.0); 3], "of {rare:?}");
    scene.settle(&[(&client, &tally)]);
}

/// All but established ÷ all, over the window.
#[test]
fn the_ratio_is_failures_by_attempts() {
    let (scene, [client, other]) = Scene::new(Wiring::Routed, ["client", "other"]);
    let [open, closed] = [OPEN, CLOSED].map(|port| scene.port(Family::V4, port));
    let attempt = |to| Attempt::new(to, Means::Polled, PATIENCE);
    let attempts = [attempt(open), attempt(open), attempt(open), attempt(closed)].repeat(5);
    let tally = Tally::of(&run(&client.netns, &attempts, FAST));
    assert_eq!(
        (tally.count("established"), tally.count("refused")),
        (15, 5),
        "the lab failed"
    );
    let ratio = "tracer_pod_failure_ratio";
    eventually(Duration::from_secs(5), || {
        let metrics = scene.agent.metrics();
        let labels = [&client.labels()[..], &[("signal", "connect")]].concat();
        let shown = metrics.get(ratio, &labels);
        ensure(shown.is_some_and(|r| (r - 0.25).abs() < 1e-9), || {
            format!("the client's is {shown:?}")
        })?;
        let node = metrics.get("tracer_node_failure_ratio", &[("signal", "connect")]);
        // The lab itself asks the agent meanwhile.
        ensure(node.is_some_and(|r| r > 0.0 && r <= 0.25), || {
            format!("the node's is {node:?}")
        })
    });
    let labels = [&other.labels()[..], &[("signal", "connect")]].concat();
    assert_eq!(
        scene.agent.metrics().get(ratio, &labels),
        None,
        "no attempts"
    );
    scene.settle(&[(&client, &tally)]);
}

/// The pod's own addresses, by the loopback device.
#[test]
fn attempts_within_a_pod_are_its_own() {
    let (mut scene, [client]) = Scene::new(Wiring::Routed, ["client"]);
    let own = Family::ALL.map(|family| client.address(family));
    let local = ["127.0.0.1", "::1"].map(|text| text.parse().expect("an address"));
    let mut addresses: Vec<SocketAddr> = own
        .into_iter()
        .chain(local)
        .map(|address| SocketAddr::new(address, OPEN))
        .collect();
    let _server = tests::tcp::Server::start(&client.netns, &addresses, tests::tcp::Manner::Close);
    let attempts = by_all_means(&addresses, PATIENCE);
    let mut ended = run(&client.netns, &attempts, FAST);
    for address in &mut addresses {
        address.set_port(CLOSED);
    }
    ended.extend(run(
        &client.netns,
        &by_all_means(&addresses, PATIENCE),
        FAST,
    ));
    let tally = Tally::of(&ended);
    assert_eq!(
        (tally.count("established"), tally.count("refused")),
        (10, 10),
        "the lab failed: {ended:?}"
    );
    scene.expect_events(&client, &ended);
    scene.settle(&[(&client, &tally)]);
}

/// The pod is gone, and the node has not noticed: its packets go to a place where nobody has the
/// address any more.
#[test]
fn a_stale_neighbour_is_a_timeout() {
    let (mut scene, [client]) = Scene::new(Wiring::Routed, ["client"]);
    let far = scene.node.far.clone();
    let lladdr = mac(&far.netns, DEVICE);
    let mut attempts = Vec::new();
    for family in Family::ALL {
        let to = scene.nobody(family, 60);
        let link = far.link();
        scene.node.router.ip(&format!(
            "neigh replace {} lladdr {lladdr} dev {link} nud permanent",
            to.ip()
        ));
        attempts.extend(by_all_means(&[to], Duration::from_millis(1300)));
    }
    let ended = run(&client.netns, &attempts, FAST);
    assert_eq!(count(&ended, "timeout"), 5, "the lab failed: {ended:?}");
    let tally = Tally::of(&ended);
    scene.expect_events(&client, &ended);
    scene.settle(&[(&client, &tally)]);
}

/// No room for the neighbour: every SYN is dropped, and the application hears nothing.
#[test]
fn a_full_neighbour_table_is_a_timeout() {
    let (mut scene, [client, filler]) = Scene::new(Wiring::Routed, ["client", "filler"]);
    let limits = Thresholds::set(scene.node.lab.lock(), [64, 128, 128]);
    let mut ended = Vec::new();
    // One after the other: entries are safe from a forced collection for five seconds only.
    for family in Family::ALL {
        let before = table_fulls(family);
        burst(&filler, family, FIRST_SILENT, 200);
        let full = table_fulls(family);
        let to = SocketAddr::new(client.neighbour(family, 3000), OPEN);
        let attempts = by_all_means(&[to], Duration::from_millis(1300));
        ended.extend(run(&client.netns, &attempts, FAST));
        let refused = (full - before, table_fulls(family) - full);
        assert!(
            refused.0 >= 4 && refused.1 >= attempts.len() as u64,
            "the lab failed: {family:?} {refused:?}"
        );
    }
    drop(limits);
    assert_eq!(count(&ended, "timeout"), 5, "the lab failed: {ended:?}");
    let tally = Tally::of(&ended);
    scene.expect_events(&client, &ended);
    let labels = [&client.labels()[..], &[("reason", "neigh_createfail")]].concat();
    eventually(Duration::from_secs(5), || {
        let metrics = scene.agent.metrics();
        let dropped = metrics.count("tracer_pod_drops_total", &labels);
        ensure(dropped >= 5, || format!("{dropped} neigh_createfail"))
    });
    scene.settle(&[(&client, &tally)]);
}
