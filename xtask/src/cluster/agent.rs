//! The agent on the node, and what it says.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    lab::{self, Cluster, NODE},
    pki,
};
use crate::{disk, sh};

/// How long the agent has to show something.
const PATIENCE: Duration = Duration::from_secs(20);

/// When the first event of a pod came out, by the pod's name; seconds since 1970.
type FirstEvents = Arc<Mutex<HashMap<String, f64>>>;

/// The agent.
pub struct Agent {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
    first: FirstEvents,
}

impl Agent {
    /// Starts it with a service account of its own and waits until it is ready.
    pub fn start(cluster: &Cluster, binary: &Path) -> Result<Self> {
        let token = lab::until("the account has a token", || {
            let secret = cluster.kubectl(&[
                "--namespace=kube-system",
                "get",
                "serviceaccount/tracer",
                "-o",
                "jsonpath={.secrets[0].name}",
            ])?;
            cluster.kubectl(&[
                "--namespace=kube-system",
                "get",
                "secret",
                &secret,
                "-o",
                "go-template={{.data.token | base64decode}}",
            ])
        })?;
        let config = cluster.folder().join("agent.kubeconfig");
        disk::write(&config, pki::kubeconfig(&format!("{{token: \"{token}\"}}")))?;
        let socket = cluster.folder().join("agent.sock");
        let log = cluster.folder().join("agent.log");
        let child = cluster
            .inside(binary)
            .args(["agent", "--pods", "auto", "--node", NODE])
            .args(["--dns-timeout", "2s", "--state-dir", "none"])
            .arg("--api")
            .arg(format!("unix:{}", socket.display()))
            .env("KUBECONFIG", &config)
            .stdin(Stdio::null())
            .stderr(disk::create(&log)?)
            .spawn()
            .context("cannot start the agent")?;
        let agent = Self {
            child,
            socket,
            log,
            first: FirstEvents::default(),
        };
        until(|| {
            let source = agent.source()?;
            ensure!(
                source["reason"] == "",
                "{source}; it said: {}",
                agent.said()
            );
            Ok(())
        })?;
        agent.follow()?;
        Ok(agent)
    }

    /// What it said on stderr.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its source `kubernetes`.
    pub fn source(&self) -> Result<Value> {
        let snapshot = self.snapshot()?;
        let sources = snapshot["sources"].as_array();
        let found = sources.and_then(|all| all.iter().find(|of| of["name"] == "kubernetes"));
        Ok(found.context("no source kubernetes")?.clone())
    }

    /// A pod's lookups with this outcome.
    pub fn lookups(&self, namespace: &str, pod: &str, outcome: &str) -> Result<u64> {
        self.figure(namespace, pod, &format!("/dns/outcomes/{outcome}"))
    }

    /// Queries that a pod answered so.
    pub fn served(&self, namespace: &str, pod: &str, outcome: &str) -> Result<u64> {
        self.figure(namespace, pod, &format!("/dns/served/{outcome}"))
    }

    /// 0 where the pod has no row.
    fn figure(&self, namespace: &str, pod: &str, path: &str) -> Result<u64> {
        let snapshot = self.snapshot()?;
        let pods = snapshot["pods"].as_array().context("no pods")?;
        let row = pods
            .iter()
            .find(|row| row["namespace"] == namespace && row["pod"] == pod);
        Ok(row
            .and_then(|row| row.pointer(path))
            .and_then(Value::as_u64)
            .unwrap_or_default())
    }

    /// Fails where a lookup was counted as nobody's.
    pub fn nobody_is_unknown(&self) -> Result<()> {
        let unknown = self.snapshot()?;
        let unknown = unknown["pods"]
            .as_array()
            .and_then(|pods| pods.iter().find(|row| row["pod"] == "(unknown)"));
        let started = unknown.and_then(|row| row.pointer("/dns/started")?.as_u64());
        ensure!(started.unwrap_or_default() == 0, "(unknown): {unknown:?}");
        Ok(())
    }

    /// When the pod's first failure came out, seconds since 1970.
    pub fn first_named(&self, pod: &str) -> Result<f64> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.get(pod).copied().context("no event of the pod")
    }

    /// Ends it; it must end cleanly.
    pub fn stop(&mut self) -> Result<()> {
        sh::quietly(std::process::Command::new("kill").arg(self.child.id().to_string()))?;
        let status = self.child.wait()?;
        ensure!(
            status.success(),
            "the agent ended badly ({status}): {}",
            self.said()
        );
        Ok(())
    }

    fn snapshot(&self) -> Result<Value> {
        let mut stream = self.request("/api/v1/snapshot")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("half an answer")?;
        Ok(serde_json::from_str(body)?)
    }

    /// Notes when events come out.
    fn follow(&self) -> Result<()> {
        let stream = self.request("/api/v1/events")?;
        let first = Arc::clone(&self.first);
        thread::spawn(move || {
            for line in BufReader::new(stream).lines() {
                let Ok(line) = line else { return };
                // The head and the sizes of chunks are no objects.
                let Ok(event) = serde_json::from_str::<Value>(&line) else {
                    continue;
                };
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                if let (Some(pod), Ok(now)) = (event["pod"]["name"].as_str(), now) {
                    let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
                    first.entry(pod.to_owned()).or_insert(now.as_secs_f64());
                }
            }
        });
        Ok(())
    }

    fn request(&self, target: &str) -> Result<UnixStream> {
        let mut stream = UnixStream::connect(&self.socket)?;
        write!(
            stream,
            "GET {target} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n"
        )?;
        Ok(stream)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Mostly it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Tries for a while; the last failure is the error.
pub fn until<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(why) if Instant::now() > deadline => return Err(why),
            Err(_) => thread::sleep(Duration::from_millis(200)),
        }
    }
}
