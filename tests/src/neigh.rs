//! The kernel's neighbour tables: limits, statistics, and how to make one overflow.

use std::fs;
use std::net::{IpAddr, UdpSocket};

use crate::host::{HostLock, Settings};
use crate::netns::{Netns, Pod};

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Label value in metrics and events.
    pub fn label(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    fn threshold_path(self, number: usize) -> String {
        format!(
            "/proc/sys/net/{}/neigh/default/gc_thresh{number}",
            self.label()
        )
    }

    fn statistics_path(self) -> &'static str {
        match self {
            Self::V4 => "/proc/net/stat/arp_cache",
            Self::V6 => "/proc/net/stat/ndisc_cache",
        }
    }
}

/// gc_thresh1, 2, 3 of one family.
pub fn thresholds(family: Family) -> [u64; 3] {
    [1, 2, 3].map(|number| {
        let path = family.threshold_path(number);
        fs::read_to_string(&path)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or_else(|| panic!("cannot read a number from {path}"))
    })
}

/// Changed limits; the old ones come back on drop, also on panic.
#[derive(Debug)]
pub struct Thresholds<'a> {
    _settings: Settings<'a>,
}

impl<'a> Thresholds<'a> {
    /// Sets gc_thresh1, 2 and 3 of both families.
    pub fn set(lock: &'a mut HostLock, values: [u64; 3]) -> Self {
        let new = Family::ALL.into_iter().flat_map(|family| {
            [1, 2, 3].map(|n| (family.threshold_path(n), values[n - 1].to_string()))
        });
        Self {
            _settings: Settings::set(lock, &new.collect::<Vec<_>>()),
        }
    }
}

/// The kernel's own counters of one table, since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Entries there are, those that do not count against the limit too.
    pub entries: u64,
    /// Entries allocated: the creations granted.
    pub allocs: u64,
    /// Creations refused because the table was full.
    pub table_fulls: u64,
    /// Forced garbage collections.
    pub forced_gc_runs: u64,
    /// Periodic garbage collections.
    pub periodic_gc_runs: u64,
}

impl Statistics {
    /// Entries that left the table since `before`; right as long as no two CPUs made the same one
    /// at the same time, for the loser's is allocated and never in the table.
    pub fn removed_since(&self, before: &Self) -> u64 {
        self.allocs + before.entries - before.allocs - self.entries
    }
}

/// Reads the kernel's counters.
pub fn statistics(family: Family) -> Statistics {
    let path = family.statistics_path();
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("cannot read {path}: {e}"));
    parse_statistics(&text).unwrap_or_else(|why| panic!("{path}: {why}"))
}

/// Ground truth: creations of the family that the kernel refused since boot.
pub fn table_fulls(family: Family) -> u64 {
    statistics(family).table_fulls
}

/// One line of names, then one line of hexadecimal numbers for each CPU.
fn parse_statistics(text: &str) -> Result<Statistics, String> {
    let mut lines = text.lines();
    let names: Vec<&str> = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let mut sum = Statistics::default();
    for line in lines {
        let numbers: Vec<&str> = line.split_whitespace().collect();
        let number = |name: &str| {
            names
                .iter()
                .position(|n| *n == name)
                .and_then(|index| u64::from_str_radix(numbers.get(index)?, 16).ok())
                .ok_or_else(|| format!("no column {name}"))
        };
        // One number for all CPUs.
        sum.entries = number("entries")?;
        sum.allocs += number("allocs")?;
        sum.table_fulls += number("table_fulls")?;
        sum.forced_gc_runs += number("forced_gc_runs")?;
        sum.periodic_gc_runs += number("periodic_gc_runs")?;
    }
    Ok(sum)
}

/// Name of the thread that sends a burst, as the kernel knows it (`comm`).
pub const BURST_COMM: &str = "burst";

/// Address numbers from here on answer nothing in a lab.
pub const FIRST_SILENT: u16 = 1000;

/// Asks for `count` neighbours that do not exist, by one datagram each, as fast as the kernel takes
/// them: entries younger than five seconds cannot be evicted, so more of them than the limit
/// overflow the table. Gives the number of datagrams that the kernel refused to the sender; a
/// refused neighbour is no error to an IPv4 sender.
pub fn burst(pod: &Pod, family: Family, first: u16, count: u16) -> u16 {
    let destinations: Vec<IpAddr> = (first..first + count)
        .map(|n| pod.neighbour(family, n))
        .collect();
    send(&pod.netns, pod.address(family), &destinations)
}

/// Sends one datagram to each, from this address of the namespace; gives the number that the kernel
/// refused to the sender. The socket has room for some 270 that wait for a neighbour: the next would
/// wait for three seconds.
pub fn send(netns: &Netns, from: IpAddr, destinations: &[IpAddr]) -> u16 {
    netns.run(|| {
        rustix::thread::set_name(c"burst").expect("threads can be named");
        let socket = UdpSocket::bind((from, 0)).expect("the namespace has the address");
        destinations
            .iter()
            .filter(|to| socket.send_to(b"burst", (**to, 9)).is_err())
            .count() as u16
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::Lab;

    #[test]
    fn statistics_are_summed_over_cpus() {
        let text = "entries  allocs   periodic_gc_runs forced_gc_runs unresolved_discards table_fulls\n\
                    00000002 0000000a 00000044 00000001 00000000 00000010\n\
                    00000002 00000001 00000000 00000000 00000000 00000001\n";
        let expected = Statistics {
            entries: 2,
            allocs: 11,
            table_fulls: 17,
            forced_gc_runs: 1,
            periodic_gc_runs: 0x44,
        };
        assert_eq!(parse_statistics(text), Ok(expected));
        assert!(parse_statistics("entries\n00000001\n").is_err());
    }

    #[test]
    fn both_tables_overflow_and_the_limits_come_back() {
        let mut lab = Lab::new();
        let before = Family::ALL.map(thresholds);
        let pods = [lab.pod("a", 1, 1), lab.pod("b", 2, 1)];
        for family in Family::ALL {
            let fulls = table_fulls(family);
            {
                let _thresholds = Thresholds::set(lab.lock(), [32, 64, 64]);
                assert_eq!(thresholds(family), [32, 64, 64]);
                for pod in &pods {
                    burst(pod, family, FIRST_SILENT, 100);
                }
            }
            let grown = table_fulls(family) - fulls;
            // 200 asked for 64 places at most.
            assert!(grown >= 136, "{family:?}: table_fulls grew by {grown}");
        }
        assert_eq!(Family::ALL.map(thresholds), before);

        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _thresholds = Thresholds::set(lab.lock(), [32, 64, 64]);
            panic!("on purpose");
        }));
        assert!(panicked.is_err());
        assert_eq!(Family::ALL.map(thresholds), before);
    }

    #[test]
    fn the_limits_of_a_killed_test_come_back() {
        let before = thresholds(Family::V4);
        let mut lock = HostLock::take();
        // As a process that is killed leaves it: limits changed and noted, no destructor run.
        std::mem::forget(Thresholds::set(&mut lock, [32, 64, 96]));
        assert_eq!(thresholds(Family::V4), [32, 64, 96]);
        drop(lock);
        drop(HostLock::take());
        assert_eq!(thresholds(Family::V4), before);
    }
}
