//! A node with many pods on its bridge, a DNS server and services among them, and a service behind
//! the node. IPv4 only, made by few processes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::entries::entries;
use crate::entries::{know, mac};
use crate::incident::pods::Listed;
use crate::neigh::Family;
use crate::netns::Netns;
use crate::wait::check_interrupt;

/// The node's device on the pods' segment.
pub const BRIDGE: &str = "br0";
/// The node's address on the bridge.
pub const NODE: IpAddr = address(0);
/// The service behind the node.
pub const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 98, 0, 2));

/// Address number so and so on the bridge.
pub const fn address(number: u16) -> IpAddr {
    let [high, low] = (number + 1).to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(10, 99, high, low))
}

/// One of them.
#[derive(Debug)]
pub struct Resident {
    /// Its namespace.
    pub netns: Netns,
    /// Kubernetes namespace and name.
    pub listed: Listed,
    /// Its address.
    pub address: IpAddr,
    /// Its device; no two have the same name, so that the kernel's trace tells whose it was.
    pub device: String,
}

impl Resident {
    /// `NS/NAME`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.listed.namespace, self.listed.name)
    }
}

/// The node and its pods; gone on drop.
#[derive(Debug)]
pub struct Town {
    /// The DNS server.
    pub dns: Resident,
    /// Services that every pod calls.
    pub services: Vec<Resident>,
    /// Callers of the services, in the order in which they arrive.
    pub pods: Vec<Resident>,
    /// Pods whose neighbours are all known for good: they never need an entry that counts.
    pub calm: Vec<Resident>,
    /// What stands behind the node.
    pub outside: Resident,
    /// The node.
    pub node: Arc<Netns>,
}

impl Town {
    /// With so many callers.
    pub fn new(node: &Arc<Netns>, callers: u16) -> Self {
        let mut next = 0;
        let mut links = vec![
            // With snooping a bridge joins 224.0.0.106, a neighbour more.
            format!("link add {BRIDGE} type bridge mcast_snooping 0"),
            format!("link set {BRIDGE} up"),
            format!("address add {NODE}/16 dev {BRIDGE}"),
        ];
        let mut resident = |namespace: &str, name: String| {
            check_interrupt();
            next += 1;
            let one = Resident::new(namespace, &name, next);
            let device = &one.device;
            links.push(format!(
                "link add l{next} type veth peer name {device} netns {}",
                one.netns.name()
            ));
            links.push(format!("link set l{next} master {BRIDGE} up"));
            one
        };
        let dns = resident("kube-system", "coredns-0".into());
        let services = vec![resident("shop", "payments-0".into())];
        let calm = (0..2)
            .map(|n| resident("shop", format!("calm-{n}")))
            .collect();
        let pods = (0..callers)
            .map(|n| resident("shop", format!("cart-{n:03}")))
            .collect();
        let mut outside = resident("bank", "gateway-0".into());
        outside.address = OUTSIDE;
        // Not on the bridge.
        links.pop();
        links.push(format!("link set l{next} up"));
        links.push(format!("address add 10.98.0.1/16 dev l{next}"));
        node.ip_batch(&links.join("\n"));
        node.sysctl("ipv4/ip_forward", "1");
        let town = Self {
            dns,
            services,
            pods,
            calm,
            outside,
            node: Arc::clone(node),
        };
        for one in town.all() {
            check_interrupt();
            let (device, address) = (&one.device, one.address);
            let gateway = if address == OUTSIDE {
                "10.98.0.1".to_owned()
            } else {
                NODE.to_string()
            };
            one.netns.ip_batch(&format!(
                "link set {device} up\naddress add {address}/16 dev {device}\n\
                 route add default via {gateway}\n"
            ));
        }
        town.settle_the_calm(next);
        town
    }

    /// Everybody but the node.
    pub fn all(&self) -> impl Iterator<Item = &Resident> {
        let servers = [&self.dns, &self.outside];
        servers
            .into_iter()
            .chain(&self.services)
            .chain(&self.calm)
            .chain(&self.pods)
    }

    /// Everybody as tracer is to know them; the node's own namespace under a name of its own.
    pub fn listed(&self) -> Vec<Listed> {
        let node = Listed::of("kube-system", "node", &self.node.path());
        let pods = self.all().map(|one| one.listed.clone());
        pods.chain([node]).collect()
    }

    /// Ground truth: entries held, by `NS/NAME`, most first.
    pub fn holders(&self) -> Vec<(String, usize)> {
        let held = |netns: &Netns| entries(netns, Family::V4).len();
        let mut holders: BTreeMap<String, usize> = self
            .all()
            .map(|one| (one.name(), held(&one.netns)))
            .collect();
        holders.insert("kube-system/node".into(), held(&self.node));
        let mut holders: Vec<_> = holders.into_iter().collect();
        holders.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        holders
    }

    /// Lets the calm, and the far side, know their neighbours for good, and be known.
    fn settle_the_calm(&self, link: u16) {
        let own = |one: &Resident| mac(&one.netns, &one.device);
        for calm in &self.calm {
            for server in self.services.iter().chain([&self.dns]) {
                know(&calm.netns, &calm.device, server.address, &own(server));
                know(&server.netns, &server.device, calm.address, &own(calm));
            }
            know(&calm.netns, &calm.device, NODE, &mac(&self.node, BRIDGE));
            know(&self.node, BRIDGE, calm.address, &own(calm));
        }
        let link = format!("l{link}");
        let gateway = IpAddr::V4(Ipv4Addr::new(10, 98, 0, 1));
        know(
            &self.outside.netns,
            &self.outside.device,
            gateway,
            &mac(&self.node, &link),
        );
        know(&self.node, &link, OUTSIDE, &own(&self.outside));
    }
}

impl Resident {
    /// In a namespace of its own, without a link.
    pub fn new(namespace: &str, name: &str, number: u16) -> Self {
        let netns = Netns::new(name);
        for scope in ["all", "default"] {
            netns.sysctl(&format!("ipv6/conf/{scope}/disable_ipv6"), "1");
        }
        Self {
            listed: Listed::of(namespace, name, &netns.path()),
            netns,
            address: address(number),
            device: format!("e{number}"),
        }
    }
}
