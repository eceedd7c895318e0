//! What outlives an agent in the state folder: counters and names, however it ended.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use tests::bpffs::BpfFs;
use tests::dns::load::Load;
use tests::dns::{A, Client, Lookup, Server};
use tests::entries::{know, mac};
use tests::leftovers::Leftovers;
use tests::neigh::{FIRST_SILENT, burst, table_fulls};
use tests::netns::{DEVICE, Pod};
use tests::point::{CREATION, HOST};
use tests::process::{run, tracer_path, without_settings};
use tests::storm::{CLOSED, refused};
use tests::unseen::Unseen;
use tests::wait::ensure;
use tests::{Agent, Family, Lab, Metrics, Thresholds, eventually};

/// The pins of this version, in the state folder.
const SCHEMA: &str = "schema-5";
const SOON: Duration = Duration::from_secs(8);
/// Limits that a burst overflows.
const LIMITS: [u64; 3] = [32, 64, 64];
const CREATES: &str = "tracer_pod_neighbour_creates_total";
const NODE_CREATES: &str = "tracer_node_neighbour_creates_total";
const V4_FULL: [(&str, &str); 2] = [("family", "ipv4"), ("result", "table_full")];

fn full(metrics: &Metrics, pod: [(&str, &str); 2]) -> u64 {
    metrics.sum(CREATES, &[&pod[..], &V4_FULL].concat()) as u64
}

/// The kernel's refusals from a moment on.
struct Truth {
    fulls: u64,
    trace: Unseen,
}

impl Truth {
    fn begin() -> Self {
        Self {
            trace: Unseen::watch(&[(CREATION, "created == 0")]),
            fulls: table_fulls(Family::V4),
        }
    }

    fn refused(&self) -> u64 {
        table_fulls(Family::V4) - self.fulls
    }

    /// Every refusal that the kernel counted is some pod's, and these pods have their names. The host's own
    /// are of its loopback device, of which each scrape wants an entry: where scrapes are rare, it is gone.
    fn is_told(&self, agent: &Agent, pods: &[[(&str, &str); 2]]) -> Result<(), String> {
        let fulls = self.refused();
        let metrics = agent.metrics();
        ensure(self.refused() == fulls, || "it goes on".to_owned())?;
        let node = metrics.sum(NODE_CREATES, &V4_FULL) as u64;
        let all = metrics.sum(CREATES, &V4_FULL) as u64;
        let named: u64 = pods.iter().map(|pod| full(&metrics, *pod)).sum();
        let own = full(&metrics, HOST);
        ensure((node, all, named + own) == (fulls, fulls, fulls), || {
            let shown: Vec<_> = metrics.matching(CREATES, &V4_FULL).collect();
            format!("node {node}, pods {all}, named {named}; the kernel refused {fulls}: {shown:?}")
        })?;
        if own == 0 {
            return Ok(());
        }
        let fields = [("family", "2"), ("dev", "lo")];
        let traced = self.trace.all();
        let loopback = traced.iter().filter(|one| one.is(CREATION, &fields));
        let loopback = loopback.count() as u64;
        ensure(own <= loopback, || {
            format!("{own} of the host, {loopback} on loopback devices")
        })
    }
}

fn resets(metrics: &Metrics) -> u64 {
    metrics.sum("tracer_state_resets_total", &[]) as u64
}

fn links(state: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(state.join(SCHEMA).join("links")).expect("there are links");
    folders
        .flat_map(|folder| fs::read_dir(folder.expect("folder can be read").path()))
        .flatten()
        .map(|link| link.expect("folder can be read").path())
        .collect()
}

fn detach_all(state: &str) -> tests::process::Ended {
    let mut command = Command::new(tracer_path());
    without_settings(&mut command);
    run(
        command.args(["agent", "--detach-all", "--state-dir", state]),
        Duration::from_secs(5),
    )
}

/// Sends bursts to addresses that nobody has, until the kernel has refused so many more.
fn storm(pods: &[&Pod], more: u64) {
    let before = table_fulls(Family::V4);
    let mut first = FIRST_SILENT;
    eventually(Duration::from_secs(20), || {
        for pod in pods {
            burst(pod, Family::V4, first, 100);
        }
        first += 100;
        let refused = table_fulls(Family::V4) - before;
        ensure(refused >= more, || {
            format!("the lab failed: {refused} refused")
        })
    });
}

#[test]
fn counts_and_names_go_on_when_the_agent_is_killed_in_a_storm() {
    let bpffs = BpfFs::mount();
    let state = bpffs.join("tracer");
    let flags = ["--state-dir", state.to_str().expect("path is text")];
    let mut lab = Lab::new();
    let stays = lab.pod("stays", 1, 1);
    let goes = lab.pod("goes", 2, 1);
    let [stays_labels, goes_labels] = [&stays, &goes].map(|pod| {
        pod.labels()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
    });
    let labels = |owned: &'_ [(String, String); 2]| {
        let [a, b] = owned.clone();
        [a, b]
    };
    let mut agent = Agent::start(&flags);
    let truth = Truth::begin();
    let limits = Thresholds::set(lab.lock(), LIMITS);
    storm(&[&stays, &goes], 100);
    eventually(SOON, || {
        let metrics = agent.metrics();
        ensure(full(&metrics, goes.labels()) > 0, || {
            "nobody has a name yet".to_owned()
        })
    });
    // In the middle of it.
    let killed = std::thread::scope(|scope| {
        let storming = scope.spawn(|| storm(&[&stays, &goes], 600));
        eventually(SOON, || {
            let refused = truth.refused();
            ensure(refused > 200, || format!("{refused} refused"))
        });
        let (status, _) = agent.stop(Signal::KILL);
        storming.join().expect("the storm ends");
        status
    });
    assert!(!killed.success());
    // One fails on while no agent is there, and goes; the other fails once more.
    storm(&[&goes], 100);
    drop(goes);
    storm(&[&stays], 100);

    let second = Agent::start(&flags);
    storm(&[&stays], 100);
    drop(limits);
    let (stays_labels, goes_labels) = (labels(&stays_labels), labels(&goes_labels));
    let names = [&stays_labels, &goes_labels].map(|labels| {
        let [(a, b), (c, d)] = labels;
        [(a.as_str(), b.as_str()), (c.as_str(), d.as_str())]
    });
    eventually(SOON, || truth.is_told(&second, &names));
    let metrics = second.metrics();
    assert!(
        names.iter().all(|name| full(&metrics, *name) >= 100),
        "{names:?}"
    );
    assert_eq!(resets(&metrics), 0);

    // An agent that ends in order leaves the same behind, and the third has it.
    second.stop_cleanly();
    let third = Agent::start(&flags);
    eventually(SOON, || truth.is_told(&third, &names));
    third.stop_cleanly();
}

#[test]
fn lookups_that_are_under_way_are_counted_as_they_end() {
    let bpffs = BpfFs::mount();
    let state = bpffs.join("tracer");
    let flags = [
        "--dns-timeout",
        "5s",
        "--state-dir",
        state.to_str().expect("path is text"),
    ];
    let lab = Lab::new();
    let pod = lab.pod("pod", 1, 1);
    let to = pod.hub(Family::V4);
    let _server = Server::start(&lab.hub, &[to]);
    let client = Client {
        timeout: Duration::from_secs(5),
        linger: Duration::ZERO,
    };
    let mut agent = Agent::start(&flags);
    for end in [Signal::KILL, Signal::TERM] {
        let lookups = (0..20).flat_map(|n| {
            [format!("late-3000-{n}.test"), format!("drop-{n}.test")]
                .map(|name| Lookup::new(name, A, to))
        });
        let asking = client.spawn(&pod, lookups.collect());
        eventually(SOON, || {
            let pending = agent.metrics().sum("tracer_node_dns_pending", &[]) as u64;
            ensure(pending == 40, || format!("{pending} pending"))
        });
        agent.stop(end);
        let tally = asking.join().expect("the client ends");
        assert_eq!(
            (tally.outcome("noerror"), tally.outcome("timeout")),
            (20, 20)
        );
        agent = Agent::start(&flags);
    }
    eventually(SOON, || {
        let metrics = agent.metrics();
        let ended = ["noerror", "timeout"].map(|outcome| {
            let labels = [&pod.labels()[..], &[("outcome", outcome)]].concat();
            metrics.sum("tracer_pod_dns_lookups_total", &labels)
        });
        let pending = metrics.sum("tracer_node_dns_pending", &[]);
        ensure((ended, pending) == ([40.0, 40.0], 0.0), || {
            format!("{ended:?}, {pending} pending")
        })
    });
    agent.stop_cleanly();
}

#[test]
fn another_build_goes_on_with_the_counters() {
    let bpffs = BpfFs::mount();
    let state = bpffs.join("tracer");
    let flags = ["--state-dir", state.to_str().expect("path is text")];
    let mut lab = Lab::new();
    let pod = lab.pod("pod", 1, 1);
    let limits = Thresholds::set(lab.lock(), LIMITS);
    let truth = Truth::begin();
    // To the programs another rate is what another build is: other constants.
    for rate in ["1000", "7"] {
        let agent = Agent::start(&[&flags[..], &["--event-rate", rate]].concat());
        storm(&[&pod], 50);
        eventually(SOON, || truth.is_told(&agent, &[pod.labels()]));
        agent.stop_cleanly();
    }
    drop(limits);
    let links = links(&state);
    let mut names: Vec<_> = links.iter().map(|link| link.file_name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(
        names.len(),
        links.len(),
        "two builds count at once: {links:?}"
    );
}

/// While one build takes another's place, both are attached, and one counts: what happens in that moment, once.
#[test]
fn what_happens_while_builds_change_is_counted_once() {
    const EXCHANGES: usize = 8;
    let bpffs = BpfFs::mount();
    let state = bpffs.join("tracer");
    let flags = ["--state-dir", state.to_str().expect("path is text")];
    let mut lab = Lab::new();
    let [pod, asking, trying] =
        [("pod", 1), ("asking", 2), ("trying", 3)].map(|(name, index)| lab.pod(name, index, 1));
    let _server = Server::start(&lab.hub, &[asking.hub(Family::V4)]);
    // These want no entries of the full table.
    for pod in [&asking, &trying] {
        let far = mac(&lab.hub, &pod.link());
        know(&pod.netns, DEVICE, pod.hub(Family::V4), &far);
        let own = mac(&pod.netns, DEVICE);
        know(&lab.hub, &pod.link(), pod.address(Family::V4), &own);
    }
    let limits = Thresholds::set(lab.lock(), LIMITS);
    let agent = Agent::start(&[&flags[..], &["--event-rate", "1"]].concat());
    let fulls = || table_fulls(Family::V4);
    // Refusals of the node, and of the pod; lookups; attempts.
    let told = |agent: &Agent| {
        let metrics = agent.metrics();
        let of = |pod: &Pod, name, more: &[(&str, &str)]| {
            metrics.count(name, &[&pod.labels()[..], more].concat())
        };
        [
            metrics.count(NODE_CREATES, &V4_FULL),
            of(&pod, CREATES, &V4_FULL[1..]),
            of(&asking, "tracer_pod_dns_lookups_total", &[]),
            of(
                &trying,
                "tracer_pod_connects_total",
                &[("result", "refused")],
            ),
        ]
    };
    let begin = (fulls(), told(&agent));
    let over = AtomicBool::new(false);
    let (agent, asked, tried) = thread::scope(|scope| {
        let mut agent = agent;
        let asks = scope.spawn(|| {
            let load = Load {
                lookups: (0..50)
                    .map(|n| (format!("ok-{n}.test"), asking.hub(Family::V4), None))
                    .collect(),
                rate: 1000,
                timeout: Duration::from_secs(2),
            };
            let mut asked = 0;
            while !over.load(Ordering::Relaxed) {
                // How they end is not the question here.
                asking.netns.run(|| load.run_here());
                asked += 50;
            }
            asked
        });
        let tries = scope.spawn(|| {
            let mut tried = 0;
            while !over.load(Ordering::Relaxed) {
                tried += refused(&trying, trying.hub(Family::V4), (0..10).map(|_| CLOSED));
                thread::sleep(Duration::from_millis(5));
            }
            tried
        });
        let storm = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                burst(&pod, Family::V4, FIRST_SILENT, 500);
            }
        });
        for rate in 2..2 + EXCHANGES {
            let refused = fulls();
            eventually(SOON, || {
                ensure(fulls() > refused + 200, || "no storm".to_owned())
            });
            agent.stop_cleanly();
            // To the programs another rate is what another build is: other constants.
            let rate = rate.to_string();
            agent = Agent::start(&[&flags[..], &["--event-rate", &rate]].concat());
        }
        over.store(true, Ordering::Relaxed);
        storm.join().expect("it ends");
        let ended = "it ends";
        (agent, asks.join().expect(ended), tries.join().expect(ended))
    });
    drop(limits);
    let refused = fulls() - begin.0;
    assert!(refused > 200 * EXCHANGES as u64, "the lab failed");
    assert!(
        asked >= 50 * EXCHANGES as u64 && tried >= 50 * EXCHANGES as u64,
        "the lab failed: {asked} asked, {tried} tried"
    );
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let happened = [refused, refused, asked, tried];
    let off = eventually(SOON, || {
        let told = told(&agent);
        let off = [0, 1, 2, 3]
            .map(|at| (told[at] - begin.1[at]).cast_signed() - happened[at].cast_signed());
        let bound = (EXCHANGES * processors) as u64;
        ensure(off.iter().all(|off| off.unsigned_abs() <= bound), || {
            format!("{off:?} off of {happened:?}")
        })?;
        Ok::<_, String>(off)
    });
    eprintln!("{off:?} off of {happened:?} in {EXCHANGES} exchanges");
    agent.stop_cleanly();
}

#[test]
fn state_of_another_shape_is_left_and_said() {
    let bpffs = BpfFs::mount();
    let state = bpffs.join("tracer");
    let flags = ["--state-dir", state.to_str().expect("path is text")];
    let agent = Agent::start(&flags);
    agent.stop_cleanly();
    let maps = state.join(SCHEMA).join("maps");
    fs::rename(maps.join("TCP"), maps.join("NEIGH")).expect("pins can be renamed");
    fs::create_dir_all(state.join("schema-0/maps")).expect("folders can be made");
    let agent = Agent::start(&flags);
    let said = agent.stderr();
    assert!(
        said.contains("begin anew") && said.contains("NEIGH"),
        "{said}"
    );
    assert_eq!(resets(&agent.metrics()), 1);
    assert!(!state.join("schema-0").exists());
    agent.stop_cleanly();
    // What cannot be read is no reason not to start either.
    let memory = state.join(SCHEMA).join("memory");
    fs::remove_file(&memory).expect("pins can be removed");
    fs::rename(maps.join("WALK"), &memory).expect("pins can be renamed");
    let agent = Agent::start(&flags);
    let said = agent.stderr();
    assert!(said.contains("memory"), "{said}");
    assert_eq!(resets(&agent.metrics()), 2);
    agent.stop_cleanly();
    // Nor what an agent that was killed had begun to remove, or that a map is missing.
    fs::create_dir_all(state.join("going-7/maps")).expect("folders can be made");
    fs::remove_file(maps.join("NEIGH")).expect("pins can be removed");
    let agent = Agent::start(&flags);
    let said = agent.stderr();
    assert!(said.contains("no map NEIGH"), "{said}");
    assert!(!state.join("going-7").exists());
    assert_eq!(resets(&agent.metrics()), 2);
    let mut lab = Lab::new();
    let fails = lab.pod("fails", 1, 1);
    let limits = Thresholds::set(lab.lock(), LIMITS);
    storm(&[&fails], 50);
    drop(limits);
    // The programs count where the agent reads.
    eventually(SOON, || {
        let named = full(&agent.metrics(), fails.labels());
        ensure(named >= 50, || format!("{named} named"))
    });
    agent.stop_cleanly();
}

#[test]
fn agents_that_are_killed_as_they_start_lose_nothing() {
    let bpffs = BpfFs::mount();
    let state = bpffs.join("tracer");
    let flags = ["--state-dir", state.to_str().expect("path is text")];
    let mut lab = Lab::new();
    let pod = lab.pod("stays", 1, 1);
    let truth = Truth::begin();
    let first = Agent::start(&flags);
    let limits = Thresholds::set(lab.lock(), LIMITS);
    first.stop_cleanly();
    // At another step of its start each.
    for step in 0..12 {
        storm(&[&pod], 20);
        let mut agent = Agent::launch(&[], &["--node", "lab", flags[0], flags[1]]);
        // No condition to await: any moment is one to die at.
        std::thread::sleep(Duration::from_millis(60 * step));
        agent.stop(Signal::KILL);
        storm(&[&pod], 20);
    }
    let last = Agent::start(&flags);
    storm(&[&pod], 20);
    drop(limits);
    eventually(SOON, || truth.is_told(&last, &[pod.labels()]));
    assert_eq!(resets(&last.metrics()), 0);
    last.stop_cleanly();
}

#[test]
fn all_of_it_can_be_taken_out() {
    let leftovers = Leftovers::now();
    let bpffs = BpfFs::mount();
    let state = bpffs.join("tracer");
    let text = state.to_str().expect("path is text");
    let agent = Agent::start(&["--state-dir", text]);
    let pid = agent.pid().to_string();
    detach_all(text).assert_refused(1, &[text, &pid]);
    let attached = links(&state).len();
    agent.stop_cleanly();
    assert_eq!(
        links(&state).len(),
        attached,
        "counting ended with the agent"
    );
    let foreign = state.join("foreign");
    fs::create_dir(&foreign).expect("folders can be made");
    let ended = detach_all(text);
    assert!(ended.status.success(), "{ended:?}");
    assert!(
        ended.stdout.contains(&format!("{attached} attachments")),
        "{ended:?}"
    );
    leftovers.assert_none_new();
    assert!(foreign.exists() && !state.join(SCHEMA).exists());
    fs::remove_dir(&foreign).expect("folders can be removed");
    assert!(detach_all(text).status.success());
    assert!(!state.exists());
    let ended = detach_all(text);
    assert!(
        ended.status.success() && ended.stdout.contains("nothing"),
        "{ended:?}"
    );
}
