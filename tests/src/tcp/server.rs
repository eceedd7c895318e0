//! A server that accepts connections.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_linger;

use crate::netns::Netns;

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Closed at once, in good order.
    Close,
    /// Kept open, never read.
    Hold,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    accepted: AtomicU64,
    held: Mutex<Vec<TcpStream>>,
}

/// A running server; ends on drop.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves these addresses of a namespace.
    pub fn start(netns: &Netns, addresses: &[SocketAddr], manner: Manner) -> Self {
        netns.run(|| Self::start_here(addresses, manner))
    }

    /// The same in the thread's own namespace.
    pub fn start_here(addresses: &[SocketAddr], manner: Manner) -> Self {
        let listeners: Vec<TcpListener> = addresses
            .iter()
            .map(|address| {
                let listener = TcpListener::bind(address)
                    .unwrap_or_else(|e| panic!("cannot listen on {address}: {e}"));
                listener.set_nonblocking(true).expect("sockets can be set");
                // Room for as many as the kernel lets wait: none is to be lost here.
                rustix::net::listen(&listener, 4096).expect("it can listen");
                listener
            })
            .collect();
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let thread = std::thread::spawn(move || serve(&listeners, &own, manner));
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// The connections held, to be treated otherwise.
    pub fn take(&self) -> Vec<TcpStream> {
        std::mem::take(&mut *self.shared.held.lock().expect("no server panics"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A server that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn serve(listeners: &[TcpListener], shared: &Shared, manner: Manner) {
    let wait = Timespec::try_from(Duration::from_millis(50)).expect("it is short");
    while !shared.stop.load(Ordering::Relaxed) {
        let mut polled: Vec<PollFd<'_>> = listeners
            .iter()
            .map(|listener| PollFd::new(listener, PollFlags::IN))
            .collect();
        poll(&mut polled, Some(&wait)).expect("sockets can be polled");
        for listener in listeners {
            loop {
                match listener.accept() {
                    Ok((stream, _)) => {
                        shared.accepted.fetch_add(1, Ordering::Relaxed);
                        if manner == Manner::Hold {
                            shared.held.lock().expect("nobody panics").push(stream);
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    // One that is gone before it was accepted.
                    Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                    Err(error) => panic!("the server cannot accept: {error}"),
                }
            }
        }
    }
}

/// Closes a connection by a reset.
pub fn reset(stream: TcpStream) {
    set_socket_linger(&stream, Some(Duration::ZERO)).expect("option can be set");
    drop(stream);
}
