//! How many series there are, and that many scrapers are no more work than one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use tests::crowd::{Crowd, HUB, PORT};
use tests::dns::scene::{CLIENT, lookups};
use tests::tcp::{Attempt, Manner, Means, run};
use tests::wait::ensure;
use tests::{Agent, Family, Lab, Metrics, dns, eventually, http, neigh, tcp};

/// As many pods as a big node has.
const CROWD: u16 = 250;
/// Series of a pod that does lookups and connects, of one family and of two.
const HEALTHY: [usize; 2] = [20, 23];

/// Series by pod.
fn by_pod(metrics: &Metrics) -> BTreeMap<String, BTreeSet<String>> {
    let mut pods: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, labels) in metrics.samples.keys() {
        if let Some(pod) = labels.get("pod") {
            let series = format!("{name} {labels:?}");
            pods.entry(pod.clone()).or_default().insert(series);
        }
    }
    pods
}

#[test]
fn a_healthy_pod_has_at_most_24_series_however_many_there_are() {
    let lab = Lab::new();
    let dual = lab.pod("dual", 1, 1);
    let begun = Instant::now();
    let crowd = Crowd::new(&lab.hub, CROWD);
    println!("{CROWD} namespaces made in {:?}", begun.elapsed());
    let hubs = Family::ALL.map(|family| dual.hub(family));
    let mut at = hubs.to_vec();
    at.push(HUB);
    let _names = dns::Server::start(&lab.hub, &at);
    let at: Vec<_> = at.iter().map(|ip| SocketAddr::new(*ip, PORT)).collect();
    let _server = tcp::Server::start(&lab.hub, &at, Manner::Close);
    let agent = Agent::start(&[]);

    crowd.go_about();
    let tally = CLIENT.run(&dual, lookups(&["ok"], &hubs));
    assert_eq!(tally.answered(), 4, "the lab failed: {tally:?}");
    let connect = |to| Attempt::new(to, Means::Polled, Duration::from_secs(2));
    let ended = run(&dual.netns, &[connect(at[0]), connect(at[1])], 1000);
    assert!(
        ended.iter().all(|one| one.result == "established"),
        "the lab failed: {ended:?}"
    );

    let (scraped, pods) = eventually(Duration::from_secs(10), || {
        let begun = Instant::now();
        let response = agent.http("GET", "/metrics");
        let took = begun.elapsed();
        let pods = by_pod(&Metrics::parse(&response.body));
        let expected = crowd.pods().iter().map(|pod| (pod, HEALTHY[0]));
        for (pod, expected) in expected.chain([(&*dual.netns, HEALTHY[1])]) {
            let series = pods.get(pod.name());
            let shown = series.map_or(0, BTreeSet::len);
            ensure(shown >= expected, || {
                format!("{}: {shown} series, not yet {expected}", pod.name())
            })?;
        }
        Ok::<_, String>(((response, took), pods))
    });
    for pod in crowd.pods().iter().chain([&*dual.netns]) {
        let series = &pods[pod.name()];
        // One may come with a segment sent again.
        assert!(series.len() <= 24, "{}: {series:#?}", pod.name());
    }

    let (response, took) = scraped;
    let all = Metrics::parse(&response.body).samples.len();
    let of_pods: usize = pods.values().map(BTreeSet::len).sum();
    println!(
        "{all} series, {of_pods} of {} pods; {} bytes in {took:?}",
        pods.len(),
        response.bytes.len()
    );
    for headers in [
        &[("accept", "application/openmetrics-text;version=1.0.0")][..],
        &[
            ("accept", "application/openmetrics-text;version=1.0.0"),
            ("accept-encoding", "gzip"),
        ],
    ] {
        let begun = Instant::now();
        let response =
            http::tcp_with(agent.listen(), "GET", "/metrics", headers).expect("the agent answers");
        println!(
            "{} bytes in {:?}: {headers:?}",
            response.bytes.len(),
            begun.elapsed()
        );
        assert_eq!(response.status, 200);
    }
    agent.stop_cleanly();
}

/// Two of a pair of Prometheus servers, or twenty.
#[test]
fn who_scrapes_at_the_same_time_gets_the_same_exposition() {
    const SCRAPERS: usize = 20;
    let lab = Lab::new();
    let pod = lab.pod("some", 1, 1);
    let agent = Agent::start(&[]);
    neigh::burst(&pod, Family::V4, neigh::FIRST_SILENT, 5);
    let barrier = Barrier::new(SCRAPERS);
    let begun = Instant::now();
    let bodies: BTreeSet<String> = thread::scope(|scope| {
        let scrape = || {
            barrier.wait();
            agent.http("GET", "/metrics").body
        };
        let scrapers: Vec<_> = (0..SCRAPERS).map(|_| scope.spawn(scrape)).collect();
        scrapers
            .into_iter()
            .map(|scraper| scraper.join().expect("it answers"))
            .collect()
    });
    // Each exposition tells the agent's CPU time and the age of its sources, so no two are alike. A
    // reading serves for 100 ms, and one of before serves the first.
    let readings = 2 + begun.elapsed().as_millis() as usize / 100;
    assert!(
        bodies.len() <= readings && readings < SCRAPERS,
        "{} expositions of at most {readings} readings",
        bodies.len()
    );
    agent.stop_cleanly();
}
