//! Entries of the neighbour tables: what `ip neigh` says of them, and how to make and remove some by
//! hand.

use std::net::IpAddr;
use std::ops::Range;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::neigh::Family;
use crate::netns::{DEVICE, Netns, Pod};
use crate::process::check;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Whose.
    pub address: IpAddr,
    /// On which device.
    pub device: String,
    /// Such as `REACHABLE`.
    pub state: String,
}

/// Ground truth: entries of a family in a namespace, in all states.
pub fn entries(netns: &Netns, family: Family) -> Vec<Entry> {
    show(&["-n", netns.name()], family)
}

/// The same of the host's own namespace.
pub fn host_entries(family: Family) -> Vec<Entry> {
    show(&[], family)
}

fn show(scope: &[&str], family: Family) -> Vec<Entry> {
    let output = Command::new("ip")
        .args(scope)
        .args([option(family), "neigh", "show", "nud", "all"])
        .output()
        .expect("ip runs");
    assert!(output.status.success(), "ip neigh show failed: {output:?}");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| parse(line).unwrap_or_else(|| panic!("not an entry: {line}")))
        .collect()
}

/// `ADDRESS dev DEVICE [lladdr MAC] [FLAG…] STATE`
fn parse(line: &str) -> Option<Entry> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let device = words.iter().position(|word| *word == "dev")? + 1;
    Some(Entry {
        address: words.first()?.parse().ok()?,
        device: (*words.get(device)?).to_owned(),
        state: (*words.last()?).to_owned(),
    })
}

/// What selects a family in `ip`.
pub fn option(family: Family) -> &'static str {
    match family {
        Family::V4 => "-4",
        Family::V6 => "-6",
    }
}

/// Makes entries of the pod's addresses of these numbers, in this state, as `ip neigh` writes it;
/// panics if the kernel refuses one.
///
/// Permanent ones do not count against the limit. Reachable ones cannot be evicted as long as they
/// are so: see [`keep_reachable`]. Stale ones can be after five seconds.
pub fn add(pod: &Pod, family: Family, numbers: Range<u16>, state: &str) {
    let commands: Vec<String> = numbers
        .map(|n| format!("neigh {}\n", replace(pod, family, n, state)))
        .collect();
    pod.netns.ip_batch(&commands.concat());
}

/// As [`add`], for one; gives whether the kernel made it.
pub fn try_add(pod: &Pod, family: Family, number: u16, state: &str) -> bool {
    let arguments = replace(pod, family, number, state);
    Command::new("ip")
        .args(["-n", pod.netns.name(), "neigh"])
        .args(arguments.split_whitespace())
        .stderr(Stdio::null())
        .status()
        .expect("ip runs")
        .success()
}

fn replace(pod: &Pod, family: Family, number: u16, state: &str) -> String {
    let address = pod.neighbour(family, number);
    format!("replace {address} lladdr 02:00:00:00:00:99 dev {DEVICE} nud {state}")
}

/// Lets reachable entries on a device stay so for longer than any test.
pub fn keep_reachable(netns: &Netns, device: &str) {
    for family in ["ipv4", "ipv6"] {
        netns.sysctl(
            &format!("{family}/neigh/{device}/base_reachable_time_ms"),
            "1000000",
        );
    }
}

/// A device's own address on the wire.
pub fn mac(netns: &Netns, device: &str) -> String {
    let output = Command::new("ip")
        .args(["-n", netns.name(), "-json", "link", "show", device])
        .output()
        .expect("ip runs");
    let links: Value = serde_json::from_slice(&output.stdout).expect("ip prints JSON");
    let mac = links[0]["address"].as_str();
    mac.expect("a link has one").to_owned()
}

/// Lets a namespace know its neighbour on a device for good; such an entry does not count against the
/// limit.
pub fn know(netns: &Netns, device: &str, neighbour: IpAddr, mac: &str) {
    netns.ip(&format!(
        "neigh replace {neighbour} lladdr {mac} dev {device} nud permanent"
    ));
}

/// Removes a namespace's entries of one family, but for permanent and NOARP ones.
pub fn flush(netns: &Netns, family: Family) {
    check(Command::new("ip").args(["-n", netns.name(), option(family), "neigh", "flush", "all"]));
}

/// Permanent entries on a device of the host's own, which is down and goes with them on drop.
#[derive(Debug)]
pub struct HostEntries {
    device: String,
}

impl HostEntries {
    /// Makes `count` of each family. The device's other end is in this namespace.
    pub fn add(count: u8, peer: &Netns) -> Self {
        let device = format!("tt{}", std::process::id());
        let link = format!("link add {device} type veth peer name {device} netns");
        let words = link.split_whitespace().chain([peer.name()]);
        check(Command::new("ip").args(words));
        let made = Self { device };
        for n in 1..=count {
            for address in [format!("10.77.0.{n}"), format!("fd00:77::{n}")] {
                check(
                    Command::new("ip")
                        .args(["neigh", "add", &address, "dev", &made.device])
                        .args(["lladdr", "02:00:00:00:00:99", "nud", "permanent"]),
                );
            }
        }
        made
    }
}

impl Drop for HostEntries {
    fn drop(&mut self) {
        let deleted = Command::new("ip")
            .args(["link", "del", &self.device])
            .status();
        if !deleted.is_ok_and(|status| status.success()) {
            eprintln!("cannot delete the host's device {}", self.device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::Lab;

    #[test]
    fn lines_of_ip_neigh_are_read() {
        let entry = |line| {
            let Entry {
                address,
                device,
                state,
            } = parse(line).expect("an entry");
            (address.to_string(), device, state)
        };
        let expected = |a: &str, d: &str, s: &str| (a.to_owned(), d.to_owned(), s.to_owned());
        assert_eq!(
            entry("10.1.0.1 dev eth0 lladdr 02:fc:00:00:00:05 extern_learn STALE "),
            expected("10.1.0.1", "eth0", "STALE")
        );
        assert_eq!(
            entry("fd00::2 dev eth0 FAILED"),
            expected("fd00::2", "eth0", "FAILED")
        );
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn entries_made_are_entries_shown() {
        let lab = Lab::new();
        let pod = lab.pod("a", 1, 1);
        for family in Family::ALL {
            let before = entries(&pod.netns, family).len();
            add(&pod, family, 1000..1010, "permanent");
            assert!(try_add(&pod, family, 1010, "stale"));
            let now = entries(&pod.netns, family);
            assert!(now.len() >= before + 11, "{now:?}");
            flush(&pod.netns, family);
            let address = |n| pod.neighbour(family, n);
            let has = |address| {
                entries(&pod.netns, family)
                    .iter()
                    .any(|e| e.address == address)
            };
            assert!(has(address(1000)) && !has(address(1010)));
        }
    }
}
