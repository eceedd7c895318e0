//! Source `kubernetes`: this node's pods, by a watch on the API server. It needs get, list and watch
//! on pods.
//!
//! A task of its own follows the watch and keeps a few hundred bytes a pod; the resolver only takes
//! what is there. While the API server is away the last pods known stay, and their age shows.

mod access;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod nodes;
mod object;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use futures_util::{StreamExt as _, pin_mut};
use http_body_util::BodyExt as _;
use hyper::Response;
use k8s_openapi::api::core::v1::Pod as PodResource;
use kube::{
    Api, Client,
    api::ListParams,
    client::{ClientBuilder, DynBody},
    core::ApiResource,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use tokio::{runtime::Handle, task::JoinHandle};
use tower::util::MapResponseLayer;

use self::access::Way;
use self::object::{Kept, Pod};
pub use self::{access::Access, nodes::Nodes};
use super::{Known, Source};
use crate::{config::UsageError, output::printable};

/// How long before credentials that could not be had are tried again.
const RETRY: Duration = Duration::from_secs(10);
/// Where nothing good was heard for so long, the kubeconfig may be another by now, or a certificate that it names: they
/// are renewed in place, and the client reads them once.
const STALE: Duration = Duration::from_secs(10);
/// For how long a pod that is over is still told of: what it did last may be read late. Then it is gone, however long
/// its object stays, or Jobs that are done would keep their series and take the room of others.
const OVER: Duration = Duration::from_mins(1);
/// How long `doctor` waits for an answer.
const EXAMINE: Duration = Duration::from_secs(5);
/// What a server may say of a failure, in characters.
const MAX_REASON: usize = 300;

/// The source.
pub struct Kubernetes {
    shared: Arc<Shared>,
    /// What the resolver has been told.
    told: u64,
    task: JoinHandle<()>,
}

/// What the task and the source share.
#[derive(Default)]
struct Shared(Mutex<Store>);

#[derive(Default)]
struct Store {
    /// By uid.
    pods: HashMap<String, Kept>,
    /// What a list that is not complete yet has brought.
    listing: Option<HashMap<String, Kept>>,
    /// Has there been a complete list?
    listed: bool,
    /// Counts changes that matter to the resolver.
    version: u64,
    /// When the API server last said anything good.
    heard: Option<Instant>,
    /// The last failure, and when.
    failure: Option<(Instant, String)>,
}

impl Kubernetes {
    /// Begins to watch the pods of this node. Fails with a [`UsageError`] where the node's name is
    /// none, or the way to the API server cannot be read; a server that does not answer is tried again and again. Needs a tokio runtime of several
    /// threads.
    pub fn start(access: Access, node: &str) -> Result<Self> {
        if !object::is_plain(node, 253) {
            let words = "is no Kubernetes node's name; give it with --node or NODE_NAME";
            return Err(UsageError(format!("{node:?} {words}")).into());
        }
        let config = tokio::task::block_in_place(|| Handle::current().block_on(access.load()))?;
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(follow(access, config, node.to_owned(), Arc::clone(&shared)));
        Ok(Self {
            shared,
            told: 0,
            task,
        })
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Source for Kubernetes {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn has_changed(&mut self) -> bool {
        self.shared.store().version != self.told
    }

    fn answered(&self) -> Instant {
        self.shared.store().heard.unwrap_or_else(Instant::now)
    }

    fn names_pods(&self) -> bool {
        true
    }

    fn pods(&mut self, _addresses: bool) -> Result<Vec<Known>> {
        let store = self.shared.store();
        if store.listed {
            self.told = store.version;
            return Ok(store.known(Instant::now()));
        }
        match store.complaint() {
            Some(why) => bail!("{why}"),
            None => bail!("waiting for the first list of pods"),
        }
    }

    fn complaint(&self) -> String {
        let store = self.shared.store();
        store.complaint().unwrap_or_default().to_owned()
    }
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self) {
        self.store().heard = Some(Instant::now());
    }

    fn fail(&self, why: &anyhow::Error) {
        let why = told(why);
        tracing::debug!("the watch on pods failed: {why}");
        self.store().failure = Some((Instant::now(), why));
    }
}

/// What the user is told of a failure, whose words may be the server's.
fn told(why: &anyhow::Error) -> String {
    if let Some(why) = why.chain().find_map(access::careful) {
        return why;
    }
    // The client's errors quote what caused them, but not to the bottom.
    let (what, cause) = (why.to_string(), why.root_cause().to_string());
    let why = if what.contains(&cause) {
        what
    } else {
        format!("{what}: {cause}")
    };
    printable(&why).chars().take(MAX_REASON).collect()
}

impl Store {
    /// The last failure, if nothing good was heard since.
    fn complaint(&self) -> Option<&str> {
        let (at, why) = self.failure.as_ref()?;
        let lasts = self.heard.is_none_or(|heard| heard <= *at);
        lasts.then_some(&**why)
    }

    /// The younger first: who comes first has what two claim.
    fn known(&self, now: Instant) -> Vec<Known> {
        let still_counts = |kept: &&Kept| {
            let age = kept.over.map(|at| now.saturating_duration_since(at));
            age.is_none_or(|age| age < OVER)
        };
        let mut pods: Vec<&Kept> = self.pods.values().filter(still_counts).collect();
        pods.sort_unstable_by_key(|kept| (kept.ending, -kept.created));
        pods.into_iter().map(|kept| kept.known.clone()).collect()
    }

    /// With what only was known of it before.
    fn continued(&self, uid: &str, kept: Kept) -> Kept {
        match self.pods.get(uid) {
            Some(old) => kept.after(old),
            None => kept,
        }
    }

    fn take(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.listing = Some(HashMap::new()),
            Event::InitApply(pod) => {
                if let (Some(uid), Some(kept)) = (object::uid(&pod), object::keep(&pod)) {
                    let kept = self.continued(uid, kept);
                    let listing = self.listing.get_or_insert_default();
                    listing.insert(uid.to_owned(), kept);
                }
            }
            Event::InitDone => {
                self.pods = self.listing.take().unwrap_or_default();
                self.listed = true;
                self.version += 1;
            }
            Event::Apply(pod) => {
                let (Some(uid), Some(kept)) = (object::uid(&pod), object::keep(&pod)) else {
                    return;
                };
                let kept = self.continued(uid, kept);
                let same = |old: &Kept| old.says_the_same(&kept);
                if !self.pods.get(uid).is_some_and(same) {
                    self.version += 1;
                    self.pods.insert(uid.to_owned(), kept);
                }
            }
            Event::Delete(pod) => {
                let gone = object::uid(&pod).and_then(|uid| self.pods.remove(uid));
                self.version += u64::from(gone.is_some());
                if self.pods.capacity() > 4 * self.pods.len().max(64) {
                    self.pods.shrink_to_fit();
                }
            }
        }
    }
}

/// For `doctor`: does the API server answer, and how many pods of the node does it know?
pub async fn examine(access: Access, node: &str) -> Result<String> {
    let shared = Arc::new(Shared::default());
    let client = client(access.load().await?, &shared).map_err(|why| anyhow!(told(&why)))?;
    let api: Api<Pod> = Api::all_with(client, &ApiResource::erase::<PodResource>(&()));
    let list = ListParams::default()
        .fields(&format!("spec.nodeName={node}"))
        .match_any();
    let pods = tokio::time::timeout(EXAMINE, api.list(&list))
        .await
        .with_context(|| format!("no answer within {EXAMINE:?}"))?
        .map_err(|why| anyhow!(told(&why.into())))?;
    Ok(match pods.items.len() {
        0 => format!("no pods: {}", is_named_so(node)),
        count => format!("{count} pods on node {node}"),
    })
}

/// What is asked where a node has no pods. It may be new; but a name that no node has has none either, and then all
/// that fails here is nobody's.
pub fn is_named_so(node: &str) -> String {
    format!("is {node} the name that `kubectl get nodes` shows? --node or NODE_NAME sets it")
}

/// Follows the watch for good.
async fn follow(access: Access, mut config: kube::Config, node: String, shared: Arc<Shared>) {
    loop {
        // Credentials may come from a program or a file that is not there yet.
        if let Err(why) = watch(access, &config, &node, &shared).await {
            shared.fail(&why);
            tokio::time::sleep(RETRY).await;
        }
        match access.load().await {
            Ok(fresh) => config = fresh,
            Err(why) => shared.fail(&why),
        }
    }
}

/// Follows the watch until it fails and the way to the server is another.
async fn watch(
    access: Access,
    config: &kube::Config,
    node: &str,
    shared: &Arc<Shared>,
) -> Result<()> {
    let begun = Instant::now();
    let way = Way::of(config);
    let client = client(config.clone(), shared)?;
    let api: Api<Pod> = Api::all_with(client, &ApiResource::erase::<PodResource>(&()));
    // From the server's cache, which has an index by node: a list from etcd would read all pods of
    // the cluster. In one page, for the client asks for no version where it asks for pages; a node has
    // few pods.
    let mut selection = watcher::Config::default()
        .fields(&format!("spec.nodeName={node}"))
        .any_semantic();
    selection.page_size = None;
    let events = watcher(api, selection).default_backoff();
    pin_mut!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                let has_none = {
                    let mut store = shared.store();
                    let listed = store.listed;
                    store.take(event);
                    !listed && store.listed && store.pods.is_empty()
                };
                if has_none {
                    tracing::warn!("pod source kubernetes: no pods: {}", is_named_so(node));
                }
            }
            Err(why) => {
                shared.fail(&anyhow!(why));
                let heard = shared.store().heard.unwrap_or(begun).max(begun);
                if heard.elapsed() >= STALE && access.leads_elsewhere(&way).await {
                    break;
                }
            }
        }
    }
    Ok(())
}

/// A client that notes whenever the server says anything: bookmarks, which tell that a quiet watch
/// lives, do not come out of the watcher.
fn client(config: kube::Config, shared: &Arc<Shared>) -> Result<Client> {
    let shared = Arc::clone(shared);
    let listening = MapResponseLayer::new(move |response: Response<Box<DynBody>>| {
        let good = response.status().is_success();
        if good {
            shared.hear();
        }
        let shared = Arc::clone(&shared);
        response.map(move |body| {
            body.map_frame(move |frame| {
                if good {
                    shared.hear();
                }
                frame
            })
        })
    });
    Ok(ClientBuilder::try_from(config)
        .context("cannot make a client of the API server")?
        .with_layer(&listening)
        .build())
}

#[cfg(test)]
mod tests;
