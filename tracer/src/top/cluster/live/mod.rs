//! The live view of all nodes: keys and news change the state, the state is drawn.

mod draw;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod keys;
mod state;

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use futures_util::StreamExt as _;
use ratatui::crossterm::event::EventStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use self::keys::Action;
use self::state::{State, Update};
use super::{Source, sorted, text};
use crate::config::ClusterConfig;
use crate::output::Signals;
use crate::top::live::draw::theme::Theme;
use crate::top::live::terminal::Screen;
use crate::top::live::{export, speaks_unicode};

/// News that may wait to be drawn.
const QUEUE: usize = 16;

/// Runs until a key or a signal ends it. What cannot be asked at all is told before the screen is taken.
pub(super) async fn run(
    config: &ClusterConfig,
    color: bool,
    source: &Source,
    signals: &mut Signals,
) -> Result<()> {
    let theme = Theme {
        color,
        unicode: speaks_unicode(|name| std::env::var(name).ok()),
        old: false,
    };
    let first = tokio::select! {
        first = source.cluster() => first?,
        () = signals.recv() => return Ok(()),
    };
    let mut state = State::new(config, source.api.base());
    state.update(Update::Cluster(Box::new(first)));
    let (opened, open) = watch::channel(config.node.clone());
    let (to, mut news) = mpsc::channel(QUEUE);
    let mut tasks = JoinSet::new();
    tasks.spawn(feed(source.clone(), config.interval, open, to));

    let mut stop =
        signal(SignalKind::from_raw(libc::SIGTSTP)).context("cannot listen to Ctrl-Z")?;
    let mut go_on = signal(SignalKind::from_raw(libc::SIGCONT)).context("cannot listen")?;
    let mut screen = Screen::take().context("cannot use this terminal; try `--once`")?;
    let mut keys = EventStream::new();
    let mut dirty = true;
    loop {
        if dirty {
            screen
                .terminal()
                .draw(|frame| draw::draw(frame, &state, theme))
                .context("cannot draw")?;
            dirty = false;
        }
        let action = tokio::select! {
            biased;
            () = signals.recv() => Action::Quit,
            event = keys.next() => match event {
                Some(Ok(event)) => keys::handle(&mut state, &event),
                Some(Err(error)) => return Err(error).context("cannot read keys"),
                // The terminal is gone.
                None => Action::Quit,
            },
            _ = stop.recv() => Action::Suspend,
            _ = go_on.recv() => Action::Redraw,
            Some(update) = news.recv() => {
                state.update(update);
                Action::Draw
            }
            // It ends by itself only if it panics, and then the terminal is given back already.
            Some(ended) = tasks.join_next() => {
                ended.context("what brings the figures ended badly")?;
                bail!("no figures come any more");
            }
        };
        opened.send_if_modified(|open| {
            let is_new = *open != state.open;
            open.clone_from(&state.open);
            is_new
        });
        match action {
            Action::Nothing => {}
            Action::Draw => dirty = true,
            Action::Redraw => {
                screen.terminal().clear().context("cannot draw")?;
                dirty = true;
            }
            Action::Quit => return Ok(()),
            Action::Suspend => {
                // The reader of keys must not eat what is typed at the shell.
                drop(keys);
                screen = screen.suspend().context("cannot suspend")?;
                keys = EventStream::new();
                dirty = true;
            }
            Action::Export => {
                state.message = Some(match export_seen(&state, source) {
                    Ok(path) => format!("exported to {path}"),
                    Err(error) => format!("cannot export: {error}"),
                });
                dirty = true;
            }
        }
        screen
            .capture_mouse(!state.frozen)
            .context("cannot use the mouse")?;
    }
}

/// Asks for all nodes every interval, and for the pods of the node that is open; for these at once when
/// one is opened. Ends when the receiver goes.
async fn feed(
    source: Source,
    every: std::time::Duration,
    mut open: watch::Receiver<Option<String>>,
    to: mpsc::Sender<Update>,
) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first figures are there already.
    ticks.tick().await;
    let mut all = false;
    loop {
        let mut updates = Vec::new();
        if all {
            updates.push(match source.cluster().await {
                Ok(cluster) => Update::Cluster(Box::new(cluster)),
                Err(error) => Update::Silent(format!("{error:#}")),
            });
        }
        let node = open.borrow_and_update().clone();
        if let Some(node) = node {
            updates.push(match source.pods(&node).await {
                Ok(pods) => Update::Pods(Box::new(pods)),
                Err(error) => Update::Silent(format!("{error:#}")),
            });
        }
        for update in updates {
            if to.send(update).await.is_err() {
                return;
            }
        }
        all = tokio::select! {
            _ = ticks.tick() => true,
            changed = open.changed() => {
                if changed.is_err() {
                    return;
                }
                false
            }
        };
    }
}

fn export_seen(state: &State, source: &Source) -> std::io::Result<String> {
    let Some(cluster) = &state.cluster else {
        return Err(std::io::Error::other("nothing is there yet"));
    };
    let (base, range) = (source.api.base(), source.range);
    let (value, name) = if let (Some(node), Some(pods)) = (&state.open, &state.pods) {
        let value = text::pods_json(base, range, state.opened_node(), pods);
        (value, node.as_str())
    } else {
        let rows = sorted(cluster, state.sort);
        (text::nodes_json(base, range, cluster, &rows), "nodes")
    };
    let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now());
    export::save(&value, &format!("{name}-{now}"), Path::new("."))
        .map(|path| path.display().to_string())
}
