//! A pod that calls again and again, whatever comes of it, and knows what came.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use crate::incident::overflow::town::Resident;
use crate::tcp::{Attempt, Ended, Means, run_here};

/// Between two calls.
const PAUSE: Duration = Duration::from_millis(500);
/// The kernel knows after three seconds that nobody answers for a neighbour.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    ended: Mutex<Vec<(Instant, Ended)>>,
}

/// One that calls; it ends on drop.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    /// Calls these, one after the other, and begins anew.
    pub fn start(pod: &Resident, destinations: &[SocketAddr]) -> Self {
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let destinations = destinations.to_vec();
        let thread = pod.netns.spawn(move || {
            while !own.stop.load(Ordering::Relaxed) {
                for to in &destinations {
                    let attempt = Attempt::new(*to, Means::Polled, PATIENCE);
                    let ended = run_here(&[attempt], 1)[0];
                    let mut all = own.ended.lock().expect("nobody panics");
                    all.push((Instant::now(), ended));
                }
                sleep(PAUSE);
            }
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// All calls so far, with when they ended.
    pub fn ended(&self) -> Vec<(Instant, Ended)> {
        self.shared.ended.lock().expect("no client panics").clone()
    }

    /// Calls of a destination that came to nothing, with when they ended.
    pub fn failed(&self, to: SocketAddr) -> Vec<(Instant, Ended)> {
        let mut ended = self.ended();
        ended.retain(|(_, one)| one.to == to && one.result != "established");
        ended
    }

    /// Calls no more; what it saw stays to be asked.
    pub fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop();
    }
}
