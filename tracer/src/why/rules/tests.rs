//! Every rule, on snapshots recorded in the lab (`recorded/`), some of them with figures changed to
//! what the lab cannot make.

use super::*;
use crate::export::snapshot::{Conntrack, DeadEndpoint, Episode, Pod, Snapshot};
use crate::why::evidence::Failure;
use crate::why::{Health, Verdict, judge};

macro_rules! recorded {
    ($name:literal) => {
        read(
            include_str!(concat!("recorded/", $name, ".json")),
            include_str!(concat!("recorded/", $name, ".ndjson")),
        )
    };
}

fn read(snapshot: &str, events: &str) -> (Snapshot, Vec<Failure>) {
    let snapshot = serde_json::from_str(snapshot).unwrap();
    (
        snapshot,
        events.lines().filter_map(Failure::parse).collect(),
    )
}

fn pod<'a>(snapshot: &'a mut Snapshot, name: &str) -> &'a mut Pod {
    snapshot.pods.iter_mut().find(|p| p.pod == name).unwrap()
}

fn node(snapshot: &Snapshot, events: &[Failure]) -> Verdict {
    judge(snapshot, events, None)
}

/// The sentence of the first finding.
fn first(verdict: &Verdict) -> (&'static str, &str) {
    let finding = verdict.findings.first().expect("something is found");
    (finding.rule, &finding.sentence)
}

fn episode(signal: &str, cause: &str, failed: u64, attempts: u64) -> Episode {
    Episode {
        signal: signal.into(),
        cause: cause.into(),
        since: "2026-11-22T06:30:00Z".into(),
        last: "2026-11-22T06:39:00Z".into(),
        failed: 10 * failed,
        attempts: 10 * attempts,
        recent_failed: failed,
        recent_attempts: attempts,
    }
}

#[test]
fn fine_is_fine() {
    let (snapshot, events) = recorded!("fine");
    let verdict = node(&snapshot, &events);
    assert_eq!((verdict.health, verdict.findings.len()), (Health::Fine, 0));
    assert_eq!(verdict.sentences.len(), 1);
    assert!(
        verdict.sentences[0].starts_with(
            "Nothing is wrong on this node: no lookup failed in the last 60 s, and the neighbour \
             tables hold "
        ),
        "{verdict:?}"
    );
}

#[test]
fn silence_without_hooks_is_no_proof() {
    let (mut snapshot, events) = recorded!("fine");
    let whole = snapshot.hooks.clone();
    for (name, what) in [
        ("neigh", "entries and overflows"),
        ("dns", "lookups"),
        ("tcp", "connections"),
    ] {
        snapshot.hooks.clone_from(&whole);
        let hook = snapshot.hooks.iter_mut().find(|h| h.name == name).unwrap();
        hook.state = "unavailable".into();
        hook.reason = "no cgroup2".into();
        let verdict = node(&snapshot, &events);
        assert!(verdict.sentences[0].starts_with("Tracer sees nothing wrong"));
        let unknown = format!("{what}: the hook {name} is unavailable: no cgroup2");
        assert!(verdict.unknown.contains(&unknown), "{verdict:?}");
    }
}

#[test]
fn figures_that_stand_still_prove_nothing() {
    let (mut snapshot, events) = recorded!("fine");
    snapshot.read_age_seconds = 95.0;
    let verdict = node(&snapshot, &events);
    assert!(verdict.sentences[0].starts_with("Tracer sees nothing wrong"));
    assert!(
        verdict.unknown[0].starts_with("anything of the last 2 min"),
        "{verdict:?}"
    );
}

#[test]
fn a_full_table_is_told_with_those_who_suffer_and_who_holds_most() {
    let (mut snapshot, events) = recorded!("overflow");
    let verdict = node(&snapshot, &events);
    assert_eq!(verdict.health, Health::Sick);
    let (rule, sentence) = first(&verdict);
    assert_eq!(rule, "table-full");
    insta::assert_snapshot!(sentence);
    insta::assert_snapshot!(verdict.next);
    assert!((1..=3).contains(&verdict.sentences.len()));

    let victim = pod(&mut snapshot, "victim").clone();
    let verdict = judge(&snapshot, &events, Some(&victim));
    insta::assert_snapshot!(first(&verdict).1);

    // Refusals without lookups.
    for pod in &mut snapshot.pods {
        pod.figures.episodes.retain(|e| e.signal == "neighbour");
    }
    snapshot.total.episodes.retain(|e| e.signal == "neighbour");
    insta::assert_snapshot!(first(&node(&snapshot, &events)).1);
}

#[test]
fn a_pod_that_does_not_suffer_is_not_accused() {
    let (mut snapshot, events) = recorded!("overflow");
    let hub = pod(&mut snapshot, "hub").clone();
    let verdict = judge(&snapshot, &events, Some(&hub));
    assert_eq!((verdict.health, verdict.findings.len()), (Health::Fine, 0));
    assert!(verdict.sentences[0].contains("(netns)/hub"), "{verdict:?}");
}

#[test]
fn lookups_that_end_after_the_refusals_left_the_window_still_died_of_them() {
    let (mut snapshot, events) = recorded!("overflow");
    let of_table = snapshot.total.episodes.iter_mut();
    for episode in of_table.filter(|e| e.signal == "neighbour") {
        episode.recent_failed = 0;
    }
    let verdict = node(&snapshot, &events);
    let rules: Vec<_> = verdict.findings.iter().map(|f| f.rule).collect();
    assert!(rules.starts_with(&["table-full"]), "{rules:?}");
    assert_eq!(verdict.health, Health::Sick);
    assert!(
        first(&verdict).1.contains("of the lookups of"),
        "{verdict:?}"
    );
}

/// Those that a restart parted from their refusals.
#[test]
fn lookups_that_died_of_a_table_before_the_agent_began_are_told_by_what_was_counted() {
    let (mut snapshot, events) = recorded!("fine");
    snapshot.total.episodes = vec![episode("dns", "neighbour_table_full", 5, 20)];
    snapshot.total.neighbour.get_mut("ipv6").unwrap().table_full = 30;
    let verdict = node(&snapshot, &events);
    assert_eq!(verdict.findings.len(), 1, "{verdict:?}");
    assert!(
        first(&verdict).1.starts_with("IPv6 neighbour table full"),
        "{verdict:?}"
    );
}

#[test]
fn lookups_die_of_one_table_where_both_are_as_full() {
    let (mut snapshot, events) = recorded!("fine");
    snapshot.total.episodes = vec![
        episode("neighbour", "ipv4_table_full", 30, 40),
        episode("neighbour", "ipv6_table_full", 30, 40),
        episode("dns", "neighbour_table_full", 10, 20),
    ];
    let verdict = node(&snapshot, &events);
    let told = |text| {
        let findings = verdict.findings.iter();
        findings.filter(|f| f.sentence.contains(text)).count()
    };
    assert_eq!((told("of the lookups"), told("of the new entries")), (1, 1));
}

#[test]
fn a_failure_nobody_accuses_is_not_denied() {
    let (mut snapshot, events) = recorded!("fine");
    snapshot.total.failure_ratio.insert("dns".into(), 0.25);
    let sentence = node(&snapshot, &events).sentences.remove(0);
    assert!(
        sentence.contains("25.0 % of the lookups failed"),
        "{sentence}"
    );
}

/// Whatever an agent finds at its start was there before.
#[test]
fn what_an_agent_found_at_its_start_may_be_older() {
    let (mut snapshot, events) = recorded!("fine");
    snapshot.since = "2026-11-22T01:00:00Z".into();
    snapshot.total.episodes = vec![episode("dns", "server", 5, 50)];
    let began = |snapshot: &Snapshot| first(&node(snapshot, &events)).1.contains("or before");
    assert!(!began(&snapshot));
    snapshot.watched_since = "2026-11-22T06:29:59Z".into();
    assert!(began(&snapshot));
    snapshot.watched_since = "2026-11-22T06:20:00Z".into();
    assert!(!began(&snapshot));
}

#[test]
fn a_table_that_was_full_is_over() {
    let (mut snapshot, events) = recorded!("overflow");
    for episode in &mut snapshot.total.episodes {
        episode.recent_failed = 0;
    }
    for pod in &mut snapshot.pods {
        pod.figures.episodes.clear();
    }
    snapshot.tables[0].pressure = "normal".into();
    let verdict = node(&snapshot, &events);
    assert_eq!(verdict.health, Health::Fine);
    assert!(verdict.sentences[0].starts_with("Nothing is wrong on this node"));
    insta::assert_snapshot!(verdict.sentences[1]);
    // And after an hour no news any more.
    snapshot.time = "2026-11-22T09:00:00Z".into();
    assert_eq!(node(&snapshot, &events).findings, []);
}

#[test]
fn a_table_that_fills_is_an_omen() {
    let (mut snapshot, events) = recorded!("fine");
    let table = &mut snapshot.tables[0];
    table.entries = Some(812);
    table.pressure = "rising".into();
    table.time_until_full_seconds = Some(240.0);
    let verdict = node(&snapshot, &events);
    assert_eq!(verdict.health, Health::Warning);
    insta::assert_snapshot!(first(&verdict).1);
    // The pressure outlasts its reason by 30 s; the rule does not.
    snapshot.tables[0].entries = Some(12);
    snapshot.tables[0].time_until_full_seconds = None;
    assert_eq!(node(&snapshot, &events).health, Health::Fine);
}

#[test]
fn a_table_that_thrashes_needs_more_than_a_few() {
    let (mut snapshot, events) = recorded!("fine");
    let thrash = |again, all| episode("neighbour", "ipv4_recreated", again, all);
    snapshot.total.episodes = vec![thrash(19, 100)];
    assert_eq!(node(&snapshot, &events).findings, []);
    snapshot.total.episodes = vec![thrash(340, 800)];
    let verdict = node(&snapshot, &events);
    assert_eq!(first(&verdict).0, "table-thrashes");
    insta::assert_snapshot!(first(&verdict).1);
}

#[test]
fn connection_tracking_is_full_only_near_its_limit() {
    let (mut snapshot, events) = recorded!("fine");
    let conntrack = |entries, limit| Conntrack {
        entries,
        limit,
        ..Conntrack::default()
    };
    for (entries, limit, health) in [
        (900, 1000, Health::Fine),
        (5000, 0, Health::Fine),
        (960, 1000, Health::Warning),
        (1000, 1000, Health::Sick),
    ] {
        snapshot.conntrack = Some(conntrack(entries, limit));
        assert_eq!(node(&snapshot, &events).health, health, "{entries}/{limit}");
    }
    let verdict = node(&snapshot, &events);
    assert_eq!(
        verdict.next,
        "sysctl -w net.netfilter.nf_conntrack_max=2000"
    );
}

#[test]
fn lookups_that_a_rule_kills_are_the_nodes() {
    let (snapshot, events) = recorded!("netfilter");
    let verdict = node(&snapshot, &events);
    assert_eq!(
        (verdict.health, first(&verdict).0),
        (Health::Sick, "dns-killed-here")
    );
    insta::assert_snapshot!(first(&verdict).1);
}

/// The server is down, and a scanner meets a network policy: nobody is to read of the scanner first.
#[test]
fn few_that_die_here_stand_below_many_that_die_elsewhere() {
    let (mut snapshot, events) = recorded!("fine");
    snapshot.total.episodes = vec![
        episode("dns", "netfilter", 1, 1000),
        episode("dns", "no_answer", 950, 1000),
    ];
    let lost = vec![episode("receive", "socket_buffer_full", 1, 1)];
    pod(&mut snapshot, "greedy").figures.episodes = lost;
    let verdict = node(&snapshot, &events);
    assert_eq!(verdict.health, Health::FailsElsewhere);
    let rules: Vec<_> = verdict.findings.iter().map(|f| f.rule).collect();
    assert_eq!(
        rules,
        [
            "dns-killed-elsewhere",
            "dns-killed-here",
            "receive-buffer-full"
        ]
    );
    insta::assert_snapshot!(verdict.sentences.join("\n"));
}

#[test]
fn few_that_die_here_make_no_node_sick_and_are_told() {
    let (mut snapshot, events) = recorded!("fine");
    snapshot.total.failure_ratio.insert("dns".into(), 0.0004);
    for (failed, all, health) in [
        (4, 10_000, Health::Fine),
        (5, 10_000, Health::Sick),
        (4, 400, Health::Sick),
        (1, 1, Health::Sick),
    ] {
        snapshot.total.episodes = vec![episode("dns", "netfilter", failed, all)];
        let verdict = node(&snapshot, &events);
        assert_eq!(verdict.health, health, "{failed} of {all}");
        assert_eq!(first(&verdict).0, "dns-killed-here");
    }
    snapshot.total.episodes = vec![episode("dns", "netfilter", 4, 10_000)];
    insta::assert_snapshot!(node(&snapshot, &events).sentences.join("\n"));

    // Of datagrams nobody knows how many came; but each pod that loses some is one more.
    snapshot.total.episodes.clear();
    let lost = |n| vec![episode("receive", "socket_buffer_full", n, n)];
    pod(&mut snapshot, "greedy").figures.episodes = lost(4);
    let verdict = node(&snapshot, &events);
    assert_eq!(
        (verdict.health, first(&verdict).0),
        (Health::Fine, "receive-buffer-full")
    );
    pod(&mut snapshot, "victim").figures.episodes = lost(1);
    assert_eq!(node(&snapshot, &events).health, Health::Sick);
}

/// The first refusals are the omen of the many.
#[test]
fn one_refused_neighbour_is_enough() {
    let (mut snapshot, events) = recorded!("fine");
    for (signal, cause) in [
        ("neighbour", "ipv4_table_full"),
        ("dns", "neighbour_table_full"),
    ] {
        snapshot.total.episodes = vec![
            episode(signal, cause, 1, 10_000),
            episode("dns", "no_answer", 950, 1000),
        ];
        let verdict = node(&snapshot, &events);
        assert_eq!(
            (verdict.health, first(&verdict).0),
            (Health::Sick, "table-full")
        );
    }
}

/// An answer without a socket is its client's doing; but it excuses no other drop.
#[test]
fn clients_that_hang_up_do_not_make_a_node_sick() {
    let snapshot = include_str!("recorded/netfilter.json").replace("\"netfilter\"", "\"dropped\"");
    let events = include_str!("recorded/netfilter.ndjson").replace("\"netfilter\"", "\"dropped\"");
    let hung_up = events.replace("netfilter_drop", "no_socket");
    let (all, recorded) = read(&snapshot, &hung_up);
    let verdict = node(&all, &recorded);
    assert_eq!(verdict.health, Health::FailsElsewhere);
    assert!(
        first(&verdict).1.contains("closed the socket"),
        "{verdict:?}"
    );
    let (all, recorded) = read(&snapshot, &format!("{events}\n{hung_up}"));
    assert_eq!(node(&all, &recorded).health, Health::Sick);
}

#[test]
fn lookups_that_a_server_refuses_are_not() {
    let (mut snapshot, events) = recorded!("server");
    let verdict = node(&snapshot, &events);
    assert_eq!(verdict.health, Health::FailsElsewhere);
    assert_eq!(first(&verdict).0, "dns-killed-elsewhere");
    insta::assert_snapshot!(verdict.sentences.join("\n"));
    assert!(
        verdict
            .unknown
            .iter()
            .any(|u| u.contains("the server's own log"))
    );

    // Once the window has gone by, nothing is told.
    snapshot.total.episodes[0].recent_failed = 0;
    assert_eq!(node(&snapshot, &events).findings, []);
}

#[test]
fn a_full_receive_buffer_names_its_pod() {
    let (mut snapshot, events) = recorded!("fine");
    let lost = vec![episode("receive", "socket_buffer_full", 88, 88)];
    pod(&mut snapshot, "greedy").figures.episodes = lost;
    let verdict = node(&snapshot, &events);
    assert_eq!(
        (verdict.health, first(&verdict).0),
        (Health::Sick, "receive-buffer-full")
    );
    insta::assert_snapshot!(first(&verdict).1);
}

/// What only the pod's namespace shows is looked for there.
#[test]
fn commands_look_into_the_pods_namespace() {
    let (mut snapshot, _) = recorded!("fine");
    snapshot.time = "2026-11-22T06:40:00Z".into();
    let failed = |time: &str, pid: u32| {
        let line = format!(
            r#"{{"time":"{time}","kind":"dns_failure","node":"n","pid":{pid},
            "pod":{{"namespace":"shop","name":"cart"}},"qname":"a.","server":"10.0.0.1:53",
            "cause":"no_route"}}"#
        );
        Failure::parse(&line).unwrap()
    };
    let events = [
        failed("2026-11-22T06:30:00Z", 7),
        failed("2026-11-22T06:39:30Z", 4711),
    ];
    let named = |snapshot: &mut Snapshot, namespace: &str, name: &str| {
        let pod = &mut snapshot.pods[1];
        (pod.namespace, pod.pod) = (namespace.into(), name.into());
    };
    let lost = vec![episode("receive", "socket_buffer_full", 88, 88)];
    snapshot.pods[1].figures.episodes = lost;
    for (namespace, name, events, next) in [
        ("(netns)", "hub", &events[..0], "ip netns exec hub ss -uamn"),
        ("(host)", "statsd.service", &events[..0], "ss -uamn"),
        ("shop", "cart", &events, "nsenter -t 4711 -n ss -uamn"),
        (
            "shop",
            "cart",
            &events[..1],
            "ss -uamn  # in the network namespace of shop/cart",
        ),
        (
            "(netns)",
            "a;b",
            &events,
            "ss -uamn  # in the network namespace of (netns)/a;b",
        ),
    ] {
        named(&mut snapshot, namespace, name);
        assert_eq!(node(&snapshot, events).next, next);
    }

    // Lookups: of the one pod that has them, or of whose buffer is full.
    let of = |cause| vec![episode("dns", cause, 9, 10)];
    named(&mut snapshot, "shop", "cart");
    for (cause, next) in [
        ("no_route", "nsenter -t 4711 -n ip route"),
        ("neighbour_queue_full", "nsenter -t 4711 -n ip neigh show"),
        ("socket_buffer_full", "ss -uamn"),
        ("netfilter", "nft list ruleset"),
    ] {
        snapshot.total.episodes = of(cause);
        snapshot.pods[1].figures.episodes = of(cause);
        assert_eq!(node(&snapshot, &events).next, next);
    }
    snapshot.total.episodes = of("socket_buffer_full");
    snapshot.pods[2].namespace = "(netns)".into();
    let server = &mut pod(&mut snapshot, "greedy").figures;
    server.episodes = vec![episode("receive", "socket_buffer_full", 9, 9)];
    let next = node(&snapshot, &events).next;
    assert_eq!(next, "ip netns exec greedy ss -uamn");
    // Of many pods the node's own is as good as any.
    snapshot.total.episodes = of("no_route");
    snapshot.pods[1].figures.episodes = of("no_route");
    snapshot.pods[3].figures.episodes = of("no_route");
    assert_eq!(node(&snapshot, &events).next, "ip route");
}

#[test]
fn a_server_here_that_is_silent_is_named() {
    let (mut snapshot, events) = recorded!("fine");
    let silent = vec![episode("served", "unanswered", 5, 50)];
    pod(&mut snapshot, "hub").figures.episodes = silent;
    let verdict = node(&snapshot, &events);
    assert_eq!(first(&verdict).0, "server-does-not-answer");
    insta::assert_snapshot!(first(&verdict).1);
    assert_eq!(verdict.next, "tracer why (netns)/hub");
}

/// A connection of that pod to a member of etcd ended so.
fn silence(result: &str, time: &str, pod: &str) -> Failure {
    let line = format!(
        r#"{{"time":"{time}","kind":"connect_failure","node":"n",
        "pod":{{"namespace":"kube-system","name":"{pod}"}},"source":"10.0.0.1:40000",
        "destination":"10.0.0.3:2380","result":"{result}"}}"#
    );
    Failure::parse(&line).unwrap()
}

#[test]
fn a_peer_that_fell_silent_is_told_with_who_waits_for_it() {
    let (mut snapshot, _) = recorded!("fine");
    snapshot.time = "2026-11-22T06:40:00Z".into();
    let long_ago = [silence("silent", "2026-11-22T06:30:00Z", "etcd-0")];
    assert_eq!(node(&snapshot, &long_ago).findings, []);
    let lately = [
        silence("silent", "2026-11-22T06:39:30Z", "etcd-0"),
        silence("silent", "2026-11-22T06:39:40Z", "etcd-0"),
        silence("silent", "2026-11-22T06:39:41Z", "etcd-1"),
    ];
    let verdict = node(&snapshot, &lately);
    assert_eq!(verdict.health, Health::FailsElsewhere);
    assert_eq!(
        first(&verdict),
        (
            "silent-peer",
            "10.0.0.3:2380 does not answer on connections of 2 pods that are established (3 times \
             in the last 60 s since 06:39:30 UTC): it is cut off, or takes requests and answers none, or \
             this node cannot send to it"
        )
    );
}

#[test]
fn a_peer_that_takes_connections_and_never_answers_is_told() {
    let (mut snapshot, _) = recorded!("fine");
    snapshot.time = "2026-11-22T06:40:00Z".into();
    let lately = [
        silence("unanswered", "2026-11-22T06:39:30Z", "etcd-0"),
        silence("unanswered", "2026-11-22T06:39:40Z", "etcd-0"),
    ];
    let verdict = node(&snapshot, &lately);
    assert_eq!(verdict.health, Health::FailsElsewhere);
    assert_eq!(
        first(&verdict),
        (
            "connections-unanswered",
            "10.0.0.3:2380 takes connections of kube-system/etcd-0 and never answers, until the client \
             gives up (2 times in the last 60 s since 06:39:30 UTC): its kernel is well, its process \
             starves, is paused or hangs"
        )
    );
}

#[test]
fn a_dead_endpoint_is_told_with_who_it_was() {
    let (mut snapshot, events) = recorded!("fine");
    let dead = DeadEndpoint {
        destination: "10.0.0.9:8080".into(),
        attempts: 120,
        last_owner: Some("shop/db-1".into()),
        owner_gone_since: Some("2026-11-22T06:10:00Z".into()),
        ..DeadEndpoint::default()
    };
    let figures = &mut pod(&mut snapshot, "greedy").figures;
    figures.dead_endpoints = vec![dead];
    // Attempts of long ago accuse nobody.
    assert_eq!(node(&snapshot, &events).findings, []);
    let figures = &mut pod(&mut snapshot, "greedy").figures;
    figures.failure_ratio.insert("connect".into(), 0.5);
    let verdict = node(&snapshot, &events);
    assert_eq!(verdict.health, Health::FailsElsewhere);
    assert_eq!(first(&verdict).0, "dead-endpoint");
    insta::assert_snapshot!(first(&verdict).1);
    // Another pod does not call it.
    let victim = pod(&mut snapshot, "victim").clone();
    assert_eq!(judge(&snapshot, &events, Some(&victim)).findings, []);

    let figures = &mut pod(&mut snapshot, "greedy").figures;
    figures.dead_endpoints[0].last_owner = None;
    let verdict = node(&snapshot, &events);
    insta::assert_snapshot!(first(&verdict).1);
    assert!(
        verdict
            .unknown
            .iter()
            .any(|u| u.starts_with("who had 10.0.0.9:8080"))
    );
}

#[test]
fn a_dead_endpoint_of_before_is_not_held_against_who_fails_elsewhere() {
    let (mut snapshot, _) = recorded!("fine");
    snapshot.time = "2026-11-22T06:40:00Z".into();
    let dead = DeadEndpoint {
        destination: "10.0.0.9:8080".into(),
        attempts: 120,
        ..DeadEndpoint::default()
    };
    let fails = |snapshot: &mut Snapshot, who: &str, failed| {
        let figures = &mut pod(snapshot, who).figures;
        figures.failure_ratio.insert("connect".into(), 0.5);
        figures.episodes = vec![episode("connect", "refused", failed, 12)];
    };
    fails(&mut snapshot, "greedy", 6);
    pod(&mut snapshot, "greedy").figures.dead_endpoints = vec![dead];
    snapshot.total.episodes = vec![episode("connect", "refused", 6, 12)];
    let refused = |towards: &str| {
        let line = format!(
            r#"{{"time":"2026-11-22T06:39:30Z","kind":"connect_failure","node":"n",
            "pod":{{"namespace":"(netns)","name":"greedy"}},"source":"10.0.0.1:40000",
            "destination":"{towards}","result":"refused"}}"#
        );
        Failure::parse(&line).unwrap()
    };
    let rules = |snapshot: &Snapshot, events: &[Failure]| {
        let findings = node(snapshot, events).findings.into_iter();
        findings.map(|f| f.rule).collect::<Vec<_>>()
    };
    let elsewhere = [refused("10.0.0.8:80")];
    assert_eq!(rules(&snapshot, &elsewhere), ["connects-fail"]);
    let there = [refused("10.0.0.8:80"), refused("10.0.0.9:8080")];
    assert_eq!(rules(&snapshot, &there), ["dead-endpoint"]);
    // Behind a Service it is the backend that is dead.
    let mut behind = refused("10.96.0.10:80");
    behind.backend = Some("10.0.0.9:8080".into());
    assert_eq!(rules(&snapshot, &[behind]), ["dead-endpoint"]);
    // What of it is lost does not excuse it.
    assert_eq!(rules(&snapshot, &[]), ["dead-endpoint"]);

    // Nor does it explain what befalls others.
    fails(&mut snapshot, "victim", 3);
    snapshot.total.episodes = vec![episode("connect", "refused", 9, 24)];
    let verdict = node(&snapshot, &there);
    let told: Vec<_> = verdict.findings.iter().map(|f| &*f.sentence).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(
        told.iter().find(|sentence| sentence.contains("victim")),
        Some(
            &"25.0 % of the TCP connects of (netns)/victim (3 of 12 in the last 60 s) are refused since \
              06:30:00 UTC or before"
        )
    );
}

#[test]
fn connects_that_fail_are_told_by_result() {
    let (mut snapshot, events) = recorded!("fine");
    snapshot.total.failure_ratio.insert("connect".into(), 0.25);
    insta::assert_snapshot!(first(&node(&snapshot, &events)).1);
    snapshot.total.episodes = vec![episode("connect", "refused", 3, 12)];
    let verdict = node(&snapshot, &events);
    assert_eq!(first(&verdict).0, "connects-fail");
    insta::assert_snapshot!(first(&verdict).1);
}

#[test]
fn what_this_node_does_stands_above_what_others_do() {
    let (mut snapshot, events) = recorded!("overflow");
    let server = episode("dns", "server", 65, 70);
    snapshot.total.episodes.push(server);
    let verdict = node(&snapshot, &events);
    let rules: Vec<&str> = verdict.findings.iter().map(|f| f.rule).collect();
    assert_eq!(rules, ["table-full", "dns-killed-elsewhere"]);
    assert_eq!(verdict.sentences.len(), 2);
}

#[test]
fn every_rule_is_told_in_the_book() {
    let book = include_str!("../../../../docs/why.md");
    for (name, _) in RULES {
        assert!(
            book.contains(&format!("`{name}`")),
            "docs/why.md lacks {name}"
        );
    }
}
