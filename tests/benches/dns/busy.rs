//! A resolver as busy as it can be: dnsperf asks dnsmasq, with and without the agent in turn.

use std::fs;
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;
use tempfile::TempDir;
use tests::bench::{Interrupt, Spread};
use tests::dns::{A, packet};
use tests::netns::Pod;
use tests::process::{Reaped, run};
use tests::{Agent, Family, Lab, eventually};

const ROUNDS: usize = 9;
/// Of one run of dnsperf, seconds.
const SECONDS: u64 = 3;
/// Names asked for in turn.
const NAMES: usize = 1000;

/// What came out.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Busy {
    /// Queries a second without the agent.
    pub without: Spread,
    /// Queries a second with it.
    pub with: Spread,
    /// With ÷ without, of the two neighbouring runs of a round.
    pub ratio: Spread,
    /// Lookups that the agent saw end well ÷ queries that dnsperf saw answered.
    pub followed: Spread,
}

struct Run {
    completed: f64,
    per_second: f64,
}

struct Scene {
    client: Command,
    _server: Reaped,
    _folder: TempDir,
}

/// Rounds of two runs each; which comes first changes, so that a trend of the machine favours none.
pub fn measure(lab: &Lab, client: &Pod, interrupt: &Interrupt) -> Result<Busy> {
    let mut scene = Scene::new(lab, client)?;
    scene.run(client)?; // warms up
    let (mut without, mut with, mut followed) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        for agent in [round % 2 == 0, round % 2 != 0] {
            interrupt.check()?;
            if !agent {
                without.push(scene.run(client)?.per_second);
                continue;
            }
            let agent = Agent::start(&[]);
            let run = scene.run(client)?;
            // An answer may wait a quarter of a second for the proof that it was not dropped.
            std::thread::sleep(Duration::from_millis(500));
            let ended = agent
                .metrics()
                .sum("tracer_node_dns_lookups_total", &[("outcome", "noerror")]);
            agent.stop_cleanly();
            followed.push(ended / run.completed);
            with.push(run.per_second);
        }
    }
    let ratio = with
        .iter()
        .zip(&without)
        .map(|(with, without)| with / without);
    Ok(Busy {
        ratio: Spread::of(ratio).context("no rounds")?,
        without: Spread::of(without.iter().copied()).context("no rounds")?,
        with: Spread::of(with.iter().copied()).context("no rounds")?,
        followed: Spread::of(followed.iter().copied()).context("no rounds")?,
    })
}

impl Scene {
    fn new(lab: &Lab, client: &Pod) -> Result<Self> {
        let address = client.hub(Family::V4).to_string();
        let folder = tempfile::tempdir()?;
        let names = folder.path().join("names");
        let lines: Vec<String> = (0..NAMES).map(|n| format!("n{n}.bench.test A")).collect();
        fs::write(&names, lines.join("\n") + "\n")?;
        let server = lab.hub.run(|| {
            Command::new("dnsmasq")
                .args([
                    "--keep-in-foreground",
                    "--conf-file=/dev/null",
                    "--pid-file=",
                ])
                .args([
                    "--user=root",
                    "--no-resolv",
                    "--no-hosts",
                    "--bind-interfaces",
                ])
                .args([
                    &format!("--listen-address={address}"),
                    "--except-interface=lo",
                ])
                .arg("--address=/bench.test/192.0.2.1")
                .stdin(Stdio::null())
                .spawn()
        });
        let server = Reaped(server.context("cannot run dnsmasq")?);
        let probe = client.netns.run(|| UdpSocket::bind("0.0.0.0:0"))?;
        probe.connect((client.hub(Family::V4), 53))?;
        probe.set_read_timeout(Some(Duration::from_millis(100)))?;
        eventually(Duration::from_secs(5), || {
            probe.send(&packet::query(1, packet::QUERY, "n0.bench.test", A))?;
            probe.recv(&mut [0; 512])
        });
        let mut client = Command::new("dnsperf");
        client
            .args(["-s", &address, "-l", &SECONDS.to_string(), "-c", "4", "-d"])
            .arg(&names);
        Ok(Self {
            client,
            _server: server,
            _folder: folder,
        })
    }

    fn run(&mut self, pod: &Pod) -> Result<Run> {
        let limit = Duration::from_secs(SECONDS + 10);
        let ended = pod.netns.run(|| run(&mut self.client, limit));
        anyhow::ensure!(ended.status.success(), "dnsperf failed: {}", ended.stderr);
        let figure = |label: &str| {
            let line = ended
                .stdout
                .lines()
                .find_map(|line| line.trim().strip_prefix(label));
            let word = line.and_then(|rest| rest.split_whitespace().next());
            word.and_then(|word| word.parse::<f64>().ok())
                .with_context(|| format!("dnsperf does not say `{label}`:\n{}", ended.stdout))
        };
        Ok(Run {
            completed: figure("Queries completed:")?,
            per_second: figure("Queries per second:")?,
        })
    }
}
