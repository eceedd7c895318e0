//! A client that connects, few or many at a time, and knows how each attempt ended for it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::getpeername;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_error};
use rustix::net::{
    AddressFamily, Protocol, SocketFlags, SocketType, bind, connect, getsockname, socket_with,
};

use crate::netns::Netns;

/// Results of attempts, as the contract lists them.
pub const RESULTS: [&str; 5] = ["established", "refused", "timeout", "unreachable", "other"];

/// How a program connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// By a socket that does not block, with its own eye on the clock.
    Polled,
    /// The same to an IPv4 address by an IPv6 socket (`::ffff:10.0.0.1`).
    Mapped,
    /// By a call that blocks; patience is the socket's `SO_SNDTIMEO`.
    Blocking,
    /// Polled, by `IPPROTO_MPTCP`.
    Multipath,
}

/// One attempt to be made.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// Where to.
    pub to: SocketAddr,
    /// How.
    pub means: Means,
    /// The program gives up after so long; `None`: it waits for the kernel to give up.
    pub patience: Option<Duration>,
}

impl Attempt {
    /// One that the program waits for itself, `patience` long.
    pub fn new(to: SocketAddr, means: Means, patience: Duration) -> Self {
        Self {
            to,
            means,
            patience: Some(patience),
        }
    }

    /// One of which the kernel decides how long it takes.
    pub fn endless(to: SocketAddr, means: Means) -> Self {
        Self {
            to,
            means,
            patience: None,
        }
    }

    /// A socket for it, bound to no port yet.
    pub fn socket(&self) -> OwnedFd {
        let family = match (self.to, self.means) {
            (SocketAddr::V4(_), Means::Polled | Means::Blocking | Means::Multipath) => {
                AddressFamily::INET
            }
            _ => AddressFamily::INET6,
        };
        let flags = match self.means {
            Means::Blocking => SocketFlags::CLOEXEC,
            _ => SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        };
        let protocol = (self.means == Means::Multipath).then_some(protocol_multipath());
        socket_with(family, SocketType::STREAM, flags, protocol).expect("sockets can be made")
    }

    /// The address that its socket is given.
    pub fn destination(&self) -> SocketAddr {
        match (self.to, self.means) {
            (SocketAddr::V4(to), Means::Mapped) => {
                SocketAddrV6::new(to.ip().to_ipv6_mapped(), to.port(), 0, 0).into()
            }
            (to, _) => to,
        }
    }

    /// By one call, to its end.
    fn block(&self) -> Ended {
        let socket = self.socket();
        // A port of its own from the start: after a failure the kernel has forgotten which it was.
        let any: IpAddr = match self.to {
            SocketAddr::V4(_) => [0; 4].into(),
            SocketAddr::V6(_) => [0; 16].into(),
        };
        bind(&socket, &SocketAddr::new(any, 0)).expect("a port is free");
        set_socket_timeout(&socket, Timeout::Send, self.patience).expect("timeout can be set");
        let source = source(&socket);
        let begun = Instant::now();
        let result = connect(&socket, &self.destination()).map_or_else(result_of, |()| ESTABLISHED);
        Ended {
            to: self.to,
            source,
            result,
            took: begun.elapsed(),
        }
    }
}

fn protocol_multipath() -> Protocol {
    rustix::net::ipproto::MPTCP
}

const ESTABLISHED: &str = "established";
const TIMEOUT: &str = "timeout";

/// What a program calls an error of `connect`.
fn result_of(error: Errno) -> &'static str {
    match error {
        Errno::CONNREFUSED => "refused",
        // The last two are what a call that blocks gives when `SO_SNDTIMEO` is over.
        Errno::TIMEDOUT | Errno::INPROGRESS | Errno::AGAIN => TIMEOUT,
        // ICMPv6 "administratively prohibited" is EACCES.
        Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::ACCESS => "unreachable",
        _ => "other",
    }
}

/// The local end of a socket, an IPv4 address as such.
pub fn source(socket: &OwnedFd) -> SocketAddr {
    let name = getsockname(socket).expect("sockets have names");
    let name = SocketAddr::try_from(name).expect("it is an address and a port");
    SocketAddr::new(name.ip().to_canonical(), name.port())
}

/// An attempt that ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Where to.
    pub to: SocketAddr,
    /// From where; of those that blocked only the port is known.
    pub source: SocketAddr,
    /// One of [`RESULTS`].
    pub result: &'static str,
    /// From the call to the end.
    pub took: Duration,
}

/// Attempts by how they ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    /// Of these.
    pub fn of<'a>(ended: impl IntoIterator<Item = &'a Ended>) -> Self {
        let mut tally = Self::default();
        for one in ended {
            *tally.0.entry(one.result).or_default() += 1;
        }
        tally
    }

    /// With so many more of a result.
    pub fn add(&mut self, result: &'static str, count: u64) {
        *self.0.entry(result).or_default() += count;
    }

    /// With all of another.
    pub fn join(&mut self, other: &Self) {
        for (result, count) in &other.0 {
            self.add(result, *count);
        }
    }

    /// Those that ended like this.
    pub fn count(&self, result: &str) -> u64 {
        self.0.get(result).copied().unwrap_or(0)
    }

    /// All.
    pub fn attempts(&self) -> u64 {
        self.0.values().sum()
    }

    /// All but the established ones.
    pub fn failed(&self) -> u64 {
        self.attempts() - self.count(ESTABLISHED)
    }
}

struct Open {
    socket: OwnedFd,
    source: SocketAddr,
    begun: Instant,
    attempt: Attempt,
}

impl Open {
    fn begin(attempt: Attempt) -> Result<Self, Ended> {
        let socket = attempt.socket();
        let begun = Instant::now();
        let answer = connect(&socket, &attempt.destination());
        let open = Self {
            source: source(&socket),
            socket,
            begun,
            attempt,
        };
        match answer {
            Err(Errno::INPROGRESS) => Ok(open),
            Ok(()) => Err(open.ended(ESTABLISHED)),
            Err(error) => Err(open.ended(result_of(error))),
        }
    }

    fn ended(&self, result: &'static str) -> Ended {
        Ended {
            to: self.attempt.to,
            source: self.source,
            result,
            took: self.begun.elapsed(),
        }
    }

    /// Its end, if it has come: answered, failed, or the program has no patience left.
    fn look(&self, answered: bool) -> Option<Ended> {
        if answered {
            let error = socket_error(&self.socket).expect("sockets have a state");
            match error {
                Err(error) => return Some(self.ended(result_of(error))),
                Ok(()) if getpeername(&self.socket).is_ok() => {
                    return Some(self.ended(ESTABLISHED));
                }
                // Woken by an ICMP error before it was noted where SO_ERROR looks: soon.
                Ok(()) => {}
            }
        }
        let patience = self.attempt.patience?;
        (self.begun.elapsed() >= patience).then(|| self.ended(TIMEOUT))
    }
}

/// Makes all these attempts from a namespace, `rate` a second, and waits for all ends. Every socket is
/// closed as soon as its attempt has ended.
pub fn run(netns: &Netns, attempts: &[Attempt], rate: u32) -> Vec<Ended> {
    netns.run(|| run_here(attempts, rate))
}

/// As [`run`], in the thread's own namespace.
pub fn run_here(attempts: &[Attempt], rate: u32) -> Vec<Ended> {
    let begun = Instant::now();
    let mut ended = Vec::with_capacity(attempts.len());
    let mut open: Vec<Open> = Vec::new();
    // Threads are born into their maker's namespace.
    thread::scope(|scope| {
        let mut blocked = Vec::new();
        let mut next = 0;
        while next < attempts.len() || !open.is_empty() {
            let due = begun.elapsed().as_secs_f64() * f64::from(rate);
            // Some at a time, so that ends are seen when they come.
            let some = attempts.len().min(next + 50);
            while next < some && (next as f64) <= due {
                let attempt = attempts[next];
                next += 1;
                if attempt.means == Means::Blocking {
                    blocked.push(scope.spawn(move || attempt.block()));
                    continue;
                }
                match Open::begin(attempt) {
                    Ok(begun) => open.push(begun),
                    Err(at_once) => ended.push(at_once),
                }
            }
            // None where another is due already.
            let idle = next == attempts.len() || (next as f64) > due;
            let wait = Duration::from_millis(idle.into());
            let answered = poll_all(&open, wait);
            let mut answered = answered.into_iter();
            open.retain(|one| {
                let found = one.look(answered.next().expect("one for each"));
                ended.extend(found);
                found.is_none()
            });
        }
        ended.extend(blocked.into_iter().map(|one| one.join().expect("it ends")));
    });
    ended
}

/// Whether each has been answered.
fn poll_all(open: &[Open], wait: Duration) -> Vec<bool> {
    let mut polled: Vec<PollFd<'_>> = open
        .iter()
        .map(|one| PollFd::new(&one.socket, PollFlags::OUT))
        .collect();
    let wait = Timespec::try_from(wait).expect("it is short");
    poll(&mut polled, Some(&wait)).expect("sockets can be polled");
    polled.iter().map(|one| !one.revents().is_empty()).collect()
}
