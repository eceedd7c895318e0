//! Where snapshots and events come from: an agent's API, or the engine in this process.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::client::{Client, Lines};
use crate::engine::Engine;
use crate::export::events::Follower;
use crate::export::snapshot::Snapshot;

/// Where snapshots come from. Copies ask the same agent or engine.
pub trait Source: Clone + Send + Sync + 'static {
    /// What is known now.
    fn snapshot(&mut self) -> impl Future<Output = anyhow::Result<Snapshot>> + Send;
    /// The failures of so long, then the new ones.
    fn events(&mut self, since: Duration) -> impl Future<Output = anyhow::Result<Stream>> + Send;
    /// Undoes what making the source did to the node.
    fn stop(self) -> impl Future<Output = ()> + Send;
    /// Is it this process that traces?
    fn in_process(&self) -> bool;
}

/// An agent's API.
#[derive(Clone)]
pub(super) struct Agent(pub Client);

impl Source for Agent {
    async fn snapshot(&mut self) -> anyhow::Result<Snapshot> {
        Ok(self.0.get_json("/api/v1/snapshot").await?)
    }

    async fn events(&mut self, since: Duration) -> anyhow::Result<Stream> {
        let path = format!("/api/v1/events?since={}ms", since.as_millis());
        Ok(Stream::Agent(self.0.stream_lines(&path).await?))
    }

    async fn stop(self) {}

    fn in_process(&self) -> bool {
        false
    }
}

/// The engine in this process.
impl Source for Arc<Engine> {
    async fn snapshot(&mut self) -> anyhow::Result<Snapshot> {
        let engine = Arc::clone(self);
        tokio::task::spawn_blocking(move || engine.snapshot_now()).await?
    }

    async fn events(&mut self, since: Duration) -> anyhow::Result<Stream> {
        Ok(Stream::Engine(VecDeque::new(), self.follow(Some(since))))
    }

    async fn stop(self) {
        Engine::stop(self).await;
    }

    fn in_process(&self) -> bool {
        true
    }
}

/// Events, one JSON object a line.
pub enum Stream {
    /// By an agent's API.
    Agent(Lines),
    /// By the engine in this process, with what was read and not given yet.
    Engine(VecDeque<Arc<str>>, Follower),
}

impl Stream {
    /// The next line; `None` at the end. May be cancelled without loss.
    pub async fn next(&mut self) -> anyhow::Result<Option<String>> {
        match self {
            Self::Agent(lines) => Ok(lines.next().await?),
            Self::Engine(read, follower) => loop {
                if let Some(line) = read.pop_front() {
                    return Ok(Some(line.to_string()));
                }
                let batch = follower.next().await;
                if batch.missed > 0 {
                    // As the API says it.
                    let missed = serde_json::json!({"kind": "missed", "count": batch.missed});
                    read.push_back(missed.to_string().into());
                }
                read.extend(batch.lines);
            },
        }
    }
}
