//! Brings figures and events, each by a task of its own, so that a slow agent never makes a key
//! wait; goes on asking where no answer comes.

use std::time::Duration;

use anyhow::Result;
use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::state::Update;
use crate::top::source::Source;
use crate::why::evidence::Failure;

/// Events of so long are asked for at the start.
const PAST: Duration = Duration::from_hours(1);
/// Between two tries to reach an agent that has gone.
const RETRY: Duration = Duration::from_secs(1);

/// Starts both; they end when the receiver goes.
pub(super) fn start<S: Source>(source: &S, every: Duration, to: &Sender<Update>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(figures(source.clone(), every, to.clone()));
    tasks.spawn(events(source.clone(), to.clone()));
    tasks
}

async fn figures<S: Source>(mut source: S, every: Duration, to: Sender<Update>) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = None;
    loop {
        ticks.tick().await;
        let update = match source.snapshot().await {
            Ok(snapshot) => {
                let now = Instant::now();
                let since_last = last.replace(now).map_or(Duration::ZERO, |last| now - last);
                Update::Figures(Box::new(snapshot), since_last)
            }
            Err(error) => Update::Silent(format!("{error:#}")),
        };
        if to.send(update).await.is_err() {
            return;
        }
    }
}

async fn events<S: Source>(mut source: S, to: Sender<Update>) {
    loop {
        let why = match follow(&mut source, &to).await {
            Ok(()) => "the agent has closed the stream".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        if to.send(Update::EventsSilent(why)).await.is_err() {
            return;
        }
        sleep(RETRY).await;
    }
}

/// Until the stream ends, or nobody reads any more.
async fn follow<S: Source>(source: &mut S, to: &Sender<Update>) -> Result<()> {
    let mut stream = source.events(PAST).await?;
    let mut update = Some(Update::StreamBegins);
    loop {
        if let Some(update) = update
            && to.send(update).await.is_err()
        {
            return Ok(());
        }
        match stream.next().await? {
            Some(line) => update = read(&line),
            None => return Ok(()),
        }
    }
}

fn read(line: &str) -> Option<Update> {
    if let Some(failure) = Failure::parse(line) {
        return Some(Update::Event(failure));
    }
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    let missed = value["kind"] == "missed";
    missed.then(|| Update::Missed(value["count"].as_u64().unwrap_or_default()))
}
