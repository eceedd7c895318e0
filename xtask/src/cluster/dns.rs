//! What the pods run: a DNS server that answers as the name asked for says, and a client that knows
//! what became of its lookups.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use clap::Subcommand;

/// Longer than the agent's, so that both judge alike.
const TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Subcommand)]
pub enum Role {
    /// Answer on port 53 for good: SERVFAIL to `servfail.…`, nothing to `silent.…`, else no error
    Serve,
    /// Ask a server so many times for a name, say when and what came of it
    Ask {
        server: IpAddr,
        name: String,
        count: u16,
        /// Then stay, for a container that ends is started again
        #[arg(long)]
        stay: bool,
    },
}

pub fn run(role: Role) -> Result<()> {
    match role {
        Role::Serve => serve(),
        Role::Ask {
            server,
            name,
            count,
            stay,
        } => {
            ask(SocketAddr::new(server, 53), &name, count)?;
            if !stay {
                return Ok(());
            }
            loop {
                thread::sleep(TIMEOUT);
            }
        }
    }
}

fn serve() -> Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", 53)).context("cannot listen on port 53")?;
    let mut packet = [0; 512];
    loop {
        let (len, from) = socket.recv_from(&mut packet)?;
        let Some(first) = first_label(&packet[..len]) else {
            continue;
        };
        let rcode = match first {
            b"silent" => continue,
            b"servfail" => 2,
            _ => 0,
        };
        packet[2] |= 0x80; // QR: an answer
        packet[3] = rcode;
        socket.send_to(&packet[..len], from)?;
    }
}

fn first_label(query: &[u8]) -> Option<&[u8]> {
    let (len, rest) = query.get(12..)?.split_first()?;
    rest.get(..usize::from(*len))
}

/// A, class IN.
fn query(id: u16, name: &str) -> Vec<u8> {
    let mut packet = id.to_be_bytes().to_vec();
    packet.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        packet.push(label.len() as u8);
        packet.extend(label.as_bytes());
    }
    packet.extend([0, 0, 1, 0, 1]);
    packet
}

fn ask(server: SocketAddr, name: &str, count: u16) -> Result<()> {
    let first = SystemTime::now();
    let mut sockets = Vec::new();
    for id in 0..count {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect(server)?;
        socket.send(&query(id, name))?;
        sockets.push(socket);
        // At first a service has no rules yet; a burst would say little about the watch either.
        thread::sleep(Duration::from_millis(10));
    }
    let (mut failed, mut silent) = (0, 0);
    let deadline = Instant::now() + TIMEOUT;
    for socket in sockets {
        let left = deadline.saturating_duration_since(Instant::now());
        socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let mut answer = [0; 512];
        match socket.recv(&mut answer) {
            Ok(_) => failed += u32::from(answer[3] & 0xf != 0),
            Err(_) => silent += 1,
        }
    }
    let at = first.duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64();
    let mut out = std::io::stdout();
    writeln!(
        out,
        "first={at:.6} asked={count} failed={failed} silent={silent}"
    )?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_reads_what_the_client_writes() {
        let packet = query(7, "servfail.test");
        assert_eq!(first_label(&packet), Some(b"servfail".as_slice()));
        assert_eq!(first_label(&packet[..12]), None);
        assert_eq!(first_label(&packet[..14]), None);
    }
}
