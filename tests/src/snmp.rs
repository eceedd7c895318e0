//! The kernel's own UDP, ICMP and conntrack counters of a namespace.

use std::fs;

use crate::neigh::Family;
use crate::netns::Netns;

/// Ground truth: datagrams that a full receive buffer of the namespace's sockets lost, since it was
/// made.
pub fn receive_buffer_errors(netns: &Netns, family: Family) -> u64 {
    let path = match family {
        Family::V4 => "/proc/thread-self/net/snmp",
        Family::V6 => "/proc/thread-self/net/snmp6",
    };
    let text = netns.run(|| read(path));
    match family {
        Family::V4 => column(&text, "Udp:", "RcvbufErrors"),
        Family::V6 => text
            .lines()
            .find_map(|line| line.strip_prefix("Udp6RcvbufErrors")?.trim().parse().ok()),
    }
    .unwrap_or_else(|| panic!("{path} has no RcvbufErrors"))
}

/// Ground truth: how often the namespace said that a host, a net or a port cannot be reached, since it was
/// made. IPv4.
pub fn unreachables_sent(netns: &Netns) -> u64 {
    let path = "/proc/thread-self/net/snmp";
    let text = netns.run(|| read(path));
    column(&text, "Icmp:", "OutDestUnreachs")
        .unwrap_or_else(|| panic!("{path} has no OutDestUnreachs"))
}

/// Ground truth: datagrams that came to a port where nobody listened, since the namespace was made. IPv4.
pub fn no_ports(netns: &Netns) -> u64 {
    let path = "/proc/thread-self/net/snmp";
    let text = netns.run(|| read(path));
    column(&text, "Udp:", "NoPorts").unwrap_or_else(|| panic!("{path} has no NoPorts"))
}

/// One line of names and one of numbers, both with the same first word.
pub(crate) fn column(text: &str, first: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(first));
    let at = lines
        .next()?
        .split_whitespace()
        .position(|word| word == name)?;
    lines.next()?.split_whitespace().nth(at)?.parse().ok()
}

/// Conntrack's counters of a namespace, summed over CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conntrack {
    /// Connections that lost a race for their place in the table.
    pub insert_failed: u64,
    /// Packets dropped for want of an entry.
    pub drop: u64,
}

/// Ground truth: the kernel's counters of a namespace, `None` for the host's own.
pub fn conntrack(netns: Option<&Netns>) -> Conntrack {
    let path = "/proc/thread-self/net/stat/nf_conntrack";
    let text = match netns {
        Some(netns) => netns.run(|| read(path)),
        None => read(path),
    };
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().unwrap_or("").split_whitespace().collect();
    let at = |name: &str| {
        let found = names.iter().position(|column| *column == name);
        found.unwrap_or_else(|| panic!("{path} has no column {name}"))
    };
    let (insert_failed, drop) = (at("insert_failed"), at("drop"));
    let mut sum = Conntrack::default();
    for line in lines {
        let numbers: Vec<u64> = line
            .split_whitespace()
            .map(|word| u64::from_str_radix(word, 16).expect("numbers are hexadecimal"))
            .collect();
        sum.insert_failed += numbers[insert_failed];
        sum.drop += numbers[drop];
    }
    sum
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("cannot read {path}: {e}"))
}
