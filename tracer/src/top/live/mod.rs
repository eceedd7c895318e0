//! The live view: keys and news change the state, the state is drawn.

pub(super) mod draw;
pub(super) mod export;
mod feed;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
pub(super) mod keys;
mod log;
mod state;
pub(super) mod terminal;
mod trends;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::StreamExt as _;
use ratatui::crossterm::event::EventStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use self::draw::Theme;
use self::keys::Action;
use self::state::State;
use self::terminal::Screen;
use super::source::Source;
use crate::config::TopConfig;
use crate::output::Signals;

/// News that may wait to be drawn.
const QUEUE: usize = 1024;
/// News taken over before the next drawing.
const BATCH: usize = 512;
/// How often the age of an answer that does not come is drawn.
const TICK: Duration = Duration::from_secs(1);
/// Events alone make a new picture this often at most: a flood must not cost a CPU.
const EVENTS_DRAW: Duration = Duration::from_millis(500);

/// Runs until a key or a signal ends it.
pub(super) async fn run<S: Source>(
    config: &TopConfig,
    source: &S,
    signals: &mut Signals,
) -> anyhow::Result<()> {
    let theme = Theme {
        color: config.color,
        unicode: speaks_unicode(|name| std::env::var(name).ok()),
        old: false,
    };
    let (to, mut news) = mpsc::channel(QUEUE);
    let mut tasks = feed::start(source, config.interval, &to);
    drop(to);
    let mut stop =
        signal(SignalKind::from_raw(libc::SIGTSTP)).context("cannot listen to Ctrl-Z")?;
    let mut go_on = signal(SignalKind::from_raw(libc::SIGCONT)).context("cannot listen")?;
    let mut state = State::new(config, source.in_process());
    let mut screen = Screen::take().context("cannot use this terminal; try `tracer top --once`")?;
    let mut keys = EventStream::new();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut batch = Vec::with_capacity(BATCH);
    let mut drawn = Instant::now();
    let mut dirty = true;
    loop {
        if dirty {
            screen
                .terminal()
                .draw(|frame| draw::draw(frame, &state, theme))
                .context("cannot draw")?;
            (dirty, drawn) = (false, Instant::now());
        }
        let action = tokio::select! {
            // Keys before news, so that a flood makes nobody wait.
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
            _ = ticks.tick() => {
                state.tick(TICK);
                Action::Draw
            }
            // They end by themselves only if they panic, and then the terminal is given back already.
            Some(ended) = tasks.join_next() => {
                ended.context("what brings the figures ended badly")?;
                bail!("no figures come any more");
            }
            _ = news.recv_many(&mut batch, BATCH) => {
                let figures = batch.iter().any(state::Update::changes_figures);
                batch.drain(..).for_each(|update| state.update(update));
                if figures || drawn.elapsed() >= EVENTS_DRAW {
                    Action::Draw
                } else {
                    Action::Nothing
                }
            }
        };
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
                state.message = Some(match export::write(&state, Path::new(".")) {
                    Ok(path) => format!("exported to {}", path.display()),
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

/// Does the locale's character set hold blocks and dots? As the C library decides it.
pub(super) fn speaks_unicode(variable: impl Fn(&str) -> Option<String>) -> bool {
    let set = |name: &&str| variable(name).filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(set);
    let locale = locale.unwrap_or_default().to_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

#[cfg(test)]
mod tests {
    use super::speaks_unicode;

    #[test]
    fn the_locale_decides_on_blocks() {
        let of = |pairs: &'static [(&str, &str)]| {
            speaks_unicode(|name| {
                let pair = pairs.iter().find(|(n, _)| *n == name);
                pair.map(|(_, value)| (*value).to_owned())
            })
        };
        assert!(of(&[("LANG", "en_US.UTF-8")]));
        assert!(of(&[("LC_ALL", ""), ("LC_CTYPE", "C.utf8"), ("LANG", "C")]));
        assert!(!of(&[("LC_ALL", "C"), ("LANG", "en_US.UTF-8")]));
        assert!(!of(&[]));
    }
}
