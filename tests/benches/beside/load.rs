//! The load that they watch: as much as the machine can.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;
use tests::bench::dnsperf::DnsPerf;
use tests::netns::Pod;
use tests::{Family, Lab};

/// Of one run.
const TIME: Duration = Duration::from_secs(2);
const SECONDS: &str = "2";
const PORT: u16 = 5300;
/// Bytes of a datagram: about a query's.
const DATAGRAM: usize = 48;
/// Bytes written to a TCP connection at once.
const CHUNK: usize = 64 << 10;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// dnsperf against dnsmasq: queries a second.
    Lookups,
    /// Datagrams to a port that is no DNS port: such a second as arrive.
    Datagrams,
    /// One TCP connection: bytes a second.
    Stream,
}

impl Load {
    pub const ALL: [Self; 3] = [Self::Lookups, Self::Datagrams, Self::Stream];

    /// For people: what is counted, and how many are one of it.
    pub const fn unit(self) -> (&'static str, f64) {
        match self {
            Self::Lookups => ("lookups/s", 1.0),
            Self::Datagrams => ("datagrams/s", 1.0),
            Self::Stream => ("TCP, Gbit/s", 1e9 / 8.0),
        }
    }
}

/// Both ends of all of them.
pub struct Loads<'a> {
    lab: &'a Lab,
    client: &'a Pod,
    dnsperf: DnsPerf,
}

impl<'a> Loads<'a> {
    pub fn new(lab: &'a Lab, client: &'a Pod) -> Result<Self> {
        Ok(Self {
            lab,
            client,
            dnsperf: DnsPerf::new(lab, client, ["-l", SECONDS])?,
        })
    }

    /// How many there were in a second.
    pub fn run(&mut self, load: Load) -> Result<f64> {
        match load {
            Load::Lookups => Ok(self.dnsperf.run(self.client)?.per_second),
            Load::Datagrams => self.datagrams(),
            Load::Stream => self.stream(),
        }
    }

    fn datagrams(&self) -> Result<f64> {
        let to = SocketAddr::new(self.client.hub(Family::V4), PORT);
        let server = self.lab.hub.run(|| UdpSocket::bind(to))?;
        server.set_read_timeout(Some(Duration::from_millis(100)))?;
        let client = self
            .client
            .netns
            .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
        client.connect(to)?;
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let sending = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // Refused where a queue is full: what arrives is counted.
                    let _ = client.send(&[1; DATAGRAM]);
                }
            });
            let received = count(TIME, || match server.recv(&mut [0; DATAGRAM]) {
                Ok(_) => Ok(1),
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
                Err(error) => Err(error.into()),
            });
            stop.store(true, Ordering::Relaxed);
            sending.join().expect("the sender does not panic");
            received
        })
    }

    fn stream(&self) -> Result<f64> {
        let to = SocketAddr::new(self.client.hub(Family::V4), PORT);
        let listener = self.lab.hub.run(|| TcpListener::bind(to))?;
        let mut client = self.client.netns.run(|| TcpStream::connect(to))?;
        let (mut server, _) = listener.accept()?;
        thread::scope(|scope| {
            let written = vec![1; CHUNK];
            scope.spawn(move || while client.write_all(&written).is_ok() {});
            let mut chunk = vec![0; CHUNK];
            let bytes = count(TIME, || Ok(server.read(&mut chunk)?));
            // The client's next write fails.
            drop(server);
            bytes
        })
    }
}

/// Does it for that long; how much of it there was in a second.
fn count(time: Duration, mut once: impl FnMut() -> Result<usize>) -> Result<f64> {
    let begun = Instant::now();
    let mut sum = 0;
    while begun.elapsed() < time {
        sum += once().context("the load stopped")?;
    }
    Ok(sum as f64 / begun.elapsed().as_secs_f64())
}
