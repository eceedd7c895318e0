//! A client that sends lookups at a steady rate from few sockets and knows how each ended.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::Tally;
use super::client::outcome;
use super::packet::{QUERY, parse, query};

/// Sockets of a load; each has 65,536 ids.
const SOCKETS: usize = 16;

/// Lookups to be sent, in this order.
#[derive(Clone, Debug)]
pub struct Load {
    /// Name, server, and what the lab kills it with (`None`: nothing).
    pub lookups: Vec<(String, IpAddr, Option<&'static str>)>,
    /// Lookups a second.
    pub rate: u32,
    /// From its query: without an answer by then a lookup has failed.
    pub timeout: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// As the client saw it.
    pub tally: Tally,
    /// Lookups without an answer, by what the lab killed them with.
    pub lost: HashMap<Option<&'static str>, u64>,
}

struct Waiting {
    started: Instant,
    index: usize,
}

impl Load {
    /// Sends all, waits for all; in the thread's own namespace.
    pub fn run_here(&self) -> Loaded {
        let any: [IpAddr; 2] = [[0; 4].into(), [0; 16].into()];
        let bind = |index: usize| {
            let socket = UdpSocket::bind((any[index % 2], 0)).expect("a port is free");
            socket.set_nonblocking(true).expect("sockets can be set");
            socket
        };
        let sockets: Vec<UdpSocket> = (0..SOCKETS).map(bind).collect();
        let mut waiting: HashMap<(usize, u16), Waiting> = HashMap::new();
        let mut loaded = Loaded::default();
        let begun = Instant::now();
        let (mut next, mut oldest) = (0, 0);
        while next < self.lookups.len() || !waiting.is_empty() {
            let due = begun.elapsed().as_secs_f64() * f64::from(self.rate);
            while next < self.lookups.len() && (next as f64) < due {
                let (name, server, _) = &self.lookups[next];
                let (socket, id) = place(next, *server);
                let bytes = query(id, QUERY, name, super::A);
                let started = Instant::now();
                waiting.insert(
                    (socket, id),
                    Waiting {
                        started,
                        index: next,
                    },
                );
                // What netfilter refuses was asked all the same.
                let _ = sockets[socket].send_to(&bytes, (*server, 53));
                loaded.tally.queries += 1;
                next += 1;
            }
            for (index, socket) in sockets.iter().enumerate() {
                self.receive(index, socket, &mut waiting, &mut loaded);
            }
            // They were sent in order, so they end in order.
            while oldest < next {
                let key = place(oldest, self.lookups[oldest].1);
                match waiting.get(&key) {
                    Some(found) if found.started.elapsed() <= self.timeout => break,
                    Some(_) => {
                        waiting.remove(&key);
                        *loaded.tally.outcomes.entry("timeout").or_default() += 1;
                        *loaded.lost.entry(self.lookups[oldest].2).or_default() += 1;
                    }
                    None => {}
                }
                oldest += 1;
            }
            sleep(Duration::from_micros(500));
        }
        loaded
    }

    fn receive(
        &self,
        index: usize,
        socket: &UdpSocket,
        waiting: &mut HashMap<(usize, u16), Waiting>,
        loaded: &mut Loaded,
    ) {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let message = parse(&buffer[..length]);
            let fits = message.and_then(|message| {
                let found = waiting.get(&(index, message.id))?;
                let (name, server, _) = &self.lookups[found.index];
                let ours = message.name.eq_ignore_ascii_case(name)
                    && from == SocketAddr::new(*server, 53)
                    && found.started.elapsed() <= self.timeout;
                ours.then(|| (message.id, outcome(&message)))
            });
            match fits {
                Some((id, outcome)) => {
                    waiting.remove(&(index, id));
                    *loaded.tally.outcomes.entry(outcome).or_default() += 1;
                }
                None => loaded.tally.unmatched += 1,
            }
        }
    }
}

/// Socket and id of a lookup: even sockets speak IPv4, odd ones IPv6.
fn place(number: usize, server: IpAddr) -> (usize, u16) {
    let half = SOCKETS / 2;
    let socket = 2 * (number % half) + usize::from(server.is_ipv6());
    (socket, (number / half) as u16)
}
