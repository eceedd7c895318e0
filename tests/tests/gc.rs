//! Hook `gc`: entries that left the tables, by whom and whose; ground truth is what is missing from
//! `ip neigh` afterwards.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::Duration;

use tests::entries::{add, entries, flush};
use tests::neigh::{FIRST_SILENT, burst};
use tests::netns::{DEVICE, Pod};
use tests::point::{NODE_EVICTIONS, POD_CREATES, POD_EVICTIONS, figure, within};
use tests::wait::ensure;
use tests::{Agent, Family, Lab, Point, Thresholds, eventually};

const FORCED_GC: &str = "tracer_pod_neighbour_forced_gc_total";

fn addresses(pod: &Pod, family: Family) -> BTreeSet<IpAddr> {
    let all = entries(&pod.netns, family);
    all.into_iter().map(|entry| entry.address).collect()
}

fn count(pod: &Pod, family: Family) -> u64 {
    entries(&pod.netns, family).len() as u64
}

/// Evictions of the node by `gc` since `before`.
fn node(after: &Point, before: &Point, family: Family, gc: &str) -> u64 {
    let labels = [("family", family.label()), ("gc", gc)];
    after
        .metrics
        .growth(&before.metrics, NODE_EVICTIONS, &labels)
}

/// Evictions of a pod's entries by `gc` since `before`.
fn of(after: &Point, before: &Point, pod: &Pod, family: Family, gc: &str) -> u64 {
    after.pod_growth(before, POD_EVICTIONS, pod.labels(), family, &[("gc", gc)])
}

/// Panics unless as many of a pod's entries were evicted as went. What went is reckoned with the pod's
/// creations as tracer counts them: short of those that the kernel showed to no program.
fn went_as(before: &Point, pod: &Pod, family: Family, went: u64, evicted: u64) {
    within(went, evicted, || {
        before.hidden().creations(family, "created")
    })
    .unwrap_or_else(|why| panic!("{} {family:?}: went {why}", pod.netns.name()));
}

/// A point at which nothing is under way and all sums are right: evictions of the node are the
/// entries that the kernel has fewer (but for those that it showed to no program), those of all pods are the node's, and the runs the kernel's.
fn settled(agent: &Agent, before: &Point) -> Point {
    eventually(Duration::from_secs(5), || {
        let after = Point::take(agent, before)?;
        after.compare(before)?;
        for (index, family) in Family::ALL.into_iter().enumerate() {
            let removed = after.kernel[index].removed_since(&before.kernel[index]);
            let all = after.evictions(before, &[("family", family.label())]);
            within(all, removed, || before.hidden().removals(family))
                .map_err(|why| format!("{family:?}: evictions {why}"))?;
            for gc in ["forced", "periodic", "other"] {
                let labels = [("family", family.label()), ("gc", gc)];
                let node = node(&after, before, family, gc);
                let pods = after
                    .metrics
                    .growth(&before.metrics, POD_EVICTIONS, &labels);
                ensure(pods == node, || {
                    format!("{labels:?}: {pods} of pods, {node} of the node")
                })?;
            }
        }
        Ok::<Point, String>(after)
    })
}

#[test]
fn a_forced_collection_has_victims_and_a_culprit() {
    let mut lab = Lab::new();
    let [old, bystander, culprit] =
        [("old", 1), ("bystander", 2), ("culprit", 3)].map(|(n, i)| lab.pod(n, i, 1));
    for family in Family::ALL {
        // Stale for longer than this they go by themselves: an emulated machine may need that for the agent's
        // start.
        let key = format!("{}/neigh/{DEVICE}/gc_stale_time", family.label());
        old.netns.sysctl(&key, "3600");
        add(&old, family, 1000..1150, "stale");
        add(&bystander, family, 1000..1010, "permanent");
    }
    // Younger ones are not evicted.
    sleep(Duration::from_millis(5200));
    let (agent, before) = Point::begin(&[]);
    let pods = [&old, &bystander];
    let had = pods.map(|pod| Family::ALL.map(|family| addresses(pod, family)));
    let limits = Thresholds::set(lab.lock(), [64, 64, 128]);
    for family in Family::ALL {
        add(&culprit, family, 2000..2100, "reachable");
    }
    drop(limits);
    let after = settled(&agent, &before);

    let mut evicted = Vec::new();
    for (index, family) in Family::ALL.into_iter().enumerate() {
        let vanished = |pod: &Pod, had: &[BTreeSet<IpAddr>; 2]| -> Vec<IpAddr> {
            let has = addresses(pod, family);
            had[index].difference(&has).copied().collect()
        };
        // Of the bystander's, the permanent ones stay and a multicast group's may go.
        for (pod, had) in pods.into_iter().zip(&had) {
            let n = vanished(pod, had).len() as u64;
            let name = pod.netns.name();
            assert_eq!(of(&after, &before, pod, family, "forced"), n, "{name}");
            for gc in ["periodic", "other"] {
                assert_eq!(of(&after, &before, pod, family, gc), 0, "{name} {gc}");
            }
        }
        let vanished = vanished(&old, &had[0]);
        let n = vanished.len() as u64;
        assert!(n >= 20, "the lab failed: {family:?} lost {n} entries");

        let labels = [("family", family.label())];
        let forced = node(&after, &before, family, "forced");
        let culprits = after.metrics.growth(&before.metrics, FORCED_GC, &labels);
        assert_eq!(culprits, forced, "{family:?}: somebody forced each");
        let by = |pod: &Pod| after.pod_growth(&before, FORCED_GC, pod.labels(), family, &[]);
        // The host may have lost entries, and asked for them again.
        assert!(by(&culprit) >= n, "{family:?}: {} of {n}", by(&culprit));
        assert_eq!((by(&old), by(&bystander)), (0, 0), "{family:?}");
        let runs = after.kernel[index].forced_gc_runs - before.kernel[index].forced_gc_runs;
        eprintln!("{family:?}: {runs} runs evicted {forced}, {n} of them of one pod");
        evicted.push((family, vanished));
    }

    // Thrashing: what was thrown out is wanted again at once.
    for (family, vanished) in &evicted {
        let commands: Vec<String> = vanished
            .iter()
            .map(|to| format!("neigh add {to} dev {DEVICE} lladdr 02:00:00:00:00:99 nud stale\n"))
            .collect();
        old.netns.ip_batch(&commands.concat());
        eventually(Duration::from_secs(5), || {
            let again = figure(&agent.snapshot(), old.labels(), *family, "recreated");
            ensure(again == vanished.len() as u64, || {
                format!("{again} of {} created again", vanished.len())
            })
        });
    }
    agent.stop_cleanly();
}

#[test]
fn what_is_no_collection_is_other() {
    let mut lab = Lab::new();
    let [flushed, deleted, downed, gone] =
        [("flushed", 1), ("deleted", 2), ("downed", 3), ("gone", 4)].map(|(n, i)| lab.pod(n, i, 1));
    // Above gc_thresh1 the periodic collection would be faster, on a slow machine.
    let limits = Thresholds::set(lab.lock(), [1024, 2048, 4096]);
    for pod in [&flushed, &deleted, &downed, &gone] {
        for family in Family::ALL {
            burst(pod, family, FIRST_SILENT, 30);
            add(pod, family, 2000..2010, "permanent");
        }
    }
    let (agent, before) = Point::begin(&[]);
    let pods = [&flushed, &deleted, &downed];
    let had = pods.map(|pod| Family::ALL.map(|family| count(pod, family)));
    let gone_had = Family::ALL.map(|family| count(&gone, family));
    for family in Family::ALL {
        flush(&flushed.netns, family);
        let deletions: Vec<String> = (2000..2010)
            .map(|n| format!("neigh del {} dev {DEVICE}\n", deleted.neighbour(family, n)))
            .collect();
        deleted.netns.ip_batch(&deletions.concat());
    }
    downed.netns.ip(&format!("link set {DEVICE} down"));
    let after = settled(&agent, &before);
    let mut total = [0; 2];
    for (pod, had) in pods.into_iter().zip(had) {
        for (index, family) in Family::ALL.into_iter().enumerate() {
            // IPv6 makes entries of its own when a link changes.
            let created = [("result", "created")];
            let made = after.pod_growth(&before, POD_CREATES, pod.labels(), family, &created);
            let went = had[index] + made - count(pod, family);
            let other = of(&after, &before, pod, family, "other");
            went_as(&before, pod, family, went, other);
            assert!(other >= 10, "the lab failed: {other}");
            total[index] += other;
        }
    }
    assert_eq!(total[0], 30 + 10 + 40);
    for family in Family::ALL {
        assert_eq!(node(&after, &before, family, "forced"), 0);
    }

    drop(gone);
    eventually(Duration::from_secs(5), || {
        let last = Point::take(&agent, &after)?;
        for (index, family) in Family::ALL.into_iter().enumerate() {
            let removed = last.kernel[index].removed_since(&after.kernel[index]);
            let other = node(&last, &after, family, "other");
            within(other, removed, || last.hidden().removals(family))
                .map_err(|why| format!("{family:?}: evictions {why}"))?;
            ensure(removed >= gone_had[index], || {
                format!("{family:?}: {removed} went with the namespace")
            })?;
        }
        Ok::<(), String>(())
    });
    drop(limits);
    agent.stop_cleanly();
}

#[test]
fn the_periodic_collection_is_told_apart() {
    let mut lab = Lab::new();
    let pod = lab.pod("silent", 1, 1);
    burst(&pod, Family::V4, FIRST_SILENT, 100);
    burst(&pod, Family::V6, FIRST_SILENT, 60);
    // One that may not read the kernel's addresses goes by the work item.
    let mut blind = Agent::launch(&["setpriv", "--bounding-set=-syslog"], &[]);
    blind.wait_ready();
    let (agent, before) = Point::begin(&[]);
    let had = Family::ALL.map(|family| count(&pod, family));
    let silent = |family: Family| {
        let all = entries(&pod.netns, family);
        let failed = ["INCOMPLETE", "FAILED"];
        all.iter().filter(|e| failed.contains(&&*e.state)).count()
    };
    assert_eq!((silent(Family::V4), silent(Family::V6)), (100, 60));
    // Below gc_thresh1 a run removes nothing. They come each 15 s, and entries fail after 3 s.
    let limits = Thresholds::set(lab.lock(), [8, 512, 1024]);
    eventually(Duration::from_secs(35), || {
        let left = Family::ALL.map(silent);
        ensure(left == [0, 0], || format!("{left:?} are left"))
    });
    drop(limits);
    let after = settled(&agent, &before);
    for (index, family) in Family::ALL.into_iter().enumerate() {
        let created = [("result", "created")];
        let made = after.pod_growth(&before, POD_CREATES, pod.labels(), family, &created);
        let went = had[index] + made - count(&pod, family);
        let periodic = of(&after, &before, &pod, family, "periodic");
        went_as(&before, &pod, family, went, periodic);
        assert!(periodic >= [100, 60][index], "{family:?}: {periodic}");
        assert_eq!(of(&after, &before, &pod, family, "other"), 0, "{family:?}");
        assert_eq!(node(&after, &before, family, "forced"), 0, "{family:?}");
        let runs = after.kernel[index].periodic_gc_runs - before.kernel[index].periodic_gc_runs;
        assert!(runs >= 1, "{family:?}");
        // The pod was new to that agent too, and a name takes a moment.
        eventually(Duration::from_secs(5), || {
            let metrics = blind.metrics();
            for gc in ["forced", "periodic", "other"] {
                let labels =
                    [&pod.labels()[..], &[("family", family.label()), ("gc", gc)]].concat();
                let seen = metrics.count(POD_EVICTIONS, &labels);
                let expected = if gc == "periodic" { periodic } else { 0 };
                ensure(seen == expected, || {
                    format!("{family:?}, without CAP_SYSLOG: {seen} by {gc}, not {expected}")
                })?;
            }
            Ok::<(), String>(())
        });
    }
    let degraded = [("hook", "gc"), ("state", "degraded")];
    assert_eq!(blind.metrics().count("tracer_hook_state", &degraded), 1);
    blind.stop_cleanly();
    agent.stop_cleanly();
}
