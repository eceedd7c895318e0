//! Live entries: tracer's walk of the tables sees for each namespace what `ip neigh` shows in it.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use tests::entries::{HostEntries, add, entries, flush, host_entries};
use tests::neigh::{FIRST_SILENT, Statistics, burst, statistics};
use tests::netns::{DEVICE, Pod};
use tests::point::{HOST, NODE_CREATES, POD_ENTRIES};
use tests::wait::ensure;
use tests::{Agent, Family, Lab, Metrics, Netns, Point, eventually};

/// The figures are at most two seconds old; a scrape and the truth take a moment more.
const LAG: Duration = Duration::from_secs(3);

/// Compares tracer's live entries with `ip neigh` and with the kernel's own total.
struct Live<'a> {
    agent: &'a Agent,
    worst: Duration,
}

impl<'a> Live<'a> {
    fn of(agent: &'a Agent) -> Self {
        let worst = Duration::ZERO;
        Self { agent, worst }
    }

    /// Panics unless they are soon the same in these namespaces, in the host's and on the whole.
    fn agree(&mut self, step: &str, namespaces: &[&Netns]) {
        let started = Instant::now();
        eventually(LAG, || {
            let before = truth(namespaces);
            let metrics = self.agent.metrics();
            ensure(before == truth(namespaces), || {
                format!("{step}: entries come and go")
            })?;
            for (labels, family, count) in before {
                let shown = live(&metrics, &labels, family);
                ensure(shown == count, || {
                    format!("{step}: {labels:?} has {shown} {family:?} entries, not {count}")
                })?;
            }
            Ok::<(), String>(())
        });
        self.worst = self.worst.max(started.elapsed());
    }
}

type Labels<'a> = Vec<(&'a str, &'a str)>;

/// Each namespace's, the host's, and, without labels, the sum of all, of which the kernel keeps a
/// number.
fn truth<'a>(namespaces: &[&'a Netns]) -> Vec<(Labels<'a>, Family, usize)> {
    let mut truth = Vec::new();
    for family in Family::ALL {
        for netns in namespaces {
            let count = entries(netns, family).len();
            truth.push((netns.labels().to_vec(), family, count));
        }
        truth.push((HOST.to_vec(), family, host_entries(family).len()));
        truth.push((Vec::new(), family, statistics(family).entries as usize));
    }
    truth
}

fn live(metrics: &Metrics, labels: &[(&str, &str)], family: Family) -> usize {
    let family = ("family", family.label());
    metrics.count(POD_ENTRIES, &[labels, &[family]].concat()) as usize
}

/// On the pod's device: an error that the kernel reports to the pod itself makes one on `lo`.
fn count(pod: &Pod, family: Family) -> usize {
    let all = entries(&pod.netns, family);
    all.iter().filter(|entry| entry.device == DEVICE).count()
}

#[test]
fn live_entries_are_those_of_ip_neigh_under_churn() {
    let lab = Lab::new();
    let [one, two, gone] = [("one", 1), ("two", 2), ("gone", 3)].map(|(n, i)| lab.pod(n, i, 1));
    // Older than the agent, in every kind.
    for family in Family::ALL {
        burst(&one, family, FIRST_SILENT, 30);
        burst(&gone, family, FIRST_SILENT, 25);
        add(&two, family, 1000..1020, "permanent");
        add(&two, family, 1020..1025, "noarp");
        add(&two, family, 1025..1030, "stale");
    }
    assert_eq!((count(&one, Family::V4), count(&two, Family::V4)), (30, 30));
    let agent = Agent::start(&[]);
    let mut live_entries = Live::of(&agent);
    let rest = [&*one.netns, &two.netns, &lab.hub];
    let all = [&rest[..], &[&gone.netns]].concat();
    live_entries.agree("entries older than the agent", &all);

    for family in Family::ALL {
        burst(&one, family, 2000, 40);
        add(&two, family, 2000..2010, "reachable");
    }
    assert_eq!((count(&one, Family::V4), count(&two, Family::V4)), (70, 40));
    live_entries.agree("additions", &all);

    for family in Family::ALL {
        let deletions: Vec<String> = (1000..1015)
            .map(|n| format!("neigh del {} dev {DEVICE}\n", two.neighbour(family, n)))
            .collect();
        two.netns.ip_batch(&deletions.concat());
        // Counts against the limit from now on.
        add(&two, family, 1015..1020, "reachable");
    }
    assert_eq!(count(&two, Family::V4), 25);
    live_entries.agree("ip neigh del", &all);

    for family in Family::ALL {
        flush(&one.netns, family);
        flush(&two.netns, family);
    }
    // NOARP entries stay.
    assert_eq!((count(&one, Family::V4), count(&two, Family::V4)), (0, 5));
    live_entries.agree("ip neigh flush", &all);

    for family in Family::ALL {
        burst(&one, family, FIRST_SILENT, 20);
        add(&one, family, 3000..3005, "permanent");
    }
    live_entries.agree("permanent ones and others", &all);
    one.netns
        .ip(&format!("link set {DEVICE} address 02:00:00:00:77:01"));
    live_entries.agree("address change", &all);

    add(&one, Family::V4, 3000..3005, "permanent");
    burst(&one, Family::V4, FIRST_SILENT, 20);
    lab.hub.ip(&format!("link set {} down", one.link()));
    live_entries.agree("carrier down", &all);
    one.netns.ip(&format!("link set {DEVICE} down"));
    assert_eq!(count(&one, Family::V4), 0);
    live_entries.agree("link down", &all);

    let name = gone.netns.name().to_owned();
    drop(gone);
    let labels = [("namespace", "(netns)"), ("pod", &*name)];
    // The kernel takes namespaces apart in its own time.
    eventually(Duration::from_secs(5), || {
        let metrics = agent.metrics();
        let left = Family::ALL.map(|family| live(&metrics, &labels, family));
        ensure(left == [0, 0], || format!("{name} still has {left:?}"))
    });
    live_entries.agree("namespace deletion", &rest);
    eprintln!(
        "the figures were right at most {:?} later",
        live_entries.worst
    );
    agent.stop_cleanly();
}

#[test]
fn the_hosts_own_entries_have_their_label() {
    let lab = Lab::new();
    let agent = Agent::start(&[]);
    let mut live_entries = Live::of(&agent);
    live_entries.agree("before", &[&lab.hub]);
    let made = HostEntries::add(7, &lab.hub);
    for family in Family::ALL {
        assert!(host_entries(family).len() >= 7);
    }
    live_entries.agree("seven more", &[&lab.hub]);
    drop(made);
    live_entries.agree("seven fewer", &[&lab.hub]);
    agent.stop_cleanly();
}

/// Four threads on all CPUs ask for the same keys at once, again and again, while entries are
/// flushed: whoever loses a race has an entry that was made and is in no table.
fn racing_creators(family: Family) {
    const THREADS: usize = 4;
    const ROUNDS: u16 = 15;
    let lab = Lab::new();
    let pods = [("one", 1), ("two", 2)].map(|(name, index)| lab.pod(name, index, 1));
    let (agent, before) = Point::begin(&[]);
    let barrier = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (pods, barrier) = (&pods, &barrier);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    barrier.wait();
                    let pod = &pods[usize::from(round) % 2];
                    burst(pod, family, FIRST_SILENT + round % 3 * 100, 100);
                    // Half of the flushes race with the creations of the next round.
                    if thread == 0 && round % 4 == 0 {
                        flush(&pod.netns, family);
                    }
                }
            });
        }
    });
    let namespaces = [&*pods[0].netns, &pods[1].netns, &lab.hub];
    Live::of(&agent).agree("after the race", &namespaces);
    let after = eventually(Duration::from_secs(5), || {
        let after = Point::take(&agent, &before)?;
        after.compare(&before).map(|()| after)
    });
    let labels = [("family", family.label()), ("result", "created")];
    let created = after.metrics.growth(&before.metrics, NODE_CREATES, &labels);
    let evicted = after.evictions(&before, &[("family", family.label())]);
    let index = usize::from(family == Family::V6);
    let entries = |of: Statistics| i64::try_from(of.entries).expect("few");
    let more = entries(after.kernel[index]) - entries(before.kernel[index]);
    let [created, evicted] = [created, evicted].map(|n| i64::try_from(n).expect("few"));
    let lost = created - evicted - more;
    eprintln!("{family:?}: {created} created, {evicted} removed, {more} more, {lost} lost races");
    let hidden = before.hidden().creations(family, "created");
    let hidden = i64::try_from(hidden).expect("few");
    assert!(lost + hidden >= 0, "more entries were removed than made");
    agent.stop_cleanly();
}

#[test]
fn ipv4_creators_that_race_for_the_same_keys_leave_the_count_right() {
    racing_creators(Family::V4);
}

#[test]
fn ipv6_creators_that_race_for_the_same_keys_leave_the_count_right() {
    racing_creators(Family::V6);
}
