//! The scripted server: the first label of the name asked for says what happens.
//!
//! | label begins with | answer |
//! |---|---|
//! | `ok` | one record |
//! | `case` | one record, the name in capitals |
//! | `nodata` | no record |
//! | `tc` | truncated, no record |
//! | `nx`, `servfail`, `refused`, `formerr`, `notimp`, `other` | that error (`other`: NOTAUTH) |
//! | `drop` | none |
//! | `late-N-` | one record, N milliseconds later |
//! | `second` | none to the first query of that name and client, one record to the next |
//! | `dup` | the same record twice |
//! | `wrongid`, `wrongq` | a record under another id, for another name |
//! | `wrongaddr` | a record, sent from another address of the server |

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::packet::{QUERY, answer, parse, query};
use crate::netns::Netns;

/// How long the server sleeps at most before it looks whether it shall stop.
const TICK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 5_000_000,
};

/// A running server; it stops on drop.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    answered: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves port 53 of these addresses of the namespace.
    pub fn start(netns: &Netns, addresses: &[IpAddr]) -> Self {
        let sockets: Vec<UdpSocket> = netns.run(|| {
            let bind = |address: &IpAddr| {
                UdpSocket::bind((*address, 53))
                    .unwrap_or_else(|e| panic!("cannot bind port 53 of {address}: {e}"))
            };
            addresses.iter().map(bind).collect()
        });
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let answered = Arc::new(AtomicU64::new(0));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            let (received, answered) = (Arc::clone(&received), Arc::clone(&answered));
            move || serve(&sockets, &stop, &received, &answered)
        });
        Self {
            stop,
            received,
            answered,
            thread: Some(thread),
        }
    }

    /// Queries received so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Answers sent so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        // A panic while another unwinds would end the process and with it the clean-up.
        assert!(
            !matches!(ended, Some(Err(_))) || std::thread::panicking(),
            "the scripted server panicked"
        );
    }
}

/// A packet to send: through which socket, to whom.
struct Outgoing {
    due: Instant,
    socket: usize,
    to: SocketAddr,
    bytes: Vec<u8>,
}

fn serve(sockets: &[UdpSocket], stop: &AtomicBool, received: &AtomicU64, answered: &AtomicU64) {
    for socket in sockets {
        socket.set_nonblocking(true).expect("sockets can be set");
    }
    let mut seen = HashSet::new();
    let mut outgoing: Vec<Outgoing> = Vec::new();
    let mut buffer = [0; 1500];
    while !stop.load(Ordering::Relaxed) {
        let mut waiting: Vec<PollFd<'_>> = sockets
            .iter()
            .map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN))
            .collect();
        // An interrupted wait is a short one.
        let _ = poll(&mut waiting, Some(&TICK));
        for (index, socket) in sockets.iter().enumerate() {
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                received.fetch_add(1, Ordering::Relaxed);
                let other = (index + 1) % sockets.len();
                for (delay, by_other, bytes) in script(&buffer[..length], from, &mut seen) {
                    outgoing.push(Outgoing {
                        due: Instant::now() + delay,
                        socket: if by_other { other } else { index },
                        to: from,
                        bytes,
                    });
                }
            }
        }
        let now = Instant::now();
        let due = outgoing.extract_if(.., |packet| packet.due <= now);
        for packet in due {
            // A client that is gone is the client's affair.
            let _ = sockets[packet.socket].send_to(&packet.bytes, packet.to);
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What to send for one query: after how long, by another socket or the one asked, which bytes.
fn script(
    bytes: &[u8],
    from: SocketAddr,
    seen: &mut HashSet<(SocketAddr, String)>,
) -> Vec<(Duration, bool, Vec<u8>)> {
    let Some(message) = parse(bytes).filter(|m| !m.answer && m.opcode == QUERY) else {
        return Vec::new();
    };
    let mut parts = message.name.split(['-', '.']);
    let word = parts.next().unwrap_or_default();
    let now = |bytes| vec![(Duration::ZERO, false, bytes)];
    let record = || answer(bytes, 0, false, true);
    match word {
        "ok" => now(record()),
        "case" => {
            let capitals = query(
                message.id,
                QUERY,
                &message.name.to_uppercase(),
                message.qtype,
            );
            now(answer(&capitals, 0, false, true))
        }
        "nodata" => now(answer(bytes, 0, false, false)),
        "tc" => now(answer(bytes, 0, true, false)),
        "formerr" => now(answer(bytes, 1, false, false)),
        "servfail" => now(answer(bytes, 2, false, false)),
        "nx" => now(answer(bytes, 3, false, false)),
        "notimp" => now(answer(bytes, 4, false, false)),
        "refused" => now(answer(bytes, 5, false, false)),
        "other" => now(answer(bytes, 9, false, false)),
        "drop" => Vec::new(),
        "late" => {
            let delay = parts.next().and_then(|number| number.parse().ok());
            let delay = delay.expect("late names begin with late-MILLISECONDS-");
            vec![(Duration::from_millis(delay), false, record())]
        }
        "second" => {
            if seen.insert((from, message.name.clone())) {
                Vec::new()
            } else {
                now(record())
            }
        }
        "dup" => [now(record()), now(record())].concat(),
        "wrongid" => {
            let mut wrong = record();
            wrong[..2].copy_from_slice(&(!message.id).to_be_bytes());
            now(wrong)
        }
        "wrongq" => {
            let name = format!("x{}", message.name);
            let other = query(message.id, QUERY, &name, message.qtype);
            now(answer(&other, 0, false, true))
        }
        "wrongaddr" => vec![(Duration::ZERO, true, record())],
        _ => panic!("no script for {}", message.name),
    }
}
