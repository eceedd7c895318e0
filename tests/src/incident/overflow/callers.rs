//! Pods that look up names and call services, once a second each, and know how it went.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::servers::{self, SERVICE};
use super::town::{OUTSIDE, Town};
use crate::dns::A;
use crate::dns::packet::{QUERY, parse, query};

/// As long as the agent's, so that both judge alike.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// Between two lookups of a pod.
const PERIOD: Duration = Duration::from_secs(1);
/// Asked for.
const NAME: &str = "payments.shop.svc.cluster.local";

/// How the lookups of one pod went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Queries sent, one for each lookup.
    pub asked: u64,
    /// Answered in time.
    pub answered: u64,
    /// Without an answer.
    pub failed: u64,
    /// Of the queries sent: the kernel told the client that there was no neighbour entry for it.
    pub no_entry: u64,
}

/// Lookups of all pods, as they ended.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// By pod: the calm ones, then the others as they arrive.
    pub tallies: Vec<Tally>,
    /// When each ended, and whether it failed.
    pub ended: Vec<(Instant, bool)>,
    /// When the kernel refused a client's query first.
    pub first_refused: Option<Instant>,
}

impl Seen {
    /// Of all pods.
    pub fn total(&self) -> Tally {
        let mut sum = Tally::default();
        for one in &self.tallies {
            sum.asked += one.asked;
            sum.answered += one.answered;
            sum.failed += one.failed;
            sum.no_entry += one.no_entry;
        }
        sum
    }

    /// Failed and all lookups that ended in a span of time.
    pub fn between(&self, from: Instant, to: Instant) -> (u64, u64) {
        let inside = self.ended.iter().filter(|(at, _)| (from..=to).contains(at));
        inside.fold((0, 0), |(failed, all), (_, one)| {
            (failed + u64::from(*one), all + 1)
        })
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    pause: AtomicBool,
    arrived: AtomicUsize,
    under_way: AtomicUsize,
    seen: Mutex<Seen>,
}

/// The pods at work; they end on drop.
#[derive(Debug)]
pub struct Callers {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Caller {
    dns: UdpSocket,
    call: UdpSocket,
    due: Instant,
    id: u16,
    waiting: VecDeque<(u16, Instant)>,
}

impl Callers {
    /// The calm ones are at work at once, the others when they arrive.
    pub fn start(town: &Town) -> Self {
        let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        let residents: Vec<_> = town.calm.iter().chain(&town.pods).collect();
        let callers: Vec<Caller> = residents
            .iter()
            .map(|one| {
                let (dns, call) = one.netns.run(|| {
                    let call = UdpSocket::bind(any).expect("a port is free");
                    (servers::socket(any), call)
                });
                for socket in [&dns, &call] {
                    socket.set_nonblocking(true).expect("sockets can be set");
                }
                Caller {
                    dns,
                    call,
                    due: Instant::now(),
                    id: 0,
                    waiting: VecDeque::new(),
                }
            })
            .collect();
        let shared = Arc::new(Shared::default());
        shared.arrived.store(town.calm.len(), Ordering::Relaxed);
        shared.seen().tallies = vec![Tally::default(); callers.len()];
        let services = town.services.iter().map(|one| one.address).chain([OUTSIDE]);
        let work = Work {
            shared: Arc::clone(&shared),
            dns: town.dns.address,
            services: services.collect(),
        };
        let thread = std::thread::spawn(move || work.run(callers));
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// So many pods more have arrived.
    pub fn arrive(&self, more: usize) {
        self.shared.arrived.fetch_add(more, Ordering::Relaxed);
    }

    /// Nobody asks any more, or all go on.
    pub fn pause(&self, pause: bool) {
        self.shared.pause.store(pause, Ordering::Relaxed);
    }

    /// Lookups that have not ended.
    pub fn under_way(&self) -> usize {
        self.shared.under_way.load(Ordering::Relaxed)
    }

    /// How it went so far.
    pub fn seen(&self) -> Seen {
        self.shared.seen().clone()
    }

    /// When the kernel refused a client's query first.
    pub fn first_refused(&self) -> Option<Instant> {
        self.shared.seen().first_refused
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("nobody panics")
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(
            !matches!(ended, Some(Err(_))) || std::thread::panicking(),
            "the callers panicked"
        );
    }
}

struct Work {
    shared: Arc<Shared>,
    dns: IpAddr,
    services: Vec<IpAddr>,
}

impl Work {
    fn run(self, mut callers: Vec<Caller>) {
        let tick = Timespec {
            tv_sec: 0,
            tv_nsec: 5_000_000,
        };
        let mut arrived = 0;
        while !self.shared.stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            let all = self
                .shared
                .arrived
                .load(Ordering::Relaxed)
                .min(callers.len());
            for (number, caller) in callers[arrived..all].iter_mut().enumerate() {
                // Not all in the same moment.
                caller.due = now + Duration::from_millis(7) * (number as u32 % 100);
            }
            arrived = all;
            let paused = self.shared.pause.load(Ordering::Relaxed);
            for (number, caller) in callers[..arrived].iter_mut().enumerate() {
                if !paused && caller.due <= now {
                    caller.due = (caller.due + PERIOD).max(now);
                    self.work(number, caller);
                }
                self.age(number, caller);
            }
            let waiting = callers.iter().map(|caller| caller.waiting.len()).sum();
            self.shared.under_way.store(waiting, Ordering::Relaxed);
            let ready: Vec<bool> = {
                let mut polled: Vec<PollFd<'_>> = callers
                    .iter()
                    .flat_map(|caller| [&caller.dns, &caller.call])
                    .map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN))
                    .collect();
                // An interrupted wait is a short one.
                let _ = poll(&mut polled, Some(&tick));
                polled.iter().map(|one| !one.revents().is_empty()).collect()
            };
            for (number, ready) in ready.chunks(2).enumerate() {
                if ready[0] {
                    self.receive(number, &mut callers[number]);
                }
                if ready[1] {
                    while callers[number].call.recv(&mut [0; 64]).is_ok() {}
                }
            }
        }
    }

    /// One lookup and one call.
    fn work(&self, number: usize, caller: &mut Caller) {
        caller.id = caller.id.wrapping_add(1);
        let started = Instant::now();
        let bytes = query(caller.id, QUERY, NAME, A);
        let sent = servers::send(&caller.dns, &bytes, SocketAddr::new(self.dns, 53));
        caller.waiting.push_back((caller.id, started));
        let mut seen = self.shared.seen();
        seen.tallies[number].asked += 1;
        if !sent {
            seen.tallies[number].no_entry += 1;
            seen.first_refused.get_or_insert(started);
        }
        drop(seen);
        let service = self.services[usize::from(caller.id) % self.services.len()];
        // Calls are not what is counted here.
        let _ = caller.call.send_to(b"call", (service, SERVICE));
    }

    fn receive(&self, number: usize, caller: &mut Caller) {
        let mut buffer = [0; 512];
        loop {
            match caller.dns.recv(&mut buffer) {
                Ok(length) => {
                    let id = parse(&buffer[..length]).expect("servers answer whole").id;
                    let place = caller.waiting.iter().position(|(asked, _)| *asked == id);
                    let Some((_, started)) = place.and_then(|at| caller.waiting.remove(at)) else {
                        panic!("the lab failed: an answer after {TIMEOUT:?}");
                    };
                    assert!(
                        started.elapsed() < TIMEOUT,
                        "the lab failed: late by itself"
                    );
                    self.end(number, false);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // What became of an earlier query, told once.
                Err(_) => {}
            }
        }
    }

    fn age(&self, number: usize, caller: &mut Caller) {
        while caller
            .waiting
            .front()
            .is_some_and(|(_, at)| at.elapsed() > TIMEOUT)
        {
            caller.waiting.pop_front();
            self.end(number, true);
        }
    }

    fn end(&self, number: usize, failed: bool) {
        let mut seen = self.shared.seen();
        seen.ended.push((Instant::now(), failed));
        let tally = &mut seen.tallies[number];
        if failed {
            tally.failed += 1;
        } else {
            tally.answered += 1;
        }
    }
}
