//! Hook `neigh`: pods overflow the neighbour tables for real, and tracer's counts are the kernel's.

use std::net::{IpAddr, UdpSocket};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use tests::entries::entries;
use tests::neigh::{BURST_COMM, FIRST_SILENT, burst, table_fulls, thresholds};
use tests::netns::{DEVICE, Pod};
use tests::point::{NODE_CREATES, POD_CREATES, POD_ENTRIES, within};
use tests::router::without_entry;
use tests::snmp::unreachables_sent;
use tests::wait::{ensure, patient};
use tests::{Agent, Family, Lab, Metrics, Point, Thresholds, eventually};

/// Far below what a burst asks for, far above what the host itself has.
const LIMITS: [u64; 3] = [64, 128, 128];
const BURST: u16 = 400;

fn pod_creates(metrics: &Metrics, pod: &Pod, family: Family, result: &str) -> Option<f64> {
    let [namespace, name] = pod.labels();
    let labels = [
        namespace,
        name,
        ("family", family.label()),
        ("result", result),
    ];
    metrics.get(POD_CREATES, &labels)
}

/// One datagram to the hub: an entry made and answered for.
fn greet(pod: &Pod, family: Family) {
    let (from, to) = (pod.address(family), pod.hub(family));
    pod.netns.run(|| {
        let socket = UdpSocket::bind((from, 0)).expect("pod has its address");
        socket.send_to(b"hello", (to, 9)).expect("datagram is sent");
    });
}

fn limit_metric(metrics: &Metrics, family: Family) -> [Option<f64>; 3] {
    ["1", "2", "3"].map(|threshold| {
        let labels = [("family", family.label()), ("threshold", threshold)];
        metrics.get("tracer_node_neighbour_entries_limit", &labels)
    })
}

fn overflow(family: Family) {
    let mut lab = Lab::new();
    let [one, two, quiet] = [("one", 1), ("two", 2), ("quiet", 3)].map(|(n, i)| lab.pod(n, i, 1));
    let (agent, before) = Point::begin(&[]);
    let mut events = agent.events();
    greet(&quiet, family);

    let limits = Thresholds::set(lab.lock(), LIMITS);
    let barrier = Barrier::new(2);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for pod in [&one, &two] {
            let barrier = &barrier;
            scope.spawn(move || {
                // In step, so that both get some of the room before it is gone.
                for first in (FIRST_SILENT..FIRST_SILENT + BURST).step_by(25) {
                    barrier.wait();
                    burst(pod, family, first, 25);
                }
            });
        }
    });
    let index = usize::from(family == Family::V6);
    let refused = table_fulls(family) - before.kernel[index].table_fulls;
    assert!(refused > 0, "the lab failed: the table did not overflow");
    // Right as long as nothing could be evicted yet.
    let missing = [&one, &two].map(|pod| {
        let asked: Vec<IpAddr> = (FIRST_SILENT..FIRST_SILENT + BURST)
            .map(|n| pod.neighbour(family, n))
            .collect();
        without_entry(&pod.netns, family, &asked)
    });
    let is_early = started.elapsed() < Duration::from_secs(3);

    for pod in [&one, &two] {
        let name = pod.netns.name();
        let destinations: Vec<IpAddr> = (FIRST_SILENT..FIRST_SILENT + BURST)
            .map(|n| pod.neighbour(family, n))
            .collect();
        // IPv6 also refuses entries for the groups that its solicitations go to.
        let event = events.wait(Duration::from_secs(2), |event| {
            event.is("neighbour_overflow", name)
                && event
                    .text("destination")
                    .parse()
                    .is_ok_and(|d| destinations.contains(&d))
        });
        let shown = &event.json;
        assert!(
            event.at.saturating_duration_since(started) <= patient(Duration::from_secs(1)),
            "the event came {:?} after the burst began: {shown}",
            event.at.duration_since(started)
        );
        assert_eq!(shown["pod"]["namespace"], "(netns)", "{shown}");
        assert_eq!(shown["family"], family.label(), "{shown}");
        assert_eq!(shown["device"], DEVICE, "{shown}");
        assert_eq!(shown["limit"], LIMITS[2], "{shown}");
        let entries = shown["entries"].as_u64().expect("entries is a number");
        // Another CPU may add or remove one between the refusal and the look.
        assert!(entries.abs_diff(LIMITS[2]) <= 8, "{shown}");
        assert_eq!(shown["netns"], pod.netns.inode(), "{shown}");
        assert_eq!(shown["node"], "lab", "{shown}");
        assert!(
            event.text("time").contains('.') && event.text("time").ends_with('Z'),
            "{shown}"
        );
        // The process is told only where the kernel was in its context, and never a wrong one.
        if !shown["pid"].is_null() {
            assert_eq!(shown["pid"], std::process::id(), "{shown}");
            assert_eq!(shown["comm"], BURST_COMM, "{shown}");
        }
    }

    eventually(Duration::from_secs(3), || {
        let limit = limit_metric(&agent.metrics(), family);
        ensure(limit == LIMITS.map(|n| Some(n as f64)), || {
            format!("limits are {limit:?}")
        })
    });
    // Gives the host its limits back, which also ends the refusals.
    drop(limits);
    let after = eventually(Duration::from_secs(10), || {
        let after = Point::take(&agent, &before)?;
        after.compare(&before).map(|()| after)
    });

    // What walks the tables differs by kernel.
    eventually(Duration::from_secs(5), || {
        let pods = [&one, &two, &quiet];
        let truth = || pods.map(|pod| entries(&pod.netns, family).len() as u64);
        let before = truth();
        let metrics = agent.metrics();
        let shown = pods.map(|pod| {
            let labels = [&pod.labels()[..], &[("family", family.label())]].concat();
            metrics.count(POD_ENTRIES, &labels)
        });
        ensure(before == truth(), || "entries come and go".to_owned())?;
        ensure(shown == before && before[0] > 0, || {
            format!("live entries {shown:?}, not {before:?}")
        })
    });

    for (pod, missing) in [&one, &two].into_iter().zip(missing) {
        let [created, full] = ["created", "table_full"]
            .map(|result| pod_creates(&after.metrics, pod, family, result).unwrap_or(0.0));
        assert!(full > 0.0, "{} overflowed", pod.netns.name());
        assert!(created > 0.0, "{} had entries", pod.netns.name());
        if family == Family::V4 {
            // One creation asked for by each datagram, granted or not. Nothing else in the pod asks, but
            // what tells its own socket that a neighbour never answered, by the loopback device: that takes
            // three seconds, so that only a slow machine gets there.
            let others = unreachables_sent(&pod.netns);
            let asked = u64::from(BURST);
            assert!(
                (asked..=asked + others).contains(&((created + full) as u64)),
                "{}: {created} and {full}, and {others} others",
                pod.netns.name()
            );
        } else {
            // The groups that solicitations go to want entries too: there may be more, and never less.
            assert!(
                created + full >= f64::from(BURST),
                "{}: {created} and {full} of {BURST}",
                pod.netns.name()
            );
        }
        assert!(
            !is_early || full >= missing as f64,
            "{}: {full} refused, {missing} have no entry",
            pod.netns.name()
        );
        let [namespace, name] = pod.labels();
        eventually(Duration::from_secs(3), || {
            let labels = [namespace, name, ("signal", "neighbour")];
            let metrics = agent.metrics();
            // Retried solicitations may have failed meanwhile.
            let [created, full] = ["created", "table_full"].map(|result| {
                let labels = [namespace, name, ("result", result)];
                metrics.sum(POD_CREATES, &labels)
            });
            let ratio = metrics.get("tracer_pod_failure_ratio", &labels);
            let expected = full / (created + full);
            ensure(ratio.is_some_and(|r| (r - expected).abs() < 1e-6), || {
                format!("failure ratio of {name:?} is {ratio:?}, not {expected}")
            })
        });
    }
    assert_eq!(
        pod_creates(&after.metrics, &quiet, family, "table_full"),
        Some(0.0)
    );
    assert!(pod_creates(&after.metrics, &quiet, family, "created") >= Some(1.0));
    eventually(Duration::from_secs(3), || {
        let limit = limit_metric(&agent.metrics(), family);
        let expected = thresholds(family).map(|n| Some(n as f64));
        ensure(limit == expected, || format!("limits are {limit:?}"))
    });

    let snapshot = agent.snapshot();
    let table = snapshot["tables"]
        .as_array()
        .and_then(|tables| tables.iter().find(|t| t["family"] == family.label()))
        .expect("the snapshot has both tables");
    assert_eq!(table["table_fulls"], table_fulls(family), "{table}");
    let pods = snapshot["pods"].as_array().expect("the snapshot has pods");
    let shown = pods.iter().find(|pod| pod["pod"] == one.netns.name());
    let shown = shown.expect("the snapshot has the pod");
    let full = pod_creates(&agent.metrics(), &one, family, "table_full");
    assert_eq!(
        shown["neighbour"][family.label()]["table_full"].as_f64(),
        full,
        "{shown}"
    );
    agent.stop_cleanly();
}

#[test]
fn ipv4_overflows_of_two_pods_are_counted_exactly() {
    overflow(Family::V4);
}

#[test]
fn ipv6_overflows_of_two_pods_are_counted_exactly() {
    overflow(Family::V6);
}

#[test]
fn a_pod_made_after_the_agent_is_named() {
    let lab = Lab::new();
    let agent = Agent::start(&[]);
    let pod = lab.pod("young", 1, 1);
    for family in Family::ALL {
        burst(&pod, family, FIRST_SILENT, 20);
    }
    eventually(Duration::from_secs(5), || {
        let metrics = agent.metrics();
        let created = pod_creates(&metrics, &pod, Family::V4, "created");
        ensure(created == Some(20.0), || format!("created is {created:?}"))?;
        let created = pod_creates(&metrics, &pod, Family::V6, "created");
        ensure(created >= Some(20.0), || format!("created is {created:?}"))
    });
    agent.stop_cleanly();
}

#[test]
fn counts_of_a_pod_that_is_gone_stay_in_the_nodes() {
    let lab = Lab::new();
    let (agent, before) = Point::begin(&[]);
    let pod = lab.pod("short", 1, 1);
    burst(&pod, Family::V4, FIRST_SILENT, 50);
    drop(pod);
    eventually(Duration::from_secs(5), || {
        let after = Point::take(&agent, &before)?;
        let labels = [("family", "ipv4"), ("result", "created")];
        let grown = after.metrics.growth(&before.metrics, NODE_CREATES, &labels);
        let truth = after.kernel[0].allocs - before.kernel[0].allocs;
        within(grown, truth, || {
            before.hidden().creations(Family::V4, "created")
        })?;
        ensure(grown >= 50, || format!("grew by {grown}"))
    });
    agent.stop_cleanly();
}
