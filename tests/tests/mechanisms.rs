//! Mechanisms that are chosen at run time: each is used where the kernel has it, the doctor says which,
//! and either way the figures are the same.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use tests::dns::packet::{QUERY, query};
use tests::dns::scene::lookups;
use tests::dns::truth::{check_node, compare};
use tests::dns::{A, Lookup, Scene, Server};
use tests::mechanisms::{CLIENT, agent_without, hook, live, sees_sends, send};
use tests::neigh::{FIRST_SILENT, burst, table_fulls};
use tests::nft::Rules;
use tests::router::Wiring;
use tests::tcp::scene::{prepare, routed};
use tests::unseen::{has_drop_reasons, has_tracepoint};
use tests::wait::{ensure, is_emulated};
use tests::{Family, Lab, Thresholds, eventually};

/// Routes to nowhere in the client's pod, by kind; and the error that a sender gets, IPv4 and IPv6.
const NOWHERE: [(&str, [&str; 2]); 4] = [
    ("throw", ["enetunreach", "enetunreach"]),
    ("unreachable", ["ehostunreach", "ehostunreach"]),
    ("prohibit", ["eacces", "eacces"]),
    ("blackhole", ["einval", "einval"]),
];

#[test]
fn queries_without_a_route_are_lookups_where_the_kernel_tells_of_them() {
    let sees = sees_sends(&[]);
    let (_lab, mut scene) = Scene::new(Wiring::Routed);
    for (kind, errors) in NOWHERE {
        for (family, error) in Family::ALL.into_iter().zip(errors) {
            let address = scene.nth(family, 3);
            let length = if family == Family::V4 { 32 } else { 128 };
            let route = format!("{kind} {address}/{length}");
            scene.client.netns.ip(&format!("route add {route}"));
            if kind == "throw" {
                // What is thrown back finds no other table, and there is no default route.
                let hub = scene.client.hub(family);
                scene
                    .client
                    .netns
                    .ip(&format!("route del default via {hub}"));
            }
            let asked: Vec<Lookup> = (0..3)
                .map(|n| Lookup::new(format!("ok-{kind}-{n}.test"), A, address))
                .collect();
            if sees {
                scene.fail(kind, &asked, "no_route", &[error]);
            } else {
                let tally = CLIENT.run(&scene.client, asked);
                assert_eq!(tally.outcome("timeout"), 3, "the lab failed: {tally:?}");
            }
            if kind == "throw" {
                let hub = scene.client.hub(family);
                scene
                    .client
                    .netns
                    .ip(&format!("route add default via {hub}"));
            }
            scene.client.netns.ip(&format!("route del {route}"));
        }
    }
    assert_eq!(scene.answered(&["ok-after"]), 4, "the lab failed");
    // Fewer or more than there were would show here.
    scene.settle();
}

#[test]
fn each_failed_send_is_one_query_of_its_lookup() {
    let sees = sees_sends(&[]);
    let (_lab, mut scene) = Scene::new(Wiring::Routed);
    let server = scene.address(Family::V4);
    let IpAddr::V4(plain) = server else {
        panic!("an IPv4 address")
    };
    let mapped = IpAddr::V6(plain.to_ipv6_mapped());
    let netns = scene.client.netns.clone();
    let (queries, lookups) = netns.run(|| {
        let [connected, free, dual] = ["0.0.0.0:0", "0.0.0.0:0", "[::]:0"]
            .map(|any| UdpSocket::bind(any).expect("a port is free"));
        connected.connect((server, 53)).expect("there is a route");
        // The first query of this lookup goes out; it is never answered.
        assert_eq!(send(&connected, 7001, None), None);
        netns.ip(&format!("route add unreachable {server}/32"));
        let unreachable = Some(rustix::io::Errno::HOSTUNREACH.raw_os_error());
        let to = Some(SocketAddr::new(server, 53));
        // Twice more the same, by the socket that is connected; then three that begin a lookup each,
        // one of them twice; and by an IPv6 socket that speaks IPv4.
        for (socket, id, to) in [
            (&connected, 7001, None),
            (&connected, 7001, None),
            (&free, 7002, to),
            (&free, 7003, to),
            (&free, 7003, to),
            (&dual, 7004, Some(SocketAddr::new(mapped, 53))),
        ] {
            assert_eq!(send(socket, id, to), unreachable, "the lab failed");
        }
        // No query: an answer, another port.
        let mut answer = query(7005, QUERY, "drop-me.test", A);
        answer[2] |= 0x80;
        let no_dns = SocketAddr::new(server, 5353);
        for (bytes, to) in [
            (&answer[..], SocketAddr::new(server, 53)),
            (&query(7006, QUERY, "drop-me.test", A), no_dns),
            (&answer[..11], SocketAddr::new(server, 53)),
        ] {
            free.send_to(bytes, to).expect_err("there is no route");
        }
        netns.ip(&format!("route del unreachable {server}/32"));
        if sees { (7, 4) } else { (1, 1) }
    });
    scene.tally.queries += queries;
    *scene.tally.outcomes.entry("timeout").or_default() += lookups;
    if sees {
        scene.causes.insert("no_route", lookups);
    } else {
        scene.causes.insert("no_answer", lookups);
    }
    scene.settle();
}

#[test]
fn what_fails_behind_ip_output_is_counted_once_all_the_same() {
    let (_lab, mut scene) = Scene::new(Wiring::Routed);
    let to = Family::ALL.map(|family| scene.address(family));
    let rules = Rules::drop(&scene.client.netns, "output", "udp dport 53");
    let asked = lookups(&["ok-refused"], &to);
    // The sender gets EPERM, and netfilter's drop has counted it.
    scene.fail("OUTPUT", &asked, "netfilter", &["netfilter_drop"]);
    drop(rules);
    assert_eq!(scene.answered(&["ok-free"]), 4, "the lab failed");
    scene.settle();
}

#[test]
fn without_drop_reasons_overflows_and_their_lookups_are_still_told() {
    let mut lab = Lab::new();
    let pod = lab.pod("full", 1, 40);
    let servers: Vec<IpAddr> = (1..=41)
        .filter(|n| *n != 2)
        .map(|n| pod.neighbour(Family::V4, n))
        .collect();
    let _server = Server::start(&lab.hub, &servers);
    let agent = agent_without("TRACER_WITHOUT=drop_reasons", &[]);
    let (state, reason) = hook(&agent, "drops");
    assert_eq!(state, "degraded", "{reason}");
    assert!(reason.contains("no drop reasons"), "{reason}");

    let mut tally = CLIENT.run(&pod, vec![Lookup::new("ok-first.test", A, servers[0])]);
    assert_eq!(tally.outcome("noerror"), 1, "{tally:?}");
    let fulls = table_fulls(Family::V4);
    let limits = Thresholds::set(lab.lock(), [32, 64, 64]);
    burst(&pod, Family::V4, FIRST_SILENT, 150);
    let cold = servers.iter().skip(1).enumerate();
    let cold = cold.map(|(n, server)| Lookup::new(format!("ok-cold-{n}.test"), A, *server));
    let during = CLIENT.run(&pod, cold.collect());
    drop(limits);
    let (grown, lost) = (table_fulls(Family::V4) - fulls, during.outcome("timeout"));
    assert!(grown > 0 && lost > 0, "the lab failed: {grown}, {lost}");
    tally.add(&during);
    // The packet must die within a millisecond, for which an emulated processor may stand still.
    let late = if is_emulated() { 2 } else { 0 };
    let [namespace, name] = pod.labels();
    eventually(Duration::from_secs(5), || {
        let metrics = agent.metrics();
        let compare = |late| {
            let causes = [("neighbour_table_full", lost - late), ("dropped", late)];
            compare(&metrics, &pod, &tally, &causes)
        };
        compare(0).or_else(|why| (1..=late).find_map(|late| compare(late).ok()).ok_or(why))?;
        let labels = [
            namespace,
            name,
            ("family", "ipv4"),
            ("result", "table_full"),
        ];
        let told = metrics.count("tracer_pod_neighbour_creates_total", &labels);
        ensure(told == grown, || format!("{told} refusals, not {grown}"))?;
        check_node(&metrics)
    });
    agent.stop_cleanly();
}

/// Where the kernel gives no reasons, who freed a packet tells what a lookup died of. Nobody serves here.
#[test]
fn without_drop_reasons_causes_are_told_by_who_freed_the_packet() {
    let (node, [client]) = prepare(Wiring::Routed, ["client"]);
    let agent = agent_without("TRACER_WITHOUT=drop_reasons", &[]);
    let far = Family::ALL.map(|family| node.far.address(family));
    let nobody = Family::ALL.map(|family| node.far.neighbour(family, 1000));
    let unreachable = Family::ALL.map(|family| routed(family, 251).ip());
    let ask = |name: &str, to: [IpAddr; 2]| {
        let lookups = to.map(|to| Lookup::new(format!("{name}.test"), A, to));
        let tally = CLIENT.run(&client, lookups.to_vec());
        assert_eq!(tally.outcome("timeout"), 2, "the lab failed: {tally:?}");
        tally
    };
    // The neighbours on the way, and a port where nobody listens.
    let mut tally = ask("closed", far);
    // On kernels that have reasons nftables frees by itself what it drops: by another function than netfilter.
    let mut by_rules = 0;
    if !has_drop_reasons() {
        for (netns, hook) in [(&client.netns, "output"), (&node.router, "forward")] {
            let rules = Rules::drop(netns, hook, "udp dport 53");
            tally.add(&ask(hook, far));
            assert_eq!(rules.hits(), 2, "the lab failed");
            by_rules += 2;
        }
    }
    tally.add(&ask("nobody", nobody));
    tally.add(&ask("unreachable", unreachable));
    let causes = [
        ("dropped", 2),
        ("netfilter", by_rules),
        ("neighbour_unresolved", 2),
        ("no_route", 2),
    ];
    eventually(Duration::from_secs(5), || {
        let metrics = agent.metrics();
        compare(&metrics, &client, &tally, &causes)?;
        check_node(&metrics)
    });
    agent.stop_cleanly();
}

/// What a hook can do without, and the kernel refuses, is done without: the rest counts on.
#[test]
fn a_program_that_is_refused_does_not_take_its_hook_along() {
    let lab = Lab::new();
    let pod = lab.pod("pod", 1, 1);
    let agent = agent_without(
        "TRACER_WITHOUT=load:conntrack_begin,load:udp_fail_queue,load:walk,load:tcp_age",
        &[],
    );
    let (state, reason) = hook(&agent, "drops");
    assert_eq!(state, "degraded", "{reason}");
    for lost in ["conntrack", "receive buffers", "TRACER_WITHOUT says so"] {
        assert!(reason.contains(lost), "{lost}: {reason}");
    }
    // These have stand-ins that are as exact.
    assert_eq!(hook(&agent, "neigh").0, "attached");
    if has_tracepoint("sock/inet_sk_error_report") {
        assert_eq!(hook(&agent, "tcp").0, "attached");
    }
    let rules = Rules::drop(&pod.netns, "output", "udp dport 9");
    burst(&pod, Family::V4, 1, 1);
    let entries = Family::ALL.map(|family| {
        tests::entries::add(&pod, family, 2000..2010, "permanent");
        tests::entries::entries(&pod.netns, family).len()
    });
    eventually(Duration::from_secs(5), || {
        let metrics = agent.metrics();
        let labels = [&pod.labels()[..], &[("reason", "netfilter_drop")]].concat();
        let drops = metrics.count("tracer_pod_drops_total", &labels);
        let died = if has_drop_reasons() { rules.hits() } else { 0 };
        ensure(drops == died && rules.hits() > 0, || {
            format!("{drops} drops of {died}")
        })?;
        for (family, there) in Family::ALL.into_iter().zip(entries) {
            let shown = live(&metrics, &pod.labels(), family);
            ensure(shown == there, || format!("{shown} of {there} entries"))?;
        }
        Ok::<(), String>(())
    });
    agent.stop_cleanly();
}

/// Where nobody sees packets die, no refusal waits for one and is then taken for the kernel's own need.
#[test]
fn without_the_hook_drops_refusals_are_their_devices() {
    let mut lab = Lab::new();
    let pod = lab.pod("pod", 1, 1);
    let agent = agent_without("TRACER_WITHOUT=load:kfree_skb", &[]);
    assert_eq!(hook(&agent, "drops").0, "unavailable");
    let before = table_fulls(Family::V4);
    let limits = Thresholds::set(lab.lock(), [32, 64, 64]);
    burst(&pod, Family::V4, FIRST_SILENT, 150);
    drop(limits);
    let refused = table_fulls(Family::V4) - before;
    assert!(refused >= 86, "the lab failed: {refused}");
    eventually(Duration::from_secs(5), || {
        let snapshot = agent.snapshot();
        let of = |figure| tests::point::figure(&snapshot, pod.labels(), Family::V4, figure);
        let shown = [of("table_full"), of("kernel_full")];
        ensure(shown == [refused, 0], || format!("{shown:?} of {refused}"))
    });
    agent.stop_cleanly();
}

/// Where the function is inlined, or has another name, the hook says so, and what it still can tell is right.
#[test]
fn collections_that_the_stack_does_not_tell_are_told_by_the_kernels_work() {
    let agent = agent_without("TRACER_WITHOUT=___neigh_create", &[]);
    let (state, reason) = hook(&agent, "gc");
    assert_eq!(state, "degraded", "{reason}");
    assert!(
        reason.contains("forced collections count as gc=\"other\"")
            && reason.contains("no function ___neigh_create of its own"),
        "{reason}"
    );
    agent.stop_cleanly();
}
