//! Load for the hooks that do not follow lookups: neighbours by the thousand, and datagrams to nobody.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::entries::flush;
use tests::neigh::{FIRST_SILENT, burst, statistics, thresholds};
use tests::netns::{Netns, Pod};
use tests::snmp::no_ports;
use tests::storm::{CLOSED, LIMITS};
use tests::wait::{ensure as wanted, eventually};
use tests::{Family, Lab};

use crate::load::Kind;

/// More neighbours than one measurement makes, and some that others have.
const ROOM: u64 = 8192;
/// More neighbours than [`LIMITS`] leave room for.
const FILL: u16 = 100;
/// A socket has room for so many datagrams that wait for a neighbour.
const WAITING: u16 = 200;
/// Datagrams may wait for a busy processor.
const SOON: Duration = Duration::from_secs(10);

/// The pod whose neighbours are made, and the client's end of what is dropped.
pub struct Others {
    hub: Arc<Netns>,
    asker: Pod,
    shouter: UdpSocket,
    closed: SocketAddr,
}

/// Limits of the neighbour table as a kind needs them. They are the machine's.
pub fn limits(kind: Kind) -> Option<[u64; 3]> {
    let [v4, v6] = Family::ALL.map(thresholds);
    match kind {
        // Those of both families are set: neither gets less than it has.
        Kind::NeighbourMade => Some([0, 1, 2].map(|n| ROOM.max(v4[n]).max(v6[n]))),
        Kind::NeighbourRefused => Some(LIMITS),
        _ => None,
    }
}

impl Others {
    pub fn start(lab: &Lab, client: &Pod) -> Result<Self> {
        let own = client.address(Family::V4);
        Ok(Self {
            hub: Arc::clone(&lab.hub),
            asker: lab.pod("asker", 2, 1),
            // Not connected: a connected one would have the refusal as an error of its next send.
            shouter: client.netns.run(|| UdpSocket::bind((own, 0)))?,
            closed: (client.hub(Family::V4), CLOSED).into(),
        })
    }

    /// Room, or a table without any: what is younger than its probes take is not thrown out.
    pub fn prepare(&self, kind: Kind) {
        self.clear(kind);
        if kind == Kind::NeighbourRefused {
            burst(&self.asker, Family::V4, FIRST_SILENT, FILL);
        }
    }

    /// Nobody else is to lack room, nor to be measured while what waits for these neighbours is dropped.
    pub fn clear(&self, kind: Kind) {
        if limits(kind).is_some() {
            flush(&self.asker.netns, Family::V4);
        }
    }

    /// As many as [`Kind::count`] says, by the kernel's own counters.
    pub fn run(&self, kind: Kind) -> Result<()> {
        let count = kind.count();
        let first = FIRST_SILENT + FILL;
        match kind {
            Kind::NeighbourMade => {
                let before = statistics(Family::V4);
                for done in (0..count).step_by(WAITING.into()) {
                    let more = WAITING.min(count - done);
                    burst(&self.asker, Family::V4, first + done, more);
                }
                let now = statistics(Family::V4);
                let (made, refused) = (
                    now.allocs - before.allocs,
                    now.table_fulls - before.table_fulls,
                );
                ensure!(
                    made >= u64::from(count) && refused == 0,
                    "{made} of {count} neighbours were made, {refused} refused"
                );
            }
            Kind::NeighbourRefused => {
                let before = statistics(Family::V4);
                burst(&self.asker, Family::V4, first, count);
                let refused = statistics(Family::V4).table_fulls - before.table_fulls;
                ensure!(
                    refused >= u64::from(count),
                    "{refused} of {count} neighbours were refused"
                );
            }
            _ => {
                let before = no_ports(&self.hub);
                for _ in 0..count {
                    self.shouter.send_to(b"anybody there?", self.closed)?;
                }
                eventually(SOON, || {
                    let dropped = no_ports(&self.hub) - before;
                    wanted(dropped >= u64::from(count), || {
                        format!("{dropped} of {count} datagrams came to the closed port")
                    })
                });
            }
        }
        Ok(())
    }
}
