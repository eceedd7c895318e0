//! Destinations that answer nobody.
//!
//! The kernel counts failed attempts by client and destination, and begins anew when the destination
//! answers. One where so many attempts in a row have failed, whoever made them, is dead until it answers
//! or its address has a new owner.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tracer_common::tcp::{AttemptsKey, Destination, DestinationValue, Key, REDIRECTED_NS};

use super::shares::Shares;
use crate::{
    hooks::address,
    kernel::{self, maps::Reading},
    moment,
    pods::{Owner, Tenant},
};

/// Attempts in a row that must have failed.
const IN_A_ROW: u64 = 3;
/// Destinations with a name.
const NAMED: usize = 100;
/// A dead destination that nobody has tried for so long is forgotten.
const IDLE: Duration = Duration::from_mins(10);
/// One that is not dead yet: twice as long as the kernel tries to connect.
const IDLE_ALIVE: Duration = Duration::from_mins(5);

/// Between two answers of a destination.
type Silence = (Destination, u64);

/// A destination that answers nobody.
#[derive(Clone, Debug)]
pub struct DeadEndpoint {
    /// `ip:port`.
    pub destination: String,
    /// Who had the address.
    pub tenant: Tenant,
    /// The first of its failures.
    pub since: Instant,
    /// Failed attempts since then, of all clients.
    pub attempts: u64,
}

/// Failed attempts to dead destinations, by owner and `ip:port`; `None` is the rest.
pub type Attempts = BTreeMap<Option<String>, u64>;

/// What the kernel may forget.
#[derive(Debug, Default)]
pub struct Over {
    /// Of the map `ATTEMPTS`.
    pub attempts: Vec<AttemptsKey>,
    /// Of the map `DESTINATIONS`.
    pub destinations: Vec<Destination>,
}

/// What is remembered of a silence.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    /// The first of the failures that are held against the destination.
    #[serde(with = "moment")]
    since: Instant,
    /// Failures that are not, for its address has got a new owner since.
    forgiven: u64,
    /// Who was known to have the address.
    #[serde(default)]
    tenant: Option<Arc<Owner>>,
    /// When this agent first heard of that; `None`: it has not.
    #[serde(skip)]
    noticed: Option<Instant>,
}

impl Row {
    /// Has the address got a new owner since, and when? An agent hears of everybody when it begins: whom another
    /// knew is not new.
    fn owned_anew(&mut self, tenant: &Tenant) -> Option<Instant> {
        let (Some(owner), Some(noticed), None) = (&tenant.owner, tenant.noticed, tenant.until)
        else {
            return None;
        };
        let was_known = self.tenant.as_ref().is_some_and(|known| {
            self.noticed.unwrap_or(noticed) == noticed && *known == *owner && known.uid == owner.uid
        });
        self.tenant = Some(owner.clone());
        self.noticed = Some(noticed);
        (!was_known && noticed > self.since).then_some(noticed)
    }
}

/// The state between readings.
#[derive(Debug, Serialize, Deserialize)]
pub struct Dead {
    shares: Shares<AttemptsKey, Arc<Owner>, String>,
    rows: HashMap<Silence, Row>,
    /// Silences with too many failures.
    #[serde(skip)]
    deadly: HashSet<Silence>,
    #[serde(skip)]
    list: Vec<DeadEndpoint>,
    /// How often keys have left.
    #[serde(skip)]
    left: u64,
}

impl Default for Dead {
    fn default() -> Self {
        Self {
            shares: Shares::new(NAMED),
            rows: HashMap::new(),
            deadly: HashSet::new(),
            list: Vec::new(),
            left: 0,
        }
    }
}

fn text(destination: &Destination) -> String {
    let address = address(destination.family, destination.address);
    SocketAddr::new(address, destination.port).to_string()
}

/// Have redirected clients not failed there for long? Its answers are not seen.
fn is_over(value: &DestinationValue) -> bool {
    let age = kernel::monotonic().saturating_sub(Duration::from_nanos(value.last_failed_ns));
    value.redirected != 0 && age >= Duration::from_nanos(REDIRECTED_NS)
}

impl Dead {
    /// Takes a reading over. `owner` names a client, once it is decided; `tenant` says who has an
    /// address.
    pub fn update(
        &mut self,
        reading: &Reading,
        now: Instant,
        second: u64,
        owner: impl Fn(&Key) -> Option<Arc<Owner>>,
        tenant: impl Fn(IpAddr) -> Tenant,
    ) {
        let mut failed: HashMap<Silence, (u64, u64)> = HashMap::new();
        for (key, value) in &reading.attempts {
            let (sum, first) = failed
                .entry((key.destination, key.answered))
                .or_insert((0, u64::MAX));
            *sum += value.failed;
            *first = value.first_ns.min(*first);
        }
        self.rows.retain(|silence, _| failed.contains_key(silence));
        let present: HashMap<&Destination, &DestinationValue> =
            reading.destinations.iter().map(|(d, v)| (d, v)).collect();
        self.list.clear();
        self.deadly.clear();
        for (silence, (sum, first_ns)) in &failed {
            let (destination, then) = silence;
            let row = self.rows.entry(*silence).or_insert_with(|| Row {
                since: moment::from_ns(*first_ns),
                forgiven: 0,
                tenant: None,
                noticed: None,
            });
            let value = present.get(destination);
            let lasts = value.is_some_and(|value| value.answered == *then && !is_over(value));
            let tenant = tenant(address(destination.family, destination.address));
            if lasts && let Some(noticed) = row.owned_anew(&tenant) {
                row.forgiven = *sum;
                row.since = now.max(noticed);
                continue;
            }
            if sum.saturating_sub(row.forgiven) < IN_A_ROW {
                continue;
            }
            if lasts {
                self.list.push(DeadEndpoint {
                    destination: text(destination),
                    tenant,
                    since: row.since,
                    attempts: sum - row.forgiven,
                });
            }
            self.deadly.insert(*silence);
        }
        for (key, value) in &reading.attempts {
            let silence = (key.destination, key.answered);
            if !self.deadly.contains(&silence) {
                let forgiven = self.rows.get(&silence).map(|row| row.forgiven);
                if forgiven == failed.get(&silence).map(|(sum, _)| *sum) {
                    self.shares.skip(*key, value.failed);
                }
                continue;
            }
            if let Some(owner) = owner(&key.client) {
                let label = Some(text(&key.destination));
                self.shares.take(*key, value.failed, &owner, label);
            }
        }
        self.list.sort_by(|a, b| {
            b.attempts
                .cmp(&a.attempts)
                .then_with(|| a.destination.cmp(&b.destination))
        });
        self.shares.settle(second);
        // Whoever answers again has no name any more.
        let listed: HashSet<&String> = self.list.iter().map(|dead| &dead.destination).collect();
        let named = self.shares.named();
        let over: Vec<String> = named
            .filter(|label| !listed.contains(label))
            .cloned()
            .collect();
        for label in over {
            self.shares.forget_label(&label);
        }
    }

    /// Failed attempts to dead destinations, by owner.
    pub fn attempts(&self) -> impl Iterator<Item = (&Arc<Owner>, &Attempts)> {
        self.shares.all()
    }

    /// The destinations that have a name, the one with most attempts first.
    pub fn endpoints(&self) -> Vec<DeadEndpoint> {
        let named: HashSet<&String> = self.shares.named().collect();
        let mut told = HashSet::new();
        // A loopback address is another one in each namespace, and has one name.
        self.list
            .iter()
            .filter(|dead| named.contains(&dead.destination) && told.insert(&dead.destination))
            .cloned()
            .collect()
    }

    /// What the kernel may forget: attempts before a destination's last answer, once they are
    /// accounted for, and destinations where nobody has failed for long. `now` is `CLOCK_MONOTONIC`.
    pub fn over(&mut self, reading: &Reading, now: Duration) -> Over {
        let age = |ktime_ns| now.saturating_sub(Duration::from_nanos(ktime_ns));
        let mut over = Over::default();
        let mut known = HashMap::new();
        for (destination, value) in &reading.destinations {
            let is_dead = self.deadly.contains(&(*destination, value.answered));
            let idle = if is_dead { IDLE } else { IDLE_ALIVE };
            // 0: entered this moment.
            let is_idle = value.last_failed_ns != 0 && age(value.last_failed_ns) >= idle;
            if is_idle {
                // Whoever fails there again begins anew.
                self.rows.remove(&(*destination, value.answered));
                over.destinations.push(*destination);
            }
            known.insert(destination, (value.answered, is_idle));
        }
        for (key, value) in &reading.attempts {
            let is_over = match known.get(&key.destination) {
                Some((answered, is_idle)) => *is_idle || *answered > key.answered,
                None => age(value.first_ns) >= IDLE,
            };
            let is_dead = self.deadly.contains(&(key.destination, key.answered));
            // Accounted for, or nothing to account for.
            if is_over && (!is_dead || self.shares.seen(key) == value.failed) {
                self.shares.forget_key(key);
                over.attempts.push(*key);
            }
        }
        self.left += (over.attempts.len() + over.destinations.len()) as u64;
        over
    }

    /// How often keys have left: a memory from before is out of date.
    pub fn decisions(&self) -> u64 {
        self.left
    }

    /// Owners that are over.
    pub fn retain_owners(&mut self, stays: impl FnMut(&Arc<Owner>) -> bool) {
        self.shares.retain_owners(stays);
    }
}

#[cfg(test)]
mod tests {
    use tracer_common::{AF_INET, tcp::AttemptsValue};

    use super::*;

    const A: Key = Key {
        cgroup_id: 1,
        net_cookie: 1,
    };
    const B: Key = Key {
        cgroup_id: 2,
        net_cookie: 1,
    };

    fn destination() -> Destination {
        Destination {
            address: [u32::from_ne_bytes([10, 0, 0, 9]), 0, 0, 0],
            family: AF_INET,
            port: 80,
            ..Destination::default()
        }
    }

    /// Failed attempts of each client, by how often the destination had answered then.
    fn reading(answered: u64, failed: &[(Key, u64, u64)]) -> Reading {
        let now_ns = kernel::monotonic().as_nanos() as u64;
        let value = DestinationValue {
            answered,
            last_failed_ns: now_ns,
            ..DestinationValue::default()
        };
        let attempts = failed.iter().map(|(client, answered, failed)| {
            let key = AttemptsKey {
                client: *client,
                destination: destination(),
                answered: *answered,
            };
            let value = AttemptsValue {
                failed: *failed,
                first_ns: now_ns,
            };
            (key, value)
        });
        Reading {
            attempts: attempts.collect(),
            destinations: vec![(destination(), value)],
            ..Reading::default()
        }
    }

    fn owner(key: &Key) -> Option<Arc<Owner>> {
        let name = if *key == A { "a" } else { "b" };
        (key.net_cookie == 1).then(|| Owner::new("shop", name))
    }

    fn update(dead: &mut Dead, reading: &Reading, tenant: &Tenant) {
        let now = Instant::now();
        dead.update(reading, now, 1, owner, |_| tenant.clone());
    }

    fn attempts(dead: &Dead, pod: &str) -> Vec<(Option<String>, u64)> {
        let of = dead.attempts().find(|(owner, _)| owner.pod == pod);
        of.map(|(_, n)| n.clone().into_iter().collect())
            .unwrap_or_default()
    }

    #[test]
    fn three_in_a_row_whoever_made_them_are_dead_and_all_count() {
        let mut dead = Dead::default();
        let nobody = Tenant::default();
        update(&mut dead, &reading(0, &[(A, 0, 1), (B, 0, 1)]), &nobody);
        assert!(dead.endpoints().is_empty());
        update(&mut dead, &reading(0, &[(A, 0, 2), (B, 0, 1)]), &nobody);
        let listed = dead.endpoints();
        assert_eq!(
            (listed[0].destination.as_str(), listed[0].attempts),
            ("10.0.0.9:80", 3)
        );
        let name = Some("10.0.0.9:80".to_owned());
        assert_eq!(attempts(&dead, "a"), [(name.clone(), 2)]);
        assert_eq!(attempts(&dead, "b"), [(name, 1)]);
    }

    #[test]
    fn one_that_answers_leaves_and_its_sums_stay() {
        let mut dead = Dead::default();
        let nobody = Tenant::default();
        update(&mut dead, &reading(0, &[(A, 0, 3)]), &nobody);
        // Two more before it answered.
        let after = reading(1, &[(A, 0, 5), (A, 1, 1)]);
        update(&mut dead, &after, &nobody);
        assert!(dead.endpoints().is_empty());
        assert_eq!(attempts(&dead, "a"), [(None, 5)]);
        let over = dead.over(&after, kernel::monotonic());
        assert_eq!((over.attempts.len(), over.attempts[0].answered), (1, 0));
        assert!(over.destinations.is_empty());
        update(&mut dead, &reading(1, &[(A, 1, 1)]), &nobody);
        assert_eq!(attempts(&dead, "a"), [(None, 5)]);
    }

    #[test]
    fn one_that_is_owned_anew_leaves_until_it_fails_again() {
        let mut dead = Dead::default();
        update(&mut dead, &reading(0, &[(A, 0, 3)]), &Tenant::default());
        assert_eq!(dead.endpoints().len(), 1);
        let anew = Tenant {
            owner: Some(Owner::new("shop", "next")),
            until: None,
            noticed: Some(Instant::now()),
        };
        update(&mut dead, &reading(0, &[(A, 0, 4)]), &anew);
        assert!(dead.endpoints().is_empty());
        update(&mut dead, &reading(0, &[(A, 0, 6)]), &anew);
        assert!(dead.endpoints().is_empty());
        update(&mut dead, &reading(0, &[(A, 0, 7)]), &anew);
        assert_eq!(dead.endpoints()[0].attempts, 3);
        let counted: u64 = attempts(&dead, "a").iter().map(|(_, n)| n).sum();
        assert_eq!(counted, 6, "the one while it was forgiven does not count");
        // And so does the next owner's.
        let next = Tenant {
            noticed: Some(Instant::now() + Duration::from_secs(2)),
            ..anew
        };
        update(&mut dead, &reading(0, &[(A, 0, 7)]), &next);
        assert!(dead.endpoints().is_empty());
    }

    #[test]
    fn a_restart_forgives_nobody() {
        let mut dead = Dead::default();
        let pod = |uid: &str| {
            Arc::new(Owner {
                namespace: "shop".to_owned(),
                pod: "web-0".to_owned(),
                uid: Some(uid.to_owned()),
            })
        };
        let noticed_now = |owner| Tenant {
            owner: Some(owner),
            until: None,
            noticed: Some(Instant::now()),
        };
        let web = noticed_now(pod("1"));
        update(&mut dead, &reading(0, &[(A, 0, 1)]), &web);
        update(&mut dead, &reading(0, &[(A, 0, 4)]), &web);
        assert_eq!(dead.endpoints()[0].attempts, 4);
        let bytes = rmp_serde::to_vec_named(&dead).unwrap();
        let next = || -> Dead { rmp_serde::from_slice(&bytes).unwrap() };

        // At first nobody tells the next agent whose the address is.
        let mut same = next();
        update(&mut same, &reading(0, &[(A, 0, 5)]), &Tenant::default());
        update(&mut same, &reading(0, &[(A, 0, 6)]), &noticed_now(pod("1")));
        assert_eq!(same.endpoints()[0].attempts, 6);
        assert_eq!(attempts(&same, "a")[0].1, 6);
        // It was made anew meanwhile.
        let mut other = next();
        update(
            &mut other,
            &reading(0, &[(A, 0, 6)]),
            &noticed_now(pod("2")),
        );
        assert!(other.endpoints().is_empty());
    }

    #[test]
    fn one_behind_a_redirection_leaves_when_nobody_has_failed_for_a_while() {
        let mut dead = Dead::default();
        let mut reading = reading(0, &[(A, 0, 3)]);
        reading.destinations[0].1.redirected = 1;
        update(&mut dead, &reading, &Tenant::default());
        assert_eq!(dead.endpoints().len(), 1);
        reading.destinations[0].1.last_failed_ns -= REDIRECTED_NS;
        update(&mut dead, &reading, &Tenant::default());
        assert!(dead.endpoints().is_empty());
        assert_eq!(attempts(&dead, "a"), [(None, 3)]);
    }

    #[test]
    fn one_that_was_forgiven_and_forgotten_begins_anew() {
        let mut dead = Dead::default();
        update(&mut dead, &reading(0, &[(A, 0, 3)]), &Tenant::default());
        let anew = Tenant {
            owner: Some(Owner::new("shop", "next")),
            until: None,
            noticed: Some(Instant::now()),
        };
        let old = reading(0, &[(A, 0, 3)]);
        update(&mut dead, &old, &anew);
        let over = dead.over(&old, kernel::monotonic() + IDLE);
        assert_eq!((over.attempts.len(), over.destinations.len()), (1, 1));
        // The next attempt comes before a reading without any.
        for failed in 1..=3 {
            update(&mut dead, &reading(0, &[(A, 0, failed)]), &anew);
            assert_eq!(dead.endpoints().len(), usize::from(failed == 3));
        }
    }

    #[test]
    fn a_client_without_a_name_is_counted_later() {
        let mut dead = Dead::default();
        let reading = reading(0, &[(A, 0, 3)]);
        let now = Instant::now();
        dead.update(&reading, now, 1, |_| None, |_| Tenant::default());
        assert_eq!(dead.attempts().count(), 0);
        update(&mut dead, &reading, &Tenant::default());
        assert_eq!(attempts(&dead, "a")[0].1, 3);
    }
}
