//! The kernel's own TCP counters of a namespace.

use std::fs;

use crate::netns::Netns;

/// Ground truth: counters of a namespace since it was made, both families together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Sockets that went from CLOSED to SYN-SENT: the attempts.
    pub active_opens: u64,
    /// Connections that went from ESTABLISHED or CLOSE-WAIT to CLOSED: resets, by either end.
    pub established_resets: u64,
    /// Segments sent again, SYNs too.
    pub retransmitted: u64,
    /// SYNs and SYN-ACKs sent again.
    pub syns_retransmitted: u64,
}

impl Statistics {
    /// Reads them.
    pub fn of(netns: &Netns) -> Self {
        netns.run(Self::here)
    }

    /// Of the thread's own namespace.
    pub fn here() -> Self {
        Self {
            active_opens: here("snmp", "Tcp:", "ActiveOpens"),
            established_resets: here("snmp", "Tcp:", "EstabResets"),
            retransmitted: here("snmp", "Tcp:", "RetransSegs"),
            syns_retransmitted: here("netstat", "TcpExt:", "TCPSynRetrans"),
        }
    }

    /// Segments of established connections sent again.
    pub fn data_retransmitted(&self) -> u64 {
        self.retransmitted - self.syns_retransmitted
    }
}

/// One of the extended counters (`TcpExt`) of a namespace, such as `ListenOverflows`.
pub fn extended(netns: &Netns, name: &str) -> u64 {
    netns.run(|| here("netstat", "TcpExt:", name))
}

fn here(file: &str, group: &str, name: &str) -> u64 {
    let path = format!("/proc/thread-self/net/{file}");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {path}: {e}"));
    crate::snmp::column(&text, group, name).unwrap_or_else(|| panic!("{path} has no {name}"))
}

/// One of the counters of multipath TCP (`MPTcpExt`) of a namespace.
pub fn extended_multipath(netns: &Netns, name: &str) -> u64 {
    netns.run(|| here("netstat", "MPTcpExt:", name))
}
