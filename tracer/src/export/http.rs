//! The two HTTP services: metrics and health for the cluster, the API for people on the node.

use std::{
    convert::Infallible,
    fs,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use axum::{
    Router,
    body::Body,
    extract::{Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Deserialize;
use tokio::{
    net::{TcpListener, UnixListener, UnixStream},
    sync::broadcast::error::RecvError,
};
use tokio_util::sync::CancellationToken;

use super::negotiate::{self, Format};
use crate::{config::Api, engine::Engine};

/// A service that is bound but does not serve yet.
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket, with its file.
    Unix(UnixListener, SocketFile),
}

/// Removes the socket's file when the service ends.
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!("cannot remove the API socket {}: {error}", self.0.display());
        }
    }
}

/// Binds the metrics and health service.
pub async fn bind_metrics(address: std::net::SocketAddr) -> Result<Listener> {
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address} for metrics: choose another address with --listen")
    })?;
    Ok(Listener::Tcp(listener))
}

/// Binds the API.
pub async fn bind_api(api: &Api) -> Result<Option<Listener>> {
    match api {
        Api::None => Ok(None),
        Api::Tcp(address) => {
            let listener = TcpListener::bind(address).await.with_context(|| {
                format!("cannot listen on {address} for the API: choose another address with --api")
            })?;
            Ok(Some(Listener::Tcp(listener)))
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
    Ok(Listener::Unix(listener, SocketFile(path.to_owned())))
}

/// Serves until cancelled.
pub async fn serve(listener: Listener, router: Router, stop: CancellationToken) -> Result<()> {
    let stopped = stop.cancelled_owned();
    let served = match listener {
        Listener::Tcp(listener) => {
            axum::serve(listener, router)
                .with_graceful_shutdown(stopped)
                .await
        }
        Listener::Unix(listener, _file) => {
            axum::serve(listener, router)
                .with_graceful_shutdown(stopped)
                .await
        }
    };
    Ok(served?)
}

/// `/metrics`, `/healthz`, `/readyz`.
pub fn metrics_router(engine: Arc<Engine>) -> Router {
    Router::new()
        .route("/metrics", get(metrics).head(refuse))
        .route("/healthz", get(|| async { "ok\n" }).head(refuse))
        .route("/readyz", get(ready).head(refuse))
        .with_state(engine)
}

/// `/api/v1/snapshot`, `/api/v1/events`.
pub fn api_router(engine: Arc<Engine>) -> Router {
    Router::new()
        .route("/api/v1/snapshot", get(snapshot).head(refuse))
        .route("/api/v1/events", get(events).head(refuse))
        .with_state(engine)
}

/// A HEAD, which axum would answer as it does a GET.
async fn refuse() -> impl IntoResponse {
    (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET")])
}

async fn metrics(State(engine): State<Arc<Engine>>, headers: HeaderMap) -> Response {
    // Either may come in several lines.
    let all = |name| {
        let lines = headers.get_all(name).iter();
        let lines: Vec<_> = lines.filter_map(|value| value.to_str().ok()).collect();
        lines.join(",")
    };
    let format = Format::wanted(&all(header::ACCEPT));
    let gzip = negotiate::wants_gzip(&all(header::ACCEPT_ENCODING));
    let made = move || {
        let exposition = engine.metrics(format)?;
        anyhow::Ok(if gzip {
            exposition.gzip()
        } else {
            exposition.plain()
        })
    };
    let mut response = match tokio::task::spawn_blocking(made).await {
        Ok(Ok(body)) => body.into_response(),
        Ok(Err(error)) => return failed(&error),
        Err(error) => return failed(&error.into()),
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

async fn ready(State(engine): State<Arc<Engine>>) -> Response {
    match engine.not_ready() {
        None => "ok\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn snapshot(State(engine): State<Arc<Engine>>) -> Response {
    match tokio::task::spawn_blocking(move || engine.snapshot_now()).await {
        Ok(Ok(snapshot)) => axum::Json(snapshot).into_response(),
        Ok(Err(error)) => failed(&error),
        Err(error) => failed(&error.into()),
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

async fn events(State(engine): State<Arc<Engine>>, Query(query): Query<EventsQuery>) -> Response {
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
    let (past, receiver) = engine.subscribe(since);
    let first = past
        .into_iter()
        .map(|line| with_newline(&line))
        .collect::<String>();
    if query.follow == Some(false) {
        return ([(header::CONTENT_TYPE, NDJSON)], first).into_response();
    }
    let stop = engine.stopping();
    let stream = futures_util::stream::unfold(
        (Some(first), receiver, stop, engine.node().to_owned()),
        |(first, mut receiver, stop, node)| async move {
            if let Some(first) = first.filter(|first| !first.is_empty()) {
                return Some((Ok::<_, Infallible>(first), (None, receiver, stop, node)));
            }
            let line = tokio::select! {
                () = stop.cancelled() => return None,
                line = receiver.recv() => line,
            };
            let text = match line {
                Ok(line) => with_newline(&line),
                Err(RecvError::Lagged(missed)) => missed_line(&node, missed),
                Err(RecvError::Closed) => return None,
            };
            Some((Ok(text), (None, receiver, stop, node)))
        },
    );
    ([(header::CONTENT_TYPE, NDJSON)], Body::from_stream(stream)).into_response()
}

fn with_newline(line: &str) -> String {
    format!("{line}\n")
}

/// Tells a reader who is too slow what it did not get.
fn missed_line(node: &str, count: u64) -> String {
    let time = humantime::format_rfc3339_micros(std::time::SystemTime::now()).to_string();
    let line = serde_json::json!({"time": time, "node": node, "kind": "missed", "count": count});
    format!("{line}\n")
}
