//! All hooks under one agent, on a node whose pods fail in every way: what each pod is charged with is what its own
//! clients and the kernel saw, and nobody else's; and each program as large as it is recorded to be. It is what
//! `cargo xtask vm` runs on each kernel, where an agent's start takes an emulated machine ten seconds.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use tests::clock::{Stepped, second_of_day};
use tests::dns::scene::{CLIENT, lookups};
use tests::dns::{A, Lookup, Server, truth as dns};
use tests::entries::{add, entries, know, mac};
use tests::neigh::{FIRST_SILENT, burst, table_fulls};
use tests::netns::{DEVICE, Pod};
use tests::point::{NODE_EVICTIONS, POD_CREATES, POD_ENTRIES, POD_EVICTIONS, within};
use tests::router::{Node, Wiring};
use tests::tcp::scene::prepare;
use tests::tcp::{Scene, Tally, every_way, truth as tcp};
use tests::unseen::{has_drop_reasons, has_tracepoint};
use tests::verified;
use tests::wait::{ensure, is_emulated};
use tests::{Agent, Family, Metrics, Point, Thresholds, eventually};

const SOON: Duration = Duration::from_secs(5);
/// Far below what a burst asks for, far above what the lab itself has.
const LIMITS: [u64; 3] = [96, 160, 160];
const BURST: u16 = 300;
/// Entries that can be thrown out.
const STALE: u16 = 40;
/// Only what has not changed for so long is thrown out by a forced collection.
const OLD: Duration = Duration::from_millis(5200);
/// Scripts of the server that end in every way; see [`Server`].
const SCRIPTS: [&str; 13] = [
    "ok", "case", "nodata", "tc", "nx", "formerr", "servfail", "notimp", "refused", "other", "dup",
    "drop", "wrongid",
];

/// Lets a pod and the far one know their neighbours for good, whatever the table's state.
fn know_the_way(node: &Node, pod: &Pod) {
    let ends = [(pod, pod.link()), (&node.far, node.far.link())];
    for (pod, link) in ends {
        for family in Family::ALL {
            let hub = mac(&node.router, &link);
            know(&pod.netns, DEVICE, pod.hub(family), &hub);
            let own = mac(&pod.netns, DEVICE);
            know(&node.router, &link, pod.address(family), &own);
        }
    }
}

fn addresses(pod: &Pod, family: Family) -> BTreeSet<IpAddr> {
    let all = entries(&pod.netns, family);
    all.into_iter().map(|entry| entry.address).collect()
}

#[test]
fn what_each_pod_of_a_failing_node_is_charged_with_is_its_own() {
    let (node, [caller, asker, shouter, greedy, old]) = prepare(
        Wiring::Routed,
        ["caller", "asker", "shouter", "greedy", "old"],
    );
    know_the_way(&node, &asker);
    for family in Family::ALL {
        // Stale for longer than this they go by themselves.
        let key = format!("{}/neigh/{DEVICE}/gc_stale_time", family.label());
        old.netns.sysctl(&key, "3600");
        add(&old, family, 1000..1000 + STALE, "stale");
    }
    let made = Instant::now();
    let servers = Family::ALL.map(|family| node.far.address(family));
    let _server = Server::start(&node.far.netns, &servers);
    let mut before = None;
    let mut scene = Scene::around(node, || {
        let (agent, point) = Point::begin(&["--dns-timeout", "1s", "--log-level", "debug"]);
        before = Some(point);
        agent
    });
    let before = before.expect("the agent was started");

    // What the verifier took, by the agent's own word: where the kernel tells, since 5.16.
    let said = scene.agent.stderr();
    let verified = said.lines().filter_map(|line| {
        let (program, rest) = line.split_once("verified ")?.1.split_once(": ")?;
        let instructions = rest.strip_suffix(" instructions")?.parse().ok()?;
        Some((program.to_owned(), instructions))
    });
    verified::check("", &verified.collect());

    // Somebody sets the clock, and sets it again: nothing that follows goes by it. Where the machine is the test's own.
    let clock = is_emulated().then(|| Stepped::by(3_600));

    // Lookups that end in every way, of a server behind the node.
    let mut seen = CLIENT.run(&asker, lookups(&SCRIPTS, &servers));
    let unanswered = seen.outcome("timeout");
    assert_eq!(
        (seen.errors(), unanswered),
        (5 * 4, 2 * 4),
        "the lab failed: {seen:?}"
    );

    // What the kernel lacks, the agent says, and nothing else is wrong with it.
    let (has_reasons, has_errors) = (
        has_drop_reasons(),
        has_tracepoint("sock/inet_sk_error_report"),
    );
    for (name, is_whole) in [
        ("neigh", true),
        ("dns", true),
        ("drops", has_reasons),
        ("gc", true),
        ("tcp", has_errors),
        ("cgroups", true),
    ] {
        let hook = scene.agent.hook(name);
        let state = if is_whole { "attached" } else { "degraded" };
        assert_eq!(hook["state"], state, "{hook}");
    }

    // Sends that fail before there is a packet, where the agent says that it sees them.
    let has_fexit = scene.agent.hook("dns")["mechanism"]
        .as_str()
        .expect("it is text")
        .contains("fexit");
    let nowhere = Family::ALL.map(|family| scene.nobody(family, 20).ip());
    for to in nowhere {
        asker.netns.ip(&format!("route add unreachable {to}"));
    }
    let unsent = nowhere.map(|to| Lookup::new("ok-unsent.test", A, to));
    let unsent = CLIENT.run(&asker, unsent.to_vec());
    assert_eq!(unsent.outcome("timeout"), 2, "the lab failed: {unsent:?}");
    if has_fexit {
        seen.add(&unsent);
    }

    // Attempts that end in every way, and datagrams to nobody behind the node.
    let nobody: Vec<SocketAddr> = (10..15)
        .map(|n| SocketAddr::new(scene.nobody(Family::V4, n).ip(), 9))
        .collect();
    shouter.netns.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a port is free");
        for to in &nobody {
            socket.send_to(b"anybody there?", to).expect("it is sent");
        }
    });
    let attempts = every_way(&mut scene, &caller);

    drop(clock);
    let _clock = is_emulated().then(|| Stepped::by(-7_200));
    // The table overflows: what is old is thrown out, what is new refused; the pod that asks on is hit by what
    // another does.
    eventually(OLD * 2, || {
        ensure(made.elapsed() >= OLD, || "too young".to_owned())
    });
    let had = Family::ALL.map(|family| addresses(&old, family));
    let mut refused = [0; 2];
    for family in Family::ALL {
        let fulls = table_fulls(family);
        let cold: Vec<IpAddr> = scene.node.beyond(family, 2000..2006);
        let to = scene.node.far.address(family);
        let limits = Thresholds::set(scene.node.lab.lock(), LIMITS);
        burst(&greedy, family, FIRST_SILENT, BURST);
        let mut questions = vec![Lookup::new("ok-warm.test", A, to)];
        questions.extend(cold.iter().map(|to| Lookup::new("ok-cold.test", A, *to)));
        let during = CLIENT.run(&asker, questions);
        drop(limits);
        refused[family as usize] = table_fulls(family) - fulls;
        assert!(
            refused[family as usize] >= 140,
            "the lab failed: {refused:?} were refused"
        );
        assert_eq!(
            (during.outcome("noerror"), during.outcome("timeout")),
            (1, 6),
            "the lab failed: {during:?}"
        );
        seen.add(&during);
    }

    let after = eventually(SOON * 2, || {
        let after = Point::take(&scene.agent, &before)?;
        after.compare(&before)?;
        let causes = |late: u64| {
            [
                ("server", 5 * 4),
                ("no_answer", unanswered),
                ("neighbour_table_full", 12 - late),
                ("dropped", late),
                ("no_route", if has_fexit { 2 } else { 0 }),
            ]
        };
        let compare = |late| dns::compare(&after.metrics, &asker, &seen, &causes(late));
        compare(0).or_else(|why| {
            // Without a reason the packet must die within a millisecond, for which an emulated processor may stand still.
            let may = if is_emulated() && !has_reasons { 2 } else { 0 };
            (1..=may).find_map(|late| compare(late).ok()).ok_or(why)
        })?;
        dns::check_node(&after.metrics)?;
        let off = scene.unseen() + Scene::in_between();
        if has_errors {
            tcp::compare_seen(&after.metrics, caller.labels(), &attempts, off)?;
        } else {
            compare_without_errors(&after.metrics, &caller, &attempts, off)?;
        }
        tcp::check_node(&after.metrics)?;
        let labels = [&shouter.labels()[..], &[("reason", "neigh_failed")]].concat();
        let drops = after.metrics.count("tracer_pod_drops_total", &labels);
        let died = if has_reasons { 5 } else { 0 };
        ensure(drops == died, || {
            format!("{drops} of {died} datagrams to nobody")
        })?;
        Ok::<Point, String>(after)
    });
    check_tables(&scene.agent, &before, &after, [&greedy, &asker, &old], &had);
    // Each has its own troubles only.
    for (innocent, of) in [
        ("tracer_pod_dns_lookups_total", [&caller, &shouter, &greedy]),
        ("tracer_pod_connects_total", [&asker, &shouter, &greedy]),
    ] {
        for pod in of {
            let count = after.metrics.count(innocent, &pod.labels());
            assert_eq!(count, 0, "{innocent} of {}", pod.netns.name());
        }
    }
    for (kind, pod) in [
        ("dns_failure", &asker),
        ("connect_failure", &caller),
        ("drop", &shouter),
        ("neighbour_overflow", &greedy),
        ("neighbour_overflow", &asker),
    ] {
        if kind == "drop" && !has_reasons {
            continue; // no packet's death is told then
        }
        let event = scene
            .events
            .wait(SOON, |event| event.is(kind, pod.netns.name()));
        if kind == "neighbour_overflow" {
            // The time of day is the clock's.
            let off = (second_of_day() - event.second_of_day()).rem_euclid(86_400.0);
            assert!(off < 600.0, "{off} s ago: {}", event.json);
        }
    }
    let may = Scene::in_between();
    let other = if has_errors {
        0
    } else {
        attempts.count("unreachable")
    };
    assert!(scene.faults() <= may + other, "they are told above");
    scene.agent.stop_cleanly();
}

/// Where the kernel tells of no error, attempts that one ends have another result, and are as many. At most `off` are
/// missing.
fn compare_without_errors(
    metrics: &Metrics,
    pod: &Pod,
    tally: &Tally,
    off: u64,
) -> Result<(), String> {
    let shown = |result| {
        let labels = [&pod.labels()[..], &[("result", result)]].concat();
        metrics.count(tcp::POD_CONNECTS, &labels)
    };
    for result in ["established", "refused"] {
        within(shown(result), tally.count(result), || off)
            .map_err(|why| format!("{result}: {why}"))?;
    }
    let timeouts = shown("timeout");
    ensure(timeouts + off >= tally.count("timeout"), || {
        format!("{timeouts} timeouts")
    })?;
    let all = ["timeout", "unreachable", "other"];
    let [shown, saw] = [
        all.map(shown).iter().sum(),
        all.map(|result| tally.count(result)).iter().sum::<u64>(),
    ];
    within(shown, saw, || off).map_err(|why| format!("ended by errors or time: {why}"))
}

/// Refusals and evictions are theirs who were refused, who forced them and whose entries went; live entries are those
/// that there are.
fn check_tables(
    agent: &Agent,
    before: &Point,
    after: &Point,
    [greedy, asker, old]: [&Pod; 3],
    had: &[BTreeSet<IpAddr>; 2],
) {
    for (family, had) in Family::ALL.into_iter().zip(had) {
        let full = |pod: &Pod| {
            let result = [("result", "table_full")];
            after.pod_growth(before, POD_CREATES, pod.labels(), family, &result)
        };
        // One for each lookup behind the node; greedy's may be more: IPv6 wants entries to solicit with.
        within(full(asker), 6, || before.hidden().refusals(family))
            .unwrap_or_else(|why| panic!("{family:?}: the asker's {why}"));
        assert!(
            full(greedy) >= 100,
            "{family:?}: {} of greedy",
            full(greedy)
        );
        assert_eq!(full(old), 0, "{family:?}");

        let has = addresses(old, family);
        let gone = had.difference(&has).count() as u64;
        assert!(gone > 0, "the lab failed: {family:?}: nothing was evicted");
        let forced = [("gc", "forced")];
        let evicted = after.pod_growth(before, POD_EVICTIONS, old.labels(), family, &forced);
        assert_eq!(evicted, gone, "{family:?}");
        let labels = [("family", family.label()), forced[0]];
        let of_node = after
            .metrics
            .growth(&before.metrics, NODE_EVICTIONS, &labels);
        let name = "tracer_pod_neighbour_forced_gc_total";
        let forced_by = after.pod_growth(before, name, greedy.labels(), family, &[]);
        assert!(
            (gone..=of_node).contains(&forced_by),
            "{family:?}: greedy forced out {forced_by}, {gone} of one pod, {of_node} in all"
        );
    }
    eventually(SOON, || {
        let metrics = agent.metrics();
        for family in Family::ALL {
            let truth = entries(&old.netns, family).len() as u64;
            let labels = [&old.labels()[..], &[("family", family.label())]].concat();
            let live = metrics.count(POD_ENTRIES, &labels);
            ensure(live == truth, || {
                format!("{family:?}: {live} live entries of {truth}")
            })?;
        }
        Ok::<(), String>(())
    });
}
