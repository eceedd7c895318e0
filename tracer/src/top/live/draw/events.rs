//! The stream, newest first.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::theme::{Theme, Tone};
use super::{clock, put, rule, shorten};
use crate::output::printable;
use crate::top::live::state::State;
use crate::why::evidence::Failure;
use crate::why::words::count;

/// Draws the title and as many events as there is room for.
pub(super) fn draw(frame: &mut Frame, area: Rect, state: &State, theme: Theme) {
    let events = state.visible_events();
    let still = if state.held_events.is_some() {
        ", standing still (g: newest)"
    } else {
        ""
    };
    let mut title = vec![
        Span::styled("events", theme.style(Tone::Title)),
        Span::raw(format!(
            ", {} held, newest first{still}",
            count(events.len() as u64)
        )),
    ];
    if !state.event_filter.is_empty() {
        let filter = format!(", filter {:?}", state.event_filter);
        title.push(Span::styled(filter, theme.style(Tone::Warn)));
    }
    if state.scrolled > 0 {
        title.push(Span::raw(format!(", from {}", state.scrolled + 1)));
    }
    if let Some(why) = &state.events_silent {
        let why = format!(", none come: {}", printable(why));
        title.push(Span::styled(why, theme.style(Tone::Warn)));
    }
    let mut lines = vec![rule(title, area.width, theme)];
    if events.is_empty() {
        let why = if state.event_filter.is_empty() {
            "  nothing has failed of late"
        } else {
            "  no event matches the filter"
        };
        lines.push(Line::styled(why, theme.style(Tone::Faint)));
    }
    let height = usize::from(area.height).saturating_sub(1);
    let shown = events.iter().skip(state.scrolled).take(height);
    lines.extend(shown.map(|event| line(event, area.width, true, theme)));
    put(frame, area, lines);
}

/// Time, pod and what happened.
pub(super) fn line<'a>(event: &Failure, width: u16, with_pod: bool, theme: Theme) -> Line<'a> {
    let width = usize::from(width);
    let mut spans = vec![Span::styled(
        format!(" {} ", clock(&event.time)),
        theme.style(Tone::Faint),
    )];
    let mut used = 10;
    if with_pod {
        let room = (width / 4).clamp(16, 40);
        let pod = printable(&format!("{}/{}", event.namespace, event.pod)).into_owned();
        spans.push(Span::styled(
            format!("{:<room$} ", shorten(&pod, room, theme)),
            theme.style(Tone::Title),
        ));
        used += room + 1;
    }
    let sentence = shorten_end(&event.sentence, width.saturating_sub(used), theme);
    spans.push(Span::styled(sentence, theme.style(Tone::Plain)));
    Line::from(spans)
}

fn shorten_end(text: &str, width: usize, theme: Theme) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    kept + theme.sign("…", "~")
}
