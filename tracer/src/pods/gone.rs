//! Addresses of this node's pods that went lately: whoever still asks for one asks a pod that is no
//! more.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{Known, Owner, Tenant};
use crate::moment;

/// How long one is told.
const TELL: Duration = Duration::from_hours(1);
/// How many are told, the latest.
const MOST: usize = 200;

/// The addresses that pods have, and those that they had.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Gone {
    held: HashMap<IpAddr, Arc<Owner>>,
    /// The latest last, none twice.
    gone: VecDeque<Left>,
}

/// An address that nobody has.
#[derive(Debug, Serialize, Deserialize)]
struct Left {
    address: IpAddr,
    owner: Arc<Owner>,
    #[serde(with = "moment")]
    at: Instant,
}

impl Gone {
    /// Takes over what the sources know, the strongest first.
    pub(super) fn update<'a>(&mut self, known: impl Iterator<Item = &'a Known>, now: Instant) {
        let mut held: HashMap<IpAddr, Arc<Owner>> = HashMap::new();
        for pod in known.filter(|pod| pod.owner.is_pod()) {
            for address in &pod.addresses {
                held.entry(*address).or_insert_with(|| pod.owner.clone());
            }
        }
        for (address, owner) in std::mem::take(&mut self.held) {
            if !held.contains_key(&address) {
                self.gone.push_back(Left {
                    address,
                    owner,
                    at: now,
                });
            }
        }
        self.gone
            .retain(|left| now.duration_since(left.at) < TELL && !held.contains_key(&left.address));
        let surplus = self.gone.len().saturating_sub(MOST);
        self.gone.drain(..surplus);
        self.held = held;
    }

    /// Who had an address that nobody has now.
    pub(super) fn tenant(&self, address: &IpAddr) -> Tenant {
        let left = self.gone.iter().find(|left| left.address == *address);
        left.map_or_else(Tenant::default, |left| Tenant {
            owner: Some(left.owner.clone()),
            noticed: None,
            until: Some(left.at),
        })
    }

    /// The addresses that nobody on the node has now, and who had them last.
    pub(super) fn addresses(&self) -> Vec<(IpAddr, Arc<Owner>)> {
        self.gone
            .iter()
            .map(|left| (left.address, left.owner.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, last: u8) -> Known {
        Known {
            addresses: vec![[10, 0, 0, last].into()],
            ..Known::of(Owner::new("shop", name))
        }
    }

    fn told(gone: &Gone) -> Vec<String> {
        gone.addresses()
            .iter()
            .map(|(address, owner)| format!("{address} {}", owner.pod))
            .collect()
    }

    #[test]
    fn an_address_is_told_from_its_pods_end_until_another_has_it() {
        let mut gone = Gone::default();
        let now = Instant::now();
        gone.update([&pod("a", 1), &pod("b", 2)].into_iter(), now);
        assert!(told(&gone).is_empty());
        gone.update([&pod("b", 2)].into_iter(), now);
        assert_eq!(told(&gone), ["10.0.0.1 a"]);
        gone.update([&pod("c", 1)].into_iter(), now);
        assert_eq!(told(&gone), ["10.0.0.2 b"]);
        gone.update([].into_iter(), now + Duration::from_mins(59));
        assert_eq!(told(&gone), ["10.0.0.2 b", "10.0.0.1 c"]);
        gone.update([].into_iter(), now + TELL);
        assert_eq!(told(&gone), ["10.0.0.1 c"]);
    }

    #[test]
    fn they_are_bounded_and_only_pods() {
        let mut gone = Gone::default();
        let now = Instant::now();
        let mut host = pod("x", 9);
        host.owner = Owner::new("(netns)", "x");
        gone.update([&host].into_iter(), now);
        for last in 0..=250 {
            gone.update([&pod("a", last)].into_iter(), now);
        }
        gone.update([].into_iter(), now);
        let told = told(&gone);
        assert_eq!(
            (told.len(), told[MOST - 1].as_str()),
            (MOST, "10.0.0.250 a")
        );
    }
}
