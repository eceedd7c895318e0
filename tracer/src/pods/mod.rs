//! Whose is it? Sources say which pods there are; the resolver joins what the kernel knows (cgroup,
//! namespace) to them.

pub mod file;
mod join;
pub mod kubernetes;
pub mod local;
mod namespaces;

use std::{
    cmp::Ordering,
    collections::HashMap,
    fmt,
    hash::{Hash, Hasher},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;

use self::{
    join::Join,
    kubernetes::{Access, Kubernetes},
    namespaces::Namespaces,
};
use crate::{
    config::{Pods, UsageError},
    kernel::cgroup,
};

/// Label values: a pod, or what stands for something that is none.
///
/// Two with the same labels are the same, whatever their uid: a pod of a StatefulSet comes back under
/// its name and goes on counting where it was.
#[derive(Clone, Debug)]
pub struct Owner {
    /// Kubernetes namespace, or a word in parentheses.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// Its uid, where known.
    pub uid: Option<String>,
}

impl Owner {
    /// Without a uid.
    pub fn new(namespace: &str, pod: &str) -> Arc<Self> {
        Arc::new(Self {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            uid: None,
        })
    }

    /// What could not be named.
    pub fn unknown() -> Arc<Self> {
        Self::new("(unknown)", "(unknown)")
    }

    /// What found no room.
    pub fn other() -> Arc<Self> {
        Self::new("(other)", "(other)")
    }
}

impl Owner {
    fn labels(&self) -> (&str, &str) {
        (&self.namespace, &self.pod)
    }
}

impl PartialEq for Owner {
    fn eq(&self, other: &Self) -> bool {
        self.labels() == other.labels()
    }
}

impl Eq for Owner {}

impl Hash for Owner {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.labels().hash(state);
    }
}

impl PartialOrd for Owner {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Owner {
    fn cmp(&self, other: &Self) -> Ordering {
        self.labels().cmp(&other.labels())
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.pod)
    }
}

/// What the kernel says of a failure's origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// cgroup2 id of the socket; `None` where a device, not a socket, is concerned.
    pub cgroup_id: Option<u64>,
    /// Cookie of the network namespace; 0 is the kernel's rest key.
    pub net_cookie: u64,
    /// Its inode.
    pub netns: u32,
    /// Source address of a packet without a socket: it decides alone.
    pub source: Option<IpAddr>,
}

/// What a source says of one pod.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its labels.
    pub owner: Arc<Owner>,
    /// Cookie of its namespace, where the source could ask.
    pub net_cookie: Option<u64>,
    /// Inode of its namespace.
    pub netns: Option<u32>,
    /// Its cgroup, from the cgroup2 mount, beginning with `/`; everything below is its too.
    pub cgroup: Option<String>,
    /// Uids that its cgroup may be called by: its own, or a static pod's hash.
    pub cgroup_uids: Vec<String>,
    /// Its addresses, where the source knows them.
    pub addresses: Vec<IpAddr>,
}

/// Where pods are learned from.
pub trait Source: Send {
    /// Label value in metrics.
    fn name(&self) -> &'static str;
    /// All pods there are now. `addresses` is true where somebody asks for an address that nobody
    /// is known to have: a source that has to work for them may leave them as they were otherwise.
    fn pods(&mut self, addresses: bool) -> Result<Vec<Known>>;
    /// Has it noticed a change lately? Cheap: asked many times a second.
    fn has_changed(&mut self) -> bool {
        false
    }
    /// When what it hands out was last confirmed, where that is not now; `None` before the first
    /// answer.
    fn answered(&self) -> Option<Instant> {
        Some(Instant::now())
    }
}

/// A source and what it said last.
struct Consulted {
    source: Box<dyn Source>,
    known: Vec<Known>,
    answered: Option<Instant>,
    reason: String,
}

/// State of a source, for `doctor`, metrics and API.
#[derive(Clone, Debug)]
pub struct SourceStatus {
    /// Its name.
    pub name: &'static str,
    /// Pods it knows.
    pub pods: usize,
    /// Since it last answered.
    pub age: Option<Duration>,
    /// Why it does not answer; empty if it does.
    pub reason: String,
}

/// Why the sources are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// It is time.
    Regularly,
    /// They say that something has changed.
    Changed,
    /// Somebody is not known.
    Unknown,
    /// An address must be judged: the sources may have to work for the pods' addresses.
    Addresses,
}

impl Ask {
    /// How old the last answer must be.
    const fn interval(self) -> Duration {
        match self {
            Self::Regularly => Duration::from_secs(1),
            Self::Changed | Self::Addresses => Duration::ZERO,
            Self::Unknown => Duration::from_millis(100),
        }
    }
}

/// How often the cgroups are walked: milliseconds of work on a large node.
const WALK: Duration = Duration::from_secs(30);
/// How often they may be walked for unknowns.
const WALK_ON_DEMAND: Duration = Duration::from_secs(1);

/// How long a cgroup that is gone is remembered; its id is not reused.
const REMEMBER_CGROUPS: Duration = Duration::from_mins(10);

const NO_CLUSTER: &str = "pods: no Kubernetes API server is known here: run in a pod with a service \
                          account, or name a kubeconfig in KUBECONFIG";

/// Joins identities to owners.
pub struct Resolver {
    sources: Vec<Consulted>,
    cgroup_mount: Option<PathBuf>,
    /// Paths by id, and when the walk last saw them.
    cgroups: HashMap<u64, (String, Instant)>,
    join: Join,
    namespaces: Namespaces,
    host: Option<u64>,
    refreshed: Option<Instant>,
    addresses_asked: Option<Instant>,
    walked: Option<Instant>,
}

impl Resolver {
    /// With the sources that `--pods` asks for, the strongest first. Needs a tokio runtime of
    /// several threads where the API server is one.
    pub fn new(pods: &Pods, node: &str) -> Result<Self> {
        let local = || Box::new(local::Local::default());
        let sources: Vec<Box<dyn Source>> = match pods {
            Pods::None => Vec::new(),
            Pods::File(path) => vec![Box::new(file::File::open(path)?), local()],
            Pods::Kubernetes => {
                let access = Access::any().ok_or_else(|| UsageError(NO_CLUSTER.to_owned()))?;
                vec![Box::new(Kubernetes::start(access, node)?), local()]
            }
            Pods::Auto => match Access::arranged() {
                Some(access) => vec![Box::new(Kubernetes::start(access, node)?), local()],
                None => vec![local()],
            },
            Pods::Cri | Pods::Local => vec![local()],
        };
        Ok(Self {
            sources: sources
                .into_iter()
                .map(|source| Consulted {
                    source,
                    known: Vec::new(),
                    answered: None,
                    reason: "not asked yet".to_owned(),
                })
                .collect(),
            cgroup_mount: cgroup::mount_point().ok(),
            cgroups: HashMap::new(),
            join: Join::default(),
            namespaces: Namespaces::default(),
            host: None,
            refreshed: None,
            addresses_asked: None,
            walked: None,
        })
    }

    /// Which namespace is the host's: the cookie of `init_net`.
    pub fn set_host(&mut self, net_cookie: u64) {
        self.host = Some(net_cookie);
    }

    /// Has a source noticed that pods came or went? It answers so for a while after the change, for
    /// a pod is not made in one step.
    pub fn has_changed(&mut self) -> bool {
        // All are asked: each remembers what it has seen.
        self.sources
            .iter_mut()
            .fold(false, |changed, c| c.source.has_changed() | changed)
            || self.namespaces.is_due(Instant::now())
    }

    /// Since the sources were last asked for addresses.
    pub fn age_of_addresses(&self) -> Option<Duration> {
        self.addresses_asked.map(|at| at.elapsed())
    }

    /// Asks the sources again, if it is time. True if it was.
    pub fn refresh(&mut self, why: Ask) -> bool {
        if self
            .refreshed
            .is_some_and(|at| at.elapsed() < why.interval())
        {
            return false;
        }
        for consulted in &mut self.sources {
            match consulted.source.pods(why == Ask::Addresses) {
                Ok(known) => {
                    consulted.known = known;
                    consulted.answered = consulted.source.answered();
                    consulted.reason.clear();
                }
                Err(why) => {
                    // The last pods known stay.
                    let why = format!("{why:#}");
                    if consulted.reason != why {
                        tracing::warn!("pod source {}: {why}", consulted.source.name());
                    }
                    consulted.reason = why;
                }
            }
        }
        let now = Instant::now();
        self.walk_cgroups(match why {
            Ask::Unknown => WALK_ON_DEMAND,
            _ if self.namespaces.wants_walk(now) => WALK_ON_DEMAND,
            _ => WALK,
        });
        if let Some(mount) = &self.cgroup_mount {
            let known = self.sources.iter_mut().flat_map(|c| &mut c.known);
            self.namespaces
                .complete(&mut known.collect::<Vec<_>>(), mount, now);
        }
        self.join
            .update(self.sources.iter().flat_map(|c| &c.known), now);
        self.refreshed = Some(now);
        if why == Ask::Addresses {
            self.addresses_asked = Some(now);
        }
        true
    }

    /// Learns the cgroups' names anew, if the last walk is older than `interval`.
    fn walk_cgroups(&mut self, interval: Duration) {
        let Some(mount) = &self.cgroup_mount else {
            return;
        };
        if self.walked.is_some_and(|at| at.elapsed() < interval) {
            return;
        }
        let now = Instant::now();
        cgroup::walk(mount, |id, path| {
            self.cgroups.insert(id, (path.to_owned(), now));
        });
        // What a process did may be read after its cgroup is gone.
        self.cgroups
            .retain(|_, (_, seen)| now.duration_since(*seen) < REMEMBER_CGROUPS);
        self.namespaces
            .learn(self.cgroups.values().map(|(path, _)| path.as_str()));
        self.walked = Some(now);
    }

    /// The owner, or `None` where nothing known fits (yet).
    ///
    /// A packet without a socket: its source address. A socket: its cgroup where a pod owns it, else its namespace where a pod owns it or it has a
    /// name, else, in the host's namespace, the cgroup's unit. A device: its namespace; the host's
    /// belong to the kernel.
    pub fn resolve(&self, identity: &Identity) -> Option<Arc<Owner>> {
        if let Some(source) = &identity.source {
            return self.join.address(source).cloned();
        }
        if identity.net_cookie == 0 {
            return Some(Owner::other());
        }
        let cgroup = identity
            .cgroup_id
            .and_then(|id| self.cgroups.get(&id))
            .map(|(path, _)| path.as_str());
        if let Some(owner) = cgroup.and_then(|path| self.join.cgroup(path)) {
            return Some(owner.clone());
        }
        if let Some(owner) = self.join.namespace(identity.net_cookie, identity.netns) {
            return Some(owner.clone());
        }
        if self.host == Some(identity.net_cookie) {
            return match identity.cgroup_id {
                None => Some(Owner::new("(host)", "(kernel)")),
                Some(_) => cgroup.map(|path| Owner::new("(host)", &cgroup::unit(path))),
            };
        }
        None
    }

    /// Is there still such a pod, or is it no pod at all?
    pub fn is_alive(&self, owner: &Owner) -> bool {
        self.sources
            .iter()
            .flat_map(|c| &c.known)
            .any(|known| *known.owner == *owner)
    }

    /// Is there (still) such a cgroup?
    pub fn has_cgroup(&self, id: u64) -> bool {
        self.cgroups
            .get(&id)
            .is_some_and(|(_, seen)| Some(*seen) == self.walked)
    }

    /// State of the sources.
    pub fn sources(&self) -> Vec<SourceStatus> {
        self.sources
            .iter()
            .map(|c| SourceStatus {
                name: c.source.name(),
                pods: c.known.len(),
                age: c.answered.map(|at| at.elapsed()),
                reason: c.reason.clone(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Vec<Known>);

    impl Source for Fixed {
        fn name(&self) -> &'static str {
            "fixed"
        }
        fn pods(&mut self, _addresses: bool) -> Result<Vec<Known>> {
            Ok(self.0.clone())
        }
    }

    fn known(name: &str, cookie: Option<u64>, netns: Option<u32>, cgroup: Option<&str>) -> Known {
        Known {
            owner: Owner::new("shop", name),
            net_cookie: cookie,
            netns,
            cgroup: cgroup.map(str::to_owned),
            cgroup_uids: Vec::new(),
            addresses: Vec::new(),
        }
    }

    fn resolver(pods: Vec<Known>) -> Resolver {
        let mut resolver = Resolver::new(&Pods::None, "n1").unwrap();
        resolver.sources.push(Consulted {
            source: Box::new(Fixed(pods)),
            known: Vec::new(),
            answered: None,
            reason: String::new(),
        });
        resolver.cgroup_mount = None;
        resolver.set_host(1);
        resolver.refresh(Ask::Regularly);
        let now = Instant::now();
        resolver.cgroups = HashMap::from([
            (7, ("/kubepods/podA/c1".to_owned(), now)),
            (8, ("/system.slice/sshd.service".to_owned(), now)),
        ]);
        resolver
    }

    fn name(resolver: &Resolver, cgroup_id: Option<u64>, net_cookie: u64, netns: u32) -> String {
        resolver
            .resolve(&Identity {
                cgroup_id,
                net_cookie,
                netns,
                source: None,
            })
            .map_or_else(|| "-".to_owned(), |owner| owner.to_string())
    }

    #[test]
    fn the_cgroup_goes_before_the_namespace() {
        let r = resolver(vec![
            known("a", None, None, Some("/kubepods/podA")),
            known("b", Some(5), Some(50), None),
        ]);
        assert_eq!(name(&r, Some(7), 5, 50), "shop/a");
        assert_eq!(name(&r, Some(8), 5, 50), "shop/b");
        assert_eq!(name(&r, None, 5, 50), "shop/b");
        // A hostNetwork pod: the host's namespace, its own cgroup.
        assert_eq!(name(&r, Some(7), 1, 100), "shop/a");
    }

    #[test]
    fn the_host_is_named_by_unit_or_kernel() {
        let r = resolver(Vec::new());
        assert_eq!(name(&r, Some(8), 1, 100), "(host)/sshd.service");
        assert_eq!(name(&r, None, 1, 100), "(host)/(kernel)");
        assert_eq!(name(&r, Some(99), 1, 100), "-");
        assert_eq!(name(&r, Some(8), 6, 60), "-");
    }

    #[test]
    fn a_reused_inode_names_nobody_where_the_cookie_is_known() {
        let r = resolver(vec![known("a", Some(5), Some(50), None)]);
        assert_eq!(name(&r, None, 6, 50), "-");
        let r = resolver(vec![known("a", None, Some(50), None)]);
        assert_eq!(name(&r, None, 6, 50), "shop/a");
    }

    #[test]
    fn what_a_pod_had_is_remembered_until_another_has_it() {
        let mut first = known("first", Some(5), Some(50), None);
        first.addresses = vec![[10, 0, 0, 2].into()];
        let mut second = known("second", Some(6), Some(50), None);
        let mut join = Join::default();
        let now = Instant::now();
        join.update([&first].into_iter(), now);
        // The first is gone, its inode has a successor, its address not yet.
        join.update([&second].into_iter(), now);
        let of = |join: &Join| join.address(&[10, 0, 0, 2].into()).unwrap().pod.clone();
        assert_eq!(join.namespace(5, 50).unwrap().pod, "first");
        assert_eq!(join.namespace(6, 50).unwrap().pod, "second");
        assert_eq!(of(&join), "first");
        second.addresses = first.addresses.clone();
        join.update([&second].into_iter(), now);
        assert_eq!(of(&join), "second");
    }

    #[test]
    fn an_inode_of_a_strong_source_beats_a_name_of_a_weak_one() {
        let r = resolver(vec![
            known("file", None, Some(50), None),
            known("local", Some(5), Some(50), None),
        ]);
        assert_eq!(name(&r, None, 5, 50), "shop/file");
    }

    #[test]
    fn the_source_of_a_forwarded_packet_decides_alone() {
        let mut pod = known("a", Some(5), Some(50), None);
        pod.addresses = vec![[10, 0, 0, 2].into()];
        let r = resolver(vec![pod]);
        let of = |source: [u8; 4]| {
            r.resolve(&Identity {
                cgroup_id: None,
                net_cookie: 0,
                netns: 0,
                source: Some(source.into()),
            })
        };
        assert_eq!(of([10, 0, 0, 2]), Some(Owner::new("shop", "a")));
        assert_eq!(of([10, 0, 0, 3]), None);
    }

    #[test]
    fn the_rest_key_is_other() {
        assert_eq!(name(&resolver(Vec::new()), None, 0, 0), "(other)/(other)");
    }
}
