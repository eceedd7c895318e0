//! `tracer events` as a child, its lines with the moment they came.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::{Collected, Reaped, collect, tracer};
use crate::wait::patient;

/// One event.
#[derive(Clone, Debug)]
pub struct Event {
    /// When its line was read here.
    pub at: Instant,
    /// What it says.
    pub json: Value,
}

impl Event {
    /// A text field, empty without one.
    pub fn text(&self, field: &str) -> &str {
        self.json[field].as_str().unwrap_or_default()
    }

    /// When the kernel saw it, in seconds since midnight, UTC.
    pub fn second_of_day(&self) -> f64 {
        let time = self.text("time");
        let clock = time.split(['T', 'Z']).nth(1).expect("RFC 3339");
        clock.split(':').fold(0.0, |sum, part| {
            sum * 60.0 + part.parse::<f64>().expect("a number")
        })
    }

    /// Is it of this kind and pod?
    pub fn is(&self, kind: &str, pod: &str) -> bool {
        self.text("kind") == kind && self.json["pod"]["name"] == pod
    }
}

/// A running `tracer events`.
#[derive(Debug)]
pub struct Events {
    // Killed on drop, which ends the reader too.
    _child: Reaped,
    stderr: Collected,
    lines: Receiver<Event>,
    /// All events read so far.
    pub seen: Vec<Event>,
}

impl Events {
    /// Follows the agent behind this socket, from what it still holds.
    pub fn follow(socket: &Path) -> Self {
        let mut child = tracer()
            .args(["events", "--output", "json", "--since", "10m", "--agent"])
            .arg(format!("unix:{}", socket.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tracer events runs");
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = collect(child.stderr.take().expect("stderr is piped"));
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let at = Instant::now();
                let Ok(line) = line else { return };
                let json = serde_json::from_str(&line).unwrap_or_else(|e| {
                    panic!("tracer events printed a line that is no JSON ({e}): {line}")
                });
                if send.send(Event { at, json }).is_err() {
                    return;
                }
            }
        });
        Self {
            _child: Reaped(child),
            stderr,
            lines,
            seen: Vec::new(),
        }
    }

    /// The first event, of those seen and those to come, for which `wanted` holds; panics after
    /// `deadline`.
    pub fn wait(&mut self, deadline: Duration, wanted: impl Fn(&Event) -> bool) -> Event {
        self.find(deadline, wanted)
            .unwrap_or_else(|| panic!("no such event in {deadline:?}, but {}", self.summary()))
    }

    /// The same, or `None` after `deadline`.
    pub fn find(&mut self, deadline: Duration, wanted: impl Fn(&Event) -> bool) -> Option<Event> {
        if let Some(event) = self.seen.iter().find(|event| wanted(event)) {
            return Some(event.clone());
        }
        let end = Instant::now() + patient(deadline);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(event) => {
                    self.seen.push(event.clone());
                    if wanted(&event) {
                        return Some(event);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("tracer events ended; it had shown {}", self.summary())
                }
                Err(RecvTimeoutError::Timeout) => return None,
            }
        }
    }

    /// Takes in all that come within this time.
    pub fn listen(&mut self, time: Duration) {
        let end = Instant::now() + time;
        let left = || end.saturating_duration_since(Instant::now());
        while let Ok(event) = self.lines.recv_timeout(left()) {
            self.seen.push(event);
        }
    }

    fn summary(&self) -> String {
        let last: Vec<String> = self
            .seen
            .iter()
            .rev()
            .take(5)
            .map(|event| event.json.to_string())
            .collect();
        format!(
            "{} events, the last:\n{}\n{}",
            self.seen.len(),
            last.join("\n"),
            self.stderr.text()
        )
    }
}
