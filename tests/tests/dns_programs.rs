//! Hook `dns` with the programs that people have: resolvers of the C libraries, `dig`, dnsperf,
//! dnsmasq.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tests::dns::programs::{Dnsmasq, Resolver, run_in};
use tests::dns::scene::{lookups, pod};
use tests::dns::truth::{check_node, compare, compare_served};
use tests::dns::{Scene, Server, Tally};
use tests::host::HostLock;
use tests::netns::{DEVICE, Pod};
use tests::process::check;
use tests::router::Wiring;
use tests::wait::{ensure, is_emulated};
use tests::{Agent, Family, eventually};

fn ended(queries: u64, outcomes: &[(&'static str, u64)]) -> Tally {
    Tally {
        queries,
        outcomes: outcomes.iter().copied().collect(),
        ..Tally::default()
    }
}

/// A search path that finds the name at its second try. Nobody needs a fully qualified name.
const SEARCH: &str = "search nx.test ok.test\noptions ndots:5 timeout:2 attempts:1\n";

#[test]
fn glibc_asks_pairs_and_walks_the_search_path() {
    let (_lab, mut scene) = Scene::new(Wiring::Routed);
    let server = scene.address(Family::V4);
    let resolver = Resolver::new(&format!("nameserver {server}\n{SEARCH}"));
    let received = scene.server.received();
    let mut getent = resolver.command("getent", &["ahosts", "ok-web.shop"]);
    let found = run_in(&scene.client.netns, &mut getent);
    assert!(found.contains("1.1.1.1"), "the lab failed: {found}");
    scene
        .tally
        .add(&ended(4, &[("nxdomain", 2), ("noerror", 2)]));

    // A dot at the end: asked as it stands, and never answered.
    let mut getent = resolver.command("getent", &["ahosts", "drop-web.test."]);
    let status = scene.client.netns.run(|| getent.status());
    assert!(status.is_ok_and(|s| !s.success()), "the lab failed");
    scene.tally.add(&ended(2, &[("timeout", 2)]));
    scene.causes.insert("no_answer", 2);
    let received = scene.server.received() - received;
    assert_eq!(received, 6, "the lab failed");
    scene.settle();
}

/// A program that asks musl's resolver, linked in whole.
fn musl_client(resolver: &Resolver) -> PathBuf {
    const SOURCE: &str = r"
#include <sys/socket.h>
#include <netdb.h>
int main(int argc, char **argv) {
    struct addrinfo *found = 0, hints = {.ai_socktype = SOCK_DGRAM};
    for (int i = 1; i < argc; i++) {
        if (getaddrinfo(argv[i], 0, &hints, &found)) return 1;
        freeaddrinfo(found);
    }
    return 0;
}
";
    let (source, program) = (resolver.path("client.c"), resolver.path("client"));
    fs::write(&source, SOURCE).expect("file can be written");
    check(
        Command::new("musl-gcc")
            .args(["-static", "-o"])
            .args([&program, &source]),
    );
    program
}

/// Asks three servers at once and closes its socket when the first has answered: what the others make
/// of it is no failure.
#[test]
fn musl_asks_all_servers_at_once_and_times_out_on_none() {
    let (lab, mut scene) = Scene::new(Wiring::Routed);
    let second = pod(&lab, "alpine", 8);
    // The second and third say nothing.
    let silent = [60, 61].map(|n| scene.far.neighbour(Family::V4, n));
    let sockets = silent.map(|address| {
        let netns = &scene.far.netns;
        netns.ip(&format!("address add {address}/16 dev {DEVICE}"));
        netns.run(|| UdpSocket::bind((address, 53)).expect("address is there"))
    });
    let name = |address: IpAddr| format!("nameserver {address}\n");
    let first = scene.address(Family::V4);
    let resolver = Resolver::new(&format!(
        "{}{}{}{SEARCH}",
        name(silent[0]),
        name(first),
        name(silent[1])
    ));
    let program = musl_client(&resolver);
    let program = program.to_str().expect("path is text");
    let received = scene.server.received();
    let mut client = resolver.command(program, &["ok-web.shop", "ok-cart.shop"]);
    run_in(&scene.client.netns, &mut client);
    assert_eq!(scene.server.received() - received, 8, "the lab failed");
    scene
        .tally
        .add(&ended(24, &[("nxdomain", 4), ("noerror", 4)]));
    for socket in &sockets {
        socket.set_nonblocking(true).expect("sockets can be set");
        let asked = std::iter::from_fn(|| socket.recv(&mut [0; 512]).ok()).count();
        assert_eq!(asked, 8, "the lab failed");
    }

    // All three answer, and what comes after the first is too many, if the socket is still there.
    let servers: String = (2..5).map(|n| name(scene.nth(Family::V4, n))).collect();
    let resolver = Resolver::new(&format!("{servers}{SEARCH}"));
    let program = musl_client(&resolver);
    let names: Vec<String> = (0..20).map(|n| format!("ok-{n}.shop")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut client = resolver.command(program.to_str().expect("path is text"), &names);
    run_in(&second.netns, &mut client);
    let mut tally = ended(240, &[("nxdomain", 40), ("noerror", 40)]);
    eventually(Duration::from_secs(5), || {
        let metrics = scene.agent.metrics();
        tally.unmatched =
            metrics.count("tracer_pod_dns_unmatched_responses_total", &second.labels());
        compare(&metrics, &second, &tally, &[])?;
        check_node(&metrics)
    });
    assert!(tally.unmatched <= 160, "{tally:?}");
    scene.settle();
}

#[test]
fn dig_and_tracer_say_the_same() {
    let (_lab, mut scene) = Scene::new(Wiring::Routed);
    let resolver = Resolver::new("");
    let names = resolver.path("names");
    let scripts = ["ok", "nodata", "nx", "servfail", "refused", "tc", "drop"];
    let lines = scripts.map(|script| format!("{script}-dig.test A\n{script}-dig.test AAAA\n"));
    fs::write(&names, lines.concat()).expect("file can be written");
    for family in Family::ALL {
        let server = scene.address(family);
        let output = scene.client.netns.run(|| {
            // It fails where a name was not answered.
            Command::new("dig")
                .arg(format!("@{server}"))
                .args(["+tries=1", "+time=2", "+ignore", "+nofail", "-f"])
                .arg(&names)
                .output()
                .expect("dig runs; the tests need bind9-dnsutils")
        });
        let said = String::from_utf8_lossy(&output.stdout);
        let count = |what: &str| said.matches(what).count();
        let statuses = ["NOERROR", "NXDOMAIN", "SERVFAIL", "REFUSED"]
            .map(|status| count(&format!("status: {status}")));
        assert_eq!(statuses, [6, 2, 2, 2], "the lab failed: {said}");
        let outcomes = [
            ("noerror", 4),
            ("nodata", 2),
            ("nxdomain", 2),
            ("servfail", 2),
            ("refused", 2),
            ("timeout", 2),
        ];
        scene.tally.add(&ended(14, &outcomes));
    }
    scene.causes = [("server", 8), ("no_answer", 4)].into();
    assert_eq!(
        scene.server.received(),
        scene.tally.queries,
        "the lab failed"
    );
    scene.settle();
}

/// Runs dnsperf on these lines at 2,000 a second, and gives what it says: completed by response code,
/// and lost.
fn dnsperf(client: &Pod, server: IpAddr, lines: &str) -> BTreeMap<String, u64> {
    let folder = Resolver::new("");
    let path = folder.path("queries");
    fs::write(&path, lines).expect("file can be written");
    let mut command = Command::new("dnsperf");
    command
        .args([
            "-s",
            &server.to_string(),
            "-n",
            "1",
            "-Q",
            // What an emulated machine's lab can answer, with all else that it does.
            if is_emulated() { "400" } else { "2000" },
            "-t",
            "1",
            "-q",
            "4000",
            "-d",
        ])
        .arg(&path);
    let said = run_in(&client.netns, &mut command);
    let after = |what: &str| {
        let rest = said.split_once(what)?.1.trim_start();
        rest.split(|c: char| !c.is_ascii_digit())
            .next()?
            .parse()
            .ok()
    };
    let mut counts = BTreeMap::new();
    for name in ["NOERROR", "NXDOMAIN", "SERVFAIL", "REFUSED"] {
        counts.insert(name.to_lowercase(), after(&format!("{name} ")).unwrap_or(0));
    }
    counts.insert(
        "timeout".to_owned(),
        after("Queries lost:").expect("dnsperf tells"),
    );
    let sent: u64 = after("Queries sent:").expect("dnsperf tells");
    assert_eq!(counts.values().sum::<u64>(), sent, "the lab failed: {said}");
    assert_eq!(sent, lines.lines().count() as u64, "the lab failed: {said}");
    counts
}

/// What dnsperf saw is what tracer counts: of the scripted server with losses, and of dnsmasq.
#[test]
fn dnsperf_at_2000_a_second_and_tracer_say_the_same() {
    let (lab, mut scene) = Scene::new(Wiring::Routed);
    let scripts = [
        "ok", "ok", "ok", "nx", "servfail", "refused", "ok", "ok", "ok", "drop",
    ];
    let lines: Vec<String> = (0..6000)
        .map(|n| format!("{}-{n}.perf.test A\n", scripts[n % 10]))
        .collect();
    let counts = dnsperf(&scene.client, scene.address(Family::V4), &lines.concat());
    let count = |name: &str| counts[name];
    assert!(count("timeout") >= 600, "the lab failed: {counts:?}");
    scene.tally.add(&ended(
        6000,
        &[
            ("noerror", count("noerror")),
            ("nxdomain", count("nxdomain")),
            ("servfail", count("servfail")),
            ("refused", count("refused")),
            ("timeout", count("timeout")),
        ],
    ));
    scene
        .causes
        .insert("server", count("servfail") + count("refused"));
    scene.causes.insert("no_answer", count("timeout"));

    let [asker, resolver] = [("asker", 5), ("resolver", 6)].map(|(n, i)| pod(&lab, n, i));
    let to = resolver.address(Family::V6);
    let options = ["--address=/ok.test/10.1.2.3", "--local=/nx.test/"];
    let _dnsmasq = Dnsmasq::start(&resolver.netns, &[to], &options);
    let lines: Vec<String> = (0..6000)
        .map(|n| format!("n{n}.{}.test A\n", if n % 3 == 0 { "nx" } else { "ok" }))
        .collect();
    let counts = dnsperf(&asker, to, &lines.concat());
    let outcomes = [
        ("noerror", counts["noerror"]),
        ("nxdomain", counts["nxdomain"]),
    ];
    assert!(
        counts["timeout"] == 0 && outcomes[1].1 == 2000,
        "the lab failed: {counts:?}"
    );
    eventually(Duration::from_secs(5), || {
        let metrics = scene.agent.metrics();
        compare(&metrics, &asker, &ended(6000, &outcomes), &[])?;
        let served = outcomes.into();
        compare_served(
            &metrics,
            &scene.agent.snapshot(),
            resolver.labels(),
            &served,
        )
    });
    scene.settle();
}

#[test]
fn a_resolver_on_the_loopback_of_a_pod() {
    let (_lab, mut scene) = Scene::new(Wiring::Routed);
    let stub: IpAddr = [127, 0, 0, 53].into();
    let stub_server = Server::start(&scene.client.netns, &[stub]);
    let tally = scene.ask(&lookups(&["ok", "nx", "servfail", "drop"], &[stub]));
    assert_eq!(tally.outcome("noerror"), 2, "the lab failed: {tally:?}");
    scene.causes = [("server", 2), ("no_answer", 2)].into();
    let served = stub_server.served(Duration::from_secs(1));
    eventually(Duration::from_secs(5), || {
        let metrics = scene.agent.metrics();
        compare_served(
            &metrics,
            &scene.agent.snapshot(),
            scene.client.labels(),
            &served,
        )
    });
    scene.settle();
}

#[test]
fn a_resolver_on_the_hosts_loopback() {
    let _lock = HostLock::take();
    let stub: IpAddr = [127, 0, 0, 153].into();
    let server = Server::start_here(&[(stub, 53).into()]);
    let agent = Agent::start(&["--dns-timeout", "1s"]);
    for script in ["ok", "nx", "servfail", "drop"] {
        // It fails where nothing is answered.
        let dig = Command::new("dig")
            .arg(format!("@{stub}"))
            .args([
                "+tries=1",
                "+time=2",
                "+nofail",
                &format!("{script}-host.test"),
            ])
            .output()
            .expect("dig runs; the tests need bind9-dnsutils");
        assert!(!dig.stdout.is_empty(), "the lab failed: {dig:?}");
    }
    assert_eq!(server.received(), 4, "the lab failed");
    let host = |name: &str, outcome: &str| {
        let labels = [("namespace", "(host)"), ("outcome", outcome)];
        agent.metrics().count(name, &labels)
    };
    eventually(Duration::from_secs(5), || {
        for outcome in ["noerror", "nxdomain", "servfail"] {
            for name in [
                "tracer_pod_dns_lookups_total",
                "tracer_pod_dns_served_total",
            ] {
                let count = host(name, outcome);
                ensure(count == 1, || format!("{name} {outcome}: {count}"))?;
            }
        }
        let silent = [
            host("tracer_pod_dns_lookups_total", "timeout"),
            host("tracer_pod_dns_served_total", "unanswered"),
        ];
        ensure(silent == [1, 1], || format!("{silent:?} were not answered"))
    });
    agent.stop_cleanly();
}
