//! A node in miniature: pods whose packets are forwarded by a router namespace to a far segment.

use std::net::{IpAddr, UdpSocket};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::entries::entries;
use crate::neigh::Family;
use crate::netns::{Lab, Netns, Pod, await_ipv6};
use crate::wait::{ensure, eventually};

/// The hub as a router, with a segment behind it on which nobody answers.
#[derive(Debug)]
pub struct Node {
    /// The hub.
    pub router: Arc<Netns>,
    /// The segment's other end.
    pub far: Pod,
    /// All of it; last, for it has the host's lock.
    pub lab: Lab,
}

/// How pods are connected to the router.
#[derive(Clone, Copy, Debug)]
pub enum Wiring {
    /// Each by its own link.
    Routed,
    /// All by a bridge, which has the router's addresses.
    Bridged,
}

impl Node {
    /// A node with pods of these names, which can all reach the far segment.
    pub fn new<const N: usize>(wiring: Wiring, names: [&str; N]) -> (Self, [Pod; N]) {
        let lab = Lab::new();
        let router = Arc::clone(&lab.hub);
        let far = lab.pod("far", 200, 1);
        let mut index = 0;
        let pods = names.map(|name| {
            index += 1;
            lab.pod(name, index, 1)
        });
        router.sysctl("ipv4/ip_forward", "1");
        router.sysctl("ipv6/conf/all/forwarding", "1");
        // Without one the router could not solicit for packets that are not its own.
        router.ip(&format!("address add fe80::1/64 dev {} nodad", far.link()));
        if let Wiring::Bridged = wiring {
            bridge(&router, &pods);
        }
        let node = Self { router, far, lab };
        for pod in &pods {
            for family in Family::ALL {
                let hub = pod.hub(family);
                pod.netns.ip(&format!("route add default via {hub}"));
                node.warm_up(pod, family);
            }
        }
        (node, pods)
    }

    /// Sends from the pod to the far segment until something arrives: all neighbours on the way are
    /// known then.
    fn warm_up(&self, pod: &Pod, family: Family) {
        let to = (self.far.address(family), 7);
        let server = self
            .far
            .netns
            .run(|| UdpSocket::bind(to).expect("address is there"));
        server
            .set_read_timeout(Some(Duration::from_millis(200)))
            .expect("timeout is set");
        let client = pod
            .netns
            .run(|| UdpSocket::bind((pod.address(family), 0)).expect("pod has its address"));
        eventually(Duration::from_secs(5), || {
            client.send_to(b"x", to).map_err(|e| e.to_string())?;
            let (_, from) = server.recv_from(&mut [0; 9]).map_err(|e| e.to_string())?;
            ensure(from.ip() == pod.address(family), || format!("from {from}"))
        });
    }

    /// Addresses of the far segment, on which nobody answers.
    pub fn beyond(&self, family: Family, numbers: Range<u16>) -> Vec<IpAddr> {
        numbers.map(|n| self.far.neighbour(family, n)).collect()
    }

    /// Ground truth: how many of these have no entry on the wire. Right within three seconds of the
    /// first packet, for until then none can be evicted.
    pub fn refused(&self, family: Family, destinations: &[IpAddr]) -> u64 {
        without_entry(&self.router, family, destinations)
    }
}

/// How many of these a namespace has no entry of.
pub fn without_entry(netns: &Netns, family: Family, destinations: &[IpAddr]) -> u64 {
    let made = entries(netns, family);
    let has = |address| made.iter().any(|entry| entry.address == address);
    destinations.iter().filter(|to| !has(**to)).count() as u64
}

/// Puts the router's ends of the pods' links, and its addresses, on a bridge.
fn bridge(router: &Netns, pods: &[Pod]) {
    let mut commands = vec![
        // With snooping a bridge joins 224.0.0.106, and reports it within a second to a neighbour more.
        "link add br0 type bridge mcast_snooping 0".to_owned(),
        "link set br0 up".to_owned(),
    ];
    for pod in pods {
        let link = pod.link();
        let [v4, v6] = Family::ALL.map(|family| pod.hub(family));
        commands.extend([
            format!("address flush dev {link}"),
            format!("link set {link} master br0"),
            format!("address add {v4}/16 dev br0"),
            format!("address add {v6}/64 dev br0 nodad"),
        ]);
    }
    router.ip_batch(&commands.join("\n"));
    await_ipv6(router, "br0", pods.len());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::neigh::{Thresholds, send, table_fulls};

    #[test]
    fn packets_are_forwarded_and_refused_on_both_wirings() {
        for wiring in [Wiring::Routed, Wiring::Bridged] {
            let (mut node, [pod]) = Node::new(wiring, ["pod"]);
            for family in Family::ALL {
                let destinations = node.beyond(family, 1000..1200);
                let fulls = table_fulls(family);
                let limits = Thresholds::set(node.lab.lock(), [64, 128, 128]);
                send(&pod.netns, pod.address(family), &destinations);
                drop(limits);
                let refused = node.refused(family, &destinations);
                let grown = table_fulls(family) - fulls;
                assert!(refused >= 72, "{wiring:?} {family:?}: {refused}");
                // The router's solicitations for those granted may have been refused too.
                assert!(
                    grown == refused || family == Family::V6 && grown > refused,
                    "{wiring:?} {family:?}: {refused} refused, table_fulls grew by {grown}"
                );
            }
        }
    }
}
