//! The screen as a function of the state: no terminal, no clock, nothing is changed.

mod detail;
mod events;
mod head;
pub(in crate::top) mod help;
mod pods;
pub(in crate::top) mod theme;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};

pub(super) use self::theme::Theme;
use self::theme::Tone;
use super::state::{State, View};

/// From this many lines on, the events have a place below the pods.
const ROOM_FOR_EVENTS: u16 = 36;
/// Fewer are no use.
const SMALLEST: (u16, u16) = (40, 10);

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame, state: &State, theme: Theme) {
    let area = frame.area();
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        let (width, height) = SMALLEST;
        let text = format!("needs {width}x{height}");
        frame.render_widget(Line::raw(text), area);
        return;
    }
    let theme = Theme {
        old: state.silent.is_some(),
        ..theme
    };
    let head = head::lines(state, theme, area);
    let tall = area.height >= ROOM_FOR_EVENTS && state.view == View::Pods;
    let [top, middle, below, bottom] = Layout::vertical([
        Constraint::Length(head.len() as u16),
        Constraint::Min(3),
        Constraint::Length(if tall { area.height / 4 } else { 0 }),
        Constraint::Length(1),
    ])
    .areas(area);
    put(frame, top, head);
    match &state.view {
        View::Pods => pods::draw(frame, middle, state, theme),
        View::Detail { .. } => detail::draw(frame, middle, state, theme),
        View::Events => events::draw(frame, middle, state, theme),
    }
    if tall {
        events::draw(frame, below, state, theme);
    }
    put(frame, bottom, vec![footer(state, theme, bottom.width)]);
    if state.help {
        help::draw(frame, area, theme);
    }
}

pub(in crate::top) fn put(frame: &mut Frame, area: Rect, lines: Vec<Line>) {
    for (row, line) in area.rows().zip(lines) {
        frame.render_widget(line, row);
    }
}

/// A rule with a title in it.
pub(in crate::top) fn rule(title: Vec<Span<'_>>, width: u16, theme: Theme) -> Line<'_> {
    let dash = theme.sign("─", "-");
    let faint = theme.style(Tone::Faint);
    let mut spans = vec![Span::styled(format!("{dash} "), faint)];
    spans.extend(title);
    let used: usize = spans.iter().map(Span::width).sum();
    let left = usize::from(width).saturating_sub(used + 1);
    spans.push(Span::styled(format!(" {}", dash.repeat(left)), faint));
    Line::from(spans)
}

/// Keys that matter here, as many as there is room for, or what has just happened.
fn footer<'a>(state: &State, theme: Theme, width: u16) -> Line<'a> {
    if state.editing {
        return Line::from(vec![
            Span::styled(" filter: ", theme.style(Tone::Title)),
            Span::raw(match state.view {
                View::Events => state.event_filter.clone(),
                _ => state.pod_filter.clone(),
            }),
            Span::styled(theme.sign("▏", "_"), theme.style(Tone::Plain)),
            Span::styled("  Enter keeps it, Esc clears it", theme.style(Tone::Faint)),
        ]);
    }
    if let Some(message) = &state.message {
        return Line::styled(format!(" {message}"), theme.style(Tone::Title));
    }
    let freeze = if state.frozen { "go on" } else { "freeze" };
    let healthy = if state.hide_healthy {
        "show all"
    } else {
        "hide healthy"
    };
    let keys: Vec<(&str, &str)> = match state.view {
        View::Pods => vec![
            ("q", "quit"),
            ("?", "help"),
            ("Enter", "pod"),
            ("e", "events"),
            ("/", "filter"),
            ("s", "sort"),
            ("Space", freeze),
            ("h", healthy),
            ("r", "reverse"),
            ("x", "export"),
        ],
        View::Detail { .. } => vec![
            ("q", "quit"),
            ("?", "help"),
            ("Esc", "back"),
            ("e", "events"),
            ("Space", freeze),
            ("x", "export"),
        ],
        View::Events => vec![
            ("q", "quit"),
            ("?", "help"),
            ("Esc", "back"),
            ("/", "filter"),
            ("Down", "older"),
            ("g", "newest"),
            ("Space", freeze),
            ("x", "export"),
        ],
    };
    let mut spans = Vec::new();
    let mut used = 0;
    for (key, does) in keys {
        let needed = key.len() + does.len() + 3;
        if used + needed > usize::from(width) {
            break;
        }
        used += needed;
        spans.push(Span::styled(format!(" {key}"), theme.style(Tone::Title)));
        spans.push(Span::styled(format!(" {does} "), theme.style(Tone::Plain)));
    }
    Line::from(spans)
}

/// A text in at most so many cells, its middle left out: pods differ at their ends.
pub(in crate::top) fn shorten(text: &str, width: usize, theme: Theme) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let dots = theme.sign("…", "~");
    let Some(room) = width.checked_sub(1) else {
        return String::new();
    };
    let (head, tail) = (room - room / 2, room / 2);
    let first: String = text.chars().take(head).collect();
    let last: String = text.chars().skip(length - tail).collect();
    format!("{first}{dots}{last}")
}

/// `13:29:07` of an RFC 3339 time.
fn clock(time: &str) -> &str {
    time.get(11..19).unwrap_or(time)
}

#[cfg(test)]
mod tests;
