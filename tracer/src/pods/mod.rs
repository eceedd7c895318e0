//! Whose is it? Sources say which pods there are; the resolver joins what the kernel knows (cgroup,
//! namespace) to them.

mod cgroups;
pub mod cri;
pub mod file;
mod gone;
mod join;
pub mod kubernetes;
pub mod local;
mod namespaces;
mod owner;
pub mod peers;

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;

use self::{
    cgroups::Cgroups,
    join::Join,
    kubernetes::{Access, Kubernetes},
    namespaces::Namespaces,
};
pub use self::{gone::Gone, owner::Owner};
use crate::{
    config::{Config, Pods, UsageError},
    hooks::cgroups::Names,
    kernel::cgroup::{self, MountedCgroups},
    output::printable,
};

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
    /// Unless the packet was on its way through that namespace, and a pod has it: then it is the pod's, for who is behind
    /// a pod (a container in it, a virtual machine) is nobody that the cluster knows, whatever its address.
    pub is_forwarded: bool,
}

/// When something happened: at a moment between two, both included.
#[derive(Clone, Copy, Debug)]
pub struct When {
    /// `None`: since ever.
    pub from: Option<Instant>,
    /// At the latest.
    pub to: Instant,
}

impl When {
    /// At this moment.
    pub fn at(moment: Instant) -> Self {
        Self {
            from: Some(moment),
            to: moment,
        }
    }
}

/// Between a pod's end and the moment from which a weaker source names what is left of it.
const OUTLIVES: Duration = Duration::from_secs(2);

/// Who had an address last, or has it.
#[derive(Clone, Debug, Default)]
pub struct Tenant {
    /// `None`: nobody on this node, as far as is known.
    pub owner: Option<Arc<Owner>>,
    /// When that was first heard of; `None`: not known.
    pub noticed: Option<Instant>,
    /// Since when nobody has it; `None`: the owner still has it.
    pub until: Option<Instant>,
}

impl Tenant {
    /// The network namespace of a pod outlives it by a moment, in which a weaker source still names it:
    /// was that all of this tenancy, which is over?
    fn continues(&self, pod: &Self) -> bool {
        let at_once = |pod_went: Instant| {
            let noticed = self.noticed?;
            let gap = noticed.saturating_duration_since(pod_went);
            Some(gap.max(pod_went.saturating_duration_since(noticed)) < OUTLIVES)
        };
        self.until.is_some() && pod.until.and_then(at_once) == Some(true)
    }
}

/// What a source says of one pod.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its labels.
    pub owner: Arc<Owner>,
    /// Since when it has its addresses, where the source knows.
    pub since: Option<Instant>,
    /// Cookie of its namespace, where the source could ask.
    pub net_cookie: Option<u64>,
    /// Inode of its namespace.
    pub netns: Option<u32>,
    /// Its cgroup, from the cgroup2 mount, beginning with `/`; everything below is its too.
    pub cgroup: Option<String>,
    /// What stands for it in the path of a cgroup (`…/pod<uid>/…`): its uid; a static pod's hash.
    pub cgroup_uids: Vec<String>,
    /// Its addresses, where the source knows them.
    pub addresses: Vec<IpAddr>,
    /// Has it a network namespace of its own that its source cannot tell?
    pub own_namespace: bool,
    /// Does a source that names pods know better, even if it does not know yet?
    pub provisional: bool,
}

impl Known {
    /// Nothing but the labels.
    pub fn of(owner: Arc<Owner>) -> Self {
        Self {
            owner,
            since: None,
            net_cookie: None,
            netns: None,
            cgroup: None,
            cgroup_uids: Vec::new(),
            addresses: Vec::new(),
            own_namespace: false,
            provisional: false,
        }
    }
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
    /// When what `pods` gave last was true. A source with a task of its own hands out what it knows.
    fn answered(&self) -> Instant {
        Instant::now()
    }
    /// Why it cannot learn anything new now, though `pods` gives what it knew; empty if it can.
    fn complaint(&self) -> String {
        String::new()
    }
    /// Somebody is not known, or another source has noticed a change: a source that looks by itself
    /// now and then should look soon.
    fn look(&mut self, _why: Ask) {}
    /// Does it name pods, all there are? Then nobody else names one before it does.
    fn names_pods(&self) -> bool {
        false
    }
    /// Is there nothing that it could ask? Then nobody waits for it.
    fn is_idle(&self) -> bool {
        false
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
    /// There is nothing that it could ask.
    pub idle: bool,
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

/// Has an address got or lost its owner?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved(pub bool);

/// How long a pod is young: its containers start meanwhile.
const YOUNG: Duration = Duration::from_secs(3);

const NO_CLUSTER: &str = "pods: no Kubernetes API server is known here: run in a pod with a service \
                          account, or name a kubeconfig in KUBECONFIG";

/// Joins identities to owners.
pub struct Resolver {
    sources: Vec<Consulted>,
    cgroups: Cgroups,
    join: Join,
    gone: Gone,
    namespaces: Namespaces,
    host: Option<u64>,
    refreshed: Option<Instant>,
    addresses_asked: Option<Instant>,
}

impl Resolver {
    /// With the sources that `--pods` asks for, the strongest first. Needs a tokio runtime of
    /// several threads.
    pub fn new(config: &Config) -> Result<Self> {
        let mut sources: Vec<Box<dyn Source>> = Vec::new();
        let runtime = config.cri_endpoint.as_ref();
        match &config.pods {
            Pods::None => return Ok(Self::with(sources)),
            Pods::File(path) => sources.push(Box::new(file::File::open(path)?)),
            Pods::Cri => sources.push(Box::new(cri::Cri::start(cri::Endpoint::wanted(runtime)))),
            Pods::Kubernetes => {
                let access = Access::any().ok_or_else(|| UsageError(NO_CLUSTER.to_owned()))?;
                sources.push(Box::new(Kubernetes::start(access, &config.node)?));
            }
            Pods::Auto => match Access::arranged() {
                Some(access) => sources.push(Box::new(Kubernetes::start(access, &config.node)?)),
                None => sources.push(Box::new(cri::Cri::start(cri::Endpoint::if_there(runtime)))),
            },
            Pods::Local => {}
        }
        sources.push(Box::new(local::Local::default()));
        Ok(Self::with(sources))
    }

    pub(crate) fn with(sources: Vec<Box<dyn Source>>) -> Self {
        Self {
            sources: sources
                .into_iter()
                .map(|source| Consulted {
                    source,
                    known: Vec::new(),
                    answered: None,
                    reason: "not asked yet".to_owned(),
                })
                .collect(),
            cgroups: Cgroups::of(MountedCgroups::find().unwrap_or_default()),
            join: Join::default(),
            gone: Gone::default(),
            namespaces: Namespaces::default(),
            host: None,
            refreshed: None,
            addresses_asked: None,
        }
    }

    /// Has every source answered that can? Before, nobody is gone only because nobody speaks of him, and an
    /// agent that goes on where another ended knows its pods from memory only.
    pub fn has_heard_all(&self) -> bool {
        let has_answered = |c: &Consulted| c.answered.is_some() || c.source.is_idle();
        self.sources.iter().all(has_answered)
    }

    /// The addresses that pods have and had.
    pub fn gone(&self) -> &Gone {
        &self.gone
    }

    /// The same, from an agent before.
    pub fn remember(&mut self, gone: Gone) {
        self.gone = gone;
    }

    /// Which namespace is the host's: the cookie of `init_net`.
    pub fn set_host(&mut self, net_cookie: u64) {
        self.host = Some(net_cookie);
    }

    /// The kernel tells what new cgroups are called.
    pub fn follow_cgroups(&mut self, names: Names) {
        self.cgroups.follow(names);
    }

    /// Has a source noticed that pods came or went? It answers so for a while after the change, for
    /// a pod is not made in one step.
    pub fn has_changed(&mut self) -> bool {
        // Many times a second: the kernel's memory for names is short.
        self.cgroups.listen();
        // All are asked: each remembers what it has seen.
        let changed = self
            .sources
            .iter_mut()
            .fold(false, |changed, c| c.source.has_changed() | changed);
        if changed {
            self.look(Ask::Changed);
        }
        changed || self.namespaces.is_due(Instant::now())
    }

    fn look(&mut self, why: Ask) {
        for consulted in &mut self.sources {
            consulted.source.look(why);
        }
    }

    /// Is there a source that names pods? Then what looks like a pod waits for it.
    fn has_pods(&self) -> bool {
        self.sources
            .iter()
            .any(|c| c.source.names_pods() && !c.source.is_idle())
    }

    /// Since the sources were last asked for addresses.
    pub fn age_of_addresses(&self) -> Option<Duration> {
        self.addresses_asked.map(|at| at.elapsed())
    }

    /// Asks the sources again, if it is time. `None` if it was not, else whether an address has got
    /// or lost its owner.
    pub fn refresh(&mut self, why: Ask) -> Option<Moved> {
        self.cgroups.listen();
        if why == Ask::Unknown {
            self.look(why);
        }
        if self
            .refreshed
            .is_some_and(|at| at.elapsed() < why.interval())
        {
            return None;
        }
        for consulted in &mut self.sources {
            consulted.ask(why == Ask::Addresses);
        }
        let now = Instant::now();
        if self
            .cgroups
            .walk(why == Ask::Unknown || self.namespaces.wants_walk(now))
        {
            self.namespaces.learn(self.cgroups.paths());
        }
        if let Some(mount) = self.cgroups.mount() {
            let known = self.sources.iter_mut().flat_map(|c| &mut c.known);
            self.namespaces
                .complete(&mut known.collect::<Vec<_>>(), mount, now);
        }
        self.walk_young(now);
        if self.has_heard_all() {
            self.gone
                .update(self.sources.iter().flat_map(|c| &c.known), now);
        }
        let has_pods = self.has_pods();
        let known = self
            .sources
            .iter()
            .flat_map(|c| &c.known)
            .filter(|known| !(has_pods && known.provisional));
        let moved = self.join.update(known, now, self.addresses_asked);
        self.refreshed = Some(now);
        if why == Ask::Addresses {
            self.addresses_asked = Some(now);
        }
        Some(Moved(moved))
    }

    /// Learns the cgroups of pods that have just begun and may be gone before all are walked again.
    fn walk_young(&mut self, now: Instant) {
        if !self.cgroups.wants_young(now) {
            return;
        }
        let is_young = |known: &&Known| {
            let since = known.since.or_else(|| self.namespaces.found(known));
            since.is_some_and(|since| now.duration_since(since) < YOUNG)
        };
        let known = self.sources.iter().flat_map(|c| &c.known);
        let tops: Vec<String> = known
            .filter(is_young)
            .filter_map(|known| known.cgroup.clone())
            .collect();
        self.cgroups.walk_young(&tops, now);
    }

    /// The owner, or `None` where nothing known fits (yet).
    ///
    /// A packet without a socket: its source address at that time. A socket: its cgroup where a pod
    /// owns it, else its namespace where a pod owns it or it has a name, else, in the host's
    /// namespace, the cgroup's unit. A device: its namespace; the host's belong to the kernel.
    pub fn resolve(&self, identity: &Identity, when: When) -> Option<Arc<Owner>> {
        if let Some(source) = &identity.source {
            if identity.is_forwarded
                && identity.net_cookie != 0
                && let Some(owner) = self.join.namespace(identity.net_cookie, identity.netns)
                && owner.is_pod()
            {
                return Some(owner.clone());
            }
            return self.join.address(source, when).cloned();
        }
        if identity.net_cookie == 0 {
            return Some(Owner::other());
        }
        let cgroup = identity.cgroup_id.and_then(|id| self.cgroups.path(id));
        if let Some(owner) = cgroup.and_then(|path| self.join.cgroup(path)) {
            return Some(owner.clone());
        }
        // A pod whose name may be on its way is nothing else meanwhile, in whose namespace ever.
        let awaited = self.has_pods()
            && match cgroup {
                Some(path) => cgroup::is_pods(path),
                None => identity.cgroup_id.is_some(),
            };
        if let Some(owner) = self.join.namespace(identity.net_cookie, identity.netns)
            && (!awaited || owner.is_pod())
        {
            return Some(owner.clone());
        }
        if awaited {
            return None;
        }
        if self.host == Some(identity.net_cookie) {
            return match identity.cgroup_id {
                None => Some(Owner::new("(host)", "(kernel)")),
                Some(_) => cgroup.map(|path| Owner::new("(host)", &cgroup::unit(path))),
            };
        }
        None
    }

    /// All addresses that are known to be somebody's on this node.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let known = self.sources.iter().flat_map(|c| &c.known);
        known.flat_map(|known| known.addresses.iter().copied())
    }

    /// What pods of this node have for addresses in the pod network.
    pub fn pod_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let consulted = self.sources.iter().filter(|c| c.source.names_pods());
        let pods = consulted.flat_map(|c| &c.known);
        pods.filter(|known| known.own_namespace)
            .flat_map(|known| known.addresses.iter().copied())
    }

    /// Is there still such a pod, or is it no pod at all?
    pub fn is_alive(&self, owner: &Owner) -> bool {
        self.sources
            .iter()
            .flat_map(|c| &c.known)
            .any(|known| *known.owner == *owner)
    }

    /// The host's units that there are: owners as [`Self::resolve`] names them.
    pub fn units(&self) -> HashSet<Arc<Owner>> {
        let units: HashSet<String> = self.cgroups.present().map(cgroup::unit).collect();
        units
            .iter()
            .map(|unit| Owner::new("(host)", unit))
            .collect()
    }

    /// Is there (still) such a cgroup?
    pub fn has_cgroup(&self, id: u64) -> bool {
        self.cgroups.is_there(id)
    }

    /// Was that namespace a pod's until lately, which is gone or has another now? A pod that is made anew
    /// under its old name has. `owner`: whose it is known to have been, and its inode
    /// where that is known.
    pub fn has_left(&self, net_cookie: u64, owner: Option<(&Owner, Option<u32>)>) -> bool {
        self.join.has_left(net_cookie, owner)
    }

    /// Who of this node had an address last, or has it.
    pub fn tenant(&self, address: &IpAddr) -> Tenant {
        let last = self.join.tenant(address);
        let went = self.gone.tenant(address);
        let was_the_pods = || last.continues(&went);
        match &last.owner {
            Some(owner) if owner.is_pod() || !was_the_pods() => last,
            _ => went,
        }
    }

    /// Addresses of this node's pods that went lately, and who had them last.
    pub fn gone_addresses(&self) -> Vec<(IpAddr, Arc<Owner>)> {
        self.gone.addresses()
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
                idle: c.source.is_idle(),
            })
            .collect()
    }
}

impl Consulted {
    fn ask(&mut self, addresses: bool) {
        match self.source.pods(addresses) {
            Ok(known) => {
                self.known = known;
                self.answered = Some(self.source.answered());
                self.complain(self.source.complaint());
            }
            // The last pods known stay.
            Err(why) => self.complain(format!("{why:#}")),
        }
    }

    fn complain(&mut self, why: String) {
        if !why.is_empty() && self.reason != why && !self.source.is_idle() {
            tracing::warn!("pod source {}: {}", self.source.name(), printable(&why));
        }
        self.reason = why;
    }
}

#[cfg(test)]
mod tests;
