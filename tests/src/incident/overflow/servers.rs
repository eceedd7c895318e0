//! Servers that know which of their answers the kernel refused to send.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use super::town::Resident;
use crate::dns::packet::answer;

/// Where the services listen.
pub const SERVICE: u16 = 8080;
/// `ENOBUFS`: what a sender with `IP_RECVERR` is told where no neighbour entry could be had.
const NO_ENTRY: i32 = nix::libc::ENOBUFS;

/// A socket that is told what the kernel does with its datagrams.
pub fn socket(bind: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(bind).unwrap_or_else(|e| panic!("cannot bind {bind}: {e}"));
    setsockopt(&socket, sockopt::Ipv4RecvErr, &true).expect("sockets can be set");
    socket
}

/// Sends; gives whether there was a neighbour entry to be had for it.
pub fn send(socket: &UdpSocket, bytes: &[u8], to: SocketAddr) -> bool {
    for _ in 0..10 {
        match socket.send_to(bytes, to) {
            Ok(_) => return true,
            Err(error) if error.raw_os_error() == Some(NO_ENTRY) => return false,
            // What became of an earlier one, told once: nobody had answered for its neighbour.
            Err(_) => {}
        }
    }
    panic!("the lab failed: {to} cannot be sent to")
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    refused: Mutex<BTreeMap<IpAddr, u64>>,
}

/// A running server; ends on drop.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers each query with a record.
    pub fn dns(at: &Resident) -> Self {
        Self::start(at, 53, |query| answer(query, 0, false, true))
    }

    /// Sends back what it gets.
    pub fn echo(at: &Resident) -> Self {
        Self::start(at, SERVICE, <[u8]>::to_vec)
    }

    fn start(at: &Resident, port: u16, reply: fn(&[u8]) -> Vec<u8>) -> Self {
        let address = SocketAddr::new(at.address, port);
        let socket = at.netns.run(|| socket(address));
        let tick = Duration::from_millis(50);
        socket
            .set_read_timeout(Some(tick))
            .expect("sockets can be set");
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let thread = std::thread::spawn(move || serve(&socket, &own, reply));
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// Answers that died for want of a neighbour entry, by whom they were for.
    pub fn refused(&self) -> BTreeMap<IpAddr, u64> {
        self.shared
            .refused
            .lock()
            .expect("no server panics")
            .clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, shared: &Shared, reply: fn(&[u8]) -> Vec<u8>) {
    let mut buffer = [0; 1500];
    while !shared.stop.load(Ordering::Relaxed) {
        // Else nothing came, or this is what became of an earlier answer.
        if let Ok((length, from)) = socket.recv_from(&mut buffer)
            && !send(socket, &reply(&buffer[..length]), from)
        {
            let mut refused = shared.refused.lock().expect("no reader panics");
            *refused.entry(from.ip()).or_default() += 1;
        }
    }
}
