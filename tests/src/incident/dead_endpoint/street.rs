//! A node with pods on its bridge and pods on links of their own, and an uplink into nothing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;

use crate::incident::overflow::town::{BRIDGE, NODE, Resident};
use crate::netns::Netns;
use crate::process::check;

/// The node; its pods are with whoever added them.
#[derive(Debug)]
pub struct Street {
    /// The node.
    pub node: Arc<Netns>,
    next: u16,
    /// Takes what the node has no better way for, and drops it without a word.
    _uplink: Netns,
}

impl Street {
    /// Without pods.
    pub fn new(node: &Arc<Netns>) -> Self {
        let uplink = Netns::new("uplink");
        node.ip_batch(&format!(
            "link add {BRIDGE} type bridge mcast_snooping 0\n\
             link set {BRIDGE} up\n\
             address add {NODE}/16 dev {BRIDGE}\n\
             link add up0 type veth peer name up0 netns {}\n\
             link set up0 up\n\
             address add 10.98.0.1/16 dev up0\n",
            uplink.name()
        ));
        uplink.ip_batch("link set up0 up\naddress add 10.98.0.2/16 dev up0\n");
        node.ip("route add default via 10.98.0.2");
        node.sysctl("ipv4/ip_forward", "1");
        // What is refused is told each time.
        node.sysctl("ipv4/icmp_ratemask", "0");
        Self {
            node: Arc::clone(node),
            next: 0,
            _uplink: uplink,
        }
    }

    /// A pod more on the bridge.
    pub fn on_bridge(&mut self, namespace: &str, name: &str) -> Resident {
        self.next += 1;
        let mut pod = Resident::new(namespace, name, self.next);
        self.plug(&mut pod);
        pod
    }

    /// One that gets the address of one that is gone.
    pub fn in_place_of(&mut self, gone: IpAddr, namespace: &str, name: &str) -> Resident {
        self.next += 1;
        let mut pod = Resident::new(namespace, name, self.next);
        pod.address = gone;
        self.plug(&mut pod);
        pod
    }

    fn plug(&self, pod: &mut Resident) {
        let (device, address) = (&pod.device, pod.address);
        let link = link(pod);
        self.node.ip_batch(&format!(
            "link add {link} type veth peer name {device} netns {}\n\
             link set {link} master {BRIDGE} up\n",
            pod.netns.name()
        ));
        pod.netns.ip_batch(&format!(
            "link set {device} up\naddress add {address}/16 dev {device}\n\
             route add default via {NODE}\n"
        ));
        pod.listed.ips = vec![address];
    }

    /// A pod on a link of its own, to which the node has a route for as long as the pod is there.
    pub fn on_route(&mut self, namespace: &str, name: &str) -> Resident {
        self.next += 1;
        let mut pod = Resident::new(namespace, name, self.next);
        let address = IpAddr::V4(Ipv4Addr::new(10, 97, 0, self.next as u8));
        pod.address = address;
        let (device, link) = (&pod.device, link(&pod));
        self.node.ip_batch(&format!(
            "link add {link} type veth peer name {device} netns {}\n\
             link set {link} up\n\
             route add {address}/32 dev {link}\n",
            pod.netns.name()
        ));
        pod.netns.ip_batch(&format!(
            "link set {device} up\naddress add {address}/32 dev {device}\n\
             route add {NODE}/32 dev {device}\n\
             route add default via {NODE} dev {device}\n"
        ));
        pod.listed.ips = vec![address];
        pod
    }

    /// From now on the node's bridge forwards nothing from the pod and nothing to it; nobody is told.
    pub fn cut_off(&self, pod: &Resident) {
        let link = link(pod);
        self.nft(&format!(
            "add table bridge cut; \
             add chain bridge cut forward {{ type filter hook forward priority 0; }}; \
             add rule bridge cut forward iifname {link} drop; \
             add rule bridge cut forward oifname {link} drop"
        ));
    }

    /// That ends.
    pub fn reconnect(&self) {
        self.nft("delete table bridge cut");
    }

    fn nft(&self, commands: &str) {
        self.node.run(|| check(Command::new("nft").arg(commands)));
    }
}

/// Deletes a pod as a container runtime does: its link first.
pub fn delete(pod: Resident) {
    pod.netns.ip(&format!("link del {}", pod.device));
    drop(pod);
}

/// A port of the pod.
pub fn port(pod: &Resident, port: u16) -> SocketAddr {
    SocketAddr::new(pod.address, port)
}

/// The node's end of its link.
fn link(pod: &Resident) -> String {
    format!("l{}", &pod.device[1..])
}
