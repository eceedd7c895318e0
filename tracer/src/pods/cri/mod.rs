//! Source `cri`: the container runtime's socket (containerd, CRI-O), asked for its pod sandboxes.
//!
//! It is polled. `GetContainerEvents` would tell of changes, but containerd 1.7 and CRI-O before
//! 1.28 hand each event to one of their clients only, so that the kubelet would miss those that
//! tracer gets (<https://github.com/containerd/containerd/issues/7318>). What makes the source quick
//! instead: a pod's namespace shows under `/run/netns` before its sandbox is ready, and the kernel's
//! counters show a stranger.

mod api;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod sandbox;

use std::{
    collections::HashMap,
    convert::Infallible,
    error::Error,
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, anyhow, bail};
use futures_util::{StreamExt as _, stream};
use tokio::{sync::Notify, task::JoinHandle, time};

use self::{api::Runtime, sandbox::Sandbox};
use super::{Ask, Known, Source};
use crate::config::CriEndpoint;

/// How long a pod may stay unnoticed where nothing hints at it.
const INTERVAL: Duration = Duration::from_secs(1);
/// How old the last look is at least, for somebody unknown.
const UNKNOWN_INTERVAL: Duration = Duration::from_millis(200);
/// The same, for a change that another source has noticed.
const CHANGED_INTERVAL: Duration = Duration::from_millis(50);
/// Pauses between attempts to reach a runtime that does not answer.
const BACKOFF: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(5)];
/// How long before sockets where nobody speaks CRI are asked again, unless they are others by then.
const NO_CRI_PAUSE: Duration = Duration::from_mins(1);

/// Sandboxes whose details are asked for at once.
const AT_ONCE: usize = 16;

/// Where runtimes listen, the usual first: containerd, CRI-O, k3s and RKE2, MicroK8s, k0s, cri-dockerd.
const SOCKETS: [&str; 6] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
    "/run/k0s/containerd.sock",
    "/run/cri-dockerd.sock",
];

/// Where the runtime is to be found.
#[derive(Clone, Debug)]
pub struct Endpoint {
    sockets: Vec<PathBuf>,
    wanted: bool,
}

impl Endpoint {
    /// The user asks for the source: one that does not answer is a fault.
    pub fn wanted(given: Option<&CriEndpoint>) -> Self {
        Self {
            wanted: true,
            ..Self::if_there(given)
        }
    }

    /// A node without any runtime is as good. A socket that the user names must answer.
    pub fn if_there(given: Option<&CriEndpoint>) -> Self {
        match given {
            Some(socket) => Self {
                sockets: vec![socket.0.clone()],
                wanted: true,
            },
            None => Self {
                sockets: SOCKETS.iter().map(PathBuf::from).collect(),
                wanted: false,
            },
        }
    }

    /// The sockets that are there: one at least.
    fn find(&self) -> Result<Vec<&Path>> {
        let there = self.sockets.iter().filter(|socket| socket.exists());
        let there: Vec<_> = there.map(PathBuf::as_path).collect();
        if there.is_empty() {
            let looked: Vec<_> = self
                .sockets
                .iter()
                .map(|s| s.display().to_string())
                .collect();
            bail!("no container runtime's socket at {}", looked.join(", "));
        }
        Ok(there)
    }

    /// What can be seen of the sockets without asking. A runtime that is started anew makes its own anew.
    fn look(&self) -> Vec<Option<SystemTime>> {
        let made = |socket| fs::metadata(socket).and_then(|m| m.modified()).ok();
        self.sockets.iter().map(made).collect()
    }

    /// Is there nothing to ask, and nobody who asks for it? So it is without any socket, and where all are of somebody
    /// who speaks no CRI, as on a host of Docker.
    fn is_idle(&self, why: &anyhow::Error) -> bool {
        !self.wanted && (self.find().is_err() || why.is::<NoCri>())
    }

    /// The first that is there and speaks CRI, with its socket, name and version: one may be of a containerd whose CRI
    /// is switched off, beside the one of cri-dockerd, or be left by a runtime that is gone. The `last` that answered
    /// is waited for: no other has its pods.
    async fn reach(&self, last: Option<&Path>) -> Result<(Runtime, &Path, String)> {
        let mut failures = Vec::new();
        let mut there = self.find()?;
        if let Some(known) = there.iter().position(|socket| Some(*socket) == last) {
            there = vec![there[known]];
        }
        for socket in there {
            let answer = async {
                let mut runtime = Runtime::connect(socket).await?;
                let version = runtime.version().await.map_err(|why| {
                    let sentence = api::sentence(&why).context(at(socket));
                    match why.code() {
                        tonic::Code::Unimplemented => {
                            anyhow::Error::new(NoCri(format!("{sentence:#}")))
                        }
                        _ => sentence,
                    }
                })?;
                anyhow::Ok((runtime, socket, version))
            };
            match answer.await {
                Ok(reached) => return Ok(reached),
                Err(why) => failures.push(why),
            }
        }
        // Who does not answer may be the one.
        failures.sort_by_key(anyhow::Error::is::<NoCri>);
        let first = failures.into_iter().next();
        Err(first.unwrap_or_else(|| anyhow!("no container runtime's socket is left")))
    }
}

/// Somebody answers at the socket, and speaks no CRI.
#[derive(Debug)]
struct NoCri(String);

impl fmt::Display for NoCri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for NoCri {}

fn at(socket: &Path) -> String {
    format!("container runtime at {}", socket.display())
}

/// What the task has found out.
#[derive(Debug)]
struct State {
    /// By the sandbox's id.
    pods: HashMap<String, Sandbox>,
    /// Counts the changes of `pods`.
    changes: u64,
    answered: Option<Instant>,
    /// Why the runtime does not answer; empty if it does.
    reason: String,
    idle: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    wake: Notify,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A holder that panicked left plain figures.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The source. A task of its own asks the runtime, so that a slow one delays nobody.
pub struct Cri {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
    seen: u64,
}

impl Cri {
    /// Begins to ask. Needs a tokio runtime.
    pub fn start(endpoint: Endpoint) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                pods: HashMap::new(),
                changes: 0,
                answered: None,
                reason: "not asked yet".to_owned(),
                idle: !endpoint.wanted && endpoint.find().is_err(),
            }),
            wake: Notify::new(),
        });
        Self {
            task: tokio::spawn(run(endpoint, shared.clone())),
            shared,
            seen: 0,
        }
    }
}

impl Drop for Cri {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Source for Cri {
    fn name(&self) -> &'static str {
        "cri"
    }

    fn pods(&mut self, _addresses: bool) -> Result<Vec<Known>> {
        let state = self.shared.state();
        self.seen = state.changes;
        if !state.reason.is_empty() {
            bail!("{}", state.reason);
        }
        let now = SystemTime::now();
        let mut pods: Vec<&Sandbox> = state.pods.values().collect();
        // Who comes first has what two claim.
        pods.sort_unstable_by_key(|sandbox| sandbox.rank());
        Ok(pods.into_iter().filter_map(|s| s.known(now)).collect())
    }

    fn has_changed(&mut self) -> bool {
        self.shared.state().changes != self.seen
    }

    fn answered(&self) -> Instant {
        self.shared.state().answered.unwrap_or_else(Instant::now)
    }

    fn look(&mut self, why: Ask) {
        let answered = self.shared.state().answered;
        if why != Ask::Unknown || answered.is_none_or(|at| at.elapsed() >= UNKNOWN_INTERVAL) {
            self.shared.wake.notify_one();
        }
    }

    fn names_pods(&self) -> bool {
        true
    }

    fn is_idle(&self) -> bool {
        self.shared.state().idle
    }
}

async fn run(endpoint: Endpoint, shared: Arc<Shared>) {
    let mut pause = BACKOFF[0];
    let mut last = None;
    // The sockets where nobody spoke CRI.
    let mut passed_by = None;
    loop {
        let before = shared.state().answered;
        let seen = endpoint.look();
        if passed_by.as_ref() != Some(&seen) && endpoint.find().is_ok() {
            shared.state().idle = false;
        }
        let Err(why) = try_follow(&endpoint, &shared, &mut last).await;
        let idle = {
            let mut state = shared.state();
            state.reason = format!("{why:#}");
            // One that was there is missed; one that never was is not.
            state.idle = state.answered.is_none() && endpoint.is_idle(&why);
            pause = if state.idle || state.answered != before {
                BACKOFF[0]
            } else {
                (2 * pause).min(BACKOFF[1])
            };
            state.idle
        };
        time::sleep(pause).await;
        passed_by = (idle && why.is::<NoCri>()).then_some(seen);
        let until = time::Instant::now() + NO_CRI_PAUSE;
        while passed_by == Some(endpoint.look()) && time::Instant::now() < until {
            time::sleep(BACKOFF[0]).await;
        }
    }
}

async fn try_follow(
    endpoint: &Endpoint,
    shared: &Shared,
    last: &mut Option<PathBuf>,
) -> Result<Infallible> {
    let (runtime, socket, _) = endpoint.reach(last.as_deref()).await?;
    shared.state().idle = false;
    *last = Some(socket.to_owned());
    follow(runtime, socket, shared).await
}

/// Asks again and again, until the runtime does not answer.
async fn follow(mut runtime: Runtime, socket: &Path, shared: &Shared) -> Result<Infallible> {
    loop {
        look(&mut runtime, shared)
            .await
            .with_context(|| at(socket))?;
        time::sleep(CHANGED_INTERVAL).await;
        // A hint that came meanwhile is not lost. Without one, the time decides.
        let _ = time::timeout(INTERVAL, shared.wake.notified()).await;
    }
}

/// Learns what is new and what is gone.
async fn look(runtime: &mut Runtime, shared: &Shared) -> Result<()> {
    let listed = runtime.sandboxes().await?;
    let now = SystemTime::now();
    let mut changed = false;
    let sandboxes: Vec<Sandbox> = {
        let state = shared.state();
        let known = listed.iter().map(|item| {
            let before = state.pods.get(&item.id);
            let same = before.filter(|before| before.ready == (item.state == api::READY));
            changed |= same.is_none();
            same.map_or_else(|| Sandbox::of(item, now), Sandbox::clone)
        });
        known.collect()
    };
    // Several at a time: one that the runtime says nothing of for long delays few.
    let mut completed = stream::iter(sandboxes)
        .map(|sandbox| complete(runtime.clone(), sandbox, now))
        .buffer_unordered(AT_ONCE);
    let mut next = HashMap::with_capacity(listed.len());
    let mut failure = None;
    while let Some((sandbox, has_new)) = completed.next().await {
        match has_new {
            Ok(has_new) => changed |= has_new,
            Err(why) => failure = Some(why),
        }
        next.insert(sandbox.id.clone(), sandbox);
    }
    let mut state = shared.state();
    if changed || state.pods.len() != next.len() {
        state.changes += 1;
    }
    state.pods = next;
    if let Some(why) = failure {
        return Err(why);
    }
    state.answered = Some(Instant::now());
    state.reason.clear();
    Ok(())
}

/// Asks for a sandbox's details, if they are wanted. True if it has them now; fails where it is the runtime, or the way
/// to it.
async fn complete(
    mut runtime: Runtime,
    mut sandbox: Sandbox,
    now: SystemTime,
) -> (Sandbox, Result<bool>) {
    if !sandbox.wants_details(now) {
        return (sandbox, Ok(false));
    }
    // One that goes in between is missing in the next list.
    match runtime.details(&sandbox.id).await {
        Ok(details) => {
            let before = sandbox.clone();
            let with = tokio::task::spawn_blocking(move || sandbox.with(details)).await;
            match with.context("cannot look at a sandbox") {
                Ok(with) => sandbox = with,
                Err(why) => return (before, Err(why)),
            }
        }
        Err(why) if why.code() == tonic::Code::NotFound => {}
        Err(why) if why.code() == tonic::Code::Unavailable => {
            return (sandbox, Err(api::sentence(&why)));
        }
        // The others have details; this one has its name and uid.
        Err(why) => sandbox.without(&api::sentence(&why)),
    }
    let is_complete = sandbox.complete;
    (sandbox, Ok(is_complete))
}

/// Is that why the source does not answer a fault, or is there nothing to ask on this node?
pub fn is_fault(why: &anyhow::Error, given: Option<&CriEndpoint>) -> bool {
    !Endpoint::if_there(given).is_idle(why)
}

/// What `doctor` says where no agent answers: which runtime it is, and how many pods it has.
pub async fn examine(given: Option<&CriEndpoint>) -> Result<String> {
    let endpoint = Endpoint::if_there(given);
    let (mut runtime, socket, version) = endpoint.reach(None).await?;
    let listed = runtime.sandboxes().await?;
    let ready = listed
        .iter()
        .filter(|item| item.state == api::READY)
        .count();
    Ok(format!("{version} at {}, {ready} pods", socket.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_that_are_there_are_asked() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = ["a.sock", "b.sock"].map(|name| folder.path().join(name));
        let endpoint = Endpoint {
            sockets: vec![first.clone(), second.clone()],
            wanted: false,
        };
        let error = endpoint.find().unwrap_err().to_string();
        assert!(
            error.contains("a.sock") && error.contains("b.sock"),
            "{error}"
        );
        std::fs::write(&second, "").unwrap();
        assert_eq!(endpoint.find().unwrap(), [&second]);
        std::fs::write(&first, "").unwrap();
        assert_eq!(endpoint.find().unwrap(), [&first, &second]);
    }
}
