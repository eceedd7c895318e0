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
//! | anything else | none |
//!
//! A name with a label `nx` anywhere does not exist, as those that a search path makes.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::client::outcome;
use super::packet::{QUERY, answer, parse, query};
use crate::netns::Netns;

/// How long the server sleeps at most before it looks whether it shall stop.
const TICK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 5_000_000,
};

/// One query as the server saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Who asked.
    pub from: IpAddr,
    /// What was answered to just this question, and after how long; `None` where nothing was.
    pub answer: Option<(&'static str, Duration)>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    received: AtomicU64,
    answered: AtomicU64,
    seen: Mutex<Vec<Seen>>,
}

/// A running server; it stops on drop.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves port 53 of these addresses of the namespace.
    pub fn start(netns: &Netns, addresses: &[IpAddr]) -> Self {
        let all = addresses.iter().map(|address| (*address, 53).into());
        netns.run(|| Self::start_here(&all.collect::<Vec<_>>()))
    }

    /// Serves these addresses of the thread's own namespace.
    pub fn start_here(addresses: &[SocketAddr]) -> Self {
        let bind = |address: &SocketAddr| {
            UdpSocket::bind(address).unwrap_or_else(|e| panic!("cannot bind {address}: {e}"))
        };
        let sockets: Vec<UdpSocket> = addresses.iter().map(bind).collect();
        let shared = Arc::new(Shared::default());
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || serve(&sockets, &shared)
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// Queries received so far.
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// Answers sent so far.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Every query so far that could be read.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().expect("no server panics").clone()
    }

    /// The same by outcome, `unanswered` where nothing was said within `timeout`.
    pub fn served(&self, timeout: Duration) -> BTreeMap<&'static str, u64> {
        let mut served = BTreeMap::new();
        for seen in self.seen() {
            let outcome = match seen.answer {
                Some((outcome, after)) if after <= timeout => outcome,
                _ => "unanswered",
            };
            *served.entry(outcome).or_default() += 1;
        }
        served
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
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

fn serve(sockets: &[UdpSocket], shared: &Shared) {
    for socket in sockets {
        socket.set_nonblocking(true).expect("sockets can be set");
    }
    let mut asked = HashSet::new();
    let mut outgoing: Vec<Outgoing> = Vec::new();
    let mut buffer = [0; 1500];
    while !shared.stop.load(Ordering::Relaxed) {
        let mut waiting: Vec<PollFd<'_>> = sockets
            .iter()
            .map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN))
            .collect();
        // An interrupted wait is a short one.
        let _ = poll(&mut waiting, Some(&TICK));
        for (index, socket) in sockets.iter().enumerate() {
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                shared.received.fetch_add(1, Ordering::Relaxed);
                let other = (index + 1) % sockets.len();
                let bytes = &buffer[..length];
                let packets = script(bytes, from, &mut asked);
                if let Some(seen) = look(bytes, from.ip(), &packets) {
                    let mut all = shared.seen.lock().expect("no reader panics");
                    all.push(seen);
                }
                for (delay, by_other, bytes) in packets {
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
            shared.answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A packet to send: after how long, by another socket than the one asked, which bytes.
type Scripted = (Duration, bool, Vec<u8>);

/// What the server notes of a query, `None` where it is none.
fn look(bytes: &[u8], from: IpAddr, packets: &[Scripted]) -> Option<Seen> {
    let message = parse(bytes).filter(|m| !m.answer && m.opcode == QUERY)?;
    let fits = |(delay, by_other, bytes): &Scripted| {
        let answer = parse(bytes)?;
        let same = answer.id == message.id && answer.name.eq_ignore_ascii_case(&message.name);
        (same && !by_other).then(|| (outcome(&answer), *delay))
    };
    Some(Seen {
        from,
        answer: packets.iter().find_map(fits),
    })
}

/// What to send for one query.
fn script(
    bytes: &[u8],
    from: SocketAddr,
    seen: &mut HashSet<(SocketAddr, String)>,
) -> Vec<Scripted> {
    let Some(message) = parse(bytes).filter(|m| !m.answer && m.opcode == QUERY) else {
        return Vec::new();
    };
    let mut parts = message.name.split(['-', '.']);
    let word = parts.next().unwrap_or_default();
    let now = |bytes| vec![(Duration::ZERO, false, bytes)];
    let record = || answer(bytes, 0, false, true);
    if message.name.split('.').any(|label| label == "nx") {
        return now(answer(bytes, 3, false, false));
    }
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
        "third" => {
            let again = format!("{}again", message.name);
            if seen.insert((from, message.name.clone())) || seen.insert((from, again)) {
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
        // `drop`, and what nobody wrote a script for.
        _ => Vec::new(),
    }
}
