//! Brings figures and events, each by a task of its own, so that a slow agent never makes a key
//! wait; goes on asking where no answer comes.

use std::time::Duration;

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
        // What goes wrong here goes wrong with the figures too, and is told there.
        if let Ok(mut stream) = source.events(PAST).await {
            while let Ok(Some(line)) = stream.next().await {
                let Some(update) = read(&line) else {
                    continue;
                };
                if to.send(update).await.is_err() {
                    return;
                }
            }
        }
        if to.is_closed() {
            return;
        }
        sleep(RETRY).await;
        if to.send(Update::StreamBegins).await.is_err() {
            return;
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
