//! An agent under test, as a child process.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::events::Events;
use crate::http::{self, Response};
use crate::metrics::Metrics;
use crate::process::{
    Collected, Ended, Reaped, collect, run, tracer, tracer_path, without_settings,
};
use crate::wait::{eventually, patient};

/// A running agent; killed on drop.
#[derive(Debug)]
pub struct Agent {
    child: Reaped,
    listen: SocketAddr,
    folder: TempDir,
    stderr: Said,
}

impl Agent {
    /// Starts one with these arguments more and waits until it is ready; panics with what it said
    /// if it ends or is not ready within 15 s.
    pub fn start(arguments: &[&str]) -> Self {
        let arguments = [&["--node", "lab"], arguments].concat();
        let mut agent = Self::launch(&[], &arguments);
        agent.wait_ready();
        agent
    }

    /// Starts one by a wrapper, such as `setpriv …` or `unshare …`, and does not wait.
    pub fn launch(wrapper: &[&str], arguments: &[&str]) -> Self {
        Self::launch_in(
            tempfile::tempdir().expect("temporary folders can be made"),
            wrapper,
            arguments,
        )
    }

    /// As [`Agent::launch`], with its socket in this folder.
    pub fn launch_in(folder: TempDir, wrapper: &[&str], arguments: &[&str]) -> Self {
        let listen = free_address();
        let api = format!("unix:{}", socket(&folder).display());
        let defaults = [("--listen", &*listen.to_string()), ("--api", &api)];
        let mut command = command(wrapper, arguments, &defaults);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
        let stderr = Said(collect(child.stderr.take().expect("stderr is piped")));
        Self {
            child: Reaped(child),
            listen,
            folder,
            stderr,
        }
    }

    /// Waits for `/readyz` and the line on stderr that says so.
    pub fn wait_ready(&mut self) {
        eventually(Duration::from_secs(15), || {
            let stderr = self.stderr();
            let ended = self.child.0.try_wait().expect("child can be waited for");
            assert!(
                ended.is_none(),
                "the agent ended ({ended:?}); it said:\n{stderr}"
            );
            let ready = match http::tcp(self.listen, "GET", "/readyz") {
                Ok(response) if response.status == 200 => stderr.contains("ready"),
                _ => false,
            };
            if ready {
                Ok(())
            } else {
                Err(format!("the agent is not ready; it said:\n{stderr}"))
            }
        });
    }

    /// Where metrics and health are.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// The API's socket.
    pub fn socket(&self) -> PathBuf {
        socket(&self.folder)
    }

    /// As `--agent` wants it.
    pub fn address(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// What it said on stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.0.text()
    }

    /// Asks on `--listen`.
    pub fn http(&self, method: &str, target: &str) -> Response {
        http::tcp(self.listen, method, target)
            .unwrap_or_else(|e| panic!("{method} {target}: {e}; it said:\n{}", self.stderr()))
    }

    /// Asks on `--api`.
    pub fn api(&self, method: &str, target: &str) -> Response {
        http::unix(&self.socket(), method, target)
            .unwrap_or_else(|e| panic!("{method} {target}: {e}; it said:\n{}", self.stderr()))
    }

    /// Scrapes it.
    pub fn metrics(&self) -> Metrics {
        let response = self.http("GET", "/metrics");
        assert_eq!(response.status, 200, "{}", response.body);
        Metrics::parse(&response.body)
    }

    /// What `tracer why` says of the node, or of a pod, as `NAMESPACE/POD`.
    pub fn why(&self, pod: Option<&str>) -> Value {
        let mut command = tracer();
        command.args(["why", "--output", "json", "--agent", &self.address()]);
        let ended = run(command.args(pod), Duration::from_secs(10));
        assert!(ended.status.success(), "{ended:#?}");
        serde_json::from_str(&ended.stdout).expect("the verdict is JSON")
    }

    /// `/api/v1/snapshot`.
    pub fn snapshot(&self) -> Value {
        let response = self.api("GET", "/api/v1/snapshot");
        assert_eq!(response.status, 200, "{}", response.body);
        serde_json::from_str(&response.body).expect("the snapshot is JSON")
    }

    /// A hook, as its snapshot has it.
    pub fn hook(&self, name: &str) -> Value {
        let snapshot = self.snapshot();
        let hooks = snapshot["hooks"].as_array().expect("they are a list");
        let hook = hooks.iter().find(|hook| hook["name"] == name);
        hook.unwrap_or_else(|| panic!("no hook {name}: {hooks:?}"))
            .clone()
    }

    /// Follows its events.
    pub fn events(&self) -> Events {
        Events::follow(&self.socket())
    }

    /// Sends a signal and waits for the end: how it ended and how long that took.
    pub fn stop(&mut self, signal: Signal) -> (ExitStatus, Duration) {
        let asked = Instant::now();
        self.child.signal(signal);
        let status = self.child.wait(Duration::from_secs(10));
        (status, asked.elapsed())
    }

    /// Kills it, as the kernel does when memory runs out, and gives back its folder.
    pub fn kill(mut self) -> TempDir {
        self.stop(Signal::KILL);
        let Self { folder, .. } = self;
        folder
    }

    /// Stops it and panics unless that was clean and quick.
    pub fn stop_cleanly(mut self) {
        let (status, took) = self.stop(Signal::TERM);
        assert!(status.success(), "{status}; it said:\n{}", self.stderr());
        assert!(
            took < patient(Duration::from_secs(5)),
            "stopping took {took:?}"
        );
    }
}

/// What no agent of a test ought to say: it could not read from the kernel, decode or answer, or one of its threads ended.
const FAULTS: [&str; 3] = [" ERROR ", "\"level\":\"ERROR\"", "panicked at"];

/// What an agent says; panics on drop if there is a fault in it.
#[derive(Debug)]
struct Said(Collected);

impl Drop for Said {
    fn drop(&mut self) {
        let said = self.0.text();
        let is_sound = !FAULTS.iter().any(|fault| said.contains(fault));
        assert!(
            is_sound || std::thread::panicking(),
            "the agent's own errors:\n{said}"
        );
    }
}

/// Runs an agent that is expected to end by itself, with exit code and words on stderr; it has five
/// seconds.
pub fn run_refused(wrapper: &[&str], arguments: &[&str]) -> Ended {
    let listen = free_address().to_string();
    let defaults = [("--listen", &*listen), ("--api", "none")];
    run(
        &mut command(wrapper, arguments, &defaults),
        Duration::from_secs(5),
    )
}

/// `WRAPPER… tracer agent ARGUMENTS…`, with the flags among `defaults` that are not given.
fn command(wrapper: &[&str], arguments: &[&str], defaults: &[(&str, &str)]) -> Command {
    let binary = tracer_path();
    let mut words = wrapper.to_vec();
    words.extend([binary.to_str().expect("path is text"), "agent"]);
    words.extend(arguments);
    for (flag, value) in [&[("--state-dir", "none")], defaults].concat() {
        if !arguments.contains(&flag) {
            words.extend([flag, value]);
        }
    }
    let mut command = Command::new(words[0]);
    without_settings(&mut command);
    command.args(&words[1..]);
    command
}

fn socket(folder: &TempDir) -> PathBuf {
    Path::join(folder.path(), "api.sock")
}

/// An address on the loopback device that is free now. Another process may take it before the agent
/// does; then the test says "in use" and was unlucky.
pub fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("a port is free")
}
