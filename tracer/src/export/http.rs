//! The two HTTP services: metrics and health for the cluster, the API for people on the node.

use std::{
    convert::Infallible,
    fs,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use axum::{
    Extension, Router,
    body::Body,
    extract::{Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get},
};
use serde::Deserialize;
use tokio::{
    net::{TcpListener, UnixListener, UnixStream},
    sync::Semaphore,
};

use super::{
    events::Batch,
    negotiate::{self, Format},
    serve::{self, Client, Socket},
};
use crate::{config::Api, engine::Engine};

/// Answers that are made at the same time. The others wait in their order: what is asked for twice is made
/// once, and who asks and leaves leaves no work behind.
const MAKERS: usize = 4;

/// A service that is bound but does not serve yet.
pub struct Listener {
    socket: Socket,
    _file: Option<SocketFile>,
}

impl Listener {
    fn tcp(listener: TcpListener) -> Self {
        Self {
            socket: Socket::Tcp(listener),
            _file: None,
        }
    }

    /// Where it is bound, if that is TCP.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix(_) => None,
        }
    }
}

/// Removes the socket's file when the service ends.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!("cannot remove the API socket {}: {error}", self.0.display());
        }
    }
}

/// Binds the metrics and health service.
pub async fn bind_metrics(address: SocketAddr) -> Result<Listener> {
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address} for metrics: choose another address with --listen")
    })?;
    Ok(Listener::tcp(listener))
}

/// Binds the API.
pub async fn bind_api(api: &Api) -> Result<Option<Listener>> {
    match api {
        Api::None => Ok(None),
        Api::Tcp(address) => {
            let listener = TcpListener::bind(address).await.with_context(|| {
                format!("cannot listen on {address} for the API: choose another address with --api")
            })?;
            Ok(Some(Listener::tcp(listener)))
        }
        Api::Unix(path) => Ok(Some(bind_unix(path).await?)),
    }
}

async fn bind_unix(path: &Path) -> Result<Listener> {
    let shown = path.display();
    if let Ok(metadata) = fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            bail!("cannot listen on unix:{shown}: a file that is no socket is in the way");
        }
        if UnixStream::connect(path).await.is_ok() {
            bail!(
                "another agent answers at unix:{shown}: stop it, or choose another socket with --api"
            );
        }
        // A socket that nobody listens on: an agent that was killed left it.
        fs::remove_file(path).with_context(|| format!("cannot remove the old socket {shown}"))?;
    }
    // The names asked for are private. The mode is set before anybody can connect: a socket that
    // is bound under a temporary name does not have this one yet.
    let hidden = path.with_extension(format!("{}.tmp", std::process::id()));
    let listener = UnixListener::bind(&hidden).with_context(|| {
        format!("cannot listen on unix:{shown}: choose another socket with --api")
    })?;
    let file = SocketFile(hidden.clone());
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot set the mode of {shown}"))?;
    fs::rename(&hidden, path).with_context(|| format!("cannot make the socket {shown}"))?;
    std::mem::forget(file);
    Ok(Listener {
        socket: Socket::Unix(listener),
        _file: Some(SocketFile(path.to_owned())),
    })
}

/// Serves metrics and health until cancelled.
pub async fn serve_metrics(listener: Listener, engine: Arc<Engine>) {
    let stop = engine.stopping();
    serve::serve(
        &listener.socket,
        metrics_router(engine),
        Some(serve::UNREAD),
        stop,
    )
    .await;
}

/// Serves the API until cancelled.
pub async fn serve_api(listener: Listener, engine: Arc<Engine>) {
    let stop = engine.stopping();
    serve::serve(&listener.socket, api_router(engine), None, stop).await;
}

/// What the handlers of one service share.
#[derive(Clone)]
struct Service {
    engine: Arc<Engine>,
    makers: Arc<Semaphore>,
}

impl Service {
    fn new(engine: Arc<Engine>) -> Self {
        let makers = Arc::new(Semaphore::new(MAKERS));
        Self { engine, makers }
    }

    /// Makes an answer, which takes CPU, where it keeps nobody waiting but those who want one too.
    async fn make<T: Send + 'static>(
        self,
        make: impl FnOnce(&Engine) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let maker = self.makers.acquire_owned().await?;
        tokio::task::spawn_blocking(move || {
            let answer = make(&self.engine);
            drop(maker); // not earlier: who asked may be gone meanwhile
            answer
        })
        .await?
    }
}

/// `/metrics`, `/healthz`, `/readyz`.
fn metrics_router(engine: Arc<Engine>) -> Router {
    Router::new()
        .route("/metrics", only(get(metrics)))
        .route("/healthz", only(get(|| async { "ok\n" })))
        .route("/readyz", only(get(ready)))
        .with_state(Service::new(engine))
}

/// `/api/v1/snapshot`, `/api/v1/events`.
fn api_router(engine: Arc<Engine>) -> Router {
    Router::new()
        .route("/api/v1/snapshot", only(get(snapshot)))
        .route("/api/v1/events", only(get(events)))
        .with_state(Service::new(engine))
}

/// GET and nothing else: axum would answer a HEAD as it does a GET.
fn only<S: Clone + Send + Sync + 'static>(get: MethodRouter<S>) -> MethodRouter<S> {
    get.head(refuse).fallback(refuse)
}

async fn refuse() -> impl IntoResponse {
    (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET")])
}

async fn metrics(State(service): State<Service>, headers: HeaderMap) -> Response {
    // Either may come in several lines.
    let all = |name| {
        let lines = headers.get_all(name).iter();
        let lines: Vec<_> = lines.filter_map(|value| value.to_str().ok()).collect();
        lines.join(",")
    };
    let format = Format::wanted(&all(header::ACCEPT));
    let gzip = negotiate::wants_gzip(&all(header::ACCEPT_ENCODING));
    let made = service.make(move |engine| {
        let exposition = engine.metrics(format)?;
        Ok(if gzip {
            exposition.gzip()
        } else {
            exposition.plain()
        })
    });
    let mut response = match made.await {
        Ok(body) => body.into_response(),
        Err(error) => return failed(&error),
    };
    let mut set = |name, value| {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value))
    };
    set(header::CONTENT_TYPE, format.content_type());
    set(header::VARY, "accept, accept-encoding");
    if gzip {
        set(header::CONTENT_ENCODING, "gzip");
    }
    response
}

async fn ready(State(service): State<Service>) -> Response {
    match service.engine.not_ready() {
        None => "ok\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn snapshot(State(service): State<Service>) -> Response {
    let made = service.make(|engine| Ok(serde_json::to_vec(&engine.snapshot_now()?)?));
    match made.await {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> Response {
    tracing::error!("cannot answer: {error:#}");
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response()
}

const NDJSON: &str = "application/x-ndjson";

#[derive(Deserialize)]
struct EventsQuery {
    since: Option<String>,
    /// `false`: the held ones, then the end.
    follow: Option<bool>,
}

async fn events(
    State(service): State<Service>,
    Extension(client): Extension<Arc<Client>>,
    Query(query): Query<EventsQuery>,
) -> Response {
    let since: Option<Duration> = match query.since.as_deref().map(humantime::parse_duration) {
        None => None,
        Some(Ok(since)) => Some(since),
        Some(Err(error)) => {
            return (
                StatusCode::BAD_REQUEST,
                format!("since: {error}, such as 30m\n"),
            )
                .into_response();
        }
    };
    let engine = service.engine;
    let follow = query.follow != Some(false);
    if follow && let Err(count) = client.follow() {
        let text = format!("{count} readers follow the events already\n");
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    }
    let follower = engine.follow(since);
    let stream = futures_util::stream::unfold(
        (follower, engine),
        move |(mut follower, engine)| async move {
            let batch = if follow {
                let stop = engine.stopping();
                tokio::select! {
                    () = stop.cancelled() => return None,
                    batch = follower.next() => batch,
                }
            } else if follower.is_through() {
                return None;
            } else {
                follower.ready()
            };
            Some((
                Ok::<_, Infallible>(text(&batch, engine.node())),
                (follower, engine),
            ))
        },
    );
    ([(header::CONTENT_TYPE, NDJSON)], Body::from_stream(stream)).into_response()
}

/// One line for each, after one that says what a reader who is too slow did not get.
fn text(batch: &Batch, node: &str) -> String {
    let mut text = String::new();
    if batch.missed > 0 {
        let time = humantime::format_rfc3339_micros(std::time::SystemTime::now()).to_string();
        let count = batch.missed;
        let line =
            serde_json::json!({"time": time, "node": node, "kind": "missed", "count": count});
        text = format!("{line}\n");
    }
    for line in &batch.lines {
        text.push_str(line);
        text.push('\n');
    }
    text
}
