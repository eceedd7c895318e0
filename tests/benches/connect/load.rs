//! Connections between the client's namespace and the hub's, one at a time.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use tests::netns::Pod;
use tests::{Family, Lab};

/// What is going on while the programs are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A connection that is established and closed, by the server first.
    Connection,
    /// An attempt at a closed port.
    Refusal,
    /// Nothing; what tracer runs by itself.
    SecondAtRest,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Connection, Self::Refusal, Self::SecondAtRest];

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Refusal => "refused attempt",
            Self::SecondAtRest => "second at rest",
        }
    }

    /// How many make one measurement.
    pub const fn count(self) -> u16 {
        match self {
            Self::SecondAtRest => 1,
            _ => 5000,
        }
    }
}

const OPEN: u16 = 8080;
const CLOSED: u16 = 8081;

/// The server; its thread ends on drop.
pub struct Load {
    client: Pod,
    hub: SocketAddr,
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Load {
    pub fn start(lab: &Lab, client: &Pod) -> Result<Self> {
        let hub = SocketAddr::new(client.hub(Family::V4), OPEN);
        let listener = lab.hub.run(|| TcpListener::bind(hub))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let server = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // Closed at once; a client that is gone again has had its connection.
                if let Err(error) = listener.accept() {
                    assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{error}");
                }
            }
        });
        Ok(Self {
            client: client.clone(),
            hub,
            stop,
            server: Some(server),
        })
    }

    /// As much of this kind as [`Kind::count`] says.
    pub fn run(&self, kind: Kind) -> Result<()> {
        self.client.netns.run(|| {
            for _ in 0..kind.count() {
                match kind {
                    Kind::Connection => connect(self.hub)?,
                    Kind::Refusal => {
                        let to = SocketAddr::new(self.hub.ip(), CLOSED);
                        let answer = TcpStream::connect(to).err().map(|e| e.kind());
                        let refused = answer == Some(ErrorKind::ConnectionRefused);
                        ensure!(refused, "{to} answered {answer:?}");
                    }
                    Kind::SecondAtRest => sleep(Duration::from_secs(1)),
                }
            }
            Ok(())
        })
    }

    /// Connections a second, for this long.
    pub fn rate(&self, time: Duration) -> Result<f64> {
        self.client.netns.run(|| {
            let begun = Instant::now();
            let mut connections = 0_u32;
            while begun.elapsed() < time {
                connect(self.hub)?;
                connections += 1;
            }
            Ok(f64::from(connections) / begun.elapsed().as_secs_f64())
        })
    }
}

/// Connects and waits for the server's good-bye.
fn connect(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(to).context("the server does not answer")?;
    ensure!(stream.read(&mut [0])? == 0, "the server says nothing");
    Ok(())
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes it up; fails only where it has ended.
        let _ = self.client.netns.run(|| TcpStream::connect(self.hub));
        if let Some(server) = self.server.take() {
            // A server that panicked has said so.
            let _ = server.join();
        }
    }
}
