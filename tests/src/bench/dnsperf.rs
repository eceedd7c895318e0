//! dnsperf asks dnsmasq, as fast as it goes.

use std::fs;
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::dns::{A, packet};
use crate::netns::Pod;
use crate::process::{Reaped, run};
use crate::{Family, Lab, eventually};

/// Names asked for in turn.
const NAMES: usize = 1000;
/// No run takes longer.
const LIMIT: Duration = Duration::from_mins(2);

/// How a run went.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Queries that were answered.
    pub completed: f64,
    /// Such in a second.
    pub per_second: f64,
}

/// dnsmasq in the hub's namespace, dnsperf in the client's.
#[derive(Debug)]
pub struct DnsPerf {
    client: Command,
    _server: Reaped,
    _folder: TempDir,
}

impl DnsPerf {
    /// Starts the server. `how` is dnsperf's `-l SECONDS` or `-n TIMES` (of a thousand names).
    pub fn new(lab: &Lab, client: &Pod, how: [&str; 2]) -> Result<Self> {
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
            .args(["-s", &address, "-c", "4", how[0], how[1], "-d"])
            .arg(&names);
        Ok(Self {
            client,
            _server: server,
            _folder: folder,
        })
    }

    /// One run of dnsperf.
    pub fn run(&mut self, pod: &Pod) -> Result<Run> {
        let ended = pod.netns.run(|| run(&mut self.client, LIMIT));
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
