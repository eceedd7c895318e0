//! Child processes with a time limit.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

use crate::wait::eventually;

/// Runs a command of the lab itself and panics with what it said if it fails.
pub fn check(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| {
        panic!("cannot run {command:?}: {e}; the tests need iproute2 and util-linux")
    });
    assert!(
        output.status.success(),
        "{command:?} failed ({}): {}; these tests need root",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
}

/// Runs `f`, and the threads and processes that it starts, on the CPU that runs it now.
pub fn on_one_cpu<T>(f: impl FnOnce() -> T) -> T {
    let all = sched_getaffinity(None).expect("the CPUs can be read");
    let mut one = CpuSet::new();
    one.set(sched_getcpu());
    sched_setaffinity(None, &one).expect("a thread can keep to its CPU");
    let done = f();
    sched_setaffinity(None, &all).expect("and leave it");
    done
}

/// How a process ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit status.
    pub status: ExitStatus,
    /// All of stdout.
    pub stdout: String,
    /// All of stderr.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
}

impl Ended {
    /// Panics unless the process ended with `code` and said why in one line that has every one of
    /// `words` in it.
    pub fn assert_refused(&self, code: i32, words: &[&str]) {
        assert_eq!(self.status.code(), Some(code), "exit code: {self:#?}");
        let lines: Vec<&str> = self.stderr.lines().collect();
        assert_eq!(lines.len(), 1, "one line on stderr: {self:#?}");
        for word in words {
            assert!(lines[0].contains(word), "{word:?} in the line: {self:#?}");
        }
        assert!(self.stdout.is_empty(), "nothing on stdout: {self:#?}");
    }
}

/// Runs a command to its end, at most `limit`; panics if it takes longer.
pub fn run(command: &mut Command, limit: Duration) -> Ended {
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    let stdout = read_all(child.stdout.take().expect("stdout is piped"));
    let stderr = read_all(child.stderr.take().expect("stderr is piped"));
    let mut child = Reaped(child);
    let status = eventually(limit, || {
        let status = child.0.try_wait().expect("child can be waited for");
        status.ok_or_else(|| format!("{command:?} still runs"))
    });
    Ended {
        status,
        stdout: stdout.join().expect("stdout is read"),
        stderr: stderr.join().expect("stderr is read"),
        took: started.elapsed(),
    }
}

fn read_all(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // A pipe that breaks has given all it had.
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// What a process has said on a pipe so far.
#[derive(Clone, Debug, Default)]
pub struct Collected(Arc<Mutex<String>>);

impl Collected {
    /// All of it.
    pub fn text(&self) -> String {
        self.0.lock().expect("no reader panics").clone()
    }
}

/// Reads a pipe's lines on a thread, until it ends.
pub fn collect(pipe: impl Read + Send + 'static) -> Collected {
    let collected = Collected::default();
    let into = collected.clone();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let mut all = into.0.lock().expect("no reader panics");
            all.push_str(&line);
            all.push('\n');
        }
    });
    collected
}

/// A child that is killed and waited for on drop, also on panic.
#[derive(Debug)]
pub struct Reaped(pub Child);

impl Reaped {
    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.0.id()).expect("process ids fit");
        let pid = Pid::from_raw(pid).expect("process ids are not 0");
        kill_process(pid, signal).expect("signal is sent");
    }

    /// Waits for the end, at most `limit`; panics if it takes longer.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let pid = self.0.id();
        eventually(limit, || {
            let status = self.0.try_wait().expect("child can be waited for");
            status.ok_or_else(|| format!("process {pid} still runs"))
        })
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        // Both fail only when the child has been waited for already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Path of the binary under test: `TRACER_BIN`, else the workspace's debug build.
pub fn tracer_path() -> PathBuf {
    let path = std::env::var_os("TRACER_BIN").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/debug/tracer"),
        PathBuf::from,
    );
    path.canonicalize().unwrap_or_else(|e| {
        panic!(
            "{}: {e}; run `cargo build --package tracer`",
            path.display()
        )
    })
}

/// The binary under test, to be given arguments. None of its variables is inherited.
pub fn tracer() -> Command {
    let mut command = Command::new(tracer_path());
    without_settings(&mut command);
    command
}

/// Takes tracer's environment variables away from a command. `TRACER_WITHOUT` is no setting: with it
/// all tests can be run by another mechanism.
pub fn without_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if (name.to_string_lossy().starts_with("TRACER_") && name != "TRACER_WITHOUT")
            || name == "NODE_NAME"
            || name == "KUBECONFIG"
        {
            command.env_remove(name);
        }
    }
}
