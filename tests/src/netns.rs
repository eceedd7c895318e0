//! Network namespaces that stand for pods, on links to a common namespace, the hub.

use std::fs::{self, File};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::host::HostLock;
use crate::neigh::Family;
use crate::process::check;
use crate::wait::{ensure, eventually};

/// Device of every pod, as container runtimes name it.
pub const DEVICE: &str = "eth0";

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A named network namespace, deleted on drop.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes one, with a name that no other test process uses and that ends in `label`.
    ///
    /// IPv6 is kept from speaking by itself (no duplicate address detection, no link-local address,
    /// no router solicitation), so that neighbour entries are made by the test's traffic only.
    pub fn new(label: &str) -> Self {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("tt{}-{number}-{label}", std::process::id());
        check(Command::new("ip").args(["netns", "add", &name]));
        let netns = Self { name };
        netns.run(|| {
            for (key, value) in [
                ("accept_dad", "0"),
                ("addr_gen_mode", "1"),
                ("router_solicitations", "0"),
                ("accept_ra", "0"),
                ("mldv2_unsolicited_report_interval", "1"),
            ] {
                for scope in ["all", "default"] {
                    set(&format!("ipv6/conf/{scope}/{key}"), value);
                }
            }
        });
        netns.ip("link set lo up");
        netns
    }

    /// Its name: what tracer's local source calls the pod.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that holds it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Its inode number.
    pub fn inode(&self) -> u64 {
        fs::metadata(self.path())
            .unwrap_or_else(|e| panic!("cannot stat {}: {e}", self.path().display()))
            .ino()
    }

    /// As labels of its series: `namespace`, `pod`.
    pub fn labels(&self) -> [(&str, &str); 2] {
        [("namespace", "(netns)"), ("pod", &self.name)]
    }

    /// Writes `net.KEY`, dots as slashes, inside.
    pub fn sysctl(&self, key: &str, value: &str) {
        self.run(|| set(key, value));
    }

    /// Runs `f` inside, on a thread of its own, for a thread's namespace stays with it. The thread
    /// is called `lab`, and so are the processes that it starts until they exec.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let path = self.path();
        thread::scope(|scope| {
            let joined = thread::Builder::new()
                .name("lab".into())
                .spawn_scoped(scope, || {
                    enter(&path);
                    f()
                })
                .expect("threads can be started")
                .join();
            joined.unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// As [`Netns::run`], without waiting for the end.
    pub fn spawn<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let path = self.path();
        thread::Builder::new()
            .name("lab".into())
            .spawn(move || {
                enter(&path);
                f()
            })
            .expect("threads can be started")
    }

    /// Runs one `ip` command inside.
    pub fn ip(&self, arguments: &str) {
        check(
            Command::new("ip")
                .args(["-n", &self.name])
                .args(arguments.split_whitespace()),
        );
    }

    /// Runs many `ip` commands inside, by one process.
    pub fn ip_batch(&self, commands: &str) {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("ip runs");
        child
            .stdin
            .take()
            .expect("stdin is piped")
            .write_all(commands.as_bytes())
            .expect("ip reads its commands");
        let status = child.wait().expect("ip ends");
        assert!(status.success(), "ip -batch failed: {status}\n{commands}");
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // On the way down from a panic there is nothing better to do than to go on cleaning up.
        let deleted = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
        if !deleted.is_ok_and(|status| status.success()) {
            eprintln!("cannot delete network namespace {}", self.name);
        }
    }
}

/// In the namespace of the thread.
fn set(key: &str, value: &str) {
    let path = format!("/proc/sys/net/{key}");
    fs::write(&path, value).unwrap_or_else(|e| panic!("cannot write {value} to {path}: {e}"));
}

fn enter(path: &PathBuf) {
    let file = File::open(path).unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()));
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .unwrap_or_else(|e| panic!("cannot enter {}: {e}", path.display()));
}

/// A pod: a namespace with device [`DEVICE`] on a link to the hub, with addresses of both families.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its namespace.
    pub netns: Arc<Netns>,
    index: u8,
}

impl Pod {
    /// Its own address.
    pub fn address(&self, family: Family) -> IpAddr {
        self.neighbour(family, 2)
    }

    /// The hub's address on this pod's link.
    pub fn hub(&self, family: Family) -> IpAddr {
        self.neighbour(family, 1)
    }

    /// Address number `n` of the pod's subnet. Those from 1,000 on answer nothing.
    ///
    /// All IPv6 addresses end in the same 24 bits, hence share one solicited-node multicast group,
    /// and with it that group's neighbour entry.
    pub fn neighbour(&self, family: Family, n: u16) -> IpAddr {
        let [high, low] = n.to_be_bytes();
        match family {
            Family::V4 => Ipv4Addr::new(10, self.index, high, low).into(),
            Family::V6 => Ipv6Addr::new(0xfd00, 0, 0, u16::from(self.index), 0, n, 0, 0x53).into(),
        }
    }

    /// The hub's device on this pod's link.
    pub fn link(&self) -> String {
        format!("pod{}", self.index)
    }

    /// As labels of the pod's series: `namespace`, `pod`.
    pub fn labels(&self) -> [(&str, &str); 2] {
        self.netns.labels()
    }
}

/// Pods around a hub. Whoever has a lab has the host's tables for himself ([`HostLock`]).
#[derive(Debug)]
pub struct Lab {
    /// The namespace at the other end of every pod's link.
    pub hub: Arc<Netns>,
    // Last, so that the lock is given back when the namespaces are gone.
    lock: HostLock,
}

impl Lab {
    /// A hub without pods.
    pub fn new() -> Self {
        let lock = HostLock::take();
        Self {
            hub: Arc::new(Netns::new("hub")),
            lock,
        }
    }

    /// The lock, for [`crate::Thresholds::set`].
    pub fn lock(&mut self) -> &mut HostLock {
        &mut self.lock
    }

    /// A pod more; `index`, of which its addresses are made, is given once in a lab. The pod's name
    /// ends in `label`. The hub has the first `hub_addresses` addresses of the subnet, the pod's own
    /// excepted.
    pub fn pod(&self, label: &str, index: u8, hub_addresses: u16) -> Pod {
        let pod = Pod {
            netns: Arc::new(Netns::new(label)),
            index,
        };
        let (hub, link) = (&self.hub, pod.link());
        // Two ends of the same index look like one device to the kernel's link watch, which then
        // takes up to a second to notice that the link is up.
        let number = 100 + u32::from(index);
        pod.netns.ip(&format!(
            "link add {DEVICE} index {number} type veth peer name {link} netns {}",
            hub.name()
        ));
        let mut own = vec![format!("link set {DEVICE} up")];
        let mut far = vec![format!("link set {link} up")];
        for family in Family::ALL {
            let add = |address: IpAddr, device: &str| match family {
                Family::V4 => format!("address add {address}/16 dev {device}"),
                Family::V6 => format!("address add {address}/64 dev {device} nodad"),
            };
            own.push(add(pod.address(family), DEVICE));
            let numbers = (1..=hub_addresses + 1).filter(|n| *n != 2);
            far.extend(numbers.map(|n| add(pod.neighbour(family, n), &link)));
        }
        pod.netns.ip_batch(&own.join("\n"));
        hub.ip_batch(&far.join("\n"));
        await_ipv6(&pod.netns, DEVICE, 1);
        await_ipv6(hub, &link, usize::from(hub_addresses));
        pod
    }
}

/// Waits until IPv6 works on a device: the kernel makes the local routes of its addresses, and the
/// route of its multicast groups, in work queues some time after the link is up, and until then
/// what comes in has "no route".
pub fn await_ipv6(netns: &Netns, device: &str, addresses: usize) {
    eventually(Duration::from_secs(5), || {
        // The thread's own namespace, not the process's.
        let path = "/proc/thread-self/net/ipv6_route";
        let text = netns.run(|| fs::read_to_string(path).expect("routes can be read"));
        let (local, multicast) = count_routes(&text, device);
        ensure(local >= addresses && multicast > 0, || {
            format!("{device} has {local} of {addresses} local and {multicast} multicast routes")
        })
    });
}

/// A device's local and multicast routes in a listing: destination in the first column, flags and
/// device in the last two.
fn count_routes(listing: &str, device: &str) -> (usize, usize) {
    /// `RTF_LOCAL` of `include/uapi/linux/ipv6_route.h`.
    const LOCAL: u32 = 0x8000_0000;
    let (mut local, mut multicast) = (0, 0);
    for line in listing.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let &[destination, .., flags, on] = fields.as_slice() else {
            continue;
        };
        if on == device {
            let flags = u32::from_str_radix(flags, 16).unwrap_or(0);
            local += usize::from(flags & LOCAL != 0);
            multicast += usize::from(destination.starts_with("ff000000"));
        }
    }
    (local, multicast)
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn pods_reach_the_hub_and_are_removed_on_panic() {
        let lab = Lab::new();
        let pod = lab.pod("a", 1, 3);
        for family in Family::ALL {
            for n in [1, 3, 4] {
                let address = pod.neighbour(family, n);
                let server = lab
                    .hub
                    .run(|| UdpSocket::bind((address, 7)).expect("address is there"));
                server
                    .set_read_timeout(Some(Duration::from_secs(2)))
                    .expect("timeout is set");
                pod.netns.run(|| {
                    let socket = UdpSocket::bind((pod.address(family), 0)).expect("bind");
                    socket.send_to(b"x", (address, 7)).expect("send");
                });
                let (_, from) = server.recv_from(&mut [0; 9]).expect("packet arrives");
                assert_eq!(from.ip(), pod.address(family));
            }
        }

        let path = std::panic::catch_unwind(|| {
            let netns = Netns::new("doomed");
            let path = netns.path();
            assert!(path.exists());
            std::panic::panic_any(path);
        })
        .expect_err("it panicked")
        .downcast::<PathBuf>()
        .expect("with the path");
        assert!(!path.exists(), "{} is left", path.display());
    }
}
