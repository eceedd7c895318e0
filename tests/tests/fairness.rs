//! `--event-rate` in a flood: whoever else fails is heard.

use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tests::dns::packet::{QUERY, query};
use tests::dns::{A, Server};
use tests::entries::{know, mac};
use tests::events::Event;
use tests::neigh::{FIRST_SILENT, burst, table_fulls};
use tests::netns::{DEVICE, Pod};
use tests::storm::{CLOSED, LIMITS, details, refused};
use tests::{Agent, Family, Lab, Thresholds};

const V4: Family = Family::V4;

#[test]
fn every_failing_pod_is_heard_in_a_flood() {
    const RATE: u64 = 50;
    const TIME: Duration = Duration::from_secs(5);
    let mut lab = Lab::new();
    let flooding = lab.pod("flood", 1, 1);
    let victims = [2, 3, 4, 5].map(|index| lab.pod(&format!("victim{index}"), index, 1));
    let pods: Vec<&Pod> = victims.iter().chain([&flooding]).collect();
    let hubs: Vec<IpAddr> = pods.iter().map(|pod| pod.hub(V4)).collect();
    let _server = Server::start(&lab.hub, &hubs);
    let agent = Agent::start(&["--event-rate", &RATE.to_string()]);
    let mut events = agent.events();
    // Neighbours are known, and stay: lookups fail of the answers they get.
    for pod in &pods {
        let far = mac(&lab.hub, &pod.link());
        know(&pod.netns, DEVICE, pod.hub(V4), &far);
        let own = mac(&pod.netns, DEVICE);
        know(&lab.hub, &pod.link(), pod.address(V4), &own);
    }
    let fulls = table_fulls(V4);
    let limits = Thresholds::set(lab.lock(), LIMITS);
    let done = AtomicBool::new(false);
    let is_over = || done.load(Ordering::Relaxed);
    let pause = thread::scope(|scope| {
        scope.spawn(|| {
            let mut first = FIRST_SILENT;
            while !is_over() {
                burst(&flooding, V4, first, 100);
                thread::sleep(Duration::from_millis(1));
                first = if first > 60_000 {
                    FIRST_SILENT
                } else {
                    first + 100
                };
            }
        });
        scope.spawn(|| {
            flooding.netns.run(|| {
                let socket = UdpSocket::bind((flooding.address(V4), 0)).expect("a port is free");
                socket.set_nonblocking(true).expect("sockets can be set");
                for id in (0..=u16::MAX).cycle().take_while(|_| !is_over()) {
                    let query = query(id, QUERY, "servfail-flood.test", A);
                    // Full buffers are part of a flood.
                    let _ = socket.send_to(&query, (flooding.hub(V4), 53));
                    // Answers that find no room would fail as timeouts, five seconds later.
                    while socket.recv(&mut [0; 512]).is_ok() {}
                    if id % 16 == 0 {
                        thread::sleep(Duration::from_millis(2));
                    }
                }
            });
        });
        scope.spawn(|| {
            while !is_over() {
                refused(&flooding, flooding.hub(V4), (0..50).map(|_| CLOSED));
                thread::sleep(Duration::from_millis(5));
            }
        });
        let failing = victims
            .each_ref()
            .map(|pod| scope.spawn(|| fail_slowly(pod, &is_over)));
        let begun = Instant::now();
        while begun.elapsed() < TIME {
            events.listen(Duration::from_millis(100));
        }
        done.store(true, Ordering::Relaxed);
        let pauses = failing.map(|one| one.join().expect("it ends"));
        pauses.into_iter().max().expect("there are victims")
    });
    drop(limits);
    events.listen(Duration::from_secs(1));
    let grown = table_fulls(V4) - fulls;
    let metrics = agent.metrics();
    let seconds = TIME.as_secs();
    for hook in ["neigh", "dns", "tcp"] {
        let [sent, lost, suppressed] = details(&metrics, hook);
        eprintln!("{hook}: {sent} sent, {lost} lost, {suppressed} held back");
        assert!(
            suppressed > 9 * RATE * seconds,
            "the lab failed: {hook}: {suppressed}"
        );
        // Others' first of each second come on top: five pods.
        assert!(sent <= (RATE + 5) * (seconds + 4), "{hook}: {sent} sent");
    }
    assert!(
        grown > 10 * RATE * seconds,
        "the lab failed: {grown} refused"
    );
    for pod in &pods {
        for kind in ["neighbour_overflow", "dns_failure", "connect_failure"] {
            let of_pod = |event: &&Event| event.is(kind, pod.netns.name());
            let at: Vec<f64> = (events.seen.iter().filter(of_pod))
                .map(Event::second_of_day)
                .collect();
            let gap = at
                .windows(2)
                .map(|pair| pair[1] - pair[0])
                .fold(0.0, f64::max);
            // The first of each second is heard, and a second begins at any moment.
            let bound = 1.2 + 2.0 * pause.as_secs_f64();
            assert!(
                at.len() as u64 >= seconds - 1 && gap < bound,
                "{kind} of {}: {} events in {seconds} s, {gap} s between two, {pause:?} between failures",
                pod.netns.name(),
                at.len()
            );
        }
    }
    agent.stop_cleanly();
}

/// Ten failures of each hook a second; gives the longest pause between two rounds.
fn fail_slowly(pod: &Pod, is_over: &(dyn Fn() -> bool + Sync)) -> Duration {
    let mut pause = Duration::ZERO;
    let mut last = Instant::now();
    for round in (0..).take_while(|_| !is_over()) {
        pause = pause.max(last.elapsed());
        last = Instant::now();
        burst(pod, V4, FIRST_SILENT + round * 4, 4);
        refused(pod, pod.hub(V4), [CLOSED].into_iter());
        pod.netns.run(|| {
            let socket = UdpSocket::bind((pod.address(V4), 0)).expect("a port is free");
            let query = query(round, QUERY, "servfail-victim.test", A);
            let _ = socket.send_to(&query, (pod.hub(V4), 53));
            // Until its socket goes the answer may take this long.
            thread::sleep(Duration::from_millis(90));
        });
    }
    pause
}
