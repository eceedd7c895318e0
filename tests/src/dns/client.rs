//! The client that keeps count: it sends lookups, waits, and tells how each ended for it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::packet::{Message, QUERY, parse, query};
use crate::netns::Pod;

static NEXT_ID: AtomicU16 = AtomicU16::new(1);

/// One question to ask.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// Name to ask for; the server's script.
    pub name: String,
    /// Type to ask for.
    pub qtype: u16,
    /// Server to ask.
    pub server: IpAddr,
    /// Transaction id.
    pub id: u16,
    /// Ask again after this long, while there is no answer.
    pub again_after: Option<Duration>,
    /// Connect the socket, as most resolvers do, so that the kernel filters what comes in.
    pub connected: bool,
}

impl Lookup {
    /// One query, from a socket that is not connected, with an id of its own.
    pub fn new(name: impl Into<String>, qtype: u16, server: IpAddr) -> Self {
        Self {
            name: name.into(),
            qtype,
            server,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            again_after: None,
            connected: false,
        }
    }
}

/// How a client waits.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// From the first query: without an answer by then the lookup has failed.
    pub timeout: Duration,
    /// After that, how long to listen for answers that come too late.
    pub linger: Duration,
}

/// What a client saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Query packets sent.
    pub queries: u64,
    /// Lookups, by outcome.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Answers after the timeout.
    pub late: u64,
    /// Answers to nothing asked: duplicates, other ids, other names, other senders.
    pub unmatched: u64,
}

impl Tally {
    /// Lookups begun, each of which has ended.
    pub fn lookups(&self) -> u64 {
        self.outcomes.values().sum()
    }

    /// Lookups that ended so.
    pub fn outcome(&self, name: &str) -> u64 {
        self.outcomes.get(name).copied().unwrap_or(0)
    }

    /// Lookups that were answered.
    pub fn answered(&self) -> u64 {
        self.lookups() - self.outcome("timeout")
    }

    /// Lookups that were answered with an error.
    pub fn errors(&self) -> u64 {
        ["servfail", "refused", "formerr", "notimp", "other"]
            .iter()
            .map(|name| self.outcome(name))
            .sum()
    }

    /// Adds another client's.
    pub fn add(&mut self, other: &Self) {
        self.queries += other.queries;
        self.late += other.late;
        self.unmatched += other.unmatched;
        for (name, count) in &other.outcomes {
            *self.outcomes.entry(name).or_default() += count;
        }
    }
}

/// A lookup under way, or ended.
struct Running {
    lookup: Lookup,
    socket: UdpSocket,
    bytes: Vec<u8>,
    started: Instant,
    again: Option<Instant>,
    outcome: Option<&'static str>,
}

impl Client {
    /// Does all lookups at once, each from its own socket, in a pod.
    pub fn run(self, pod: &Pod, lookups: Vec<Lookup>) -> Tally {
        pod.netns.run(|| self.run_here(lookups))
    }

    /// As [`Client::run`], without waiting for the end.
    pub fn spawn(self, pod: &Pod, lookups: Vec<Lookup>) -> JoinHandle<Tally> {
        pod.netns.spawn(move || self.run_here(lookups))
    }

    fn run_here(self, lookups: Vec<Lookup>) -> Tally {
        let mut tally = Tally::default();
        let mut all: Vec<Running> = lookups
            .into_iter()
            .map(|lookup| Running::start(lookup, &mut tally))
            .collect();
        let last = all.iter().map(|lookup| lookup.started).max();
        let Some(last) = last else { return tally };
        let end = last + self.timeout + self.linger;
        loop {
            let mut now = Instant::now();
            for running in &mut all {
                running.receive(self.timeout, &mut tally);
                now = Instant::now();
                running.age(now, self.timeout, &mut tally);
            }
            let open = all.iter().any(|running| running.outcome.is_none());
            if !open && now >= end {
                return tally;
            }
            if !open && self.linger.is_zero() {
                return tally;
            }
            let mut waiting: Vec<PollFd<'_>> = all
                .iter()
                .map(|running| PollFd::from_borrowed_fd(running.socket.as_fd(), PollFlags::IN))
                .collect();
            let tick = Timespec {
                tv_sec: 0,
                tv_nsec: 2_000_000,
            };
            // An interrupted wait is a short one.
            let _ = poll(&mut waiting, Some(&tick));
        }
    }
}

impl Running {
    fn start(lookup: Lookup, tally: &mut Tally) -> Self {
        let any: IpAddr = match lookup.server {
            IpAddr::V4(_) => [0; 4].into(),
            IpAddr::V6(_) => [0; 16].into(),
        };
        let socket = UdpSocket::bind((any, 0)).expect("a port is free");
        socket.set_nonblocking(true).expect("sockets can be set");
        if lookup.connected {
            let server = (lookup.server, 53);
            socket
                .connect(server)
                .expect("the server's subnet is known");
        }
        let bytes = query(lookup.id, QUERY, &lookup.name, lookup.qtype);
        let started = Instant::now();
        let running = Self {
            again: lookup.again_after.map(|after| started + after),
            lookup,
            socket,
            bytes,
            started,
            outcome: None,
        };
        running.send(tally);
        running
    }

    fn send(&self, tally: &mut Tally) {
        tally.queries += 1;
        // An IPv6 sender is told when no neighbour entry could be had (EINVAL), an IPv4 sender is
        // not; either way the query was sent and gets no answer.
        let _ = if self.lookup.connected {
            self.socket.send(&self.bytes)
        } else {
            self.socket.send_to(&self.bytes, (self.lookup.server, 53))
        };
    }

    fn receive(&mut self, timeout: Duration, tally: &mut Tally) {
        let mut buffer = [0; 1500];
        loop {
            let received = self.socket.recv_from(&mut buffer);
            let in_time = self.started.elapsed() <= timeout;
            match received {
                Ok((length, from)) => match self.judge(&buffer[..length], from) {
                    None => tally.unmatched += 1,
                    Some(outcome) => match self.outcome {
                        None if in_time => self.end(outcome, tally),
                        None => {
                            self.end("timeout", tally);
                            tally.late += 1;
                        }
                        Some("timeout") => tally.late += 1,
                        Some(_) => tally.unmatched += 1,
                    },
                },
                // A connected socket hears that a port is closed, once; the answer may still come.
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {}
                Err(_) => return,
            }
        }
    }

    /// The outcome that an answer to this lookup means, `None` if it answers something else.
    fn judge(&self, bytes: &[u8], from: SocketAddr) -> Option<&'static str> {
        let message = parse(bytes)?;
        let ours = message.answer
            && message.id == self.lookup.id
            && message.qtype == self.lookup.qtype
            && message.name.eq_ignore_ascii_case(&self.lookup.name)
            && from == (self.lookup.server, 53).into();
        ours.then(|| outcome(&message))
    }

    fn age(&mut self, now: Instant, timeout: Duration, tally: &mut Tally) {
        if self.outcome.is_none() && now.duration_since(self.started) > timeout {
            self.end("timeout", tally);
        }
        if self.outcome.is_none() && self.again.is_some_and(|again| again <= now) {
            self.again = None;
            self.send(tally);
        }
    }

    fn end(&mut self, outcome: &'static str, tally: &mut Tally) {
        self.outcome = Some(outcome);
        *tally.outcomes.entry(outcome).or_default() += 1;
    }
}

/// The outcome that an answer means.
pub(super) fn outcome(message: &Message) -> &'static str {
    match message.rcode {
        0 if message.truncated || message.answers > 0 => "noerror",
        0 => "nodata",
        1 => "formerr",
        2 => "servfail",
        3 => "nxdomain",
        4 => "notimp",
        5 => "refused",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::super::{A, AAAA, Server};
    use super::*;
    use crate::neigh::Family;
    use crate::netns::Lab;

    #[test]
    fn every_script_ends_as_it_says() {
        let lab = Lab::new();
        let pod = lab.pod("client", 1, 2);
        let addresses: Vec<IpAddr> = Family::ALL
            .into_iter()
            .flat_map(|family| [pod.hub(family), pod.neighbour(family, 3)])
            .collect();
        let server = Server::start(&lab.hub, &addresses);
        let client = Client {
            timeout: Duration::from_millis(500),
            linger: Duration::from_millis(500),
        };
        let mut lookups = Vec::new();
        for family in Family::ALL {
            for word in "ok case nodata tc formerr servfail nx notimp refused other drop late-700 \
                         dup wrongid wrongq wrongaddr"
                .split_whitespace()
            {
                let name = format!("{word}-{}.test", family.label());
                for qtype in [A, AAAA] {
                    lookups.push(Lookup::new(name.clone(), qtype, pod.hub(family)));
                }
            }
            let mut twice = Lookup::new("second.test", A, pod.hub(family));
            twice.again_after = Some(Duration::from_millis(100));
            twice.connected = true;
            lookups.push(twice);
        }
        let count = lookups.len() as u64;
        let tally = client.run(&pod, lookups);
        let expected = [
            ("noerror", 4 * 4 + 2),
            ("nodata", 4),
            ("formerr", 4),
            ("servfail", 4),
            ("nxdomain", 4),
            ("notimp", 4),
            ("refused", 4),
            ("other", 4),
            ("timeout", 5 * 4),
        ];
        assert_eq!(tally.outcomes, BTreeMap::from(expected));
        assert_eq!(tally.lookups(), count);
        assert_eq!(tally.queries, count + 2);
        assert_eq!(tally.late, 4);
        assert_eq!(tally.unmatched, 4 * 4);
        assert_eq!(server.received(), tally.queries);
    }
}
