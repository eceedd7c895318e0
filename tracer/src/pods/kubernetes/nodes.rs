//! The cluster's nodes, for their names: a watch on nodes, of which a name and some addresses each
//! are kept. It needs get, list and watch on nodes; without, addresses stand for themselves.
//!
//! A node's `podCIDR` says where its pods are only where the network takes their addresses from there. Calico's and
//! Cilium's own pools do not, and the controller manager hands out ranges all the same, often of the same network: by
//! them a pod would be on whatever node. So they are believed only as long as this node's own pods are in its own.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::Node as NodeResource;
use kube::{
    Api, Client,
    core::{ApiResource, Object},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde::Deserialize;
use tokio::{runtime::Handle, task::JoinHandle};

use super::{Access, RETRY, STALE, access::Way, object::is_plain, told};

/// How long before a server that denies the nodes is asked again: where that is meant (`rbac.nodes` of the chart), every
/// agent of the cluster would ask it.
const DENIED: Duration = Duration::from_mins(10);

type Node = Object<Spec, Status>;

/// Part of NodeSpec v1.
#[derive(Clone, Debug, Default, Deserialize)]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

/// Part of NodeStatus v1.
#[derive(Clone, Debug, Default, Deserialize)]
struct Status {
    addresses: Option<Vec<Address>>,
}

#[derive(Clone, Debug, Deserialize)]
struct Address {
    r#type: String,
    address: String,
}

/// The nodes that are known.
pub struct Nodes {
    /// This one's name.
    own: String,
    shared: Arc<Mutex<Store>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Store {
    nodes: HashMap<String, Places>,
    /// Names that a list which is not complete yet has brought.
    fresh: HashSet<String>,
    listed: bool,
    failed: bool,
    ranges: Ranges,
}

/// Are pods where the nodes' ranges say?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Ranges {
    /// It is not known yet which pods this node has.
    #[default]
    Unheard,
    Unproved,
    Proved,
}

/// Where a node is.
struct Places {
    addresses: Vec<IpAddr>,
    /// Its pods are in these.
    ranges: Vec<Range>,
}

/// Addresses with a common beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    address: IpAddr,
    bits: u32,
}

impl Nodes {
    /// Begins to watch, on the node of this name. Needs a tokio runtime of several threads.
    pub fn start(access: Access, own: &str) -> Result<Self> {
        let config = tokio::task::block_in_place(|| Handle::current().block_on(access.load()))?;
        let shared = Arc::new(Mutex::new(Store::default()));
        let task = tokio::spawn(follow(access, config, Arc::clone(&shared)));
        Ok(Self {
            own: own.to_owned(),
            shared,
            task,
        })
    }

    /// Is it settled what is known: is there a list, or no hope of one soon?
    pub fn is_settled(&self) -> bool {
        let store = store(&self.shared);
        store.listed && store.ranges != Ranges::Unheard || store.failed
    }

    /// Takes the addresses that this node's pods have in the pod network. `heard`: is it all of them?
    pub fn learn(&self, addresses: impl Iterator<Item = IpAddr>, heard: bool) {
        let mut store = store(&self.shared);
        if heard && store.listed {
            store.ranges = if store.is_proved(&self.own, addresses) {
                Ranges::Proved
            } else {
                Ranges::Unproved
            };
        }
    }

    /// The node that has the address, or whose pods do.
    pub fn name(&self, address: IpAddr) -> Option<String> {
        store(&self.shared).name(address).cloned()
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn store(shared: &Mutex<Store>) -> MutexGuard<'_, Store> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn follow(access: Access, mut config: kube::Config, shared: Arc<Mutex<Store>>) {
    loop {
        if let Err(why) = watch(access, &config, &shared).await {
            fail(&shared, &why);
            tokio::time::sleep(RETRY).await;
        }
        match access.load().await {
            Ok(fresh) => config = fresh,
            Err(why) => fail(&shared, &why),
        }
    }
}

/// As that on pods.
async fn watch(access: Access, config: &kube::Config, shared: &Mutex<Store>) -> Result<()> {
    let mut good = Instant::now();
    let way = Way::of(config);
    let client = Client::try_from(config.clone())?;
    let api: Api<Node> = Api::all_with(client, &ApiResource::erase::<NodeResource>(&()));
    let events = watcher(api, watcher::Config::default().any_semantic()).default_backoff();
    pin_mut!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                store(shared).take(event);
                good = Instant::now();
            }
            Err(why) => {
                let is_denied = is_denied(&why);
                fail(shared, &anyhow!(why));
                if is_denied {
                    tokio::time::sleep(DENIED).await;
                }
                if good.elapsed() >= STALE && access.leads_elsewhere(&way).await {
                    break;
                }
            }
        }
    }
    Ok(())
}

/// Is there no right to see nodes?
fn is_denied(why: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(kube::Error::Api(status))
    | watcher::Error::WatchStartFailed(kube::Error::Api(status))) = why
    else {
        return false;
    };
    status.code == hyper::StatusCode::FORBIDDEN.as_u16()
}

/// Told once: the source of pods has the same server and goes on telling.
fn fail(shared: &Mutex<Store>, why: &anyhow::Error) {
    let mut store = store(shared);
    if !store.failed && !store.listed {
        tracing::warn!(
            "nodes are not known, addresses stand for them: {}",
            told(why)
        );
    }
    store.failed = true;
}

impl Store {
    fn take(&mut self, event: Event<Node>) {
        match event {
            Event::Init => self.fresh.clear(),
            Event::InitApply(node) => {
                if let Some(name) = self.put(&node) {
                    self.fresh.insert(name);
                }
            }
            Event::InitDone => {
                let fresh = std::mem::take(&mut self.fresh);
                self.nodes.retain(|name, _| fresh.contains(name));
                self.listed = true;
            }
            Event::Apply(node) => {
                self.put(&node);
            }
            Event::Delete(node) => {
                if let Some(name) = &node.metadata.name {
                    self.nodes.remove(name);
                }
            }
        }
    }

    fn put(&mut self, node: &Node) -> Option<String> {
        let name = node.metadata.name.clone().filter(|n| is_plain(n, 253))?;
        self.nodes.insert(name.clone(), places(node));
        Some(name)
    }

    /// Is any of these addresses in the node's ranges, and none outside?
    fn is_proved(&self, node: &str, addresses: impl Iterator<Item = IpAddr>) -> bool {
        let Some(places) = self.nodes.get(node) else {
            return false;
        };
        let mut any = false;
        for address in addresses {
            let of_family = |range: &&Range| range.address.is_ipv4() == address.is_ipv4();
            let mut ranges = places.ranges.iter().filter(of_family).peekable();
            if ranges.peek().is_none() {
                continue;
            }
            if !ranges.any(|range| range.holds(address)) {
                return false;
            }
            any = true;
        }
        any
    }

    fn name(&self, address: IpAddr) -> Option<&String> {
        let has = |places: &Places| places.addresses.contains(&address);
        let holds = |places: &Places| {
            self.ranges == Ranges::Proved && places.ranges.iter().any(|range| range.holds(address))
        };
        let of = |(name, _)| name;
        let exact = self.nodes.iter().find(|(_, places)| has(places));
        exact
            .or_else(|| self.nodes.iter().find(|(_, places)| holds(places)))
            .map(of)
    }
}

fn places(node: &Node) -> Places {
    let addresses = node.status.iter().flat_map(|status| &status.addresses);
    let ranges = node.spec.pod_cidrs.iter().flatten();
    Places {
        addresses: addresses
            .flatten()
            .filter(|a| matches!(a.r#type.as_str(), "InternalIP" | "ExternalIP"))
            .filter_map(|a| a.address.parse().ok())
            .collect(),
        ranges: ranges
            .chain(&node.spec.pod_cidr)
            .filter_map(|text| Range::parse(text))
            .collect(),
    }
}

/// [`crate::fuzz`]
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(bytes: &[u8]) -> bool {
    let Ok(node) = serde_json::from_slice::<Node>(bytes) else {
        return false;
    };
    let mut store = Store::default();
    let Some(name) = store.put(&node) else {
        return false;
    };
    let places = &store.nodes[&name];
    let addresses: Vec<IpAddr> = places.addresses.clone();
    for range in &places.ranges {
        assert!(range.holds(range.address));
    }
    for address in addresses {
        assert_eq!(store.name(address), Some(&name));
    }
    true
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/')?;
        let (address, bits): (IpAddr, u32) = (address.parse().ok()?, bits.parse().ok()?);
        let most = if address.is_ipv4() { 32 } else { 128 };
        (bits <= most).then_some(Self { address, bits })
    }

    fn holds(&self, address: IpAddr) -> bool {
        // As numbers that begin with the address.
        let (mine, other) = match (self.address, address) {
            (IpAddr::V4(mine), IpAddr::V4(other)) => (
                u128::from(mine.to_bits()) << 96,
                u128::from(other.to_bits()) << 96,
            ),
            (IpAddr::V6(mine), IpAddr::V6(other)) => (mine.to_bits(), other.to_bits()),
            _ => return false,
        };
        (mine ^ other).leading_zeros() >= self.bits
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, address: &str, ranges: &[&str]) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"podCIDR": ranges.first(), "podCIDRs": ranges},
            "status": {"addresses": [
                {"type": "Hostname", "address": name},
                {"type": "InternalIP", "address": address},
            ]},
        }))
        .unwrap()
    }

    fn name(store: &Store, address: &str) -> String {
        let name = store.name(address.parse().unwrap());
        name.cloned().unwrap_or_default()
    }

    #[test]
    fn an_address_is_its_nodes_or_that_of_the_nodes_pods() {
        let mut store = Store::default();
        store.take(Event::Init);
        store.take(Event::InitApply(node(
            "n1",
            "172.30.0.1",
            &["10.244.1.0/24", "fd00:1::/64"],
        )));
        store.take(Event::InitApply(node(
            "n2",
            "10.244.1.9",
            &["10.244.2.0/24"],
        )));
        store.take(Event::InitDone);
        assert_eq!(name(&store, "172.30.0.1"), "n1");
        assert_eq!(name(&store, "10.244.1.7"), "", "not before it is proved");
        store.ranges = Ranges::Proved;
        assert_eq!(name(&store, "10.244.1.7"), "n1");
        assert_eq!(name(&store, "fd00:1::7"), "n1");
        assert_eq!(name(&store, "10.244.1.9"), "n2", "exactly");
        for nobody in ["10.244.3.1", "fd00:2::7", "10.96.0.10"] {
            assert_eq!(name(&store, nobody), "");
        }
        // Listed anew without the second.
        store.take(Event::Init);
        store.take(Event::InitApply(node("n1", "172.30.0.1", &[])));
        store.take(Event::InitDone);
        assert_eq!(name(&store, "10.244.2.1"), "");
    }

    #[test]
    fn ranges_are_believed_as_long_as_own_pods_are_in_their_own() {
        let mut store = Store::default();
        store.take(Event::Init);
        let own = node("own", "172.30.0.1", &["10.244.1.0/24"]);
        store.take(Event::InitApply(own));
        store.take(Event::InitDone);
        let proved = |node: &str, pods: &[&str]| {
            store.is_proved(node, pods.iter().map(|address| address.parse().unwrap()))
        };
        assert!(proved("own", &["10.244.1.7"]));
        // Of a family that it has no range of, nothing is said.
        assert!(proved("own", &["10.244.1.7", "fd00::7"]));
        for pods in [&[][..], &["fd00::7"], &["10.244.1.7", "10.244.3.9"]] {
            assert!(!proved("own", pods), "{pods:?}");
        }
        assert!(!proved("other", &["10.244.1.7"]));
    }

    #[test]
    fn what_is_no_range_is_left_out() {
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "x/8", "fd00::/129"] {
            assert_eq!(Range::parse(bad), None);
        }
        let all = Range::parse("0.0.0.0/0").unwrap();
        assert!(all.holds([1, 2, 3, 4].into()));
    }
}
