//! Hook `dns`: 10,000 mixed lookups, and tracer's outcomes and causes are what the clients saw, with
//! no difference; and what happens where there are more than it follows.

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tests::dns::load::{Load, Loaded};
use tests::dns::scene::{CLIENT, SERVERS, lookups, pod};
use tests::dns::truth::{check_node, check_sums, compare};
use tests::dns::{A, Lookup, Scene, Tally, packet};
use tests::netns::{DEVICE, Pod, await_ipv6};
use tests::nft::Rules;
use tests::router::Wiring;
use tests::unseen::Unseen;
use tests::wait::ensure;
use tests::{Family, Metrics, eventually};

const TIMEOUT: Duration = Duration::from_secs(1);

/// What becomes of one lookup in eight or so, by address of the server's pod: its number in the
/// subnet, and the cause.
const KILLERS: [(u16, &str); 5] = [
    (3, "netfilter"),
    (4, "netfilter"),
    (50, "port_unreachable"),
    (1000, "neighbour_unresolved"),
    (2000, "no_route"),
];

/// A scene in which all killers are at work.
fn deadly() -> (tests::Lab, Scene, Rules) {
    let (lab, scene) = Scene::new(Wiring::Routed);
    let [query, answer] = [3, 4].map(|n| Family::ALL.map(|family| scene.nth(family, n)));
    let rules = Rules::load(
        &scene.router,
        &format!(
            " chain refuse {{ type filter hook forward priority 0; \
             ip daddr {} udp dport 53 counter name hit drop; \
             ip6 daddr {} udp dport 53 counter name hit drop; \
             ip saddr {} udp sport 53 counter name hit drop; \
             ip6 saddr {} udp sport 53 counter name hit drop; }}\n",
            query[0], query[1], answer[0], answer[1]
        ),
    );
    let (router, link) = (&scene.router, scene.far.link());
    for (family, length) in Family::ALL.into_iter().zip([16, 64]) {
        let nodad = if family == Family::V6 { "nodad" } else { "" };
        let closed = scene.far.neighbour(family, 50);
        scene.far.netns.ip(&format!(
            "address add {closed}/{length} dev {DEVICE} {nodad}"
        ));
        router.sysctl(
            &format!("{}/neigh/{link}/retrans_time_ms", family.label()),
            "100",
        );
    }
    await_ipv6(&scene.far.netns, DEVICE, usize::from(SERVERS) + 1);
    (lab, scene, rules)
}

/// A server address, by number.
fn server(scene: &Scene, family: Family, number: u16) -> IpAddr {
    match (number, family) {
        (2000, Family::V4) => [10, 250, 0, 53].into(),
        (2000, Family::V6) => "fd00:0:0:fa::53".parse().expect("an address"),
        _ => scene.far.neighbour(family, number),
    }
}

/// Lookups of one client: all outcomes, all killers, both families.
fn mixed(scene: &Scene, client: usize, count: usize, rate: u32) -> Load {
    const SCRIPTS: [&str; 11] = [
        "ok", "ok", "nodata", "nx", "servfail", "refused", "formerr", "notimp", "other", "tc",
        "drop",
    ];
    let lookup = |n: usize| {
        let family = Family::ALL[n % 2];
        let name = |script: &str| format!("{script}-{client}-{n}.exact.test");
        let turn = n / 2;
        if turn.is_multiple_of(3) {
            let (number, cause) = KILLERS[turn / 3 % KILLERS.len()];
            (name("ok"), server(scene, family, number), Some(cause))
        } else {
            let script = SCRIPTS[turn % SCRIPTS.len()];
            (name(script), scene.address(family), None)
        }
    };
    Load {
        lookups: (0..count).map(lookup).collect(),
        rate,
        timeout: TIMEOUT,
    }
}

/// Failures by cause: what the lab did, errors, and silence.
fn causes(loaded: &[Loaded]) -> (Tally, Vec<(&'static str, u64)>) {
    let mut tally = Tally::default();
    let mut causes: BTreeMap<&str, u64> = BTreeMap::new();
    for one in loaded {
        tally.add(&one.tally);
        for (killer, count) in &one.lost {
            *causes.entry(killer.unwrap_or("no_answer")).or_default() += count;
        }
    }
    causes.insert("server", tally.errors());
    (tally, causes.into_iter().collect())
}

/// The drops that kill: where the kernel shows one to no program, its lookup ends as `no_answer`.
fn watch_drops() -> Unseen {
    Unseen::watch(&[("skb/kfree_skb", "0")])
}

/// What the causes must be: the lab's, but for as many as the kernel kept from the program, and never more
/// than one in a hundred of what was killed.
fn seen(
    metrics: &Metrics,
    pod: &Pod,
    causes: &[(&'static str, u64)],
    unseen: u64,
) -> Vec<(&'static str, u64)> {
    let shown: Vec<_> = causes
        .iter()
        .map(|(cause, _)| {
            let labels = [&pod.labels()[..], &[("cause", cause)]].concat();
            (
                *cause,
                metrics.count("tracer_pod_dns_failures_total", &labels),
            )
        })
        .collect();
    let sum = |all: &[(&str, u64)]| all.iter().map(|(_, n)| n).sum::<u64>();
    let pairs = shown.iter().zip(causes);
    let fewer = pairs.filter(|((cause, n), (_, lab))| *cause != "no_answer" && n <= lab);
    let silent: u64 = fewer.map(|((_, n), (_, lab))| lab - n).sum();
    let killed: u64 = causes
        .iter()
        .filter(|(cause, _)| !["no_answer", "server"].contains(cause))
        .map(|(_, n)| n)
        .sum();
    let few = silent <= unseen && 100 * silent <= killed;
    if silent > 0 && few && sum(&shown) == sum(causes) {
        eprintln!("{silent} drops of {killed} were not seen, {unseen} shown to no program");
        return shown;
    }
    causes.to_vec()
}

/// All figures of the pods, and the node's.
fn compare_all(scene: &Scene, pods: &[&Pod], loaded: &[Vec<Loaded>], unseen: &Unseen) {
    let expected: Vec<_> = loaded.iter().map(|of_pod| causes(of_pod)).collect();
    eprintln!("{expected:?}");
    eventually(Duration::from_secs(10), || {
        let metrics = scene.agent.metrics();
        for (pod, (tally, causes)) in pods.iter().zip(&expected) {
            let causes = seen(&metrics, pod, causes, unseen.count());
            compare(&metrics, pod, tally, &causes)?;
        }
        check_node(&metrics)?;
        let pending = metrics.count("tracer_node_dns_pending", &[]);
        let snapshot = scene.agent.snapshot();
        let pods = snapshot["pods"].as_array().expect("the snapshot has pods");
        let of_pods = pods.iter().filter_map(|pod| pod["dns"]["pending"].as_u64());
        let of_pods: u64 = of_pods.sum();
        ensure(pending == 0 && of_pods == 0, || {
            format!("{pending} are pending, {of_pods} of them of pods")
        })
    });
}

/// A lookup that ends while the counters are read may be in one and not yet in the other: the next reading
/// has it in both. Looks that follow each other at once may be shown the same one.
fn sums_hold(scene: &Scene) -> Metrics {
    eventually(Duration::from_secs(2), || {
        let metrics = scene.agent.metrics();
        check_sums(&metrics).map(|()| metrics)
    })
}

/// At any moment: started = ended + pending.
fn watch(scene: &Scene, done: impl Fn() -> bool) {
    let mut looks = 0;
    while !done() {
        sums_hold(scene);
        looks += 1;
        sleep(Duration::from_millis(100));
    }
    assert!(looks > 5, "the lab failed: {looks} looks");
}

#[test]
fn ten_thousand_mixed_lookups_of_four_clients_are_counted_exactly() {
    let unseen = watch_drops();
    let (lab, scene, _rules) = deadly();
    let pods = [("one", 11), ("two", 12)].map(|(name, index)| pod(&lab, name, index));
    let clients: Vec<_> = (0..4)
        .map(|client| {
            let load = mixed(&scene, client, 2500, 250);
            pods[client % 2].netns.spawn(move || load.run_here())
        })
        .collect();
    watch(&scene, || clients.iter().all(JoinHandle::is_finished));
    let all: Vec<Loaded> = clients
        .into_iter()
        .map(|client| client.join().expect("the client ends"))
        .collect();
    let queries: u64 = all.iter().map(|one| one.tally.queries).sum();
    assert_eq!(queries, 10_000, "the lab failed");
    for (_, cause) in KILLERS {
        let lost: u64 = all
            .iter()
            .map(|one| one.lost.get(&Some(cause)).copied().unwrap_or(0))
            .sum();
        assert!(lost >= 600, "the lab failed: {lost} by {cause}");
    }
    let by_pod = [0, 1].map(|pod| vec![all[pod].clone(), all[pod + 2].clone()]);
    compare_all(&scene, &[&pods[0], &pods[1]], &by_pod, &unseen);
    scene.agent.stop_cleanly();
}

/// How long lookups took: half are answered at once, half late, and every figure of it tells them apart.
#[test]
fn latencies_are_what_the_server_took() {
    const EACH: u64 = 20;
    /// Between two bounds of the histogram, far from both.
    const LATE: Duration = Duration::from_millis(700);
    const BOUNDS: [f64; 2] = [0.5, 1.0];
    const NODE: &str = "tracer_node_dns_lookup_duration_seconds";
    const POD: &str = "tracer_pod_dns_lookup_duration_seconds";
    let (lab, scene) = Scene::new(Wiring::Routed);
    let patient = pod(&lab, "patient", 11);
    let before = eventually(Duration::from_secs(5), || {
        let metrics = scene.agent.metrics();
        let first = metrics.count(&format!("{NODE}_count"), &[]);
        ensure(first == 4, || format!("{first} answers")).map(|()| metrics)
    });
    let asked = (0..EACH).flat_map(|n| {
        let to = scene.address(Family::ALL[n as usize % 2]);
        let late = format!("late-{}-{n}.test", LATE.as_millis());
        [format!("ok-{n}.test"), late].map(|name| Lookup::new(name, A, to))
    });
    let tally = CLIENT.run(&patient, asked.collect());
    assert_eq!(
        tally.outcome("noerror"),
        2 * EACH,
        "the lab failed: {tally:?}"
    );
    let metrics = eventually(Duration::from_secs(5), || {
        let metrics = scene.agent.metrics();
        compare(&metrics, &patient, &tally, &[]).map(|()| metrics)
    });
    let below = |bound: &str| {
        let bucket = format!("{NODE}_bucket");
        metrics.growth(&before, &bucket, &[("le", bound)])
    };
    let cumulative = ["0.5", "1", "+Inf"].map(below);
    assert_eq!(cumulative, [EACH, 2 * EACH, 2 * EACH]);
    // None can be answered before the server has spoken, nor after the client has heard.
    let range = EACH as f64 * LATE.as_secs_f64()..EACH as f64 * (BOUNDS[0] + BOUNDS[1]);
    let node = format!("{NODE}_sum");
    let node = metrics.sum(&node, &[]) - before.sum(&node, &[]);
    let own = metrics.sum(&format!("{POD}_sum"), &patient.labels());
    for sum in [node, own] {
        assert!(range.contains(&sum), "{sum} s in sum, not in {range:?}");
    }
    let snapshot = scene.agent.snapshot();
    let pods = snapshot["pods"].as_array().expect("the snapshot has pods");
    let shown = pods
        .iter()
        .find(|pod| pod["pod"] == patient.netns.name())
        .expect("the pod has asked");
    let [p50, p99] = ["p50_seconds", "p99_seconds"]
        .map(|name| shown["dns"][name].as_f64().expect("it is a number"));
    // Half of them were quick: the bucket of the slowest of these.
    let bounds = [
        "0.0005", "0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5",
    ];
    let half = bounds
        .into_iter()
        .position(|bound| below(bound) >= EACH)
        .expect("half are below half a second");
    let number = |text: &str| text.parse::<f64>().expect("it is a number");
    let lower = half.checked_sub(1).map_or(0.0, |at| number(bounds[at]));
    assert!(
        (lower..=number(bounds[half])).contains(&p50),
        "half took {p50} s at most, not {lower} to {}",
        bounds[half]
    );
    assert!(
        (BOUNDS[0]..=BOUNDS[1]).contains(&p99),
        "nearly all took {p99} s at most"
    );
    scene.settle();
}

#[test]
fn two_thousand_lookups_a_second_are_counted_exactly() {
    let unseen = watch_drops();
    let (lab, scene, _rules) = deadly();
    let fast = pod(&lab, "fast", 11);
    let load = mixed(&scene, 9, 8000, 2000);
    let client = fast.netns.spawn(move || load.run_here());
    watch(&scene, || client.is_finished());
    let loaded = client.join().expect("the client ends");
    assert_eq!(loaded.tally.lookups(), 8000, "the lab failed");
    compare_all(&scene, &[&fast], &[vec![loaded]], &unseen);
    scene.agent.stop_cleanly();
}

/// Whose a socket is is remembered at one of 4096 places, by its cookie. Here two pods take them from each other, again
/// and again.
#[test]
fn sockets_that_share_a_place_keep_their_owners() {
    const EACH: usize = 2600;
    const ROUNDS: u16 = 2;
    let (lab, scene) = Scene::new(Wiring::Routed);
    let pods = [("one", 11), ("two", 12)].map(|(name, index)| pod(&lab, name, index));
    let room = getrlimit(Resource::Nofile);
    let enough = Rlimit {
        current: room.current.max(Some(8192)),
        maximum: room.maximum.map(|most| most.max(8192)),
    };
    setrlimit(Resource::Nofile, enough).expect("root has room for the sockets");
    let to = (scene.address(Family::V4), 53);
    let open = |pod: &Pod| -> Vec<UdpSocket> {
        let one = |_| -> std::io::Result<UdpSocket> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
            Ok(socket)
        };
        let all: std::io::Result<_> = pod.netns.run(|| (0..EACH).map(one).collect());
        all.expect("the lab failed")
    };
    let sockets = pods.each_ref().map(open);
    for id in 0..ROUNDS {
        // Pod by pod: a socket has its cookie when it first asks.
        for (client, sockets) in sockets.iter().enumerate() {
            let question = packet::query(id, packet::QUERY, &format!("ok-{client}.test"), A);
            for socket in sockets {
                socket.send(&question).expect("the lab failed: no query");
                let answer = socket.recv(&mut [0; 512]);
                answer.expect("the lab failed: no answer in time");
            }
        }
    }
    let lookups = EACH as u64 * u64::from(ROUNDS);
    let tally = Tally {
        queries: lookups,
        outcomes: [("noerror", lookups)].into(),
        ..Tally::default()
    };
    eventually(Duration::from_secs(5), || {
        let metrics = scene.agent.metrics();
        for pod in &pods {
            compare(&metrics, pod, &tally, &[])?;
        }
        check_node(&metrics)
    });
    scene.settle();
}

/// One client at most has a quarter of the room; the rest is counted, and not guessed, and another
/// pod does not notice.
#[test]
fn a_flood_of_lookups_is_bounded_and_counted() {
    const QUARTER: u64 = 16_384;
    const FLOOD: usize = 30_000;
    let (lab, mut scene) = Scene::with(Wiring::Routed, &["--event-rate", "100"]);
    let flooder = pod(&lab, "flooder", 11);
    let to = scene.far.neighbour(Family::V4, 60);
    let far = &scene.far.netns;
    far.ip(&format!("address add {to}/16 dev {DEVICE}"));
    let _silent = far.run(|| UdpSocket::bind((to, 53)).expect("address is there"));
    let silent = (0..FLOOD).map(|n| (format!("drop-{n}.flood.test"), to, None));
    let load = Load {
        lookups: silent.collect(),
        // All of it at once: within the timeout.
        rate: 1_000_000,
        timeout: TIMEOUT,
    };
    let client = flooder.netns.spawn(move || load.run_here());
    let mut peak = 0;
    let mut others = 0;
    while !client.is_finished() {
        let metrics = sums_hold(&scene);
        peak = peak.max(metrics.count("tracer_node_dns_pending", &[]));
        others += 4;
        let tally = scene.ask(&lookups(
            &["ok"],
            &Family::ALL.map(|family| scene.address(family)),
        ));
        assert_eq!(tally.outcome("noerror"), 4, "the lab failed: {tally:?}");
    }
    let loaded = client.join().expect("the client ends");
    assert_eq!(
        loaded.tally.outcome("timeout"),
        FLOOD as u64,
        "the lab failed"
    );
    assert!(others >= 4, "the lab failed");
    let labels = flooder.labels();
    eventually(Duration::from_secs(10), || {
        let metrics = scene.agent.metrics();
        let count = |name: &str| metrics.count(name, &labels);
        let queries = count("tracer_pod_dns_queries_total");
        let ended = count("tracer_pod_dns_lookups_total");
        let untracked = count("tracer_pod_dns_untracked_total");
        // There are no retransmissions.
        ensure(
            queries == FLOOD as u64 && queries == ended + untracked,
            || format!("{queries} queries of {FLOOD}, {ended} ended, {untracked} untracked"),
        )?;
        ensure(ended >= QUARTER && untracked > 0, || {
            format!("{ended} were followed, {untracked} were not")
        })?;
        check_node(&metrics)
    });
    eprintln!("at most {peak} pending");
    // A few of the other pod's may be among them.
    assert!(peak <= QUARTER + 8, "{peak} pending");
    scene.settle();
}
