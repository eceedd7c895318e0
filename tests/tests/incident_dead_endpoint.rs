//! Clients go on calling the dead, in all four ways of being dead; and members of a control plane fall
//! silent. tracer tells who calls whom, who that was and since when, and accuses nobody else.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tests::events::Event;
use tests::incident::dead_endpoint::DeadEndpoint;
use tests::incident::dead_endpoint::control::{API, Answering, Asking, Etcd, PEERS};
use tests::incident::dead_endpoint::street::{Street, port};
use tests::incident::pods::Pods;
use tests::incident::{NAMED_WITHIN, Stage, Timeline, page};
use tests::tcp::truth::{
    DEAD_INFO, PEERS as PEER_FAILURES, POD_CONNECTS, RETRANSMITS, dead_of, last_owner,
};
use tests::tcp::{Manner, Server, Tally, kernel};
use tests::unseen::Unseen;
use tests::wait::ensure;
use tests::{Agent, Lab, eventually};

/// Seconds since 1970 of an RFC 3339 time in UTC, by `date`.
fn seconds(text: &str) -> f64 {
    let output = std::process::Command::new("date")
        .args(["--date", text, "+%s.%N"])
        .output()
        .expect("date runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let parsed = said.trim().parse();
    parsed.unwrap_or_else(|e| panic!("no time: {text:?}: {e}"))
}

/// Each event that tells of an owner that went tells when, to the second or so.
fn check_since(scene: &DeadEndpoint) {
    let went = scene.went.expect("they went");
    let went = went
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("it is later than 1970");
    for way in scene.ways.iter().filter(|way| way.gone) {
        let mut told = scene.events.seen.iter().filter(|event| way.is_told(event));
        let event = told.next().expect("it has a name");
        let since = seconds(event.text("owner_gone_since"));
        let late = since - went.as_secs_f64();
        assert!((-1.0..3.0).contains(&late), "{late} s late: {}", event.json);
    }
}

/// Only the dead are listed, and nobody is accused who calls with success.
fn check_nobody_else(scene: &DeadEndpoint) {
    let metrics = scene.agent.metrics();
    let dead: BTreeSet<String> = scene.ways.iter().map(|way| way.to.to_string()).collect();
    for (labels, _) in metrics.matching(DEAD_INFO, &[]) {
        let to = &labels["destination"];
        // Others of the host may call others.
        let ours = to.starts_with("10.99.") || to.starts_with("10.97.") || to.starts_with("10.96.");
        assert!(!ours || dead.contains(to), "{to} is listed: {labels:?}");
    }
    let (calm, client) = &scene.calm;
    assert!(client.ended().len() >= 3, "the lab failed");
    let failed = scene.events.seen.iter().find(|event| {
        event.is("connect_failure", &calm.listed.name)
            || event.text("destination") == scene.healthy.to_string()
    });
    assert!(failed.is_none(), "{failed:?}");
    let verdict = scene.agent.why(Some(&calm.name()));
    assert_eq!(verdict["health"], "fine", "{verdict:#}");
    for way in &scene.ways {
        let verdict = scene.agent.why(Some(&way.pod.name())).to_string();
        let healthy = scene.healthy.to_string();
        assert!(
            !verdict.contains(&healthy),
            "{healthy} is accused: {verdict}"
        );
    }
}

/// The figures of a scrape may be so old: a second, and what a reading takes.
const READING: Duration = Duration::from_millis(1500);

/// Attempts of each client by result, and those at the dead: as the clients saw them.
fn check_counts(scene: &mut DeadEndpoint) {
    for way in &mut scene.ways {
        way.client.stop();
    }
    scene.calm.1.stop();
    let scene = &*scene;
    eventually(Duration::from_secs(10), || {
        let metrics = scene.agent.metrics();
        let clients = scene.ways.iter().map(|way| (&way.pod, &way.client));
        let calm = (&scene.calm.0, &scene.calm.1);
        for (pod, client) in clients.chain([calm]) {
            let ended = client.ended();
            let tally = Tally::of(ended.iter().map(|(_, one)| one));
            for result in ["established", "refused", "timeout", "unreachable"] {
                let labels = [&pod.listed.labels()[..], &[("result", result)]].concat();
                let shown = metrics.count(POD_CONNECTS, &labels);
                let saw = tally.count(result);
                ensure(shown == saw, || {
                    format!("{}: {result} {shown}, the client saw {saw}", pod.name())
                })?;
            }
        }
        Ok::<(), String>(())
    });
}

#[test]
fn clients_that_call_the_dead_are_named_with_who_it_was() {
    let mut timeline = Timeline::of_test();
    let lab = Lab::new();
    let node = Arc::clone(&lab.hub);
    let mut scene = DeadEndpoint::new(&node, &mut timeline);
    scene.events.listen(Duration::from_millis(500));
    check_nobody_else(&scene);
    let healthy = scene.agent.why(None);
    assert_eq!(healthy["health"], "fine", "{healthy:#}");

    scene.deploy(&mut timeline);
    let took = scene.name_all(&mut timeline);
    for (way, took) in scene.ways.iter().zip(&took) {
        eprintln!("{}: named by event and metric after {took:?}", way.what);
        assert!(*took < NAMED_WITHIN, "{took:?}");
    }
    timeline.assert_named();
    check_since(&scene);
    scene.await_results();
    // Each is told in the verdict on its client.
    for way in &scene.ways {
        let verdict = scene.agent.why(Some(&way.pod.name()));
        let finding = &verdict["findings"][0];
        assert_eq!(finding["rule"], "dead-endpoint", "{verdict:#}");
        assert_eq!(
            finding["figures"]["destination"],
            way.to.to_string(),
            "{verdict:#}"
        );
        let owner = finding["figures"]["last_owner"]
            .as_str()
            .unwrap_or_default();
        assert_eq!(owner, way.owner, "{verdict:#}");
        let gone = finding["figures"]["owner_gone_since"].is_string();
        assert_eq!(gone, way.gone, "{verdict:#}");
    }
    timeline.ask(&scene.agent, &["why"]);
    timeline.ask(&scene.agent, &["why", "bank/proxy-0"]);
    timeline.ask_head(&scene.agent, &["top", "--once"], 9);
    // Failed attempts at each: all of them, for none has succeeded since.
    eventually(Duration::from_secs(10), || {
        let old_enough = Instant::now().checked_sub(READING);
        let metrics = scene.agent.metrics();
        for way in &scene.ways {
            let failed = way.client.failed(way.to).into_iter();
            let before = failed.filter(|(at, _)| Some(*at) <= old_enough).count() as u64;
            let shown = dead_of(&metrics, way.pod.listed.labels(), &way.to.to_string());
            let after = way.client.failed(way.to).len() as u64;
            // One may have ended that the client has not noted yet.
            ensure(
                shown.is_some_and(|n| (before..=after + 1).contains(&n)),
                || format!("{}: {shown:?} attempts, not {before} to {after}", way.what),
            )?;
        }
        Ok::<(), String>(())
    });
    check_nobody_else(&scene);

    scene.revive(&mut timeline);
    let metrics = scene.agent.metrics();
    for way in [&scene.ways[1], &scene.ways[3]] {
        let shown = last_owner(&metrics, &way.to.to_string());
        assert_eq!(shown.as_deref(), Some(way.owner), "{} goes on", way.what);
    }
    check_counts(&mut scene);
    // Now that nobody calls: none of those that are still dead is missing.
    eventually(Duration::from_secs(10), || {
        let metrics = scene.agent.metrics();
        for way in [&scene.ways[1], &scene.ways[3]] {
            let failed = way.client.failed(way.to).len() as u64;
            let shown = dead_of(&metrics, way.pod.listed.labels(), &way.to.to_string());
            ensure(shown == Some(failed), || {
                format!("{}: {shown:?} attempts, not {failed}", way.what)
            })?;
        }
        Ok::<(), String>(())
    });
    eprintln!("{timeline:?}");
    page::renew_part(
        "dead-endpoint",
        "timeline",
        &timeline,
        &[
            "tracer why",
            "tracer why bank/proxy-0",
            "tracer top --once | head -9",
        ],
    );
    scene.agent.stop_cleanly();
}

const SILENT: &str = "tracer_pod_silent_connections_total";

/// Members of a real cluster lose one of theirs, which is cut off without a word.
#[test]
fn a_member_of_etcd_that_is_cut_off_is_named_by_the_others() {
    let mut timeline = Timeline::of_test();
    let lab = Lab::new();
    let mut street = Street::new(&lab.hub);
    let etcd = Etcd::start(&mut street);
    let mut pods = Pods::new();
    pods.add(etcd.pods.iter().map(|one| one.listed.clone()));
    let unseen = Unseen::watch(&[("tcp/tcp_retransmit_skb", "0")]);
    let agent = Agent::start(&["--pods", &pods.argument()]);
    pods.await_known(&agent);
    let earlier: Vec<u64> = etcd
        .pods
        .iter()
        .map(|pod| kernel::Statistics::of(&pod.netns).data_retransmitted())
        .collect();
    let mut events = agent.events();
    etcd.put(0, "calm").expect("the lab failed");
    events.listen(Duration::from_secs(1));
    // etcdctl ends its connections with a reset.
    let failure =
        |event: &Event| event.text("kind") == "connect_failure" && event.text("result") != "reset";
    let early = events.seen.iter().find(|event| failure(event));
    assert!(early.is_none(), "nothing has failed: {early:?}");

    let lost = port(&etcd.pods[2], PEERS);
    street.cut_off(&etcd.pods[2]);
    timeline.now(
        Stage::Onset,
        format!("etcd-2 ({}) is cut off; nobody is told", lost.ip()),
    );
    let from_others = |event: &Event| {
        let others = ["etcd-0", "etcd-1"];
        failure(event) && others.iter().any(|name| event.json["pod"]["name"] == *name)
    };
    let towards_lost = |event: &Event| {
        event
            .text("destination")
            .starts_with(&format!("{}:", lost.ip()))
    };
    for result in ["silent", "timeout"] {
        let event = events.wait(NAMED_WITHIN, |event| {
            from_others(event) && towards_lost(event) && event.text("result") == result
        });
        let pod = event.json["pod"]["name"].as_str().unwrap_or_default();
        let text = format!(
            "event `connect_failure`: kube-system/{pod} -> {} {result}",
            event.text("destination")
        );
        timeline.at(event.at, Stage::Named, text);
    }
    eprintln!("named after {:?}", timeline.assert_named());

    // The segments sent again are those of the right pods, by the kernel's own count; it counts those too
    // that it could not send, for want of a neighbour.
    eventually(Duration::from_secs(10), || {
        for (pod, earlier) in etcd.pods.iter().zip(&earlier) {
            let read = || kernel::Statistics::of(&pod.netns).data_retransmitted() - earlier;
            let before = read();
            let shown = agent.metrics().count(RETRANSMITS, &pod.listed.labels());
            let after = read();
            let fewer = kernel::extended(&pod.netns, "TCPRetransFail") + unseen.count();
            ensure(
                shown > 0 && shown + fewer >= before && shown <= after,
                || {
                    format!(
                        "{} sent {before} to {after} again, {fewer} not, not {shown}",
                        pod.name()
                    )
                },
            )?;
        }
        Ok::<(), String>(())
    });
    // The verdict, and the metrics, name the member.
    let to = lost.to_string();
    eventually(NAMED_WITHIN, || {
        let metrics = agent.metrics();
        let owner = last_owner(&metrics, &to);
        ensure(owner.as_deref() == Some("kube-system/etcd-2"), || {
            format!("{to}: {owner:?}")
        })?;
        let silent = metrics.sum(SILENT, &[("namespace", "kube-system")]);
        ensure(silent > 0.0, || "no silent connection".into())?;
        let peer = lost.ip().to_string();
        let again = metrics.count(PEER_FAILURES, &[("peer", &peer), ("kind", "retransmit")]);
        ensure(again > 0, || format!("nothing sent again to {peer}"))?;
        let verdict = agent.why(Some("kube-system/etcd-0"));
        ensure(verdict.to_string().contains(&to), || format!("{verdict:#}"))
    });
    timeline.now(
        Stage::Step,
        format!("metric `tracer_dead_endpoint_info`: {to}, owned by etcd-2"),
    );
    timeline.ask(&agent, &["why", "kube-system/etcd-0"]);
    // Two are a majority: they work, and accuse each other of nothing.
    etcd.put(0, "two are enough").expect("a majority is there");
    events.listen(Duration::from_millis(500));
    let wrong = events
        .seen
        .iter()
        .find(|event| from_others(event) && !towards_lost(event));
    assert!(wrong.is_none(), "{wrong:?}");

    street.reconnect();
    eventually(NAMED_WITHIN, || {
        let owner = last_owner(&agent.metrics(), &to);
        ensure(owner.is_none(), || format!("{to} is still dead"))
    });
    timeline.now(Stage::Over, "etcd-2 is back, and answers");
    page::renew_part(
        "dead-endpoint",
        "timeline: etcd",
        &timeline,
        &["tracer why kube-system/etcd-0"],
    );
    agent.stop_cleanly();
}

/// An API server that hangs takes connections and requests, and answers none; a restart cures it.
#[test]
fn a_server_that_accepts_and_never_answers_is_named() {
    let mut timeline = Timeline::of_test();
    let lab = Lab::new();
    let mut street = Street::new(&lab.hub);
    let [hung, healthy, waits, served] =
        ["apiserver-0", "apiserver-1", "controllers-0", "scheduler-0"]
            .map(|name| street.on_bridge("kube-system", name));
    let mut pods = Pods::new();
    pods.add([&hung, &healthy, &waits, &served].map(|one| one.listed.clone()));
    let agent = Agent::start(&["--pods", &pods.argument()]);
    pods.await_known(&agent);
    let mut events = agent.events();
    let silent_server = Server::start(&hung.netns, &[port(&hung, API)], Manner::Hold);
    let _answers = Answering::start(&healthy, API);
    let mut asks = Asking::connect(&waits, port(&hung, API));
    let mut answered = Asking::connect(&served, port(&healthy, API));

    timeline.now(
        Stage::Onset,
        "apiserver-0 hangs: it accepts, and answers nothing",
    );
    asks.ask();
    let to = port(&hung, API).to_string();
    let event = eventually(NAMED_WITHIN, || {
        // Who is answered is not told, however often it asks.
        answered.ask();
        assert!(answered.await_answer(), "the lab failed");
        let told = events.find(Duration::from_millis(300), |event| {
            event.text("kind") == "connect_failure" && event.text("result") == "silent"
        });
        told.ok_or("no event")
    });
    assert!(
        event.is("connect_failure", "controllers-0"),
        "{}",
        event.json
    );
    assert_eq!(event.text("destination"), to, "{}", event.json);
    let text = format!("event `connect_failure`: kube-system/controllers-0 -> {to} silent");
    timeline.at(event.at, Stage::Named, text);
    eprintln!("named after {:?}", timeline.assert_named());
    eventually(Duration::from_secs(5), || {
        let shown = agent.metrics().count(SILENT, &waits.listed.labels());
        ensure(shown == 1, || format!("{shown} silent connections"))
    });
    let verdict = agent.why(Some("kube-system/controllers-0"));
    assert_eq!(verdict["findings"][0]["rule"], "silent-peer", "{verdict:#}");
    assert_eq!(
        verdict["findings"][0]["figures"]["destination"], to,
        "{verdict:#}"
    );
    timeline.ask(&agent, &["why", "kube-system/controllers-0"]);
    let fine = agent.why(Some("kube-system/scheduler-0"));
    assert_eq!(fine["health"], "fine", "{fine:#}");

    // A restart.
    drop((silent_server, asks));
    let _restarted = Answering::start(&hung, API);
    let mut asks = Asking::connect(&waits, port(&hung, API));
    asks.ask();
    assert!(asks.await_answer(), "the lab failed");
    timeline.now(Stage::Over, "apiserver-0 is restarted, and answers");
    events.listen(Duration::from_secs(1));
    let told = events
        .seen
        .iter()
        .filter(|event| event.text("kind") == "connect_failure");
    let told: Vec<String> = told.map(|event| event.json.to_string()).collect();
    let expected = told
        .iter()
        .all(|one| one.contains(&to) && one.contains("controllers-0"));
    assert!(expected, "{told:?}");
    page::renew_part(
        "dead-endpoint",
        "timeline: hung server",
        &timeline,
        &["tracer why kube-system/controllers-0"],
    );
    agent.stop_cleanly();
}
