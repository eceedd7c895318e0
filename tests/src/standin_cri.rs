//! A stand-in for a container runtime: its pod sandboxes over the container runtime interface, as
//! many and as quick as no real one makes them, and with faults that a real one will not make on
//! demand. What a real one does is tested with containerd ([`crate::containerd`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::{Buf, Bytes};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use serde_json::json;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;

/// `NODE` of `NamespaceMode`.
const NODE: i32 = 2;
/// gRPC's own numbers of what went wrong.
const NOT_FOUND: u32 = 5;
const UNIMPLEMENTED: u32 = 12;
const INTERNAL: u32 = 13;
const UNAVAILABLE: u32 = 14;
/// What a message begins with: a flag and its length.
const PREFIX: usize = 5;

#[derive(Clone, PartialEq, Message)]
struct Version {
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct Item {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, optional, tag = "2")]
    metadata: Option<Metadata>,
    #[prost(int64, tag = "4")]
    created_at: i64,
    /// Makes it as large as those of a real cluster.
    #[prost(map = "string, string", tag = "6")]
    annotations: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct List {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Item>,
}

#[derive(Clone, PartialEq, Message)]
struct StatusRequest {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Address {
    #[prost(string, tag = "1")]
    ip: String,
}

#[derive(Clone, PartialEq, Message)]
struct Network {
    #[prost(string, tag = "1")]
    ip: String,
    #[prost(message, repeated, tag = "2")]
    others: Vec<Address>,
}

#[derive(Clone, PartialEq, Message)]
struct Options {
    #[prost(int32, tag = "1")]
    network: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Namespaces {
    #[prost(message, optional, tag = "2")]
    options: Option<Options>,
}

#[derive(Clone, PartialEq, Message)]
struct Linux {
    #[prost(message, optional, tag = "1")]
    namespaces: Option<Namespaces>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(message, optional, tag = "5")]
    network: Option<Network>,
    #[prost(message, optional, tag = "6")]
    linux: Option<Linux>,
}

#[derive(Clone, PartialEq, Message)]
struct StatusAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

/// What it does to a request in place of an answer.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Says that it cannot, in words that are not plain text.
    Unavailable,
    /// Sends half of the message.
    HalfAnswer,
    /// Sends something else.
    Nonsense,
}

#[derive(Default)]
struct State {
    sandboxes: BTreeMap<String, (Item, StatusAnswer)>,
    faults: VecDeque<Fault>,
    /// Sandboxes whose details it cannot tell.
    withheld: BTreeSet<String>,
    /// It speaks gRPC, and no CRI.
    has_no_cri: bool,
    requests: usize,
}

/// The runtime; it ends on drop.
pub struct StandinCri {
    socket: PathBuf,
    state: Arc<Mutex<State>>,
    _runtime: Runtime,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StandinCri {
    /// Starts one without pods, with its socket in a folder.
    pub fn start(folder: &Path) -> Self {
        let socket = folder.join("runtime.sock");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be made");
        let state: Arc<Mutex<State>> = Arc::default();
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(&socket).expect("the folder is there")
        };
        let serving = Arc::clone(&state);
        runtime.spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let state = Arc::clone(&serving);
                let answering = service_fn(move |request| answer(Arc::clone(&state), request));
                tokio::spawn(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(connection), answering),
                );
            }
        });
        Self {
            socket,
            state,
            _runtime: runtime,
        }
    }

    /// As `--cri-endpoint` wants it.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// A ready pod more, of the namespace `shop`: with these addresses, or else on the host's network.
    /// Its network namespace cannot be found.
    pub fn add(&self, name: &str, uid: &str, addresses: &[&str]) {
        let created = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let item = Item {
            id: format!("{uid}-sandbox"),
            metadata: Some(Metadata {
                name: name.to_owned(),
                uid: uid.to_owned(),
                namespace: "shop".to_owned(),
            }),
            created_at: created.map_or(0, |at| at.as_nanos() as i64),
            annotations: HashMap::from([("long".to_owned(), "x".repeat(2000))]),
        };
        let mut addresses = addresses.iter().map(|ip| (*ip).to_owned());
        let first = addresses.next();
        let network = if first.is_some() { 0 } else { NODE };
        let status = Status {
            network: Some(Network {
                ip: first.unwrap_or_default(),
                others: addresses.map(|ip| Address { ip }).collect(),
            }),
            linux: Some(Linux {
                namespaces: Some(Namespaces {
                    options: Some(Options { network }),
                }),
            }),
        };
        let info = json!({"runtimeSpec": {"linux": {
            "cgroupsPath": format!("/kubepods/besteffort/pod{uid}/{}", item.id),
        }}});
        let answer = StatusAnswer {
            status: Some(status),
            info: HashMap::from([("info".to_owned(), info.to_string())]),
        };
        let id = item.id.clone();
        lock(&self.state).sandboxes.insert(id, (item, answer));
    }

    /// A pod less.
    pub fn remove(&self, uid: &str) {
        let gone = lock(&self.state)
            .sandboxes
            .remove(&format!("{uid}-sandbox"));
        assert!(gone.is_some(), "there is no pod {uid}");
    }

    /// The details of a pod's sandbox cannot be told from now on.
    pub fn withhold(&self, uid: &str) {
        lock(&self.state).withheld.insert(format!("{uid}-sandbox"));
    }

    /// From now on it is as a containerd whose CRI plugin is switched off.
    pub fn switch_off(&self) {
        lock(&self.state).has_no_cri = true;
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The next requests fail so.
    pub fn fail(&self, faults: &[Fault]) {
        lock(&self.state).faults.extend(faults);
    }

    /// How often it was asked for anything.
    pub fn requests(&self) -> usize {
        lock(&self.state).requests
    }

    /// Faults that nobody has met with yet.
    pub fn faults(&self) -> usize {
        lock(&self.state).faults.len()
    }
}

async fn answer(
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, hyper::Error> {
    let method = request.uri().path().rsplit('/').next().map(str::to_owned);
    let mut asked = request.into_body().collect().await?.to_bytes();
    asked.advance(PREFIX.min(asked.len()));
    let (fault, message) = {
        let mut state = lock(&state);
        state.requests += 1;
        let message = match method.as_deref() {
            _ if state.has_no_cri => Err(UNIMPLEMENTED),
            Some("Version") => Ok(Version {
                name: "stand-in".to_owned(),
                version: "1".to_owned(),
            }
            .encode_to_vec()),
            Some("ListPodSandbox") => Ok(List {
                items: state.sandboxes.values().map(|(i, _)| i.clone()).collect(),
            }
            .encode_to_vec()),
            Some("PodSandboxStatus") => {
                let id = StatusRequest::decode(asked).map(|asked| asked.id);
                let id = id.unwrap_or_default();
                match state.sandboxes.get(&id) {
                    _ if state.withheld.contains(&id) => Err(INTERNAL),
                    Some((_, answer)) => Ok(answer.encode_to_vec()),
                    None => Err(NOT_FOUND),
                }
            }
            _ => Err(UNIMPLEMENTED),
        };
        (state.faults.pop_front(), message)
    };
    let message = match fault {
        Some(Fault::Unavailable) => Err(UNAVAILABLE),
        Some(Fault::Nonsense) => Ok(b"\xff\xff\x1b[31mnonsense".to_vec()),
        _ => message,
    };
    let mut frames = Vec::new();
    let status = *message.as_ref().err().unwrap_or(&0);
    if let Ok(message) = message {
        let mut bytes = vec![0];
        bytes.extend((message.len() as u32).to_be_bytes());
        let sent = match fault {
            Some(Fault::HalfAnswer) => &message[..message.len() / 2],
            _ => &message[..],
        };
        bytes.extend(sent);
        frames.push(Frame::data(Bytes::from(bytes)));
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.into());
    // Percent-encoded, as gRPC wants it.
    trailers.insert(
        "grpc-message",
        "not%20%1B[31mplain%0A".parse().expect("it is"),
    );
    frames.push(Frame::trailers(trailers));
    let frames = futures_util::stream::iter(frames.into_iter().map(Ok));
    Ok(Response::builder()
        .header("content-type", "application/grpc")
        .body(StreamBody::new(frames))
        .expect("the head is right"))
}
