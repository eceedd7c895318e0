//! A storm of failures while the agent does not get to run: counts stay exact, those who read the events have
//! all that was sent, and lookups are judged by the kernel's clock.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tests::dns::Server;
use tests::dns::load::Load;
use tests::entries::{know, mac};
use tests::events::Event;
use tests::memory::{most_resident, resident_from_now};
use tests::neigh::{FIRST_SILENT, burst, table_fulls};
use tests::netns::{DEVICE, Pod};
use tests::storm::{CLOSED, FULL, LIMITS, NODE_CREATES, POD_CREATES, details, of_pod, refused};
use tests::wait::ensure;
use tests::{Agent, Family, Lab, Metrics, Thresholds, eventually};

const SOON: Duration = Duration::from_secs(10);
/// Within this time no rise is left in what a forecast looks at.
const CALM: Duration = Duration::from_secs(30);
const V4: Family = Family::V4;

fn signal(agent: &Agent, signal: Signal) {
    let pid = Pid::from_raw(agent.pid() as i32).expect("process ids are not 0");
    kill_process(pid, signal).expect("signal is sent");
}

/// Follows the events and reads nothing until it is asked to.
fn follow_without_reading(agent: &Agent) -> BufReader<UnixStream> {
    let mut stream = UnixStream::connect(agent.socket()).expect("the agent accepts");
    let request = "GET /api/v1/events HTTP/1.1\r\nhost: lab\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("it is sent");
    stream
        .set_read_timeout(Some(Duration::from_secs(2)))
        .expect("sockets can be set");
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).expect("it is answered");
    }
    reader
}

#[test]
fn an_agent_stopped_for_ten_seconds_in_a_storm_loses_no_count() {
    const STOPPED: Duration = Duration::from_secs(10);
    const TIMEOUT: Duration = Duration::from_secs(3);
    const BURST: u16 = 34_000;
    let mut lab = Lab::new();
    let storming = [1, 2, 3].map(|index| lab.pod(&format!("storm{index}"), index, 1));
    let asking = lab.pod("asking", 4, 2);
    let calm = lab.pod("calm", 5, 1);
    let [silent, answering] = [1, 3].map(|n| asking.neighbour(V4, n));
    let _server = Server::start(&lab.hub, &[answering, calm.hub(V4)]);
    // Nobody answers there; it is bound, so that nothing says so.
    let _silent = lab
        .hub
        .run(|| UdpSocket::bind((silent, 53)).expect("the port is free"));
    // What they ask the hub meanwhile does not die for want of a neighbour.
    for (one, n) in [(&storming[0], 1), (&calm, 1), (&asking, 1), (&asking, 3)] {
        let far = mac(&lab.hub, &one.link());
        know(&one.netns, DEVICE, one.neighbour(V4, n), &far);
        let own = mac(&one.netns, DEVICE);
        know(&lab.hub, &one.link(), one.address(V4), &own);
    }
    let agent = Agent::start(&["--dns-timeout", "3s", "--event-rate", "1000000"]);
    let mut events = agent.events();
    let mut slow = follow_without_reading(&agent);
    let load = |names: &[(&str, usize, IpAddr)], rate| Load {
        lookups: names
            .iter()
            .flat_map(|(name, count, to)| {
                (0..*count).map(move |n| (format!("{name}-{n}.test"), *to, None))
            })
            .collect(),
        rate,
        timeout: TIMEOUT,
    };
    // All neighbours are known.
    let first = load(&[("ok", 4, answering), ("drop", 4, silent)], 100);
    let first = asking.netns.run(|| first.run_here());
    assert_eq!(first.tally.answered(), 4, "the lab failed: {first:?}");
    refused(&asking, answering, CLOSED..=CLOSED);
    let failed = |metrics: &Metrics| metrics.count("tracer_node_dns_failures_total", &[]);
    let before = eventually(SOON, || {
        let metrics = agent.metrics();
        ensure(failed(&metrics) == 4, || "4 failures are to be seen".into()).map(|()| metrics)
    });
    let memory = resident_from_now(agent.pid());
    let fulls = table_fulls(V4);

    signal(&agent, Signal::STOP);
    let stopped = Instant::now();
    let limits = Thresholds::set(lab.lock(), LIMITS);
    let (asked, calm_asked, not_there) = thread::scope(|scope| {
        let mine = [
            ("ok", 3000, answering),
            ("servfail", 20_000, answering),
            ("drop", 3000, silent),
        ];
        let mine = load(&mine, 8000);
        let asked = scope.spawn(move || asking_run(&asking, &mine));
        let calm_load = load(&[("ok", 100, calm.hub(V4))], 40);
        let calm_pod = calm.clone();
        let calm_asked = scope.spawn(move || asking_run(&calm_pod, &calm_load));
        for pod in &storming {
            scope.spawn(|| burst(pod, V4, FIRST_SILENT, BURST));
        }
        let to = storming[0].hub(V4);
        let not_there = refused(&storming[0], to, (0..2000).map(|_| CLOSED));
        let join = |load: thread::ScopedJoinHandle<'_, _>| load.join().expect("the client ends");
        (join(asked), join(calm_asked), not_there)
    });
    drop(limits);
    let grown = table_fulls(V4) - fulls;
    assert!(grown >= 100_000, "the lab failed: {grown} refused");
    let tally = asked.1.tally;
    let asking = asked.0;
    assert_eq!(not_there, 2000, "the lab failed");
    let lost = tally.outcome("timeout");
    assert!(lost >= 3000, "the lab failed: {tally:?}");
    thread::sleep(STOPPED.saturating_sub(stopped.elapsed()));
    signal(&agent, Signal::CONT);

    // At once.
    let begun = Instant::now();
    assert_eq!(agent.http("GET", "/metrics").status, 200);
    let took = begun.elapsed();
    eprintln!(
        "{:?} stopped; the first scrape took {took:?}",
        stopped.elapsed()
    );
    assert!(took < Duration::from_secs(2), "{took:?}");

    let after = eventually(SOON, || {
        let metrics = agent.metrics();
        let count = |name: &str, more: &[(&str, &str)]| metrics.growth(&before, name, more);
        let pods: u64 = storming
            .iter()
            .map(|pod| of_pod(&metrics, POD_CREATES, pod, &FULL))
            .sum();
        let asked = ["noerror", "servfail", "timeout"].map(|outcome| {
            let now = of_pod(
                &metrics,
                "tracer_pod_dns_lookups_total",
                &asking,
                &[("outcome", outcome)],
            );
            now - of_pod(
                &before,
                "tracer_pod_dns_lookups_total",
                &asking,
                &[("outcome", outcome)],
            )
        });
        let truth = ["noerror", "servfail", "timeout"].map(|outcome| tally.outcome(outcome));
        let calm_now = of_pod(
            &metrics,
            "tracer_pod_dns_lookups_total",
            &calm,
            &[("outcome", "noerror")],
        );
        let connects = count("tracer_node_connects_total", &[("result", "refused")]);
        let node = count(NODE_CREATES, &FULL);
        let seen = (node, asked, calm_now, connects);
        let expected = (
            grown,
            truth,
            calm_asked.1.tally.outcome("noerror"),
            not_there,
        );
        ensure(seen == expected, || format!("{seen:?}, not {expected:?}"))?;
        // What the others needed meanwhile, and were refused, is theirs.
        let all = metrics.growth(&before, POD_CREATES, &FULL);
        ensure(
            all == grown && pods <= all && pods > all - all / 100,
            || format!("{pods} of those who stormed, {all} of all, {grown} refused"),
        )?;
        let untracked = metrics.count("tracer_pod_dns_untracked_total", &[]);
        ensure(untracked == 0, || {
            format!("{untracked} lookups not followed")
        })?;
        // Each failure has its detail, or a place in the counts of those that have none.
        let made = ["neigh", "dns", "tcp"].map(|hook| {
            let [now, then] = [&metrics, &before].map(|at| details(at, hook).iter().sum::<u64>());
            now - then
        });
        let failures = [grown, truth[1] + truth[2], not_there];
        ensure(made == failures, || {
            format!("details of {made:?}, not {failures:?}")
        })?;
        Ok::<_, String>(metrics)
    });
    let sum = after.sum("tracer_node_dns_lookup_duration_seconds_sum", &[]);
    // Of 23,000 answers; if they had waited for the agent it would be 100,000 s.
    assert!(sum < 23_000.0, "answers took {sum} s");

    // Those who read have all that was sent; those who did not are told how much they missed.
    let sent: BTreeMap<&str, u64> = [
        ("neighbour_overflow", "neigh"),
        ("dns_failure", "dns"),
        ("connect_failure", "tcp"),
    ]
    .into_iter()
    .map(|(kind, hook)| (kind, details(&after, hook)[0]))
    .collect();
    eprintln!(
        "sent {sent:?}; {:?} lost",
        ["neigh", "dns", "tcp"].map(|hook| details(&after, hook)[1])
    );
    let told =
        |seen: &[Event], kind: &str| seen.iter().filter(|e| e.text("kind") == kind).count() as u64;
    eventually(SOON, || {
        events.listen(Duration::from_millis(100));
        for (kind, sent) in &sent {
            let seen = told(&events.seen, kind);
            ensure(seen == *sent, || format!("{kind}: {seen} of {sent}"))?;
        }
        Ok::<(), String>(())
    });
    assert_eq!(told(&events.seen, "missed"), 0);
    // A timeout is as old as its deadline, however late it is found.
    for event in events
        .seen
        .iter()
        .filter(|e| e.text("outcome") == "timeout")
    {
        let waited = event.json["waited_seconds"].as_f64().expect("a number");
        assert!((waited - 3.0).abs() < 0.01, "{}", event.json);
    }
    let all = events.seen.len() as u64;
    let (mut read, mut missed, mut line) = (0, 0, String::new());
    eventually(SOON, || {
        line.clear();
        // A chunk's length is a line too.
        while slow.read_line(&mut line).is_ok_and(|length| length > 0) {
            if line.starts_with('{') {
                let json: serde_json::Value = serde_json::from_str(&line).expect("it is JSON");
                match json["kind"].as_str() {
                    Some("missed") => missed += json["count"].as_u64().expect("a number"),
                    _ => read += 1,
                }
            }
            if read + missed >= all {
                break;
            }
            line.clear();
        }
        ensure(read + missed == all, || {
            format!("{read} read and {missed} missed of {all}")
        })
    });

    // Nothing is left that would look like a trend.
    let forecast = "tracer_node_neighbour_time_until_full_seconds";
    eventually(CALM, || {
        let metrics = agent.metrics();
        let until = metrics.get(forecast, &[("family", "ipv4")]);
        ensure(until == Some(f64::INFINITY), || {
            format!("the table is to be full in {until:?} seconds")
        })
    });
    let more = most_resident(agent.pid()) - memory;
    eprintln!("{} kB more at most, of {} kB", more >> 10, memory >> 10);
    assert!(more < 48 << 20, "{more} bytes more");
    agent.stop_cleanly();
}

fn asking_run(pod: &Pod, load: &Load) -> (Pod, tests::dns::load::Loaded) {
    (pod.clone(), pod.netns.run(|| load.run_here()))
}
