//! What pods, lookups and failures take of the agent, each ten times as many as the step before.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;
use tests::bench::dnsperf::DnsPerf;
use tests::bench::{Interrupt, Programs, Spread, loaded};
use tests::crowd::Crowd;
use tests::memory::{processor_time, resident};
use tests::neigh::{FIRST_SILENT, Thresholds, table_fulls};
use tests::storm::{FULL, LIMITS, NODE_CREATES, details};
use tests::wait::ensure;
use tests::{Agent, Family, Lab, dns, eventually, tcp};

/// Pods on the node.
const PODS: [u16; 3] = [0, 50, 250];
/// Thousands of lookups.
const LOOKUPS: [&str; 3] = ["10", "100", "1000"];
/// Neighbours that the table has no room for.
const FAILURES: [u64; 3] = [10_000, 100_000, 1_000_000];
/// Scrapes of one kind.
const SCRAPES: usize = 20;
const SOON: Duration = Duration::from_secs(30);

/// With so many pods, each of which has looked a name up and connected.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Pods {
    pub number: u16,
    /// Resident memory, MiB.
    pub resident: f64,
    /// Of a scrape, milliseconds.
    pub scrape: Spread,
    /// Of a second in which nothing happens but one scrape, milliseconds of a processor.
    pub at_rest: f64,
}

/// With so many lookups or failures.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Load {
    pub count: u64,
    /// How many there were in a second.
    pub per_second: f64,
    /// The agent's processor time for all of them, seconds.
    pub processor: f64,
    /// Its programs' time for all of them, seconds.
    pub kernel: f64,
    /// Counted ÷ happened.
    pub counted: f64,
    /// Events told, withheld and lost.
    pub events: [u64; 3],
    /// Resident memory afterwards, MiB.
    pub resident: f64,
}

fn mebibytes(pid: u32) -> f64 {
    resident(pid) as f64 / f64::from(1 << 20)
}

pub fn of_pods(interrupt: &Interrupt) -> Result<Vec<Pods>> {
    PODS.iter()
        .map(|pods| {
            interrupt.check()?;
            with_pods(*pods)
        })
        .collect()
}

fn with_pods(pods: u16) -> Result<Pods> {
    let lab = Lab::new();
    let crowd = Crowd::new(&lab.hub, pods);
    let at = [tests::crowd::HUB];
    let _names = dns::Server::start(&lab.hub, &at);
    let at = [(at[0], tests::crowd::PORT).into()];
    let _server = tcp::Server::start(&lab.hub, &at, tcp::Manner::Close);
    let agent = Agent::start(&[]);
    crowd.go_about();
    eventually(SOON, || {
        let metrics = agent.metrics();
        let lookups = metrics.matching("tracer_pod_dns_lookups_total", &[("outcome", "noerror")]);
        let shown: BTreeSet<_> = lookups
            .filter(|(_, count)| *count > 0.0)
            .filter_map(|(labels, _)| labels.get("pod"))
            .collect();
        ensure(shown.len() >= usize::from(pods), || {
            format!("{} pods shown", shown.len())
        })
    });
    let mut scrapes = Vec::new();
    for _ in 0..SCRAPES {
        // A new reading each time.
        std::thread::sleep(Duration::from_millis(300));
        let begun = Instant::now();
        agent.http("GET", "/metrics");
        scrapes.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let before = processor_time(agent.pid());
    let begun = Instant::now();
    for _ in 0..5 {
        std::thread::sleep(Duration::from_secs(1));
        agent.http("GET", "/metrics");
    }
    let busy = processor_time(agent.pid()) - before;
    let figures = Pods {
        number: pods,
        resident: mebibytes(agent.pid()),
        scrape: Spread::of(scrapes.into_iter()).context("no scrapes")?,
        at_rest: busy * 1e3 / begun.elapsed().as_secs_f64(),
    };
    agent.stop_cleanly();
    Ok(figures)
}

pub fn of_lookups(lab: &Lab, interrupt: &Interrupt) -> Result<Vec<Load>> {
    let client = lab.pod("client", 1, 1);
    let mut all = Vec::new();
    for times in LOOKUPS {
        interrupt.check()?;
        let mut dnsperf = DnsPerf::new(lab, &client, ["-n", times])?;
        let others = loaded();
        let agent = Agent::start(&[]);
        let programs = Programs::since(&others)?;
        let before = (processor_time(agent.pid()), programs.seconds()?);
        let run = dnsperf.run(&client)?;
        // An answer may wait a quarter of a second for the proof that it was not dropped.
        std::thread::sleep(Duration::from_secs(1));
        let metrics = agent.metrics();
        let ended = metrics.sum("tracer_node_dns_lookups_total", &[("outcome", "noerror")]);
        all.push(Load {
            count: run.completed as u64,
            per_second: run.per_second,
            processor: processor_time(agent.pid()) - before.0,
            kernel: programs.seconds()? - before.1,
            counted: ended / run.completed,
            events: details(&metrics, "dns"),
            resident: mebibytes(agent.pid()),
        });
        agent.stop_cleanly();
    }
    Ok(all)
}

pub fn of_failures(lab: &mut Lab, interrupt: &Interrupt) -> Result<Vec<Load>> {
    let pods = [lab.pod("a", 1, 1), lab.pod("b", 2, 1)];
    let mut all = Vec::new();
    for wanted in FAILURES {
        interrupt.check()?;
        let others = loaded();
        let agent = Agent::start(&[]);
        let programs = Programs::since(&others)?;
        let before = (processor_time(agent.pid()), programs.seconds()?);
        let fulls = table_fulls(Family::V4);
        let limits = Thresholds::set(lab.lock(), LIMITS);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for pod in &pods {
                scope.spawn(|| pod.netns.run(|| refuse(pod, wanted / 2)));
            }
        });
        let took = begun.elapsed();
        drop(limits);
        let fulls = table_fulls(Family::V4) - fulls;
        // The next reading is complete.
        std::thread::sleep(Duration::from_secs(2));
        let metrics = agent.metrics();
        all.push(Load {
            count: fulls,
            per_second: fulls as f64 / took.as_secs_f64(),
            processor: processor_time(agent.pid()) - before.0,
            kernel: programs.seconds()? - before.1,
            counted: metrics.sum(NODE_CREATES, &FULL) / fulls as f64,
            events: details(&metrics, "neigh"),
            resident: mebibytes(agent.pid()),
        });
        agent.stop_cleanly();
    }
    Ok(all)
}

/// Datagrams to neighbours that nobody is, one after the other.
fn refuse(pod: &tests::netns::Pod, count: u64) {
    let socket = UdpSocket::bind((pod.address(Family::V4), 0)).expect("the pod has the address");
    socket
        .set_nonblocking(true)
        .expect("sockets can be told not to wait");
    for n in 0..count {
        let to = pod.neighbour(Family::V4, FIRST_SILENT + (n % 20_000) as u16);
        // The kernel's counter says how many were refused.
        let _ = socket.send_to(b"burst", (to, 9));
    }
}
