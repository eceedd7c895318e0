//! What the whole host shares: one test at a time may change it, and what it changed comes back.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::spawn;
use std::time::Duration;

use crate::wait::check_interrupt;

/// The right to change what the whole host shares; one test at a time has it, over all processes.
///
/// The file also notes the settings while they are changed: a test process that was killed leaves
/// them behind, and the next one that takes the lock puts them back.
#[derive(Debug)]
pub struct HostLock {
    file: File,
}

const LOCK_PATH: &str = "/run/tracer-tests.lock";
/// How often a wish to end is looked for.
const TICK: Duration = Duration::from_millis(50);

impl HostLock {
    /// Waits for the lock.
    pub fn take() -> Self {
        require_host();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(LOCK_PATH)
            .unwrap_or_else(|e| panic!("cannot open {LOCK_PATH}: {e}"));
        if file.try_lock().is_err() {
            eprintln!("waiting for {LOCK_PATH}, which another test or demo has");
            // In the kernel's queue, where nobody overtakes, on a thread: a signal must end the waiting.
            let (send, locked) = channel();
            let same = file.try_clone().expect("the file is open");
            spawn(move || send.send(same.lock()));
            while let Err(RecvTimeoutError::Timeout) = locked.recv_timeout(TICK).map(|locked| {
                locked.unwrap_or_else(|e| panic!("cannot lock {LOCK_PATH}: {e}"));
            }) {
                check_interrupt();
            }
        }
        let mut lock = Self { file };
        lock.restore_after_kill();
        lock
    }

    fn restore_after_kill(&mut self) {
        let mut noted = String::new();
        self.file.rewind().expect("lock file can be read");
        self.file
            .read_to_string(&mut noted)
            .expect("lock file can be read");
        for line in noted.lines() {
            if let Some((path, value)) = line.split_once(' ') {
                eprintln!("a killed test left {path} changed; back to {value}");
                write(path, value);
            }
        }
        self.note("");
    }

    fn note(&mut self, text: &str) {
        self.file.set_len(0).expect("lock file can be written");
        self.file.rewind().expect("lock file can be written");
        self.file
            .write_all(text.as_bytes())
            .expect("lock file can be written");
    }
}

/// Panics with the reason where these tests cannot run.
pub fn require_host() {
    assert!(
        rustix::process::geteuid().is_root(),
        "these tests make network namespaces and load eBPF programs: run them as root"
    );
    let path = "/proc/sys/net/ipv4/neigh/default/gc_thresh3";
    assert!(
        fs::exists(path).unwrap_or(false),
        "{path} is missing: run these tests in the host's network namespace"
    );
}

/// Changed settings; the old values come back on drop, also on panic.
///
/// It has the lock for as long as it lives, hence one at a time.
#[derive(Debug)]
pub struct Settings<'a> {
    lock: &'a mut HostLock,
    old: Vec<(String, String)>,
}

impl<'a> Settings<'a> {
    /// Writes each value to its file.
    pub fn set(lock: &'a mut HostLock, new: &[(String, String)]) -> Self {
        let read = |path: &String| {
            let value =
                fs::read_to_string(path).unwrap_or_else(|e| panic!("cannot read {path}: {e}"));
            (path.clone(), value.trim().to_owned())
        };
        let old: Vec<(String, String)> = new.iter().map(|(path, _)| read(path)).collect();
        let lines = old.iter().map(|(path, value)| format!("{path} {value}\n"));
        lock.note(&lines.collect::<String>());
        let guard = Self { lock, old };
        for (path, value) in new {
            write(path, value);
        }
        guard
    }
}

impl Drop for Settings<'_> {
    fn drop(&mut self) {
        for (path, value) in &self.old {
            write(path, value);
        }
        self.lock.note("");
    }
}

fn write(path: &str, value: &str) {
    fs::write(path, value).unwrap_or_else(|e| panic!("cannot write {value} to {path}: {e}"));
}
