//! Hook `tcp`: 10,000 mixed attempts, a thousand at once, a hundred pods, a port scan: tracer's counts
//! are what the clients saw, with no difference.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, scope, sleep};
use std::time::Duration;

use tests::router::Wiring;
use tests::tcp::client::RESULTS;
use tests::tcp::scene::{CLOSED, DROPPED, OPEN, RESET, routed};
use tests::tcp::truth::{DEAD, NODE_CONNECTS, POD_CONNECTS, check_node, compare};
use tests::tcp::{Attempt, Ended, Manner, Means, Scene, Server, Tally, kernel, run, run_here};
use tests::wait::ensure;
use tests::{Agent, Family, Lab, eventually};

const PATIENCE: Duration = Duration::from_millis(2500);

/// The `n`th attempt of a client: all results, all means, both families.
fn mixed(scene: &Scene, n: u16) -> Attempt {
    const MEANS: [Means; 3] = [Means::Polled, Means::Blocking, Means::Mapped];
    let family = Family::ALL[usize::from(n % 2)];
    let turn = n / 2;
    let (to, patience) = match turn % 8 {
        0 | 1 => (scene.port(family, OPEN), PATIENCE),
        2 => (scene.port(family, CLOSED), PATIENCE),
        3 => (scene.port(family, RESET), PATIENCE),
        4 => (scene.port(family, DROPPED), Duration::from_millis(1200)),
        5 => (scene.nobody(family, turn % 50), PATIENCE),
        6 => (routed(family, 251), PATIENCE),
        _ => (routed(family, 250), Duration::from_millis(300)),
    };
    let means = match (MEANS[usize::from(turn / 8 % 3)], family) {
        (Means::Mapped, Family::V6) => Means::Polled,
        (means, _) => means,
    };
    Attempt::new(to, means, patience)
}

#[test]
fn ten_thousand_mixed_attempts_of_four_pods_are_counted() {
    const EACH: u16 = 2500;
    let (scene, pods) = Scene::new(Wiring::Routed, ["one", "two", "three", "four"]);
    let attempts: Vec<Attempt> = (0..EACH).map(|n| mixed(&scene, n)).collect();
    let clients = pods.each_ref().map(|pod| {
        let attempts = attempts.clone();
        pod.netns.spawn(move || run_here(&attempts, 200))
    });
    // Under way no counter falls, and none is ahead of the kernel's.
    let mut last = scene.agent.metrics();
    while !clients.iter().all(JoinHandle::is_finished) {
        let now = scene.agent.metrics();
        for pod in &pods {
            for result in RESULTS {
                let labels = [&pod.labels()[..], &[("result", result)]].concat();
                now.growth(&last, POD_CONNECTS, &labels);
            }
            let counted = now.count(POD_CONNECTS, &pod.labels());
            let opened = kernel::Statistics::of(&pod.netns).active_opens;
            assert!(counted <= opened, "{counted} of {opened}");
        }
        for result in RESULTS {
            now.growth(&last, NODE_CONNECTS, &[("result", result)]);
        }
        last = now;
        sleep(Duration::from_millis(200));
    }
    let tallies = clients.map(|client| Tally::of(&client.join().expect("the client ends")));
    for (pod, tally) in pods.iter().zip(&tallies) {
        let opened = kernel::Statistics::of(&pod.netns).active_opens;
        eprintln!("{tally:?}");
        assert_eq!(opened, u64::from(EACH), "the lab failed");
        for result in &RESULTS[..4] {
            let count = tally.count(result);
            assert!(count >= 300, "the lab failed: {tally:?}");
        }
    }
    let all: Vec<_> = pods.iter().zip(&tallies).collect();
    scene.settle(&all);
}

#[test]
fn a_thousand_attempts_under_way_at_once_are_all_counted() {
    let (scene, [client]) = Scene::new(Wiring::Bridged, ["client"]);
    let attempts: Vec<Attempt> = (0..1000)
        .map(|n| {
            let to = scene.port(Family::ALL[n % 2], DROPPED);
            Attempt::new(to, Means::Polled, Duration::from_secs(4))
        })
        .collect();
    let ended = run(&client.netns, &attempts, u32::MAX);
    let first = ended.iter().map(|one| one.took).min();
    assert!(first >= Some(Duration::from_secs(4)), "the lab failed");
    let tally = Tally::of(&ended);
    assert_eq!(tally.count("timeout"), 1000, "the lab failed");
    scene.settle(&[(&client, &tally)]);
}

#[test]
fn a_hundred_pods_have_each_their_own() {
    let lab = Lab::new();
    let pods: Vec<_> = (1..=100).map(|index| lab.pod("some", index, 1)).collect();
    let everywhere = ["0.0.0.0:80"].map(|text| text.parse().expect("an address"));
    let _server = Server::start(&lab.hub, &everywhere, Manner::Close);
    let agent = Agent::start(&[]);
    let tallies: Vec<Tally> = pods
        .iter()
        .enumerate()
        .map(|(index, pod)| {
            let hub = pod.hub(Family::V4);
            let to = |port| Attempt::new(SocketAddr::new(hub, port), Means::Polled, PATIENCE);
            // Not the same for all, so that a mix-up shows.
            let mut attempts = vec![to(OPEN); 1 + index % 3];
            attempts.extend(vec![to(CLOSED); index % 5]);
            let tally = Tally::of(&run(&pod.netns, &attempts, u32::MAX));
            let saw = (tally.count("established"), tally.count("refused"));
            assert_eq!(
                saw,
                (1 + index as u64 % 3, index as u64 % 5),
                "the lab failed"
            );
            tally
        })
        .collect();
    eventually(Duration::from_secs(10), || {
        let metrics = agent.metrics();
        for (pod, tally) in pods.iter().zip(&tallies) {
            compare(&metrics, pod.labels(), tally)?;
        }
        check_node(&metrics)
    });
    agent.stop_cleanly();
}

/// Destinations shown as dead, by pod; their number and the sum of their attempts.
fn dead(metrics: &tests::Metrics, pod: [(&str, &str); 2]) -> (usize, u64) {
    let shown: Vec<f64> = metrics.matching(DEAD, &pod).map(|(_, n)| n).collect();
    (shown.len(), shown.iter().sum::<f64>() as u64)
}

/// 65,535 destinations, each tried once: no flood of names, no wrong count, and what another pod had
/// before stays.
#[test]
fn a_port_scan_stays_within_the_bounds_and_pushes_nobody_out() {
    let (scene, [scanner, victim]) = Scene::new(Wiring::Routed, ["scanner", "victim"]);
    let calls: Vec<Attempt> = (0..3)
        .flat_map(|number| {
            let to = scene.nobody(Family::V4, number);
            vec![Attempt::new(to, Means::Polled, PATIENCE); 4]
        })
        .collect();
    let mut called = run(&victim.netns, &calls, 1000);
    assert_eq!(
        Tally::of(&called).count("unreachable"),
        12,
        "the lab failed"
    );
    eventually(Duration::from_secs(5), || {
        let shown = dead(&scene.agent.metrics(), victim.labels());
        ensure(shown == (3, 12), || format!("dead and attempts: {shown:?}"))
    });

    let scan: Vec<Attempt> = (1..=u16::MAX)
        .map(|port| {
            let to = scene.port(Family::V4, port);
            Attempt::new(to, Means::Polled, Duration::from_millis(200))
        })
        .collect();
    let done = AtomicBool::new(false);
    let found: Vec<Ended> = scope(|threads| {
        let scanning = threads.spawn(|| {
            let ended = run(&scanner.netns, &scan, u32::MAX);
            done.store(true, Ordering::Relaxed);
            ended
        });
        // The other pod goes on calling, and the agent answering.
        while !done.load(Ordering::Relaxed) {
            called.extend(run(&victim.netns, &calls, 1000));
            let all = scene.agent.metrics();
            let shown = all.matching(DEAD, &[]).count();
            // A hundred with names, in as many pods as called them, and the rest of each pod.
            assert!(shown <= 2 * 101, "{shown} series");
        }
        scanning.join().expect("the scan ends")
    });
    let [found, called] = [&found, &called].map(Tally::of);
    eprintln!("scanned {found:?}, called {called:?}");
    let refused = found.count("refused");
    assert!(refused > 65_500, "the lab failed: {refused} refused");
    eventually(Duration::from_secs(10), || {
        let metrics = scene.agent.metrics();
        let shown = dead(&metrics, victim.labels());
        let expected = (3, called.failed());
        ensure(shown == expected, || {
            format!("the victim's dead and attempts: {shown:?}, not {expected:?}")
        })?;
        let told = metrics.count("tracer_node_connect_destinations_untracked_total", &[]);
        ensure((60_000..=refused).contains(&told), || {
            format!("{told} of {refused} are told as not followed")
        })?;
        let full: Vec<_> = metrics
            .matching("tracer_bpf_map_full_total", &[])
            .filter(|(_, count)| *count > 0.0)
            .collect();
        ensure(full.is_empty(), || format!("full maps: {full:?}"))
    });
    scene.settle(&[(&scanner, &found), (&victim, &called)]);
}
