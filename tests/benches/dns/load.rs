//! Load of one kind: requests and answers between the client's namespace and the hub's, one at a time.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;
use tests::dns::{A, packet};
use tests::netns::Pod;
use tests::{Family, Lab};

use crate::others::Others;

/// What is going on while the programs are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Lookups over UDP: a query and its answer.
    DnsLookup,
    /// The same bytes on another port.
    UdpExchange,
    /// As many bytes on an open connection.
    TcpExchange,
    /// Nothing; what tracer runs by itself.
    SecondAtRest,
    /// Neighbours that the kernel makes.
    NeighbourMade,
    /// Neighbours that it refuses: the table is full.
    NeighbourRefused,
    /// Datagrams that it drops: nobody listens on the port.
    PacketDropped,
}

impl Kind {
    /// What works.
    pub const FINE: [Self; 4] = [
        Self::DnsLookup,
        Self::UdpExchange,
        Self::TcpExchange,
        Self::SecondAtRest,
    ];
    /// What other hooks see.
    pub const OTHER: [Self; 3] = [
        Self::NeighbourMade,
        Self::NeighbourRefused,
        Self::PacketDropped,
    ];

    pub fn all() -> impl Iterator<Item = Self> {
        Self::FINE.into_iter().chain(Self::OTHER)
    }

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DnsLookup => "DNS lookup",
            Self::UdpExchange => "UDP exchange",
            Self::TcpExchange => "TCP exchange",
            Self::SecondAtRest => "second at rest",
            Self::NeighbourMade => "neighbour made",
            Self::NeighbourRefused => "neighbour refused",
            Self::PacketDropped => "packet dropped",
        }
    }

    /// How many make one measurement.
    pub const fn count(self) -> u16 {
        match self {
            Self::SecondAtRest => 1,
            // The table has them all at once.
            Self::NeighbourMade => 1000,
            _ => 10_000,
        }
    }
}

const DNS: u16 = 53;
const NOT_DNS: u16 = 5300;
/// Bytes of a TCP message: about a query's.
const MESSAGE: usize = 48;
/// The longest that anybody waits.
const PATIENCE: Duration = Duration::from_secs(2);

/// Both ends of the load. The server's threads end on drop.
pub struct Load {
    udp: [(Kind, UdpSocket); 2],
    tcp: TcpStream,
    others: Others,
    stop: Arc<AtomicBool>,
    servers: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start(lab: &Lab, client: &Pod) -> Result<Self> {
        let (hub, own) = (client.hub(Family::V4), client.address(Family::V4));
        let stop = Arc::new(AtomicBool::new(false));
        let mut servers = Vec::new();
        for port in [DNS, NOT_DNS] {
            let socket = lab.hub.run(|| UdpSocket::bind((hub, port)))?;
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            let stop = Arc::clone(&stop);
            servers.push(std::thread::spawn(move || answer_datagrams(&socket, &stop)));
        }
        let listener = lab.hub.run(|| TcpListener::bind((hub, NOT_DNS)))?;
        servers.push(std::thread::spawn(move || echo(&listener)));
        let connected = |port| {
            client
                .netns
                .run(|| connect(own, SocketAddr::new(hub, port)))
        };
        let tcp = client.netns.run(|| TcpStream::connect((hub, NOT_DNS)))?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            udp: [
                (Kind::DnsLookup, connected(DNS)?),
                (Kind::UdpExchange, connected(NOT_DNS)?),
            ],
            tcp,
            others: Others::start(lab, client)?,
            stop,
            servers,
        })
    }

    /// Before [`Load::run`], within the kind's limits: what is not to be measured.
    pub fn prepare(&self, kind: Kind) {
        self.others.prepare(kind);
    }

    /// The same behind it.
    pub fn clear(&self, kind: Kind) {
        self.others.clear(kind);
    }

    /// As much of this kind as [`Kind::count`] says.
    pub fn run(&mut self, kind: Kind) -> Result<()> {
        if Kind::OTHER.contains(&kind) {
            return self.others.run(kind);
        }
        let udp = self.udp.iter().find(|(of, _)| *of == kind);
        for id in 0..kind.count() {
            match (kind, udp) {
                (Kind::SecondAtRest, _) => sleep(Duration::from_secs(1)),
                (_, Some((_, socket))) => {
                    let mut answer = [0; 512];
                    socket.send(&packet::query(id, packet::QUERY, "ok.bench.test", A))?;
                    socket.recv(&mut answer).context("no answer came")?;
                }
                (_, None) => {
                    let mut message = [1; MESSAGE];
                    self.tcp.write_all(&message)?;
                    self.tcp.read_exact(&mut message)?;
                }
            }
        }
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Fails only where the other end is gone, whose thread has ended then.
        let _ = self.tcp.shutdown(std::net::Shutdown::Both);
        for server in self.servers.drain(..) {
            // A server that panicked has said so.
            let _ = server.join();
        }
    }
}

fn connect(own: IpAddr, server: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((own, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(server)?;
    Ok(socket)
}

fn answer_datagrams(socket: &UdpSocket, stop: &AtomicBool) {
    let mut query = [0; 512];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut query) {
            Ok((length, from)) => {
                let answer = packet::answer(&query[..length], 0, false, true);
                socket.send_to(&answer, from).expect("answers can be sent");
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("the server cannot receive: {error}"),
        }
    }
}

/// Echoes the messages of one connection until it ends.
fn echo(listener: &TcpListener) {
    let (mut stream, _) = listener.accept().expect("the client connects");
    stream.set_nodelay(true).expect("option can be set");
    let mut message = [0; MESSAGE];
    while stream.read_exact(&mut message).is_ok() {
        stream.write_all(&message).expect("the client reads");
    }
}
